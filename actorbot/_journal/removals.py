"""Entries that the journal no longer needs, and lost states that it is to set aside."""

from __future__ import annotations

from itertools import islice
from typing import Final

__all__ = ["REMOVED", "Removals"]

# Entries that one transaction removes at most. SQLite takes 32,766 parameters, two for each entry.
REMOVED: Final = 4_096


class Removals:
    """What is to be removed and set aside. Who uses it holds the journal's lock."""

    def __init__(self) -> None:
        self.flushed: dict[str, int] = {}
        """By session, the version that is no longer needed."""
        self.conflicts: list[bytes] = []
        """Entries that a conflict took."""

    def __bool__(self) -> bool:
        """Tell whether there is anything to do."""
        return bool(self.flushed or self.conflicts)

    def take(self) -> Removals:
        """Take out what one transaction removes, and all conflicts.

        A conflict may be set aside before its entry is removed, never after.
        """
        taken = Removals()
        taken.conflicts, self.conflicts = self.conflicts, []
        if len(self.flushed) <= REMOVED:
            taken.flushed, self.flushed = self.flushed, {}
        else:
            taken.flushed = dict(islice(self.flushed.items(), REMOVED))
            for session_id in taken.flushed:
                del self.flushed[session_id]
        return taken

    def put_back(self, taken: Removals) -> None:
        """Have *taken* removed and set aside another time; what has come since is newer."""
        self.flushed = taken.flushed | self.flushed
        self.conflicts = taken.conflicts + self.conflicts
