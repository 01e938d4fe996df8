"""A place whose time stands still."""

from __future__ import annotations

import pytest

from actorbot._manager import parts
from tests.unit.ownership.places import Place


@pytest.fixture
def place(monkeypatch: pytest.MonkeyPatch) -> Place:
    """A server, by whose clock all owners go."""
    place = Place()
    monkeypatch.setattr(parts, "real_clock", lambda _: place.clock)
    return place
