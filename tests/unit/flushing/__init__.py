"""Tests of `_flushing`: how committed sessions reach the store."""
