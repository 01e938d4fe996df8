"""What becomes of a batch that was handed to the store: what is confirmed, lost or tried again, and who is told."""

from __future__ import annotations

import gc
from abc import abstractmethod
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Final

from actorbot._flushing.dirty import DirtySessions
from actorbot._flushing.recovery import is_outdated
from actorbot._flushing.retries import Retries
from actorbot._flushing.waiters import ANY_NEWS, Waiters
from actorbot._flushing.write import Committed, Flushable, PendingWrite, WriteThrough
from actorbot._journal.journal import Journal
from actorbot._policy import FlushPolicy
from actorbot._runtime.clock import Clock
from actorbot._state.committed import VERSION
from actorbot.errors import ActorbotError, ConflictError, OutcomeUnknownError, StoreUnavailableError
from actorbot.stores.base import RecordStore

__all__ = ["Outcome"]

YOUNG: Final = 1_000  # sessions to be flushed between two looks of the garbage collector at what is young


class Outcome(DirtySessions):
    """The flusher's half that a batch comes back to. What begins with an underscore is touched on the store's thread only."""

    def __init__(
        self,
        store: RecordStore,
        policy: FlushPolicy,
        clock: Clock,
        on_conflict: Callable[[Flushable, Committed], None],
        journal: Journal | None,
    ) -> None:
        super().__init__(policy, clock)
        self._store = store
        self._on_conflict = on_conflict
        self._journal = journal
        self.on_answer: Callable[[], None] | None = None
        """Called, on the store's thread, when the store takes writes again."""
        self.writes = self.conflicts = 0
        self.settled = 0
        """Versions, of all sessions, that the store has confirmed or a conflict has taken (where there is no journal)."""
        self._wanted: OrderedDict[Flushable, WriteThrough | None] = OrderedDict()  # to be written next
        self._retries = Retries(store.name, policy.retry, clock, self._announce_retry)
        self._called = 0.0  # the monotonic second at which the last call began
        self._waiters = Waiters()
        self._young = 0  # sessions flushed since the garbage collector was called

    @property
    def retries(self) -> int:
        """How many writes were to be tried again."""
        return self._retries.count

    @property
    def outage_since(self) -> float | None:
        """The monotonic second since which no call has succeeded; `None` if the store answers."""
        return self._retries.outage_since

    @property
    def refusing(self) -> bool:
        """Whether the store answers, and takes some session's writes not."""
        return self._retries.refusing

    @abstractmethod
    def _announce_retry(self, jobs: list[PendingWrite]) -> Future[None] | None:
        """Have these, or where there are none all that failed, tried again. May be called from any thread."""

    def _want(self, session: Flushable) -> None:
        committed = session.committed
        if committed is not None and committed[VERSION] > session.flushed:
            self._wanted.setdefault(session, None)

    def _land(
        self, jobs: list[PendingWrite], results: Sequence[ActorbotError | None], error: ActorbotError | None = None
    ) -> None:
        """Note what became of a batch: a result for each, or one error for all, which tells that the store is down."""
        if error is None and len(results) != len(jobs):
            error = OutcomeUnknownError(self._store.name, f"{len(results)} results for {len(jobs)} writes")
        if error is not None:
            results = [error] * len(jobs)
            took = self._clock.monotonic() - self._called
            self._retries.note_outage(error, slow=took >= self._policy.store_deadline / 2)
            self._waiters.reached_everywhere(ANY_NEWS)
        judged = any(result is None or isinstance(result, ConflictError) for result in results)
        answered = judged and not self._retries.is_well
        if answered:  # noted before its callers are told: they may look
            for job, result in zip(jobs, results, strict=True):
                if result is None:
                    self._retries.again.pop(job.session, None)
            self._retries.note_answer()
            if self.on_answer is not None:
                self.on_answer()
        self._confirm([job for job, result in zip(jobs, results, strict=True) if result is None])
        failed: list[PendingWrite] = []
        for job, result in zip(jobs, results, strict=True):
            if result is None:
                continue
            if isinstance(result, ConflictError):
                self._conflict(job, result)
            elif not self._give_up(job, result):
                failed.append(job)
            self._waiters.reached(job.session, ANY_NEWS)
        if error is not None:
            self._retries.pause(failed, error)
            self._want_again(failed)
            if self._retries.is_down:
                self._release_all(error)
            return
        if failed:
            self._retries.rest(failed)
        if answered:
            self._retries.note_answer()  # with what is still refused

    def _release_all(self, error: BaseException) -> None:
        """Let nobody wait longer for a store that is down: not even those whose write was never sent."""
        for through in [each for each in self._wanted.values() if each is not None]:
            del self._wanted[through.session]
            if through.job is None and isinstance(error, OutcomeUnknownError):
                # Of this one it is known: it was not sent.
                session_id = through.session.session_id
                unsent = StoreUnavailableError(self._store.name, f"not sent, since {error}", session_id=session_id)
                unsent.__cause__ = error
                self._fail(through, unsent)
            else:
                self._fail(through, error)
        self._waiters.reached_everywhere(error)

    def _confirm(self, jobs: list[PendingWrite]) -> None:
        """Note that the store has these. First all of it in the books, under one lock; then those are told who may look there."""
        again, journal = self._retries.again, self._journal
        settled: list[tuple[Flushable, float | None]] = []
        for job in jobs:
            session, record = job.session, job.write.record
            committed = session.committed
            if committed is not None:  # else nobody knows which versions were made here
                self.settled += record.version - session.flushed
            session.write_ids = record.write_ids
            session.flushed = record.version
            session.decoded = None  # it may be idle from now on
            if journal is not None:
                if not is_outdated(job):
                    session.lineages = ()
                journal.forget(session.session_id, record.version)
            if again:
                again.pop(session, None)
            # What was written may be an older state, sent again after a failure: go on to the newest unless a mark will.
            settled.append(
                (session, job.made if committed is not None and committed[VERSION] > record.version else None)
            )
        self.writes += len(jobs)
        self._uncharge(settled)
        for job, (session, behind) in zip(jobs, settled, strict=True):
            if job.through is not None:
                job.through.done.set_result(None)
            self._waiters.reached(session, job.write.record.version)
            if behind is not None and (not session.dirty or session in self._waiters):
                self._wanted.setdefault(session, None)

    def _collect_young(self, sessions: int) -> None:
        """Have the garbage collector look at what is young, after every so many *sessions*.

        It comes by itself when 700 objects more were made than freed. A turn makes one that stays, its state, and frees one that was old:
        the difference stays where it is, while the young ones pile up until the loop stands still for 20 ms (docs/decisions/0013).
        """
        self._young += sessions
        if self._young >= YOUNG and gc.isenabled():
            self._young = 0
            gc.collect(0)

    def _conflict(self, job: PendingWrite, error: ConflictError) -> None:
        session = job.session
        if job.set_back and self._catch_up(job):
            return
        self.conflicts += 1
        if job.through is not None:
            session.unanswered = job.write.record.version if job.unknown else 0
            self._fail(job.through, error)
            return
        self._retries.again.pop(session, None)
        session.losses += (session.flushed,)
        # In one step, since no call stands between: a turn that commits meanwhile is handed over too, or fails. The session is
        # read again before its next turn.
        unflushed, session.committed = session.committed, None
        if unflushed is not None:
            self.settled += unflushed[VERSION] - session.flushed
        if self._journal is not None:
            session.lineages = ()
            if unflushed is not None:
                self._journal.set_aside(session.session_id, unflushed)
        self._unmark([session])
        self._uncharge([(session, None)])
        if unflushed is not None:
            self._on_conflict(session, unflushed)
        self._waiters.reached(session, error)

    def _catch_up(self, job: PendingWrite) -> bool:
        """Give up what the journal holds of a session for what the store has; `False` if events have come on top of it, which are lost."""
        session, version = job.session, job.write.record.version
        committed = session.committed
        if committed is None or committed[VERSION] != version:
            return False
        session.committed = None  # no call stands between, as in `_conflict`
        session.flushed = version
        session.lineages = ()
        if self._journal is not None:
            self._journal.forget(session.session_id, version)
        self._unmark([session])
        self._uncharge([(session, None)])
        self._waiters.reached(session, version)
        return True

    def _give_up(self, job: PendingWrite, error: ActorbotError) -> bool:
        """Note a failure; `True` if nobody will try this write again."""
        spent = self._retries.note_failure(job, error)
        if job.through is None:
            if spent:
                self._waiters.reached(job.session, error)
            return False
        if job.through.done.done():
            return True
        if spent or self._retries.is_down:
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

    def _want_again(self, jobs: list[PendingWrite]) -> None:
        for job in jobs:
            if job.through is None:
                if self._retries.again.get(job.session) is job:  # not overtaken
                    self._wanted.setdefault(job.session, None)
            elif not job.through.done.done():
                self._wanted[job.session] = job.through
