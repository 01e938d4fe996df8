"""Write-behind: when a session is flushed, in which batch, and what becomes of a write that failed."""

from __future__ import annotations

import logging
import os
import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from math import inf
from typing import Any, Protocol

from actorbot._actor import Envelope
from actorbot._clock import Clock
from actorbot._home import new_future
from actorbot._mailbox import Mailbox
from actorbot._policy import FlushPolicy
from actorbot._record import RING_BYTES, Record
from actorbot._store_calls import StoreThread
from actorbot.errors import (
    ActorbotError,
    ConflictError,
    ManagerClosedError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
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
    losses: tuple[int, ...]
    """For each conflict that took unflushed state of it, the version that the store had confirmed until then."""


Goal = tuple[Flushable, int, int]
"""What somebody wants to be in the store: a session, its version, and how many `losses` there were when it had that."""


@dataclass(frozen=True, slots=True)
class FlushDue:
    """`max_delay` has run out for some session."""

    done: Future[None]


@dataclass(frozen=True, slots=True)
class Hurry:
    """Write the sessions now that are in a hurry."""


@dataclass(frozen=True, slots=True)
class Flush:
    """Write these sessions now; *done* when the store has these versions, or all has been tried and some could not be written."""

    goals: list[Goal]
    done: Future[None]


@dataclass(frozen=True, slots=True)
class Relieve:
    """Write this session now; *done* when that is done, or when it turns out that it cannot be."""

    session: Flushable
    done: Future[None]


@dataclass(slots=True, eq=False)
class WriteThrough:
    """Write what a turn wants to commit, and nothing if that fails."""

    session: Flushable
    committed: Committed
    forced: bool
    done: Future[None]
    job: _Job | None = None
    """Once it has been tried."""


@dataclass(slots=True, eq=False)
class _Job:
    """One session's write on its way; sent again, after a failure, with the same write id."""

    session: Flushable
    write: Write
    made: float
    through: WriteThrough | None = None  # None: a flush
    tries: int = 0  # that have failed
    unknown: bool = False  # whether one of them may have been done all the same


@dataclass(frozen=True, slots=True)
class Returned:
    """A call that was left behind has come back: nothing of it is still to come."""

    jobs: list[_Job]


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The pause of these is over, or, where there are none, that of all."""

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
        self.outage_since: float | None = None
        self.refusing = False  # whether the store answers, and takes some session's writes not
        self.dirty_bytes = 0
        self.full = False
        self.writes = self.retries = self.conflicts = 0
        self._stopped = False
        self._lock = threading.Lock()  # guards dirty, charged, dirty_bytes and _since
        self._since: dict[Flushable, float] = {}  # when the first event came that the store does not have
        self._marked: deque[tuple[float, Flushable]] = deque()  # due time, session; appended to from any thread
        self._armed = False  # whether a timer for the head of _marked runs; set from any thread
        self._hurried: deque[Flushable] = deque()  # appended to from any thread
        self._hurrying = False  # whether we have been told of those
        self._wanted: OrderedDict[Flushable, WriteThrough | None] = OrderedDict()
        self._again: dict[Flushable, _Job] = {}  # flushes that failed: sent again before anything newer
        self._resting: set[_Job] = set()  # failed by themselves: each until its own pause is over
        # By id, for a session that is read again is another one: those in a call that was left behind, a write of which may still
        # arrive, each with the sessions that are to be written when it has come back.
        self._out: dict[str, set[Flushable]] = {}
        self._listeners: dict[Flushable, list[tuple[int, Tell]]] = {}
        self._relief: dict[Flushable, list[Future[None]]] = {}
        self._quiet: list[Future[None]] = []  # done when nothing can be written
        self._room: list[Future[None]] = []
        self._failures = 0  # calls in a row that failed as a whole
        self._paused = False
        self._waking = False  # whether a timer runs that ends the pause

    def begin(self) -> None:
        """Let the first message in."""
        self.leave()

    def stop(self) -> None:
        """Begin no further write, from any thread; one that is under way still counts."""
        self._stopped = True

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
        now = self._clock.monotonic()
        with self._lock:
            charge = (size | 511) + 1  # in steps of 512, so that a session that grows by a few bytes seldom comes here
            if charge > session.charged:
                self.dirty_bytes += charge - session.charged
                session.charged = charge
                self.full = self.dirty_bytes >= self._policy.max_dirty_bytes
            marked, session.dirty = session.dirty, True
            if not marked:
                self._since.setdefault(session, now)
        if not marked:
            due = now + self._policy.max_delay
            self._marked.append((due, session))
            if not self._armed:
                self._armed = True
                self._clock.call_at(due, self._announce_due)
        if self.full:
            self.hurry(session)

    def hurry(self, session: Flushable) -> None:
        """Flush *session* without waiting for `max_delay`."""
        self._hurried.append(session)
        if not self._hurrying:
            self._hurrying = True
            self.notify(Hurry())

    def flush(self, sessions: Iterable[Flushable]) -> Future[None]:
        """Flush what *sessions* have committed so far.

        The future is done when all has been tried; it fails with the first session's error whose `retry.attempts` have failed.
        """
        goals = [
            (session, committed[0], len(session.losses))
            for session in sessions
            if (committed := session.committed) is not None and committed[0] > session.flushed
        ]
        return self.reach(goals)

    def reach(self, goals: list[Goal]) -> Future[None]:
        """Flush until the store has these versions; as `flush`, and with ConflictError for what a conflict has taken meanwhile."""
        done = new_future()
        return self._ask(Flush(goals, done), done)

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
        since = min(list(self._since.values()), default=None)  # the list is made in one step
        return 0.0 if since is None else max(0.0, self._clock.monotonic() - since)

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
        """Write a batch, then let in who waits for the thread or with a message; pass the turn on when there is nothing to write."""
        try:
            if not self.closed and (jobs := self._next_jobs()):
                writes = [job.write for job in jobs]
                answer = self._thread.run(partial(self._overdue, jobs), self._store.write_many, writes)
                if answer is None:
                    self.notify(Returned(jobs))
                    return  # another thread has the turn
                self._land(jobs, *answer)
                if not self.line:
                    self._thread.submit(self._go_on)  # behind the reads, where they share the thread
                    return
        except Exception:
            logger.exception("the flusher met an error of its own while writing")
        self.leave()

    def _overdue(self, jobs: list[_Job], error: ActorbotError) -> None:
        """Go on in the place of a call that has not come back; nobody waits for its sessions any more."""
        for job in jobs:
            self._out[job.session.session_id] = set()
            job.unknown = True
            if job.through is not None:
                self._fail(job.through, error)
        if len(jobs) == self._store.writes_at_once == 1:  # which tells nothing of the others
            self._land(jobs, [error])
        else:
            self._land(jobs, [], error)
        for job in jobs:
            self._listen(job.session, error)
        self._go_on()

    def on_receive(self, message: Any) -> None:
        try:
            match message:
                case FlushDue(done):
                    self._want_due()
                    self._quiet.append(done)
                case Hurry():
                    self._hurrying = False  # first: who comes from here on tells us again
                    while self._hurried:
                        self._want(self._hurried.popleft())
                case Flush(goals, done):
                    self._want_all(goals, done)
                case Relieve(session, done):
                    self._relief.setdefault(session, []).append(done)
                    if self.outage_since is None and session not in self._again:
                        self._want(session)
                    if session not in self._wanted:
                        self._relieve(session)
                case WriteThrough(session):
                    self._wanted[session] = message
                    if self._is_down():
                        self._paused = False  # whoever waits for it learns at once whether the store is back
                case Returned(jobs):
                    for job in jobs:
                        for session in self._out.pop(job.session.session_id, ()):
                            self._wanted.setdefault(session, None)
                case RetryDue(jobs, done):
                    self._retry(jobs)
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
        waiting += [job.through.done for job in self._resting if job.through is not None]
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

    def _want(self, session: Flushable) -> None:
        committed = session.committed
        if committed is not None and committed[0] > session.flushed:
            self._wanted.setdefault(session, None)

    def _want_all(self, goals: list[Goal], done: Future[None]) -> None:
        left = len(goals)
        failure: BaseException | None = None

        def tell(error: BaseException | None) -> None:
            nonlocal left, failure
            left -= 1
            failure = failure or error
            if left > 0:
                return
            if failure is None:
                done.set_result(None)
            else:
                done.set_exception(failure)

        for session, version, losses in goals:
            if is_lost(session, version, losses):
                tell(ConflictError(self._store.name, "lost to a write of someone else", session_id=session.session_id))
            elif len(session.losses) > losses or version <= session.flushed:
                tell(None)
            else:
                self._listeners.setdefault(session, []).append((version, tell))
                self._wanted.setdefault(session, None)
        if not goals:
            done.set_result(None)

    def _next_jobs(self) -> list[_Job]:
        """Make the next batch; an empty one if nothing can be written now, or if waiting messages may fill it first."""
        wanted = self._wanted
        at_once = min(self._policy.batch_size, self._store.writes_at_once)
        while wanted and not (self._stopped or self._paused or (self.line and len(wanted) < at_once)):
            now = self._clock.monotonic()
            size = 8 * min(len(wanted), at_once)
            write_ids = os.urandom(size)
            made = [self._make_job(*wanted.popitem(False), write_ids[at : at + 8], now) for at in range(0, size, 8)]
            if jobs := [job for job in made if job is not None]:
                return jobs
        if not self.line:
            self._be_quiet()
        return []

    def _be_quiet(self) -> None:
        quiet, self._quiet = self._quiet, []
        for done in quiet:
            done.set_result(None)

    def _make_job(self, session: Flushable, through: WriteThrough | None, write_id: bytes, now: float) -> _Job | None:
        if self._out and session.session_id in self._out:
            self._hold_back(session, through)
            return None
        with self._lock:
            session.dirty = False  # before committed is read: whoever commits from here on marks the session again
        if through is not None:
            # It comes from who holds the turn, so nothing newer is committed meanwhile; a flush that failed before is overtaken.
            if through.job is None:
                write = _make_write(session, through.committed, write_id, through.forced)
                through.job = _Job(session, write, now, through)
            return through.job
        if self._again and session in self._again:
            return self._again[session]
        committed = session.committed
        if committed is None or committed[0] <= session.flushed:
            self._uncharge(session)
            self._listen(session, None)
            self._relieve(session)
            return None
        return _Job(session, _make_write(session, committed, write_id), now)

    def _hold_back(self, session: Flushable, through: WriteThrough | None) -> None:
        """Write nothing of a session while an older write of it may still arrive, and let nobody wait for that."""
        error = StoreUnavailableError(
            self._store.name, "an earlier write has not come back yet; try again", session_id=session.session_id
        )
        if through is not None:
            self._fail(through, error)
        self._out[session.session_id].add(session)
        self._listen(session, error)
        self._relieve(session)

    def _land(
        self, jobs: list[_Job], results: Sequence[ActorbotError | None], error: ActorbotError | None = None
    ) -> None:
        """Note what became of a batch: a result for each, or one error for all, which tells that the store is down."""
        if error is None and len(results) != len(jobs):
            error = OutcomeUnknownError(self._store.name, f"{len(results)} results for {len(jobs)} writes")
        if error is not None:
            results = [error] * len(jobs)
            self._note_outage(error)
        failed: list[_Job] = []
        for job, result in zip(jobs, results, strict=True):
            if result is None:
                self._confirm(job)
            elif isinstance(result, ConflictError):
                self._conflict(job, result)
            elif not self._give_up(job, result):
                failed.append(job)
            if self._relief and job.session in self._relief:
                self._relieve(job.session)
        if error is not None:
            self._pause(failed)
            if self._is_down():
                self._release_all(error)
            return
        if failed:
            self._rest(failed)
        unwell = self._failures or self.refusing
        if unwell and any(result is None or isinstance(result, ConflictError) for result in results):
            self._note_answer()

    def _note_outage(self, error: BaseException) -> None:
        self._failures += 1
        if self.outage_since is None:
            self.outage_since = self._clock.monotonic()
            logger.warning(
                "%s does not take writes; sessions stay in memory until it does: %s", self._store.name, error
            )
        for session in list(self._relief):
            self._relieve(session)

    def _note_answer(self) -> None:
        if self.outage_since is not None:
            logger.info("%s answers again", self._store.name)
        self.outage_since = None
        self._failures = 0
        self.refusing = bool(self._again)

    def _is_down(self) -> bool:
        """Tell whether so many calls have failed that nobody waits for another try."""
        return self._failures >= self._policy.retry.attempts

    def _release_all(self, error: BaseException) -> None:
        """Let nobody wait longer for a store that is down: not even those whose write was never sent."""
        for through in [each for each in self._wanted.values() if each is not None]:
            del self._wanted[through.session]
            self._fail(through, error)
        for session in list(self._listeners):
            self._listen(session, error)

    def _confirm(self, job: _Job) -> None:
        session, record = job.session, job.write.record
        self.writes += 1
        session.write_ids = record.write_ids
        session.flushed = record.version
        if self._again:
            self._again.pop(session, None)
        # What was written may be an older state, sent again after a failure: go on to the newest unless a mark will.
        committed = session.committed
        behind = committed is not None and committed[0] > record.version
        self._uncharge(session, job.made if behind else None)
        if job.through is not None:
            job.through.done.set_result(None)
        if self._listeners:
            self._listen(session, record.version)
        if behind and (not session.dirty or session in self._listeners):
            self._wanted.setdefault(session, None)

    def _conflict(self, job: _Job, error: ConflictError) -> None:
        self.conflicts += 1
        session = job.session
        if job.through is not None:
            self._fail(job.through, error)
            return
        self._again.pop(session, None)
        session.losses += (session.flushed,)
        # In one step, since no call stands between: a turn that commits meanwhile is handed over too, or fails. The session is
        # read again before its next turn.
        unflushed, session.committed = session.committed, None
        with self._lock:
            session.dirty = False
        self._uncharge(session)
        if unflushed is not None:
            self._on_conflict(session, unflushed)
        self._listen(session, error)

    def _give_up(self, job: _Job, error: BaseException) -> bool:
        """Count a failure; `True` if nobody will try this write again."""
        job.tries += 1
        job.unknown = job.unknown or isinstance(error, OutcomeUnknownError)
        spent = job.tries >= self._policy.retry.attempts
        if not self.refusing and self.outage_since is None:
            logger.warning("a session could not be written: %s", error, extra={"session_id": job.session.session_id})
        self.refusing = True
        if job.through is None:
            self._again[job.session] = job
            if spent:
                self._listen(job.session, error)
            return False
        if job.through.done.done():
            return True
        if spent or self._is_down():
            self._fail(job.through, error)
            return True
        return False

    def _fail(self, through: WriteThrough, error: BaseException) -> None:
        """Tell who waits for *through* that it will not be tried again, and go on to what it has overtaken."""
        if (
            through.job is not None
            and through.job.unknown
            and not isinstance(error, OutcomeUnknownError | ConflictError)
        ):
            known, session_id = error, through.session.session_id
            error = OutcomeUnknownError(
                self._store.name, f"a try had no answer, the last: {error}", session_id=session_id
            )
            error.__cause__ = known
        through.done.set_exception(error)
        self._want(through.session)

    def _pause(self, failed: list[_Job]) -> None:
        """Write nothing for a while."""
        self.retries += len(failed)
        self._paused = True
        for job in failed:
            self._want_again(job)
        if not self._waking:
            self._waking = True
            self._retry_after(self._failures, [])

    def _rest(self, failed: list[_Job]) -> None:
        """Let these wait, and nobody else: the store has taken others, or was not asked about any."""
        self.retries += len(failed)
        self._resting.update(failed)
        self._retry_after(max(job.tries for job in failed), failed)

    def _retry_after(self, failures: int, jobs: list[_Job]) -> None:
        def due() -> Future[None] | None:
            done = new_future()
            return done if self.notify(RetryDue(jobs, done)) else None

        self._clock.call_at(self._clock.monotonic() + self._policy.retry.delay(failures), due)

    def _retry(self, jobs: list[_Job]) -> None:
        if not jobs:
            self._paused = self._waking = False
        self._resting.difference_update(jobs)
        for job in jobs:
            self._want_again(job)

    def _want_again(self, job: _Job) -> None:
        if job.through is None:
            if self._again.get(job.session) is job:  # not overtaken
                self._wanted.setdefault(job.session, None)
        elif not job.through.done.done():
            self._wanted[job.session] = job.through

    def _listen(self, session: Flushable, reached: int | BaseException | None) -> None:
        """Tell who waits for *session*: that a version is in the store, or an error; `None`: that nothing is left to write."""
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

    def _uncharge(self, session: Flushable, since: float | None = None) -> None:
        """Give back what *session* takes of the bound, and let in who waits for room.

        Unless it is unflushed again: by a mark, or *since* an instant.
        """
        with self._lock:
            if session.dirty or since is not None:
                self._since[session] = self._clock.monotonic() if since is None else since
            else:
                self._since.pop(session, None)
                self.dirty_bytes -= session.charged
                session.charged = 0
            self.full = self.dirty_bytes >= self._policy.max_dirty_bytes
            room, self._room = ([], self._room) if self.full else (self._room, [])
        for future in room:
            future.set_result(None)


def is_lost(session: Flushable, version: int, losses: int) -> bool:
    """Tell whether a conflict has taken *version*, which *session* had when there had been so many *losses*; from any thread."""
    if len(session.losses) > losses:
        return version > session.losses[losses]
    return session.committed is None and version > session.flushed


def _make_write(session: Flushable, committed: Committed, write_id: bytes, forced: bool = False) -> Write:
    version, state, event_ids, last_activity, expires_at = committed
    base = None if forced else session.write_ids[:8]
    write_ids = (write_id + session.write_ids)[:RING_BYTES]
    return Write(Record(session.session_id, version, state, write_ids, event_ids, last_activity, expires_at), base)


def _ended() -> ManagerClosedError:
    return ManagerClosedError("the manager was closed before the store had answered")
