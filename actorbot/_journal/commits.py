"""Groups of entries, brought to the file: what becomes of them when something fails."""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Final

from actorbot._journal.ahead import Ahead
from actorbot._journal.entry import Entry
from actorbot._journal.file import JournalFile
from actorbot._journal.places import Place, Places
from actorbot._journal.removals import Removals
from actorbot._runtime.clock import Clock
from actorbot._state.record import Record
from actorbot._state.values import UndecodableError
from actorbot.errors import ActorbotError, JournalError, OutcomeUnknownError, StoreUnavailableError

__all__ = ["PAUSE", "Commits", "Part"]

logger = logging.getLogger("actorbot")

PAUSE: Final = 1.0  # seconds between two attempts to make a new file, or to remove entries

Part = tuple[Sequence[Ahead], ActorbotError | None]
"""Some entries of a group, and why they are not committed."""


class Commits:
    """Writes to the file, and has a new one made when it fails.

    On the journal's thread; any thread may look at what is public.
    """

    def __init__(self, file: JournalFile, clock: Clock, while_writing: Callable[[], None]) -> None:
        self._file = file
        self._clock = clock
        self._while_writing = while_writing  # called when the disk is about to be waited for
        self.places = Places()
        self.took = 0.0
        """Seconds for the last transaction."""
        self.broken: str | None = None
        """Why nothing can be committed now."""
        self.hampered: str | None = None
        """Why the file grows, although events can be committed."""
        # Why the file must be renewed before it is used again.
        self._failure: Exception | None = None
        self._renew_from = 0.0  # the monotonic second from which a renewal may be tried

    def index(self) -> None:
        """Note what is in the file. Raises: JournalError."""
        self.places.replace({record.session_id: place for record, place in self.rows()})

    def rows(self) -> Iterator[tuple[Record, Place]]:
        """Yield what is in the file, and where. Raises: JournalError."""
        for number, data in self._file.rows():
            try:
                record = Entry.from_bytes(data).record
            except UndecodableError as error:
                raise JournalError(
                    "journal",
                    f"row {number} of {self._file.path} is damaged ({error}). The file was left as it is."
                    " Restore it from a copy, or move it away to start without the events that only it holds",
                ) from error
            yield record, Place(number, record.version, len(data))

    def commit(self, batch: Sequence[Ahead], removals: Removals) -> list[Part]:
        """Commit what can be committed; return what became of *batch*, in parts.

        Raises: OutcomeUnknownError if the disk fails; what *removals* alone met.
        """
        try:
            self._write(batch, removals)
        except Exception as error:
            if isinstance(error, ActorbotError):
                raise
            if removals:
                self.hampered = f"{self._file.path} keeps what it no longer needs: {type(error).__name__}: {error}"
            if not batch:
                raise
            return self._commit_apart(batch, removals, error)
        if removals:
            self.hampered = None
        return [(batch, None)]

    def _commit_apart(self, batch: Sequence[Ahead], removals: Removals, error: Exception) -> list[Part]:
        """Do without what cannot be written: without *removals*, or each of *batch* by itself.

        The *error* is not the disk's.
        """
        if removals:
            return self.commit(batch, Removals())
        if len(batch) == 1:
            return [(batch, _refuse(batch[0], error))]
        came: list[Part] = []
        for ahead in batch:
            try:
                came += self.commit([ahead], Removals())
            except ActorbotError as failure:
                came.append(([ahead], failure))
        return came

    def _write(self, batch: Sequence[Ahead], removals: Removals) -> None:
        if self._failure is not None:
            self._renew(self._failure)
        rows, places = self.places.plan(batch, removals.flushed)
        self._while_writing()
        began = perf_counter()
        try:
            self._file.commit(rows, removals.conflicts)
        except sqlite3.DataError:
            raise  # a row is too large
        except (sqlite3.Error, OSError) as error:
            logger.error("the journal could not be written, and is renewed: %s", error)
            self._failure, self._renew_from = error, 0.0
            self._renew(error)
            try:
                self._file.commit(rows, removals.conflicts)  # the first time on this file
            except (sqlite3.Error, OSError) as second:
                self._failure = second
                raise self._unwritable(second) from second
        self.took = perf_counter() - began
        self.places.note(places)

    def _renew(self, cause: Exception) -> None:
        """Go on with a new file. Raises: OutcomeUnknownError if that is not possible now."""
        now = self._clock.monotonic()
        try:
            if now < self._renew_from:
                raise cause
            self._file.renew()
            self.index()
        except (sqlite3.Error, OSError, ActorbotError) as error:
            self._failure, self._renew_from = error, max(self._renew_from, now + PAUSE)
            raise self._unwritable(error) from error
        self._failure = self.broken = None

    def _unwritable(self, error: Exception) -> OutcomeUnknownError:
        self.broken = f"{self._file.path} cannot be written: {error}"
        reason = f"{self.broken}; the event was rolled back. {_advice(error)} is tried again"
        return OutcomeUnknownError("journal", reason)


def _advice(error: Exception) -> str:
    if isinstance(error, ActorbotError):  # which says it
        return "It"
    if isinstance(error, FileExistsError | FileNotFoundError | NotADirectoryError | PermissionError):
        return "See to its folder; it"
    return "Free space or mend the disk; it"


def _refuse(ahead: Ahead, error: Exception) -> StoreUnavailableError:
    reason = f"it cannot be written to the journal: {type(error).__name__}: {error}"
    ours = StoreUnavailableError("journal", reason, session_id=ahead.session_id)
    ours.__cause__ = error
    return ours
