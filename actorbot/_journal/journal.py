"""The journal: what was acknowledged is on this machine's disk, in one row per session, until the store has it."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from itertools import islice
from time import perf_counter
from typing import Final, NamedTuple

from actorbot._journal.entry import Entry, pack_entry
from actorbot._journal.file import JournalFile
from actorbot._runtime.clock import Clock
from actorbot._runtime.deadline_thread import LATE, DeadlineThread
from actorbot._runtime.threads import Lane
from actorbot._state.committed import VERSION, Committed, Lineage
from actorbot._state.values import UndecodableError
from actorbot.errors import ActorbotError, JournalError, ManagerClosedError, OutcomeUnknownError, StoreUnavailableError

__all__ = ["Journal"]

logger = logging.getLogger("actorbot")

MANY: Final = 256  # entries in one transaction, at most
REMOVED: Final = 4_096  # entries that one transaction removes, at most: SQLite takes 32,766 parameters, two for each
ELSEWHERE: Final = 4e-5  # seconds that an event takes outside of the journal, about
OPENING: Final = 600.0  # seconds to check and read what an earlier manager has left
PAUSE: Final = 1.0  # seconds between two attempts to make a new file, or to remove entries

Settle = Callable[["ActorbotError | None"], None]
"""Told what became of an entry, at home; once."""


_Put = tuple[str, Committed, bytes, tuple[Lineage, ...], Settle]
"""What is to be committed: a session's id, what its turn has left, the write ids that the store has confirmed, lineages; who is told."""


class _Place(NamedTuple):
    """Where the newest entry of a session stands."""

    number: int
    version: int
    size: int


