"""Tests of `_turns`: one event's stay in its session."""
