"""Writes again what is in memory, when the store turns out to have gone back in time.

The session whose write has shown it is written anyway. Those that have no event meanwhile would
leave memory, and the older states in the store would be what is left of them.
"""

from __future__ import annotations

from typing import Final

from actorbot._residents.table import Table
from actorbot._turns.session_actor import SessionActor
from actorbot._turns.shared import TurnShared

__all__ = ["WriteAnew"]

AT_ONCE: Final = 500  # sessions, each time
PAUSE: Final = 0.1  # seconds between two times: events and their flushes go on meanwhile


class WriteAnew:
    """Hands the sessions in memory to the flusher once more, some at a time. Any thread."""

    def __init__(self, shared: TurnShared, table: Table) -> None:
        self._shared = shared
        self._table = table
        self._left: list[SessionActor] = []

    def begin(self) -> None:
        """Begin with all that are in memory now."""
        self._left = list(self._table.resident())
        self._go_on()

    def _go_on(self) -> None:
        if self._table.closed is not None:
            return
        some, self._left = self._left[:AT_ONCE], self._left[AT_ONCE:]
        self._shared.flusher.write_anew(some)
        if self._left:
            clock = self._shared.clock
            clock.call_at(clock.monotonic() + PAUSE, self._go_on)
