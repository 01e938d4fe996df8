"""Tests of `_state`: what a session holds, and its written forms."""
