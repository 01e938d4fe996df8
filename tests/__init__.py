"""Tests by what they prove; CONTRIBUTING.md says what is where."""

from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent  # of the tree
