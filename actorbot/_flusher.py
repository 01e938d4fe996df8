"""Write-behind: when a session is flushed, in which batch, and what becomes of a write that failed."""

from __future__ import annotations

import logging
import os
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, NamedTuple, Protocol

from actorbot._actor import Envelope
from actorbot._clock import Clock
from actorbot._home import new_future
from actorbot._mailbox import Mailbox
from actorbot._policy import FlushPolicy
from actorbot._record import RING_BYTES, Record
from actorbot._store_calls import StoreThread
from actorbot.errors import ActorbotError, ConflictError, ManagerClosedError, StoreUnavailableError
from actorbot.stores.base import RecordStore, Write

__all__ = ["Committed", "Flushable", "Flusher"]

logger = logging.getLogger("actorbot")


Committed = tuple[int, "bytes | None", bytes, float, float]
"""What a turn leaves behind, as one immutable value: version, encoded state (`None`: destroyed, or never there), digests of event ids,
wall-clock seconds of the last event, and of the end that it set. The flusher may read it from its own thread while the next turn runs."""


Tell = Callable[["BaseException | None"], None]
"""Tells that what was waited for is done, or why it will not be."""


class Flushable(Protocol):
    """What the flusher keeps about a session, on the session's actor."""

    session_id: str
    committed: Committed | None
    flushed: int
    """The version that the store has confirmed. Written by the flusher while a write of the session is out."""
    write_ids: bytes
    """The write ids of the record in the store, newest first."""
    dirty: bool
    """Whether the flusher has been told of it and has not yet begun to write it."""
    charged: int
    """How many bytes of the bound on unflushed state it takes."""


@dataclass(frozen=True, slots=True)
class FlushDue:
    """`max_delay` has run out for some session."""

    done: Future[None]


@dataclass(frozen=True, slots=True)
class Flush:
    """Write these sessions now; *done* when the store has what they have committed so far."""

    sessions: list[Flushable]
    done: Future[None] | None


@dataclass(frozen=True, slots=True)
class Relieve:
    """Write this session now; *done* when that is done, or when it turns out that it cannot be."""

    session: Flushable
    done: Future[None]


@dataclass(frozen=True, slots=True)
class WriteThrough:
    """Write what a turn wants to commit, and nothing if that fails."""

    session: Flushable
    committed: Committed
    forced: bool
    done: Future[None]


class _Job(NamedTuple):
    """One session's write on its way."""

    session: Flushable
    write: Write
    through: WriteThrough | None  # None: a flush


