"""Write-behind: which sessions are written next, and in which batch; what becomes of it: `_landing`."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from math import inf
from typing import Any

from actorbot._flushing.outcome import Outcome
from actorbot._flushing.recovery import is_outdated, write_jobs
from actorbot._flushing.waiters import ALL, ANY_NEWS, tell_first_error, tell_news
from actorbot._flushing.write import (
    Committed,
    End,
    Flush,
    Flushable,
    FlushDue,
    Goal,
    Hurry,
    PendingWrite,
    Relieve,
    RetryDue,
    Returned,
    Spill,
    WriteThrough,
    is_lost,
)
from actorbot._journal.journal import Journal
from actorbot._policy import FlushPolicy
from actorbot._runtime.actor import Envelope
from actorbot._runtime.clock import Clock
from actorbot._runtime.deadline_thread import LATE, DeadlineThread
from actorbot._runtime.mailbox import Mailbox
from actorbot._state.committed import VERSION, write_id_of
from actorbot.errors import (
    ActorbotError,
    ConflictError,
    ManagerClosedError,
    StoreUnavailableError,
)
from actorbot.stores.base import RecordStore

__all__ = ["Flusher"]

logger = logging.getLogger("actorbot")


class Flusher(Outcome, Mailbox):
    """Takes committed sessions to the store, in batches, at most one write of a session at a time.

    An actor on the store's own thread: a batch is made, written and accounted for there, without a change of threads, which costs up
    to 5 ms each time while another thread computes. When a call does not come back in time, another thread goes on (`_overdue`).
    What begins with an underscore is touched on that thread only, unless said otherwise; all else may be used from any thread.
    """

    def __init__(
        self,
        store: RecordStore,
        thread: DeadlineThread,
        policy: FlushPolicy,
        clock: Clock,
        on_conflict: Callable[[Flushable, Committed], None],
        journal: Journal | None = None,
    ) -> None:
        super().__init__(store, policy, clock, on_conflict, journal)
        self._thread = thread
        self._stopped = False
        # By id, for a session that is read again is another one: those in a call that was left behind, a write of which may still
        # arrive, each with the sessions that are to be written when it has come back.
        self._out: dict[str, set[Flushable]] = {}
        self._quiet: list[Future[None]] = []  # done when nothing can be written

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

    def flush(self, sessions: Iterable[Flushable]) -> Future[None]:
        """Flush what *sessions* have committed so far.

        The future is done when all has been tried; it fails with the first session's error whose `retry.attempts` have failed.
        """
        goals = [
            (session, committed[VERSION], len(session.losses))
            for session in sessions
            if (committed := session.committed) is not None and committed[VERSION] > session.flushed
        ]
        return self.reach(goals)

    def reach(self, goals: list[Goal]) -> Future[None]:
        """Flush until the store has these versions; as `flush`, and with ConflictError for what a conflict has taken meanwhile."""
        return self._ask(Flush(goals))

    def write(self, session: Flushable, committed: Committed, *, forced: bool = False) -> Future[None]:
        """Write *committed* before it is committed. The caller holds the session's turn until the future is done."""
        return self._ask(WriteThrough(session, committed, forced))

    def spill(self, session: Flushable) -> None:
        """Let go of *session*, which leaves memory with its newest state in the journal. The caller holds its turn."""
        self.notify(Spill(session))

    def relieve(self, session: Flushable) -> Future[None]:
        """Flush *session*, which has come to `max_events`. The future never fails, and does not outlast the news of an outage."""
        return self._ask(Relieve(session))

    def _ask(self, message: Flush | Relieve | WriteThrough) -> Future[None]:
        if not self.notify(message):
            message.done.set_exception(_ended())
        return message.done

    def _announce_due(self) -> Future[None] | None:
        due = FlushDue()
        return due.done if self.notify(due) else None

    def _announce_hurry(self) -> None:
        self.notify(Hurry())

    def _announce_retry(self, jobs: list[PendingWrite]) -> Future[None] | None:
        due = RetryDue(jobs)
        return due.done if self.notify(due) else None

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
                self._called = self._clock.monotonic()
                answer = self._thread.run(partial(self._overdue, jobs), write_jobs, self._store, jobs)
                if answer is LATE:
                    self.notify(Returned(jobs))
                    return  # another thread has the turn
                self._land(jobs, *answer)
                self._collect_young(len(jobs))
                if not self.line:
                    self._thread.submit(self._go_on)  # behind the reads, where they share the thread
                    return
        except Exception:
            logger.exception("the flusher met an error of its own while writing")
        self.leave()

    def _overdue(self, jobs: list[PendingWrite], error: ActorbotError) -> None:
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
            self._waiters.reached(job.session, error)
        self._go_on()

    def on_receive(self, message: Any) -> None:
        try:
            match message:
                case FlushDue(done):
                    for session in self._take_due():
                        self._wanted.setdefault(session, None)
                    self._quiet.append(done)
                case Hurry():
                    for session in self._take_hurried():
                        self._want(session)
                case Flush(goals, done):
                    self._want_all(goals, done)
                case Relieve(session, done):
                    self._waiters.add(session, ANY_NEWS, tell_news(done))
                    known_outage = self._retries.outage_since is not None
                    if not known_outage and session not in self._retries.again:
                        self._want(session)
                    if known_outage or session not in self._wanted:
                        self._waiters.reached(session, ANY_NEWS)
                case WriteThrough(session):
                    self._wanted[session] = message
                    if self._retries.is_down:
                        self._retries.paused = False  # whoever waits for it learns at once whether the store is back
                case Spill(session):
                    self._let_go(session)
                case Returned(jobs):
                    for job in jobs:
                        for session in self._out.pop(job.session.session_id, ()):
                            self._wanted.setdefault(session, None)
                case RetryDue(jobs, done):
                    self._retries.wake(jobs)
                    self._want_again(jobs)
                    self._quiet.append(done)
                case End():
                    self._finish()
        except Exception:  # pykka would end the actor, and with it every flush
            logger.exception("the flusher met an error of its own while handling %s", type(message).__name__)

    def _let_go(self, session: Flushable) -> None:
        self._wanted.pop(session, None)
        job = self._retries.again.pop(session, None)
        if job is not None:
            self._retries.resting.discard(job)
        # Whoever comes next is another actor, so nothing of this one is written any more: not by a timer that still knows of it,
        # nor by a call that is under way and fails.
        session.committed = session.decoded = None
        session.spilled = True
        self._unmark([session])
        self._uncharge([(session, None)])
        self._waiters.reached(session, self._has_spilled(session))

    def _has_spilled(self, session: Flushable) -> StoreUnavailableError:
        reason = "it does not take writes; what it has not is in the journal"
        return StoreUnavailableError(self._store.name, reason, session_id=session.session_id)

    def _finish(self) -> None:
        """Release whoever still waits: nothing is written any more."""
        self.closed = True
        told = [getattr(item.message, "done", None) for item in self.drain() if isinstance(item, Envelope)]
        waiting = [each.done for each in self._wanted.values() if each is not None]
        waiting += [job.through.done for job in self._retries.resting if job.through is not None]
        self._waiters.reached_everywhere(_ended())
        for done in (*told, *waiting, *self._room, *self._quiet):
            if done is not None and not done.done():
                done.set_exception(_ended())
        self._thread.close()

    def _want_all(self, goals: list[Goal], done: Future[None]) -> None:
        tell = tell_first_error(len(goals), done)
        for session, version, losses in goals:
            if session.spilled and version > session.flushed:
                tell(self._has_spilled(session))
            elif is_lost(session, version, losses):
                tell(ConflictError(self._store.name, "lost to a write of someone else", session_id=session.session_id))
            elif len(session.losses) > losses or version <= session.flushed:
                tell(None)
            else:
                self._waiters.add(session, version, tell)
                self._wanted.setdefault(session, None)
        if not goals:
            done.set_result(None)

    def _next_jobs(self) -> list[PendingWrite]:
        """Make the next batch; an empty one if nothing can be written now, or if waiting messages may fill it first."""
        wanted = self._wanted
        at_once = min(self._policy.batch_size, self._store.writes_at_once)
        while wanted and not (self._stopped or self._retries.paused or (self.line and len(wanted) < at_once)):
            now = self._clock.monotonic()
            size = 8 * min(len(wanted), at_once)
            write_ids = os.urandom(size)
            taken = [wanted.popitem(False) for _ in range(0, size, 8)]
            if self._out:
                taken = [each for each in taken if not self._hold_back(*each)]
            self._note_delay(taken[0][0] if taken and self._retries.outage_since is None else None)
            self._unmark([session for session, _ in taken])
            made = [self._make_job(*each, write_ids[8 * at : 8 * at + 8], now) for at, each in enumerate(taken)]
            if jobs := [job for job in made if job is not None]:
                return jobs
        self._note_delay(None)
        if not self.line:
            quiet, self._quiet = self._quiet, []
            for done in quiet:
                done.set_result(None)
        return []

    def _make_job(
        self, session: Flushable, through: WriteThrough | None, write_id: bytes, now: float
    ) -> PendingWrite | None:
        if through is not None:
            # It comes from who holds the turn, so nothing newer is committed meanwhile; a flush that failed before is overtaken.
            if through.job is None:
                write_id = self._write_id(session, through.committed, write_id)
                through.job = PendingWrite.make(session, through.committed, write_id, now, through)
            return through.job
        committed = session.committed
        if self._is_overtaken(session, committed):
            return None  # when that has ended, the session is looked at again
        if committed is None or committed[VERSION] <= session.flushed:
            self._retries.again.pop(session, None)
            self._uncharge([(session, None)])
            self._waiters.reached(session, ALL)
            return None
        if (failed := self._retries.again.get(session)) is not None and not is_outdated(failed):
            if not failed.unknown:
                # It is known that nothing of it was done, and it may be the very state that the store does not take.
                failed.renew(committed, self._write_id(session, committed, write_id), now)
            return failed
        return PendingWrite.make(session, committed, self._write_id(session, committed, write_id), now)

    def _is_overtaken(self, session: Flushable, committed: Committed | None) -> bool:
        """Tell whether a destroy is under way that the store may have by now: nothing older must be written after it."""
        lineages = session.lineages
        if lineages and committed is not None and committed[VERSION] < lineages[0].last:
            return True
        return self._retries.is_waited_for(session)

    def _write_id(self, session: Flushable, committed: Committed, random: bytes) -> bytes:
        """Return a random write id, or the one that can be found out again after a crash."""
        if self._journal is None:
            return random
        version = committed[VERSION]
        name, last = session.lineages[0] if session.lineages else (self._journal.lineage, version)
        return write_id_of(name if last == version else self._journal.lineage, version)

    def _hold_back(self, session: Flushable, through: WriteThrough | None) -> bool:
        """Write nothing of a session while an older write of it may still arrive, and let nobody wait for that; `False` if none may."""
        if session.session_id not in self._out:
            return False
        error = StoreUnavailableError(
            self._store.name, "an earlier write has not come back yet; try again", session_id=session.session_id
        )
        if through is not None:
            self._fail(through, error)
        self._out[session.session_id].add(session)
        self._waiters.reached(session, error)
        return True


def _ended() -> ManagerClosedError:
    return ManagerClosedError("the manager was closed before the store had answered")
