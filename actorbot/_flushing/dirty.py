"""What the store does not have yet: which sessions, how many bytes, and when each is due."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future
from math import inf
from typing import Final

from actorbot._flushing.fullness import Fullness
from actorbot._flushing.write import Flushable
from actorbot._policy import FlushPolicy
from actorbot._runtime.clock import Clock
from actorbot._runtime.home import new_future
from actorbot._state.committed import STATE

__all__ = ["DirtySessions"]

# Seconds that a flush may come later than `max_delay` and a quarter of it, before turns give way to
# the flusher.
SLACK: Final = 0.05


class DirtySessions:
    """The sessions to be flushed: put in from any thread, and taken out on the flusher's."""

    def __init__(
        self,
        policy: FlushPolicy,
        clock: Clock,
        announce: Callable[[Future[None] | None], bool],
        max_session_bytes: int = 1 << 40,
    ) -> None:
        self._policy = policy
        self.fullness = Fullness(max_session_bytes)
        self._near = self.fullness.near
        self._bound = policy.max_dirty_bytes
        self._late_from = 1.25 * policy.max_delay + SLACK
        self._clock = clock
        # Tells the flusher that some time is up: `take_due` is then called on the flusher's thread.
        # The future, if there is one, ends when all is written. Any thread. `False`: the flusher
        # has ended.
        self._announce = announce
        self.bytes = 0
        """Of the states that the store does not have."""
        self.journal_bytes = 0
        """Of the journal's entries."""
        self.full = False
        """Whether one of the two has come to `max_dirty_bytes`."""
        self.late = False
        """Whether sessions are flushed much later than `max_delay` says, while the store is up."""
        self.pressed = False
        """Whether it is full or late: a turn looks here before it begins."""
        # Guards each session's dirty and charged, and bytes, journal_bytes, full, late, pressed,
        # _since and _room. In `mark`, nothing is called while it is held. CPython takes the
        # interpreter from a thread only at calls and at the ends of loops. A thread that loses it
        # with this lock held stops all other threads, one after the other (docs/decisions/0014).
        self._lock = threading.Lock()
        # By session, when the first event came that the store does not have.
        self._since: dict[Flushable, float] = {}
        self._room: list[Future[None]] = []  # of those who wait until there is room
        # Sessions, and when each is due. These are not pairs: 20,000 pairs in a second, each alive
        # for another second, would have the garbage collector walk over all residents three times
        # as often.
        self._marked: deque[Flushable] = deque()
        self._due: deque[float] = deque()
        # When the timer for the first of `_due` is up; inf: there is no timer. Set from any thread.
        self._wakes_at = inf
        self._hurried: deque[Flushable] = deque()  # whose time is up now; added to from any thread
        self._hurrying = False  # whether the flusher has been told of those

    def mark(self, session: Flushable) -> None:
        """Note that *session* has something to flush. The caller holds its turn.

        Needed only if the session is not dirty yet, or has more bytes than its charge.
        """
        size = 0 if session.committed is None or session.committed[STATE] is None else len(session.committed[STATE])
        charge = (size | 511) + 1  # in steps of 512: a session that grows slowly seldom comes here
        now = self._clock.monotonic()
        due = now + self._policy.max_delay
        with self._lock:
            if charge > session.charged:
                self.bytes += charge - session.charged
                session.charged = charge
                self.full = self.bytes >= self._bound or self.journal_bytes >= self._bound
                self.pressed = self.full or self.late
            marked, session.dirty = session.dirty, True
            if not marked and session not in self._since:
                self._since[session] = now
        if not marked:
            self._marked.append(session)
            self._due.append(due)  # after the session: each time in `_due` has a session
        if not marked and self._wakes_at == inf:
            self._wake_at(due)
        if self.full:
            self.hurry(session)
        if size > self._near:
            self.fullness.meet(session, size)

    def hurry(self, session: Flushable) -> None:
        """Flush *session* as if its time were up. Any thread."""
        self._hurried.append(session)
        if not self._hurrying:
            self._hurrying = True
            self._announce(None)

    def _wake_at(self, due: float) -> None:
        self._wakes_at = due
        self._clock.call_at(due, self._announce_due)

    def _announce_due(self) -> Future[None] | None:
        done = new_future()
        return done if self._announce(done) else None

    def sessions(self) -> list[Flushable]:
        """List those with something to flush, also if a close has taken them out. Any thread."""
        return list(self._since)  # the list is made in one step

    def note_journal(self, size: int) -> None:
        """Note how many bytes the journal holds. They have the same bound as those in memory."""
        with self._lock:
            self.journal_bytes = size
            room = self._look_for_room()
        for future in room:
            future.set_result(None)

    def _look_for_room(self) -> list[Future[None]]:
        # The caller holds the lock. It ends the returned futures when it has released the lock.
        self.full = self.bytes >= self._bound or self.journal_bytes >= self._bound
        self.pressed = self.full or self.late
        room, self._room = ([], self._room) if self.full else (self._room, [])
        return room

    def room(self) -> Future[None]:
        """Return a future that is done when unflushed state is below its bound again."""
        done = new_future()
        with self._lock:
            if self.full:
                self._room.append(done)
                return done
        done.set_result(None)
        return done

    def oldest(self) -> float:
        """Return how many seconds ago the longest waiting session had its first unflushed event."""
        since = min(list(self._since.values()), default=None)  # the list is made in one step
        return 0.0 if since is None else max(0.0, self._clock.monotonic() - since)

    # --- on the flusher's thread -----------------------------------------------------------------

    def take_due(self) -> Iterator[Flushable]:
        """Take out the sessions whose time is up, and set a timer for the next one."""
        self._hurrying = False  # first: a hurry from here on tells the flusher again
        while self._hurried:
            yield self._hurried.popleft()
        # Also what is due soon. If each session came at its own time, the threads would change a
        # thousand times a second.
        soon = self._clock.monotonic() + self._policy.max_delay / 8
        while self._due and self._due[0] <= soon:
            self._due.popleft()
            yield self._marked.popleft()
        # Only now. If `_wakes_at` were inf before, a session that is marked meanwhile would set the
        # timer for its own time, which is too late for the sessions before it.
        if self._wakes_at <= soon:
            self._wakes_at = inf
        if self._due and self._due[0] < self._wakes_at:
            self._wake_at(self._due[0])

    def note_delay(self, session: Flushable | None) -> None:
        """Note whether the next *session* to be written, if there is one, has waited too long."""
        now = self._clock.monotonic()
        late = session is not None and now - self._since.get(session, now) > self._late_from
        with self._lock:
            self.late = late
            self.pressed = self.full or late

    def unmark(self, sessions: Iterable[Flushable]) -> None:
        """Note that *sessions* are about to be written.

        Their committed states are read after this: a later commit marks them again.
        """
        for session in sessions:
            with self._lock:
                session.dirty = False

    def uncharge(self, sessions: Iterable[tuple[Flushable, float | None]]) -> None:
        """Give back what each session takes of the bound, and let in who waits for room.

        A session keeps its charge if it has unflushed state again: because it was marked, or since
        the second that stands beside it.
        """
        now = self._clock.monotonic()
        for session, since in sessions:
            with self._lock:
                if session.dirty or since is not None:
                    self._since[session] = now if since is None else since
                else:
                    if session in self._since:
                        del self._since[session]
                    self.bytes -= session.charged
                    session.charged = 0
        with self._lock:
            room = self._look_for_room()
        for future in room:
            future.set_result(None)

    def end(self, error: BaseException) -> None:
        """Tell who waits for room that there will be none."""
        with self._lock:
            room, self._room = self._room, []
        for future in room:
            future.set_exception(error)
