"""Tests of the console bot."""
