"""Tests of `actorbot.testing`."""
