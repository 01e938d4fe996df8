"""The actor that takes committed sessions to the store, and what it is told."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from functools import partial
from math import inf
from typing import Any, Final

from actorbot._flushing.dirty import DirtySessions
from actorbot._flushing.letting_go import LettingGo
from actorbot._flushing.messages import Abandon, Anew, End, Flush, FlushDue, Relieve, RetryDue, Returned, Spill
from actorbot._flushing.outcome import Outcome
from actorbot._flushing.queue import WriteQueue
from actorbot._flushing.recovery import Refused, write_batch
from actorbot._flushing.retries import Retries
from actorbot._flushing.set_back import SetBacks
from actorbot._flushing.waiters import Goal, Waiters
from actorbot._flushing.write import Flushable, PendingWrite, WriteThrough
from actorbot._journal.journal import Journal
from actorbot._policy import FlushPolicy
from actorbot._runtime.actor import Envelope
from actorbot._runtime.clock import Clock
from actorbot._runtime.deadline_thread import LATE, Answer, DeadlineThread
from actorbot._runtime.mailbox import Mailbox
from actorbot._state.committed import VERSION, Committed
from actorbot.errors import ActorbotError, ManagerClosedError
from actorbot.stores.base import RecordStore

__all__ = ["Flusher"]

logger = logging.getLogger("actorbot")

YOUNG: Final = 1_000  # sessions that are flushed between two collections of young garbage


class Flusher(Mailbox):
    """Takes committed sessions to the store, in batches.

    An actor on the store's own thread. There a batch is made and written, and its outcome is noted,
    without a change of threads: each change costs up to 5 ms while another thread computes. If a
    call does not come back in time, another thread goes on (`_overdue`). What begins with an
    underscore is used on the store's thread only, and all else on any thread; of `retries` and
    `outcome`, that is what they count. `set_backs` says who uses which part of it.
    """

    def __init__(
        self,
        store: RecordStore,
        thread: DeadlineThread,
        policy: FlushPolicy,
        clock: Clock,
        *,
        journal: Journal | None = None,
        on_conflict: Callable[[Flushable, Committed], None],
        on_answer: Callable[[], None] | None = None,
        check: Callable[[], None] = lambda: None,
        max_session_bytes: int = 1 << 40,
    ) -> None:
        """*check* is called before each call, on the store's thread, which fails as it does."""
        super().__init__()
        self._check = check
        self._store = store
        self._thread = thread
        self._policy = policy
        self._clock = clock
        self.dirty = dirty = DirtySessions(policy, clock, lambda done: self.notify(FlushDue(done)), max_session_bytes)
        self._waiters = waiters = Waiters()
        self.retries = retries = Retries(store.name, policy.retry, clock, self._announce_retry)
        lineage = None if journal is None else journal.lineage
        self.set_backs = set_backs = SetBacks(store.name, clock, lineage)
        self._queue = queue = WriteQueue(
            store, policy, clock, lineage, set_backs, dirty=dirty, retries=retries, waiters=waiters
        )
        self.outcome = Outcome(
            store.name,
            queue=queue,
            dirty=dirty,
            retries=retries,
            waiters=waiters,
            journal=journal,
            on_conflict=on_conflict,
            on_answer=on_answer,
        )
        self.letting_go = LettingGo()
        self._stopped = False
        self._began = 0.0  # the monotonic second at which the last call began
        self._young = 0  # sessions flushed since the garbage collector was called
        self._quiet: list[Future[None]] = []  # done when nothing can be written

    # --- from any thread -------------------------------------------------------------------------

    def begin(self) -> None:
        """Let the first message in."""
        self.leave()

    def stop(self) -> None:
        """Begin no further write; one that is under way still counts."""
        self._stopped = True

    def end(self) -> None:
        """End after what it has been told so far, and end the store's thread.

        Waits for nothing, not even for a call that is under way.
        """
        self.notify(End())
        self._thread.leave_behind()

    def is_running(self) -> bool:
        """Tell whether it still takes messages."""
        return not self.closed

    def notify(self, message: Any) -> bool:
        """Tell it something; `False` if it has ended.

        It may have ended when a timer or a late call comes.
        """
        return self.join(Envelope(message), inf)

    def flush(self, sessions: Iterable[Flushable]) -> Future[None]:
        """Flush what *sessions* have committed so far.

        The future ends when all was tried. It fails with the error of the first session that has
        failed `retry.attempts` times.
        """
        return self.reach(
            [
                Goal(session, committed[VERSION], len(session.losses))
                for session in sessions
                if (committed := session.committed) is not None and committed[VERSION] > session.flushed
            ]
        )

    def reach(self, goals: list[Goal], *, hurry: bool = True) -> Future[None]:
        """Flush until the store has these versions; without *hurry*, when their time is up.

        The future ends as that of `flush`. It fails with ConflictError if a conflict has taken one
        of the versions meanwhile.
        """
        return self._ask(Flush(goals, hurry))

    def write(self, session: Flushable, committed: Committed, *, forced: bool = False) -> Future[None]:
        """Write *committed* before it is committed.

        The caller holds the session's turn until the future is done.
        """
        return self._ask(WriteThrough(session, committed, forced))

    def write_anew(self, sessions: Iterable[Flushable]) -> None:
        """Write *sessions* also if the store has confirmed them: it has gone back in time."""
        self.notify(Anew(list(sessions)))

    def spill(self, session: Flushable) -> None:
        """Let go of *session*, which leaves memory; the journal has its newest state.

        The caller holds its turn.
        """
        self.notify(Spill(session))

    def abandon(self, sessions: Iterable[Flushable], error: ActorbotError) -> Future[None]:
        """Write nothing of *sessions* any more, and hand over what the store has not.

        They leave memory, whoever has their turns. Who waits for a write of them gets *error*. The
        future ends when it is done: at once, unless a call to the store is on its way.
        """
        abandon = Abandon(list(sessions), error)
        for session in abandon.sessions:
            session.abandoned = error  # first: a turn that commits from here on finds it
        self.letting_go.keep([session.session_id for session in abandon.sessions], abandon.done)
        if self.enter():
            self.on_receive(abandon)  # here and now: nobody else uses it
            self.leave()
            return abandon.done
        return self._ask(abandon)

    def relieve(self, session: Flushable) -> Future[None]:
        """Flush *session*, which has come to `max_events`.

        The future never fails. It ends at the latest when an outage becomes known.
        """
        return self._ask(Relieve(session))

    def _ask(self, message: Abandon | Flush | Relieve | WriteThrough) -> Future[None]:
        if not self.notify(message):
            message.done.set_exception(_ended())
        return message.done

    def _announce_retry(self, jobs: list[PendingWrite]) -> Future[None] | None:
        due = RetryDue(jobs)
        return due.done if self.notify(due) else None

    # --- on the store's thread: messages ---------------------------------------------------------

    def schedule(self) -> None:
        self._thread.submit(self._work)

    def _work(self) -> None:
        self.run_batch()
        self._go_on()

    def on_receive(self, message: Any) -> None:
        try:
            self._handle(message)
        except Exception:  # pykka would end the actor, and nothing would be flushed any more
            logger.exception("the flusher met an error of its own while handling %s", type(message).__name__)

    def _handle(self, message: Any) -> None:
        match message:
            case FlushDue(done):
                self._queue.add(self.dirty.take_due())
                if done is not None:
                    self._quiet.append(done)
            case Flush(goals, hurry, done):
                self._queue.add_goals(goals, hurry, done)
            case Relieve(session, done):
                self._queue.relieve(session, done)
            case Abandon(sessions, error, done):
                try:
                    self.outcome.abandon(sessions, error)
                finally:
                    done.set_result(None)  # or these sessions could not be read again
            case WriteThrough() if message.session.abandoned is not None:
                message.done.set_exception(message.session.abandoned)
            case WriteThrough():
                self.outcome.trust_confirmed(message.session)
                self._queue.add_through(message)
                if self.retries.is_down:
                    self.retries.break_off_pause()  # who waits learns at once how the store is
            case Anew(sessions):
                self.outcome.doubt_confirmed(sessions)
            case Spill(session):
                self._queue.let_go(session)
            case Returned(jobs):
                self._queue.come_back(jobs)
            case RetryDue(jobs, done):
                self.retries.wake(jobs)
                self._queue.add_again(jobs)
                self._quiet.append(done)
            case End():
                self._finish()

    def _finish(self) -> None:
        """Tell whoever still waits that nothing is written any more."""
        self.closed = True
        told = [getattr(item.message, "done", None) for item in self.drain() if isinstance(item, Envelope)]
        waiting = [through.done for through in (*self._queue.throughs(), *self.retries.resting())]
        self._waiters.reached_everywhere(_ended())
        self.dirty.end(_ended())
        for done in (*told, *waiting, *self._quiet):
            if done is not None and not done.done():
                done.set_exception(_ended())
        self._thread.close()

    # --- on the store's thread: batches ----------------------------------------------------------

    def _go_on(self) -> None:
        """Write a batch; then let in who waits for the thread, and messages.

        The turn is passed on when there is nothing to write.
        """
        try:
            if not self.closed and (jobs := self._next_batch()):
                self._began = self._clock.monotonic()
                write = partial(write_batch, self._store, jobs, self.set_backs, self._check)
                answer = self._thread.run(partial(self._overdue, jobs), write)
                if answer is LATE:
                    self.notify(Returned(jobs))
                    return  # another thread has the turn
                self._note(jobs, answer)
                self._collect_young(len(jobs))
                if not self.line:
                    self._thread.submit(self._go_on)  # after the reads, where they share the thread
                    return
        except Exception:
            logger.exception("the flusher met an error of its own while writing")
        self.leave()

    def _next_batch(self) -> list[PendingWrite]:
        """Make the next batch.

        An empty one if nothing can be written now, or if messages that wait may fill it first.
        """
        queue = self._queue
        while queue and not (self._stopped or self.retries.paused or (self.line and len(queue) < queue.at_once())):
            if jobs := queue.take_batch():
                return jobs
        self.dirty.note_delay(None)
        if not self.line:
            quiet, self._quiet = self._quiet, []
            for done in quiet:
                done.set_result(None)
        return []

    def _note(self, jobs: list[PendingWrite], answer: Answer) -> None:
        if answer.error is not None:
            self._note_outage(jobs, answer.error)
        elif isinstance(answer.value, Refused):
            self.outcome.note_refusal(jobs, answer.value.error)
        else:
            self.outcome.note_answer(jobs, answer.value)

    def _note_outage(self, jobs: list[PendingWrite], error: ActorbotError) -> None:
        took = self._clock.monotonic() - self._began
        self.outcome.note_outage(jobs, error, slow=took >= self._policy.store_deadline / 2)

    def _overdue(self, jobs: list[PendingWrite], error: ActorbotError) -> None:
        """Go on in the place of a call that has not come back; tell who waits for its sessions."""
        self._queue.leave_behind(jobs)
        for job in jobs:
            if job.through is not None:
                self._queue.fail(job.through, error)
        alone = 1 in (self._store.writes_at_once, jobs[0].session.company)
        if len(jobs) == 1 and alone:  # this tells nothing about others
            self.outcome.note_answer(jobs, [error])
        else:
            self._note_outage(jobs, error)
        for job in jobs:
            self._waiters.reached(job.session, error)
        self._go_on()

    def _collect_young(self, sessions: int) -> None:
        """Have the young garbage collected, each time that `YOUNG` *sessions* were flushed.

        The collector comes by itself when 700 more objects were made than freed. A turn makes one
        object that stays, its state, and frees an old one: the difference stays the same. The young
        objects pile up until a collection stops the loop for 20 ms (docs/decisions/0013).
        """
        self._young += sessions
        if self._young >= YOUNG and gc.isenabled():
            self._young = 0
            gc.collect(0)


def _ended() -> ManagerClosedError:
    return ManagerClosedError("the manager was closed before the store had answered")
