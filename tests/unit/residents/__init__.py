"""Tests of `_residents`: which sessions are in memory."""
