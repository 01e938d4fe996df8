"""What becomes of a batch: what is confirmed, lost or tried again, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from actorbot._flushing.dirty import DirtySessions
from actorbot._flushing.queue import WriteQueue
from actorbot._flushing.recovery import is_outdated
from actorbot._flushing.retries import Retries
from actorbot._flushing.waiters import ANY_NEWS, Waiters
from actorbot._flushing.write import Flushable, PendingWrite
from actorbot._journal.journal import Journal
from actorbot._state.committed import VERSION, Committed
from actorbot.errors import ActorbotError, ConflictError

__all__ = ["Outcome"]


class Outcome:
    """Notes what the store has said. On the store's thread; any thread may look at the counts."""

    def __init__(
        self,
        store: str,
        *,
        queue: WriteQueue,
        dirty: DirtySessions,
        retries: Retries,
        waiters: Waiters,
        journal: Journal | None,
        on_conflict: Callable[[Flushable, Committed], None],
        on_answer: Callable[[], None] | None,
    ) -> None:
        self._store = store
        self._queue = queue
        self._dirty = dirty
        self._retries = retries
        self._waiters = waiters
        self._journal = journal
        self._on_conflict = on_conflict  # told a session, and its unflushed state that is lost
        self._on_answer = on_answer  # called when the store takes writes again
        self._anew: set[Flushable] = set()  # to be written once more, with nothing new
        self.writes = 0
        """Writes that the store has confirmed."""
        self.conflicts = 0
        """Writes that met somebody else's."""
        self.settled = 0
        """Versions, of all sessions, that the store has confirmed or a conflict has taken.

        Right where there is no journal only.
        """

    def note_outage(self, jobs: list[PendingWrite], error: ActorbotError, *, slow: bool) -> None:
        """Note that a call has failed as a whole: the store is down.

        A *slow* call took half of its time or more.
        """
        self._retries.note_outage(error, slow=slow)
        self._waiters.reached_everywhere(ANY_NEWS)
        failed = self._note_results(jobs, [error] * len(jobs))
        self._retries.pause(failed, error)
        self._queue.add_again(failed)
        if self._retries.is_down:  # nobody waits longer
            self._queue.fail_all(error)
            self._waiters.reached_everywhere(error)

    def note_refusal(self, jobs: list[PendingWrite], error: ActorbotError) -> None:
        """Note that the store has refused a batch as a whole, and may well take others of it."""
        goes_on = self._queue.division.divide(jobs)
        if len(jobs) == 1:
            self.note_answer(jobs, [error])
            return
        for job in jobs:
            job.unknown = True
        if not goes_on:
            self.note_outage(jobs, error, slow=False)
            return
        self._retries.keep(jobs)
        self._queue.add_again(jobs)

    def note_answer(self, jobs: list[PendingWrite], results: Sequence[ActorbotError | None]) -> None:
        """Note what became of a batch: a result for each of *jobs*."""
        judged = any(result is None or isinstance(result, ConflictError) for result in results)
        if judged:
            self._queue.division.note_answer()
        answered = judged and not self._retries.is_well
        if answered:  # noted before its callers are told: they may look
            self._retries.settle(job.session for job, result in zip(jobs, results, strict=True) if result is None)
            self._retries.note_answer()
            if self._on_answer is not None:
                self._on_answer()
        self._confirm([job for job, result in zip(jobs, results, strict=True) if result is None])
        failed = self._note_results(jobs, results)
        if failed:
            self._retries.rest(failed)
        if answered:
            self._retries.note_answer()  # with what is still refused

    def _note_results(self, jobs: list[PendingWrite], results: Sequence[ActorbotError | None]) -> list[PendingWrite]:
        """Note the errors among *results*; return what is to be tried again."""
        failed: list[PendingWrite] = []
        for job, result in zip(jobs, results, strict=True):
            if result is None:
                continue
            if isinstance(result, ConflictError):
                self._note_conflict(job, result)
            elif not self._give_up(job, result):
                failed.append(job)
            self._waiters.reached(job.session, ANY_NEWS)
        return failed

    def _confirm(self, jobs: list[PendingWrite]) -> None:
        """Note that the store has these.

        First everything is noted. Then those are told who wait, and who may look at what was noted.
        """
        journal = self._journal
        settled: list[tuple[Flushable, float | None]] = []
        for job in jobs:
            session, record = job.session, job.write.record
            committed = session.committed
            if committed is not None:  # else nobody knows which versions this manager has made
                self.settled += record.version - session.flushed
            session.write_ids = record.write_ids
            session.flushed = record.version
            session.decoded = None  # the session may be idle from now on
            if journal is not None:
                if not is_outdated(job):
                    session.lineages = ()
                journal.forget(session.session_id, record.version)
            # The store may have got an older state, sent again after a failure. Then the newest one
            # is still to be written; if the session is marked, the mark sees to that.
            settled.append(
                (session, job.made if committed is not None and committed[VERSION] > record.version else None)
            )
        self.writes += len(jobs)
        self._retries.settle(session for session, _ in settled)
        if self._anew:
            self._anew.difference_update(session for session, _ in settled)
        self._queue.division.reunite(session for session, _ in settled)
        self._dirty.uncharge(settled)
        for job, (session, behind) in zip(jobs, settled, strict=True):
            if job.through is not None:
                job.through.done.set_result(None)
            self._waiters.reached(session, job.write.record.version)
            if behind is not None and (not session.dirty or session in self._waiters):
                self._queue.add([session])

    def doubt_confirmed(self, sessions: Iterable[Flushable]) -> None:
        """Have *sessions* written once more: the store has gone back since it confirmed them."""
        for session in sessions:
            if not session.enter():
                continue  # it has an event, and is written after that
            committed = session.committed
            clean = committed is not None and committed[VERSION] == session.flushed > 0 and not session.dirty
            if clean and session.write_ids:
                session.flushed -= 1  # so it is behind, and cannot leave memory before it is written
                self.settled -= 1
                self._anew.add(session)
                self._queue.add([session])
            session.leave()

    def trust_confirmed(self, session: Flushable) -> None:
        """Note that *session* is written anyway: by a write that somebody waits for."""
        if session in self._anew:
            self._anew.discard(session)
            session.flushed += 1
            self.settled += 1

    def _note_conflict(self, job: PendingWrite, error: ConflictError) -> None:
        session = job.session
        nothing_lost = job.journal_behind or (job.through is None and session in self._anew)
        if nothing_lost and self._catch_up(job):
            return
        self.conflicts += 1
        self._queue.division.reunite([session])
        if job.through is not None:
            session.unanswered = job.write.record.version if job.unknown else 0
            self._queue.fail(job.through, error)
            return
        self._retries.settle([session])
        unflushed = self._take_unflushed(session)
        if unflushed is not None:
            self._on_conflict(session, unflushed)
        self._waiters.reached(session, error)

    def abandon(self, sessions: list[Flushable], error: ActorbotError) -> None:
        """Hand over what the store does not have of *sessions*; nothing of them is written.

        Once for each: what the journal commits of it after that belongs to a turn that fails.
        """
        taken = [(session, self._take_unflushed(session)) for session in sessions]
        if self._journal is not None:
            self._journal.skip_versions()
        try:
            for session, unflushed in taken:
                if unflushed is not None:
                    self._on_conflict(session, unflushed)
        finally:
            for session in sessions:
                self._anew.discard(session)
                self._queue.abandon(session, error)

    def _take_unflushed(self, session: Flushable) -> Committed | None:
        """Take what *session* has; return it if the store has not all of it."""
        session.losses += (session.flushed,)
        # In one step, with no call in between: what a turn commits before it is handed over too,
        # and a turn that commits after it fails. The session is read again before its next turn.
        unflushed, session.committed = session.committed, None
        session.decoded = None
        if unflushed is not None and unflushed[VERSION] <= session.flushed:
            unflushed = None  # the store has it: only of a session that is abandoned
        if unflushed is not None:
            self.settled += unflushed[VERSION] - session.flushed
        if self._journal is not None:
            session.lineages = ()
            if unflushed is not None and session.handed_over:
                self._journal.drop(session.session_id, unflushed[VERSION])
                unflushed = None
            elif unflushed is not None:
                self._journal.set_aside(session.session_id, unflushed)
        session.handed_over = session.abandoned is not None
        self._dirty.unmark([session])
        self._dirty.uncharge([(session, None)])
        return unflushed

    def _catch_up(self, job: PendingWrite) -> bool:
        """Let what the store has replace what a session was, where nothing is lost by that.

        `False`, and nothing is done, if events have come on top meanwhile: those are lost, as in
        any conflict.
        """
        session, version = job.session, job.write.record.version
        committed = session.committed
        if committed is None or committed[VERSION] != version:
            return False
        session.committed = None  # no call in between, as in `_note_conflict`
        self.settled += version - session.flushed
        session.flushed = version
        self._anew.discard(session)
        session.lineages = ()
        if self._journal is not None:
            self._journal.forget(session.session_id, version)
        self._dirty.unmark([session])
        self._dirty.uncharge([(session, None)])
        self._waiters.reached(session, version)
        return True

    def _give_up(self, job: PendingWrite, error: ActorbotError) -> bool:
        """Note a failure; return whether nobody will try this write again."""
        spent = self._retries.note_failure(job, error)
        if job.through is None:
            if spent:
                self._waiters.reached(job.session, error)
            return False
        if job.through.done.done():
            return True
        if spent or self._retries.is_down:
            self._queue.fail(job.through, error)
            return True
        return False
