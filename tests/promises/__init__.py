"""Tests of the promises that the README makes, over every store."""