class Journal:
    """Commits entries in groups: all that come while a transaction is on its way go into the next. Used from any thread.

    It has a thread of its own. A transaction that does not come back within the deadline is left behind; until it does, the journal
    takes nothing.
    """

    def __init__(
        self,
        file: JournalFile,
        clock: Clock,
        deadline: float,
        post: Callable[..., object],
        on_size: Callable[[int], None],
        *,
        keeps: bool,
    ) -> None:
        self.lineage = os.urandom(8)
        """Names the versions that this manager commits."""
        self._file = file
        self._clock = clock
        self._post = post
        self._on_size = on_size  # told how many bytes it holds, on its thread
        self.yields = not keeps
        """Whether entries go when the store has them: not where the store does not outlive the process."""
        self._thread = DeadlineThread("actorbot-journal", "journal", clock, deadline)
        self._lock = threading.Lock()  # guards the seven below
        self._closed = False
        self._asked: list[_Put] = []
        self.newest = 0
        """The greatest version that was to be committed, of any session."""
        self._flushed: dict[str, int] = {}  # the versions that are no longer needed
        self._conflicts: list[bytes] = []  # to be set aside
        self._working = False
        self._resting = False  # whether removals wait for a later attempt, or for the next entry
        self._teller = Lane("actorbot-journal-tells")
        # The rest is touched on the thread only, but for looking at it.
        self._untold: list[tuple[Sequence[_Put], ActorbotError | None]] = []
        self._places: dict[str, _Place] = {}
        self._last = 0  # number of a row
        self._took = 0.0  # seconds for the last transaction
        self._free: list[int] = []  # numbers of rows that are empty
        self._away = False  # whether a transaction was left behind, which has the file
        self._failure: Exception | None = None  # that of the file in use: it must be renewed before it is used again
        self._renew_from = 0.0  # the monotonic second from which that may be tried
        self.bytes = 0
        """Of all entries."""
        self.broken: str | None = None
        """Why it takes nothing now."""

    # --- life ---------------------------------------------------------------------------------------------------------

    def open(self) -> Future[None]:
        """Open the file and read what is in it. The future fails with StoreLockedError, JournalError, …"""
        return self._thread.call(self._open, deadline=OPENING)

    def _open(self) -> None:
        self._file.open()
        try:
            self._index()
        except BaseException:
            self._file.close()
            raise

    def _index(self) -> None:
        places: dict[str, _Place] = {}
        for number, data in self._file.rows():
            try:
                record = Entry.from_bytes(data).record
            except UndecodableError as error:
                raise JournalError(
                    "journal",
                    f"row {number} of {self._file.path} is damaged ({error}). The file was left as it is. Restore it from a copy, or move"
                    " it away to start without the events that only it holds",
                ) from error
            places[record.session_id] = _Place(number, record.version, len(data))
            if not self.yields and record.is_expired(self._clock.wall()):
                self._flushed[record.session_id] = record.version
            self._last = max(self._last, number)
        self._places = places
        self._free.clear()
        self.bytes = sum(place.size for place in places.values())

    def close(self) -> Future[None]:
        """Commit what was asked for so far and close the file; then the thread ends."""
        with self._lock:
            self._closed, self._resting = True, False
        closed = self._thread.call(self._close)
        self._thread.close()
        return closed

    def _close(self) -> None:
        try:
            while self._commit_group():
                pass
        finally:
            self._teller.close()
            if not self._away:
                self._file.close()

    # --- what it holds ------------------------------------------------------------------------------------------------

    def holds(self, session_id: str) -> bool:
        """Tell whether there is an entry of the session, which is then newer than what the store has, or the same."""
        return session_id in self._places

    def version(self, session_id: str) -> int:
        """Return the version of the session's entry, 0 if there is none."""
        place = self._places.get(session_id)
        return 0 if place is None else place.version

    def ids(self) -> list[str]:
        """List the sessions that have an entry."""
        return list(self._places)

    def conflicts(self) -> Future[list[Entry]]:
        """Return a future of what was set aside, also by earlier managers, oldest first."""
        return self._thread.call(lambda: [Entry.from_bytes(data) for data in self._file.conflicts()])

    def read(self, session_id: str) -> Future[Entry | None]:
        """Return a future of the session's entry; it fails with StoreUnavailableError."""
        return self._thread.call(self._read, session_id)

    def _read(self, session_id: str) -> Entry | None:
        self._check_here()
        place = self._places.get(session_id)
        with self._lock:
            flushed = self._flushed.get(session_id, -1)
        if place is None or place.version <= flushed:
            return None  # or it is to go: what was lost to a conflict must not be read again
        try:
            return Entry.from_bytes(self._file.read(place.number))
        except (sqlite3.Error, UndecodableError) as error:
            raise StoreUnavailableError(
                "journal", f"{self._file.path} cannot be read: {error}", session_id=session_id
            ) from error

    # --- committing ---------------------------------------------------------------------------------------------------

    def put(
        self,
        session_id: str,
        committed: Committed,
        write_ids: bytes,
        lineages: tuple[Lineage, ...],
        settle: Settle,
    ) -> None:
        """Commit the Entry of these in place of the one that the session has; *settle* is called at home when that is done or has failed.

        *write_ids* are those of the record that the store has confirmed.
        """
        with self._lock:
            closed = self._closed
            self.newest = max(self.newest, committed[VERSION])
            if not closed:
                self._asked.append((session_id, committed, write_ids, lineages, settle))
            if idle := not (closed or self._working):
                self._working = True
        if idle:
            self._thread.submit(self._work)
        elif closed:
            self._post(settle, ManagerClosedError("the manager was closed before the event was committed"))

    def forget(self, session_id: str, version: int) -> None:
        """Note that the store has *version* of the session: its entry is no longer needed."""
        if self.yields:
            self._remove(session_id, version)

    def set_aside(self, session_id: str, committed: Committed) -> None:
        """Keep what is lost to a conflict apart, where no session is read from."""
        self._remove(session_id, committed[VERSION], pack_entry(session_id, committed, b"", ()))

    def _remove(self, session_id: str, version: int, *conflict: bytes) -> None:
        with self._lock:
            self._flushed[session_id] = version
            self._conflicts += conflict
            if self._working or self._resting:
                return
        self._wake()

    def _wake(self) -> None:
        with self._lock:
            self._resting = False
            if self._working or self._closed:
                return
            self._working = True
        self._thread.submit(self._work)

    def _work(self) -> None:
        """Commit what has come, a group, and then let in who waits for the thread: reads."""
        if self._commit_group():
            self._thread.submit(self._work)

    def _commit_group(self) -> bool:
        """Commit a group; `False` if there was nothing, or if another thread goes on."""
        with self._lock:
            size = self._group_size()
            batch, self._asked = self._asked[:size], self._asked[size:]
            flushed, conflicts = self._take_removals() if batch or not self._resting else ({}, [])
            self._working = bool(batch or flushed)
        if not (batch or flushed):
            for told, error in self._untold:
                self._tell(told, error)
            self._untold.clear()
            return False
        answer = self._thread.run(partial(self._left_behind, batch), self._commit, batch, flushed, conflicts)
        if answer is LATE:
            self._thread.submit(self._came_back)
            return False
        if batch:
            self._untold.append((batch, answer.error))
        elif answer.error is not None:
            self._rest()
        return True

    def _take_removals(self) -> tuple[dict[str, int], list[bytes]]:
        """Return what to remove next and all conflicts, which may come before their removal, never after. The caller holds the lock."""
        conflicts, self._conflicts = self._conflicts, []
        if len(self._flushed) <= REMOVED:
            flushed, self._flushed = self._flushed, {}
        else:
            flushed = dict(islice(self._flushed.items(), REMOVED))
            for session_id in flushed:
                del self._flushed[session_id]
        return flushed, conflicts

    def _rest(self) -> None:
        """Leave what could not be removed to a later attempt: nobody waits for it, and the disk may be full for hours."""
        with self._lock:
            self._resting = True
        self._clock.call_at(self._clock.monotonic() + PAUSE, self._wake)

    def _group_size(self) -> int:
        """Return how many entries go into the next transaction: half of what is in flight, or, on a slow disk, as many as there are.

        With halves, the loop handles the events of one while the disk has the other. With 4, 16, 32 and 256 in flight that gave 1.07,
        1.1, 1.2 and 1.2 times as many events/s as up to 48 at a time. A disk that takes longer for a half than the loop for the
        whole would do the work of one transaction in two.
        """
        in_flight = len(self._asked) + sum(len(batch) for batch, _ in self._untold)
        half = max(1, in_flight // 2)
        return min(half, MANY) if self._took < in_flight * ELSEWHERE else MANY

    def _tell_while_writing(self) -> None:
        """Have the callers of the last transaction told by another thread, which gets the interpreter when this one is at the disk.

        Told from here, they would take it at once, and the disk would wait until they have made their next events.
        """
        for told, error in self._untold:
            self._teller.submit(partial(self._tell, told, error))
        self._untold.clear()

    def _tell(self, batch: Sequence[_Put], error: ActorbotError | None) -> None:
        self._post(_settle, batch, error)

    def _left_behind(self, batch: Sequence[_Put], error: ActorbotError) -> None:
        self._away, self.broken = True, f"{self._file.path} does not answer"
        self._untold.append((batch, error))
        self._work()

    def _came_back(self) -> None:
        """Use the file again, after a transaction that was left behind; what became of that stands in `_places`."""
        self._away = False
        if self._failure is None:
            self.broken = None
        if self._closed:
            self._file.close()
        self._wake()

    def _commit(self, batch: Sequence[_Put], flushed: dict[str, int], conflicts: list[bytes]) -> None:
        try:
            self._write(batch, flushed, conflicts)
        except BaseException:
            with self._lock:  # an entry that nobody removes any more would take room for good
                self._flushed = flushed | self._flushed
                self._conflicts = conflicts + self._conflicts
            raise

    def _write(self, batch: Sequence[_Put], flushed: dict[str, int], conflicts: list[bytes]) -> None:
        self._check_here()
        if self._failure is not None:
            self._renew(self._failure)
        rows, places = self._plan(batch, flushed)
        self._tell_while_writing()
        began = perf_counter()
        try:
            self._file.commit(rows, conflicts)
        except (sqlite3.Error, OSError) as error:
            logger.error("the journal could not be written, and is renewed: %s", error)
            self._failure, self._renew_from = error, 0.0
            self._renew(error)
            try:
                self._file.commit(rows, conflicts)  # the first time on this file
            except (sqlite3.Error, OSError) as second:
                self._failure = second
                raise self._unwritable(second, OutcomeUnknownError) from second
        self._took = perf_counter() - began
        for session_id, place in places.items():
            old = self._places.pop(session_id, None)
            self.bytes += place.size - (0 if old is None else old.size)
            if place.size:
                self._places[session_id] = place
            else:
                self._free.append(place.number)
        if self.yields:
            self._on_size(self.bytes)

    def _check_here(self) -> None:
        if self._away:
            raise StoreUnavailableError("journal", f"{self.broken}; nothing was read or written")

    def _plan(
        self, batch: Sequence[_Put], flushed: dict[str, int]
    ) -> tuple[list[tuple[int, bytes]], dict[str, _Place]]:
        """Return the rows to write, empty for what is no longer needed, and the places that they then have."""
        rows, places = [], {}
        for session_id, committed, write_ids, lineages, _ in batch:
            data = pack_entry(session_id, committed, write_ids, lineages)
            place = self._places.get(session_id)
            number = self._new_number() if place is None else place.number
            rows.append((number, data))
            places[session_id] = _Place(number, committed[VERSION], len(data))
        for session_id, version in flushed.items():
            place = self._places.get(session_id)
            if place is not None and place.version <= version and session_id not in places:
                rows.append((place.number, b""))
                places[session_id] = _Place(place.number, version, 0)
        return rows, places

    def _new_number(self) -> int:
        if self._free:
            return self._free.pop()
        self._last += 1
        return self._last

    def _renew(self, cause: Exception) -> None:
        """Go on with a new file. Raises: OutcomeUnknownError if that is not possible now."""
        now = self._clock.monotonic()
        try:
            if now < self._renew_from:
                raise cause
            self._file.renew()
            self._index()
        except (sqlite3.Error, OSError, ActorbotError) as error:
            self._renew_from = max(self._renew_from, now + PAUSE)
            raise self._unwritable(error, OutcomeUnknownError) from error
        self._failure = self.broken = None

    def _unwritable(self, error: Exception, kind: type[StoreUnavailableError]) -> StoreUnavailableError:
        self.broken = f"{self._file.path} cannot be written: {error}"
        return kind(
            "journal", f"{self.broken}; the event was rolled back. Free space or mend the disk; it is tried again"
        )


def _settle(batch: Sequence[_Put], error: ActorbotError | None) -> None:
    for *_, settle in batch:
        settle(error)
