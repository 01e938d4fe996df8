"""Tests of `_runtime`: where code runs, and what time it is."""
