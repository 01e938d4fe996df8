"""How far a server's clock is from the clock here.

By the server's clock sessions end, so that bots whose clocks differ agree. A store with a server
has one of these: it writes what `there` returns, and hands out what `here` returns.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from typing import Final

from actorbot._state.record import Record
from actorbot.errors import StoreUnavailableError
from actorbot.stores._findings import CLOCK_WARNS, Finding, judge_clock

__all__ = ["ServerClock"]

logger = logging.getLogger("actorbot")

SET: Final = 1.0  # seconds that the clock here has gone ahead of the monotonic one: somebody set it


class ServerClock:
    """The clock of the server of one store. Its methods may run in any thread; `measure` blocks."""

    def __init__(self, store: str, ask: Callable[[], float | None]) -> None:
        """*ask* returns the server's wall-clock seconds, or `None` if this user may not ask.

        It may raise StoreUnavailableError.
        """
        self._store = store
        self._ask = ask
        self._ahead = 0
        # What is added to a time here. Whole seconds, so that a record comes back exactly as it
        # was; and 0 for a small difference, so that no bot sees a time tremble.
        self._warned = 0.0  # the difference that was warned of last
        self._offset: float | None = None  # between the two clocks here, when it was measured

    def measure(self) -> Finding:
        """Ask the server, note the difference, and warn if it is large and new.

        Raises: StoreUnavailableError.
        """
        began = time.monotonic()
        self._offset = time.time() - began
        told = self._ask()
        if told is None:
            return Finding("clock", "warning", "cannot be told, so sessions end by the clock here")
        took = time.monotonic() - began
        difference = told - (time.time() - took / 2)
        self._ahead = round(difference) if abs(difference) > CLOCK_WARNS else 0
        found = judge_clock(difference)
        if abs(difference - self._warned) > CLOCK_WARNS:
            self._warned = difference if self._ahead else 0.0
            level = logging.WARNING if self._ahead else logging.INFO
            logger.log(level, "%s: the server's clock is %s", self._store, found.text)
        return found

    def keep(self) -> None:
        """Measure again; if the server does not answer, the last difference stands."""
        with suppress(StoreUnavailableError):
            self.measure()

    def keep_if_set(self) -> None:
        """Measure again if the clock here was set since the last time, as by NTP after a sleep."""
        if self._offset is not None and abs(time.time() - time.monotonic() - self._offset) > SET:
            self.keep()

    @property
    def complaint(self) -> str:
        """What `health()` says of the difference; `""` if it is small."""
        ahead = self._ahead
        if not ahead:
            return ""
        return f"the clock of the {self._store} server is {judge_clock(ahead).text}"

    def now(self) -> float:
        """Return the wall-clock seconds by the server's clock."""
        return time.time() + self._ahead

    def there(self, record: Record) -> Record:
        """Return *record*, which is stamped by the clock here, stamped by the server's clock."""
        return _shifted(record, self._ahead)

    def here(self, record: Record) -> Record:
        """Return *record*, which is stamped by the server's clock, stamped by the clock here."""
        return _shifted(record, -self._ahead)


def _shifted(record: Record, seconds: int) -> Record:
    if not seconds:
        return record
    return replace(record, last_activity=record.last_activity + seconds, expires_at=record.expires_at + seconds)
