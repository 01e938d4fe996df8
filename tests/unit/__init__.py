"""Tests of one room of the house each."""
