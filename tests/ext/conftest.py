"""What tests about the owner of a store share."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest


@pytest.fixture
def told() -> Iterator[list[int]]:
    """The SIGTERMs that the program has heard, which does no more about them."""
    heard: list[int] = []
    before = signal.signal(signal.SIGTERM, lambda number, _: heard.append(number))
    yield heard
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def short_lease(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have owners look often whether they still are."""
    monkeypatch.setattr("actorbot._ownership.keeper.LEASE", 0.1)
