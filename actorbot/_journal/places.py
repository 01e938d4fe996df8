"""Which row of the journal's file has the entry of which session."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from actorbot._journal.ahead import Ahead
from actorbot._journal.entry import pack_entry
from actorbot._state.committed import VERSION

__all__ = ["Place", "Places", "Row"]

Row = tuple[int, bytes]
"""A number, and an entry's bytes; empty where there is no entry any more."""


class Place(NamedTuple):
    """Where the newest entry of a session stands."""

    number: int
    version: int
    size: int


class Places:
    """The rows that the file has. Changed on the journal's thread; any thread may look."""

    def __init__(self) -> None:
        self._places: dict[str, Place] = {}
        self._last = 0  # the greatest number of a row
        self._free: list[int] = []  # numbers of rows that are empty
        self.bytes = 0
        """Of all entries."""

    def get(self, session_id: str) -> Place | None:
        """Return where the session's entry stands, if there is one."""
        return self._places.get(session_id)

    def ids(self) -> list[str]:
        """List the sessions that have an entry."""
        return list(self._places)

    def replace(self, found: dict[str, Place]) -> None:
        """Take *found* for all that the file has.

        A number that was given to a row is not given again: that row may be about to be written.
        """
        self._places = found
        self._last = max([self._last, *(place.number for place in found.values())])
        self._free.clear()
        self.bytes = sum(place.size for place in found.values())

    def plan(self, batch: Iterable[Ahead], flushed: dict[str, int]) -> tuple[list[Row], dict[str, Place]]:
        """Return the rows to write, and the places to `note` once they are written.

        *flushed* has the versions that the store has: the rows of these become empty.
        """
        rows: list[Row] = []
        places: dict[str, Place] = {}
        for ahead in batch:
            session_id, committed = ahead.session_id, ahead.committed
            data = pack_entry(session_id, committed, ahead.write_ids, ahead.lineages)
            place = self._places.get(session_id)
            number = self._new_number() if place is None else place.number
            rows.append((number, data))
            places[session_id] = Place(number, committed[VERSION], len(data))
        for session_id, version in flushed.items():
            place = self._places.get(session_id)
            if place is not None and place.version <= version and session_id not in places:
                rows.append((place.number, b""))
                places[session_id] = Place(place.number, version, 0)
        return rows, places

    def _new_number(self) -> int:
        if self._free:
            return self._free.pop()
        self._last += 1
        return self._last

    def note(self, places: dict[str, Place]) -> None:
        """Note that the rows of *places* are written."""
        for session_id, place in places.items():
            old = self._places.pop(session_id, None)
            self.bytes += place.size - (0 if old is None else old.size)
            if place.size:
                self._places[session_id] = place
            else:
                self._free.append(place.number)