@dataclass(frozen=True, slots=True)
class Returned:
    """A call that was left behind has come back: nothing of it is still to come."""

    jobs: list[_Job]


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The pause after a failure is over."""

    jobs: list[_Job]
    done: Future[None]


@dataclass(frozen=True, slots=True)
class End:
    """Write nothing any more."""


class Flusher(Mailbox):
    """Takes committed sessions to the store, in batches, at most one write of a session at a time.

    An actor on the store's own thread: a batch is made, written and accounted for there, without a change of threads, which costs up
    to 5 ms each time while another thread computes. When a call does not come back in time, another thread goes on (`_overdue`).
    What begins with an underscore is touched on that thread only, unless said otherwise. `mark`, `flush`, `write` and the
    figures may be used from any thread.
    """

    def __init__(
        self,
        store: RecordStore,
        thread: StoreThread,
        policy: FlushPolicy,
        clock: Clock,
        on_conflict: Callable[[Flushable, Committed], None],
    ) -> None:
        super().__init__()
        self._store = store
        self._thread = thread
        self._policy = policy
        self._clock = clock
        self._on_conflict = on_conflict
        self._at_once = min(policy.batch_size, store.at_once)
        self.outage_since: float | None = None
        self.dirty_bytes = 0
        self.full = False
        self.writes = self.retries = self.conflicts = 0
        self._lock = threading.Lock()  # guards dirty, charged and dirty_bytes
        self._marked: deque[tuple[float, Flushable]] = deque()  # due time, session; appended to from any thread
        self._armed = False  # whether a timer for the head of _marked runs; set from any thread
        self._wanted: dict[Flushable, WriteThrough | None] = {}
        self._again: dict[Flushable, _Job] = {}  # failed: sent again with the same write id before anything newer
        self._attempts: dict[Flushable, int] = {}
        self._out: set[Flushable] = set()  # in a call that was left behind: a write of theirs may still arrive
        self._listeners: dict[Flushable, list[tuple[int, Tell]]] = {}
        self._relief: dict[Flushable, list[Future[None]]] = {}
        self._quiet: list[Future[None]] = []  # done when nothing can be written
        self._room: list[Future[None]] = []
        self._failures = 0  # calls in a row that failed as a whole
        self._paused = False

    def begin(self) -> None:
        """Let the first message in."""
        self.leave()

    def end(self) -> None:
        """End, with the store's thread, after what it has been told so far; does not wait, nor for a call that is under way."""
        self.notify(End())
        self._thread.leave_behind()

    def is_running(self) -> bool:
        """Tell whether it still takes messages."""
        return not self.closed

    def notify(self, message: Any) -> bool:
        """Tell it something, from any thread; `False` if it has ended, as it may have when a timer or a late call comes."""
        return self.join(Envelope(message), inf)

    # --- from any thread ----------------------------------------------------------------------------------------------

    def mark(self, session: Flushable) -> None:
        """Note that *session* has something to flush; called on its turn, when it is not dirty already or has outgrown its charge."""
        size = 0 if session.committed is None or session.committed[1] is None else len(session.committed[1])
        with self._lock:
            charge = (size | 511) + 1  # in steps of 512, so that a session that grows by a few bytes seldom comes here
            if charge > session.charged:
                self.dirty_bytes += charge - session.charged
                session.charged = charge
                self.full = self.dirty_bytes >= self._policy.max_dirty_bytes
            if session.dirty:
                return
            session.dirty = True
        due = self._clock.monotonic() + self._policy.max_delay
        self._marked.append((due, session))
        if not self._armed:
            self._armed = True
            self._clock.call_at(due, self._announce_due)
        if self.full:
            self.hurry(session)

    def hurry(self, session: Flushable) -> None:
        """Flush *session* without waiting for `max_delay`."""
        self.notify(Flush([session], None))

    def flush(self, sessions: Iterable[Flushable]) -> Future[None]:
        """Flush what *sessions* have committed so far. The future fails with the store's error once `retry.attempts` have failed."""
        done = new_future()
        return self._ask(Flush(list(sessions), done), done)

    def write(self, session: Flushable, committed: Committed, *, forced: bool = False) -> Future[None]:
        """Write *committed* before it is committed. The caller holds the session's turn until the future is done."""
        done = new_future()
        return self._ask(WriteThrough(session, committed, forced, done), done)

    def relieve(self, session: Flushable) -> Future[None]:
        """Flush *session*, which has come to `max_events`. The future never fails, and does not outlast the news of an outage."""
        done = new_future()
        return self._ask(Relieve(session, done), done)

    def _ask(self, message: Any, done: Future[None]) -> Future[None]:
        if not self.notify(message):
            done.set_exception(_ended())
        return done

    def room(self) -> Future[None]:
        """Return a future that is done when unflushed state is below its bound again."""
        done = new_future()
        with self._lock:
            if self.full:
                self._room.append(done)
                return done
        done.set_result(None)
        return done

    def oldest_dirty(self) -> float:
        """Return how many seconds ago the longest waiting session had its first unflushed event."""
        if not self.dirty_bytes:
            return 0.0
        try:
            return max(0.0, self._clock.monotonic() - (self._marked[0][0] - self._policy.max_delay))
        except IndexError:
            return 0.0

    def _announce_due(self) -> Future[None] | None:
        done = new_future()
        return done if self.notify(FlushDue(done)) else None

    # --- on the store's thread ----------------------------------------------------------------------------------------

    def schedule(self) -> None:
        self._thread.submit(self._work)

    def _work(self) -> None:
        self.run_batch()
        self._go_on()

    def _go_on(self) -> None:
        """Write one batch after the other until there is nothing to write or a message waits; then pass the turn on."""
        try:
            while not self.closed and (jobs := self._next_jobs()):
                writes = [job.write for job in jobs]
                answer = self._thread.run(partial(self._overdue, jobs), self._store.write_many, writes)
                if answer is None:
                    self.notify(Returned(jobs))
                    return  # another thread has the turn
                self._land(jobs, *answer)
                if self.line:
                    break
        except Exception:
            logger.exception("the flusher met an error of its own while writing")
        self.leave()

    def _overdue(self, jobs: list[_Job], error: ActorbotError) -> None:
        """Go on in the place of a call that has not come back; nobody waits for its sessions any more."""
        self._out.update(job.session for job in jobs)
        self._land(jobs, [], error)
        for job in jobs:
            self._listen(job.session, error)
            self._relieve(job.session)
            if job.through is not None and not job.through.done.done():
                self._forget(job.session)
                job.through.done.set_exception(error)
        self._go_on()

    def on_receive(self, message: Any) -> None:
        try:
            match message:
                case FlushDue(done):
                    self._want_due()
                    self._quiet.append(done)
                case Flush(sessions, done):
                    self._want_now(sessions, done)
                case Relieve(session, done):
                    self._relief.setdefault(session, []).append(done)
                    self._want_now([session], None)
                    if self.outage_since is not None or session not in self._wanted or session in self._out:
                        self._relieve(session)
                case WriteThrough(session, _, _, done) if session in self._out:
                    done.set_exception(self._is_out(session))
                case WriteThrough(session):
                    self._wanted[session] = message
                case Returned(jobs):
                    self._out.difference_update(job.session for job in jobs)
                case RetryDue(jobs, done):
                    self._paused = False
                    for job in jobs:
                        if job.through is not None or job.session not in self._wanted:
                            self._wanted[job.session] = job.through
                    self._quiet.append(done)
                case End():
                    self._finish()
        except Exception:  # pykka would end the actor, and with it every flush
            logger.exception("the flusher met an error of its own while handling %s", type(message).__name__)

    def _finish(self) -> None:
        """Release whoever still waits: nothing is written any more."""
        self.closed = True
        told = [getattr(item.message, "done", None) for item in self.drain() if isinstance(item, Envelope)]
        waiting = [each.done for each in self._wanted.values() if each is not None]
        waiting += [job.through.done for job in self._again.values() if job.through is not None]
        waiting += [done for dones in self._relief.values() for done in dones]
        for session in list(self._listeners):
            self._listen(session, _ended())
        for done in (*told, *waiting, *self._room, *self._quiet):
            if done is not None and not done.done():
                done.set_exception(_ended())
        self._thread.close()

    def _want_due(self) -> None:
        self._armed = False
        # With what is due soon: flushed one by one as they come due, sessions would change threads a thousand times a second.
        soon = self._clock.monotonic() + self._policy.max_delay / 8
        while self._marked and self._marked[0][0] <= soon:
            self._wanted.setdefault(self._marked.popleft()[1], None)
        if self._marked and not self._armed:
            self._armed = True
            self._clock.call_at(self._marked[0][0], self._announce_due)

    def _want_now(self, sessions: list[Flushable], done: Future[None] | None) -> None:
        behind = []
        for session in sessions:
            committed = session.committed
            if committed is not None and committed[0] > session.flushed:
                behind.append((session, committed[0]))
                self._wanted.setdefault(session, None)
        if done is None:
            return
        if not behind:
            done.set_result(None)
            return
        left = len(behind)

        def tell(error: BaseException | None) -> None:
            nonlocal left
            left -= 1
            if done.done():
                return
            if error is not None:
                done.set_exception(error)
            elif not left:
                done.set_result(None)

        for session, version in behind:
            if session in self._out:
                tell(self._is_out(session))
            else:
                self._listeners.setdefault(session, []).append((version, tell))

    def _is_out(self, session: Flushable) -> StoreUnavailableError:
        return StoreUnavailableError(
            self._store.name, "an earlier write has not come back yet; try again", session_id=session.session_id
        )

    def _next_jobs(self) -> list[_Job]:
        """Make the next batch; an empty one if nothing can be written now, or if waiting messages may fill it first."""
        while not self._paused and not (self.line and len(self._wanted) < self._at_once):
            picked = []
            for session in self._wanted:
                if session not in self._out:
                    picked.append(session)
                    if len(picked) >= self._at_once:
                        break
            if not picked:
                break
            write_ids = os.urandom(8 * len(picked))
            made = [
                self._make_job(session, self._wanted.pop(session), write_ids[8 * number : 8 * number + 8])
                for number, session in enumerate(picked)
            ]
            if jobs := [job for job in made if job is not None]:
                return jobs
        if not self.line:
            self._be_quiet()
        return []

    def _be_quiet(self) -> None:
        quiet, self._quiet = self._quiet, []
        for done in quiet:
            done.set_result(None)

    def _make_job(self, session: Flushable, through: WriteThrough | None, write_id: bytes) -> _Job | None:
        again = self._again.get(session)
        if through is not None:
            # It comes from who holds the turn, so nothing newer is committed meanwhile; a flush that failed before is overtaken.
            if again is not None and again.through is through:
                return again
            return _Job(session, _make_write(session, through.committed, write_id, through.forced), through)
        with self._lock:
            session.dirty = False  # before committed is read: whoever commits from here on marks the session again
        if again is not None:
            return again
        committed = session.committed
        if committed is None or committed[0] <= session.flushed:
            self._listen(session, session.flushed if committed is not None else None)
            self._relieve(session)
            self._uncharge(session)
            return None
        return _Job(session, _make_write(session, committed, write_id), None)

    def _land(self, jobs: list[_Job], results: Sequence[ActorbotError | None], error: ActorbotError | None) -> None:
        """Note what became of a batch: a result for each, or one error for all."""
        if error is not None:
            results = [error] * len(jobs)
        down = all(isinstance(result, StoreUnavailableError) for result in results)
        self._note_outage(results[0] if down else None)
        failed: list[_Job] = []
        for job, result in zip(jobs, results, strict=True):
            if result is None:
                self._confirm(job)
            elif isinstance(result, ConflictError):
                self._conflict(job, result)
            elif not self._give_up(job, result):
                failed.append(job)
            if job.session in self._relief:
                self._relieve(job.session)
        if failed or down:
            self._try_later(failed, pause=down)

    def _note_outage(self, error: BaseException | None) -> None:
        if error is None:
            if self.outage_since is not None:
                logger.info("%s answers again", self._store.name)
            self.outage_since = None
            self._failures = 0
            return
        self._failures += 1
        if self.outage_since is None:
            self.outage_since = self._clock.monotonic()
            logger.warning(
                "%s does not take writes; sessions stay in memory until it does: %s", self._store.name, error
            )
        for session in list(self._relief):
            self._relieve(session)
        if self._failures >= self._policy.retry.attempts:
            self._release_all(error)

    def _release_all(self, error: BaseException) -> None:
        """Let nobody wait longer for a store that is down: not even those whose write was never sent."""
        for session, through in list(self._wanted.items()):
            if through is not None:
                del self._wanted[session]
                through.done.set_exception(error)
        for session in list(self._listeners):
            self._listen(session, error)

    def _confirm(self, job: _Job) -> None:
        session, record = job.session, job.write.record
        self.writes += 1
        session.write_ids = record.write_ids
        session.flushed = record.version
        self._forget(session)
        self._uncharge(session)
        if job.through is not None:
            job.through.done.set_result(None)
        self._listen(session, record.version)
        # What was written may be an older state, sent again after a failure: go on to the newest unless a mark will.
        committed = session.committed
        behind = committed is not None and committed[0] > record.version
        if session in self._listeners or (behind and not session.dirty):
            self._wanted.setdefault(session, None)

    def _conflict(self, job: _Job, error: ConflictError) -> None:
        self.conflicts += 1
        session = job.session
        self._forget(session)
        if job.through is not None:
            job.through.done.set_exception(error)
            return
        unflushed, session.committed = (
            session.committed,
            None,
        )  # read again before the next turn; one that runs now fails
        with self._lock:
            session.dirty = False
        self._uncharge(session)
        if unflushed is not None:
            self._on_conflict(session, unflushed)
        self._listen(session, error)

    def _give_up(self, job: _Job, error: BaseException) -> bool:
        """Count a failure; `True` if nobody will try this write again."""
        session = job.session
        attempts = self._attempts[session] = self._attempts.get(session, 0) + 1
        self._again[session] = job
        if attempts < self._policy.retry.attempts:
            return False
        self._listen(session, error)
        if job.through is None:
            return False
        self._forget(session)
        job.through.done.set_exception(error)
        return True

    def _try_later(self, jobs: list[_Job], *, pause: bool) -> None:
        self.retries += len(jobs)
        self._paused = self._paused or pause
        attempt = self._failures if pause else max(self._attempts.get(job.session, 1) for job in jobs)

        def again() -> Future[None] | None:
            done = new_future()
            return done if self.notify(RetryDue(jobs, done)) else None

        self._clock.call_at(self._clock.monotonic() + self._policy.retry.delay(attempt), again)

    def _listen(self, session: Flushable, reached: int | BaseException | None) -> None:
        """Tell who waits for *session*: that a version is in the store, or an error; `None`: that its state is gone."""
        listeners = self._listeners.pop(session, None)
        if listeners is None:
            return
        rest = []
        for version, tell in listeners:
            if isinstance(reached, BaseException):
                tell(reached)
            elif reached is None or version <= reached:
                tell(None)
            else:
                rest.append((version, tell))
        if rest:
            self._listeners[session] = rest

    def _relieve(self, session: Flushable) -> None:
        for done in self._relief.pop(session, ()):
            done.set_result(None)

    def _forget(self, session: Flushable) -> None:
        self._again.pop(session, None)
        self._attempts.pop(session, None)

    def _uncharge(self, session: Flushable) -> None:
        """Give back what *session* takes of the bound, unless it has been marked again, and let in who waits for room."""
        with self._lock:
            if not session.dirty:
                self.dirty_bytes -= session.charged
                session.charged = 0
            self.full = self.dirty_bytes >= self._policy.max_dirty_bytes
            room, self._room = ([], self._room) if self.full else (self._room, [])
        for future in room:
            future.set_result(None)


def _make_write(session: Flushable, committed: Committed, write_id: bytes, forced: bool = False) -> Write:
    version, state, event_ids, last_activity, expires_at = committed
    base = None if forced else session.write_ids[:8]
    write_ids = (write_id + session.write_ids)[:RING_BYTES]
    return Write(Record(session.session_id, version, state, write_ids, event_ids, last_activity, expires_at), base)


def _ended() -> ManagerClosedError:
    return ManagerClosedError("the manager was closed before the store had answered")
