"""What was acknowledged is on this machine's disk until the store has it, a row for a session."""

from __future__ import annotations

import logging
import os
import sqlite3
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Final

from actorbot._journal.ahead import Ahead
from actorbot._journal.commits import PAUSE, Commits, Part
from actorbot._journal.entry import Entry, pack_entry
from actorbot._journal.file import JournalFile
from actorbot._journal.removals import Removals
from actorbot._journal.untold import Untold
from actorbot._runtime.clock import Clock
from actorbot._runtime.deadline_thread import LATE, DeadlineThread
from actorbot._state.committed import VERSION, Committed
from actorbot._state.values import UndecodableError
from actorbot.errors import ActorbotError, ManagerClosedError, StoreUnavailableError

__all__ = ["Journal"]

logger = logging.getLogger("actorbot")

MANY: Final = 256  # entries that one transaction commits at most
ELSEWHERE: Final = 4e-5  # seconds that an event takes outside of the journal, about
OPENING: Final = 600.0  # seconds to check and read what an earlier manager has left


class Journal:
    """Commits entries in groups: what comes during one transaction goes into the next.

    It has a thread of its own, and is used from any thread. A transaction that does not come back
    within the deadline is left behind. Until it comes back, the journal takes nothing.
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
        self._on_size = on_size  # told, on the journal's thread, how many bytes it holds
        self.yields = not keeps
        """Whether an entry goes when the store has it; not if the store ends with the process."""
        self._thread = DeadlineThread("actorbot-journal", "journal", clock, deadline)
        # Guards _closed, _asked, newest, floor, _removals, _working and _resting.
        self._lock = threading.Lock()
        self._closed = False
        self._asked: list[Ahead] = []
        self.newest = 0
        """The greatest version that was to be committed, of any session."""
        self.floor = 0
        """The greatest version that a session may have had which was abandoned."""
        self._removals = Removals()
        self._working = False
        self._resting = False  # whether removals wait for a later attempt, or for the next entry
        # The rest changes on the journal's thread only; any thread may look.
        self._untold = Untold(post)
        self._commits = Commits(file, clock, self._untold.tell_while_writing)
        self._places = self._commits.places
        self._away = False  # whether a transaction was left behind, which has the file

    # --- life ------------------------------------------------------------------------------------

    def open(self) -> Future[None]:
        """Open the file and read what is in it.

        The future fails with StoreLockedError, JournalError, InsecureStorageError or
        StoreUnavailableError.
        """
        return self._thread.call(self._open, deadline=OPENING)

    def _open(self) -> None:
        self._file.open()
        try:
            self._commits.index()
            if not self.yields:
                now = self._clock.wall()
                ended = [record for record, _ in self._commits.rows() if record.is_expired(now)]
                self._removals.flushed.update((record.session_id, record.version) for record in ended)
        except BaseException:
            self._file.close()
            raise

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
            self._untold.close()
            if not self._away:
                self._file.close()

    # --- what it holds ---------------------------------------------------------------------------

    @property
    def broken(self) -> str | None:
        """Why it takes nothing now."""
        return f"{self._file.path} does not answer" if self._away else self._commits.broken

    @property
    def hampered(self) -> str | None:
        """Why it grows, although it takes events."""
        return self._commits.hampered

    @property
    def size(self) -> int:
        """Of all entries, in bytes."""
        return self._places.bytes

    def holds(self, session_id: str) -> bool:
        """Tell whether there is an entry of the session: as new as what the store has, or newer."""
        return self._places.get(session_id) is not None

    def version(self, session_id: str) -> int:
        """Return the version of the session's entry, 0 if there is none."""
        place = self._places.get(session_id)
        return 0 if place is None else place.version

    def ids(self) -> list[str]:
        """List the sessions that have an entry."""
        return self._places.ids()

    def conflicts(self) -> Future[list[Entry]]:
        """Return a future of what was set aside, by earlier managers too, oldest first."""
        return self._thread.call(lambda: [Entry.from_bytes(data) for data in self._file.conflicts()])

    def read(self, session_id: str) -> Future[Entry | None]:
        """Return a future of the session's entry; it fails with StoreUnavailableError."""
        return self._thread.call(self._read, session_id)

    def _read(self, session_id: str) -> Entry | None:
        self._check_here()
        place = self._places.get(session_id)
        with self._lock:
            flushed = self._removals.flushed.get(session_id, -1)
        if place is None or place.version <= flushed:
            return None  # there is none, or it is to go: what a conflict took must not come back
        try:
            return Entry.from_bytes(self._file.read(place.number))
        except (sqlite3.Error, UndecodableError) as error:
            raise StoreUnavailableError(
                "journal", f"{self._file.path} cannot be read: {error}", session_id=session_id
            ) from error

    # --- committing ------------------------------------------------------------------------------

    def put(self, ahead: Ahead) -> None:
        """Commit *ahead* in place of the entry that its session has, then settle it."""
        with self._lock:
            closed = self._closed
            self.newest = max(self.newest, ahead.committed[VERSION])
            if not closed:
                self._asked.append(ahead)
            if idle := not (closed or self._working):
                self._working = True
        if idle:
            self._thread.submit(self._work)
        elif closed:
            error = ManagerClosedError("the manager was closed before the event was committed")
            self._post(ahead.settle, error)

    def forget(self, session_id: str, version: int) -> None:
        """Note that the store has *version* of the session: its entry is no longer needed."""
        if self.yields:
            self._remove(session_id, version)

    def drop(self, session_id: str, version: int) -> None:
        """Remove what was committed of the session up to *version*: who waited gets an error."""
        self._remove(session_id, version)

    def set_aside(self, session_id: str, committed: Committed) -> None:
        """Keep what a conflict took in a place of its own, from which no session is read."""
        self._remove(session_id, committed[VERSION], pack_entry(session_id, committed, b"", ()))

    def skip_versions(self) -> None:
        """Note that sessions were abandoned, whose last versions may be in the store or not.

        None of these versions may come twice: both would have the same write id, and the new one
        would be taken for the old one. So sessions that are read from now on get greater ones.
        """
        with self._lock:
            self.floor = self.newest

    def _remove(self, session_id: str, version: int, *conflict: bytes) -> None:
        with self._lock:
            self._removals.flushed[session_id] = version
            self._removals.conflicts += conflict
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
        """Commit a group of what has come; then let in who waits for the thread: reads."""
        if self._commit_group():
            self._thread.submit(self._work)

    def _commit_group(self) -> bool:
        """Commit a group; `False` if there was nothing, or if another thread goes on."""
        with self._lock:
            size = self._group_size()
            batch, self._asked = self._asked[:size], self._asked[size:]
            removals = self._removals.take() if batch or not self._resting else Removals()
            self._working = bool(batch or removals.flushed)
        if not (batch or removals.flushed):
            self._untold.tell()
            return False
        answer = self._thread.run(partial(self._left_behind, batch), self._commit, batch, removals)
        if answer is LATE:
            self._thread.submit(self._came_back)
            return False
        if batch:
            for part, error in answer.value or [(batch, answer.error)]:
                self._untold.add(part, error)
        elif answer.error is not None:
            self._rest()
        return True

    def _rest(self) -> None:
        """Leave what could not be removed to a later attempt.

        Nobody waits for that, and the disk may be full for hours.
        """
        with self._lock:
            self._resting = True
        self._clock.call_at(self._clock.monotonic() + PAUSE, self._wake)

    def _group_size(self) -> int:
        """Return how many entries go into the next transaction.

        That is half of what is in flight: the loop handles the events of one half while the disk
        has the other. With 4, 16, 32 and 256 in flight that gave 1.07, 1.1, 1.2 and 1.2 times as
        many events/s as up to 48 at a time. On a slow disk it is all that there is. A disk that
        takes longer for a half than the loop for the whole would only do one transaction's work in
        two.
        """
        in_flight = len(self._asked) + len(self._untold)
        half = max(1, in_flight // 2)
        return min(half, MANY) if self._commits.took < in_flight * ELSEWHERE else MANY

    def _left_behind(self, batch: Sequence[Ahead], error: ActorbotError) -> None:
        self._away = True
        self._untold.add(batch, error)
        self._work()

    def _came_back(self) -> None:
        """Use the file again: a transaction that was left behind has come back.

        What became of that transaction stands in `_places`.
        """
        self._away = False
        if self._closed:
            self._file.close()
        self._wake()

    def _commit(self, batch: Sequence[Ahead], removals: Removals) -> list[Part]:
        try:
            self._check_here()
            parts = self._commits.commit(batch, removals)
        except BaseException:
            self._put_back(removals)
            raise
        if self._commits.hampered:
            self._put_back(removals)
        if self.yields:
            self._on_size(self._places.bytes)
        return parts

    def _put_back(self, removals: Removals) -> None:
        with self._lock:  # else nobody would ever remove these entries
            self._removals.put_back(removals)

    def _check_here(self) -> None:
        if self._away:
            raise StoreUnavailableError("journal", f"{self._file.path} does not answer; nothing was read or written")
