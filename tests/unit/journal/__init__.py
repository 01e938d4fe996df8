"""Tests of `_journal`: the durable copy of what the store has not yet."""
