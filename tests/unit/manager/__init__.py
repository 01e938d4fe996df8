"""Tests of `_manager`: what a bot embeds."""
