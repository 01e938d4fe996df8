"""What has failed to reach the store, whether that is an outage, and when it is tried again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Future

from actorbot._flushing.write import Flushable, PendingWrite, WriteThrough
from actorbot._policy import Retry
from actorbot._runtime.clock import Clock, Timer
from actorbot.errors import ActorbotError, OutcomeUnknownError

__all__ = ["Retries"]

logger = logging.getLogger("actorbot")


class Retries:
    """The flusher's memory of failures. Touched on its thread only.

    A call that fails as a whole is an outage: nothing is written until a pause is over. If only
    some writes of a call fail, each of these rests for a pause of its own, and others go on. So it
    is with a store that takes one write at a time.
    """

    def __init__(
        self, store: str, retry: Retry, clock: Clock, announce: Callable[[list[PendingWrite]], Future[None] | None]
    ) -> None:
        self._store = store
        self._retry = retry
        self._clock = clock
        self._announce = announce  # has `wake` called on the flusher's thread
        self.count = 0
        """Writes that were to be tried again."""
        self.outage_since: float | None = None
        """The monotonic second since which no call has succeeded; `None` if the store answers."""
        self.outage: ActorbotError | None = None
        """What the last such call has failed with."""
        self.refusing = False
        """Whether the store answers, and does not take the writes of some sessions."""
        self._last = ""  # the session whose write failed last
        self.paused = False
        """Whether nothing may be written now."""
        # Flushes that failed: each is sent again before anything newer of its session.
        self._again: dict[Flushable, PendingWrite] = {}
        self._resting: set[PendingWrite] = set()  # until the pause of each is over
        self._waited_for: dict[Flushable, PendingWrite] = {}  # resting, and somebody waits
        # These two are asked about each session of a batch, so they are the dicts' own methods.
        self.failed: Callable[[Flushable], PendingWrite | None] = self._again.get
        """Returns the flush of a session that failed and is to be sent again."""
        self.is_waited_for: Callable[[Flushable], bool] = self._waited_for.__contains__
        """Tells whether a write of a session rests that somebody waits for."""
        self._timer: Timer | None = None  # ends the pause
        self._failures = 0  # calls in a row that failed as a whole

    @property
    def is_down(self) -> bool:
        """Whether so many calls have failed that nobody waits for another try."""
        return self._failures >= self._retry.attempts

    @property
    def is_well(self) -> bool:
        """Whether nothing has failed since the store last took a write."""
        return not (self._failures or self.refusing)

    # --- what has failed -------------------------------------------------------------------------

    def note_outage(self, error: ActorbotError, *, slow: bool) -> None:
        """Note that a call has failed as a whole.

        A *slow* call counts as all attempts: nobody has the time to wait for another one.
        """
        self.outage = error
        self._failures = max(self._failures + 1, self._retry.attempts if slow else 0)
        if self.outage_since is None:
            self.outage_since = self._clock.monotonic()
            logger.warning("%s does not take writes; sessions stay in memory until it does: %s", self._store, error)

    def note_answer(self) -> None:
        """Note that the store has judged some write."""
        if self.outage_since is not None:
            logger.info("%s answers again", self._store)
        self.outage_since = None
        self._failures = 0
        self.refusing = bool(self._again)

    def note_failure(self, job: PendingWrite, error: ActorbotError) -> bool:
        """Count a failure; return whether it was the last one that somebody waits for."""
        job.tries += 1
        job.unknown = job.unknown or isinstance(error, OutcomeUnknownError)
        if not self.refusing and self.outage_since is None:
            logger.warning("a session could not be written: %s", error, extra={"session_id": job.session.session_id})
        self.refusing = True
        self._last = job.session.session_id
        if job.through is None:
            self._again[job.session] = job
        return job.tries >= self._retry.attempts

    def keep(self, jobs: Iterable[PendingWrite]) -> None:
        """Have flushes of a batch that failed sent again, without a count of failures."""
        self._again.update((job.session, job) for job in jobs if job.through is None)

    def refused(self) -> list[str]:
        """List the sessions whose writes failed, if need be the last one alone. Any thread."""
        again = list(self._again.values())  # the list is made in one step
        return [job.session.session_id for job in again if job.tries] or [self._last]

    def is_failed(self, job: PendingWrite) -> bool:
        """Tell whether *job* is the flush that `failed` returns: nothing has taken its place."""
        return self._again.get(job.session) is job

    def settle(self, sessions: Iterable[Flushable]) -> None:
        """Note that no failed flush of *sessions* need be sent again."""
        if self._again:
            for session in sessions:
                self._again.pop(session, None)

    def drop(self, session: Flushable) -> WriteThrough | None:
        """Forget *session*: nothing of it is sent any more. Return its write that is waited for."""
        again, waited_for = self._again.pop(session, None), self._waited_for.pop(session, None)
        self._resting.difference_update(job for job in (again, waited_for) if job is not None)
        return None if waited_for is None else waited_for.through

    # --- when it is tried again ------------------------------------------------------------------

    def pause(self, failed: list[PendingWrite], error: ActorbotError) -> None:
        """Write nothing for a while, and then these.

        After a lost answer the first pauses have no length. The store may well be up, and what was
        done can be found out only until others have written the session sixteen times. With pauses
        from 0.1 s on, four processes on three sessions of a Redis were too late 5 to 36 times in
        10,000 events.
        """
        self.count += len(failed)
        self.paused = True
        if self._timer is not None:
            self._timer.cancel()  # of an earlier pause, which was broken off
        lost = isinstance(error, OutcomeUnknownError) and not self.is_down
        self._timer = self._wake_after(0 if lost else self._failures, [])

    def break_off_pause(self) -> None:
        """Let writes go on before the pause is over."""
        self.paused = False

    def rest(self, failed: list[PendingWrite]) -> None:
        """Let these wait, and nobody else: the store has taken others, or was asked for one."""
        self.count += len(failed)
        self._resting.update(failed)
        self._waited_for |= {job.session: job for job in failed if job.through is not None}
        self._wake_after(max(job.tries for job in failed), failed)

    def _wake_after(self, failures: int, jobs: list[PendingWrite]) -> Timer:
        delay = self._retry.delay(failures) if failures else 0.0
        return self._clock.call_at(self._clock.monotonic() + delay, lambda: self._announce(jobs))

    def wake(self, jobs: list[PendingWrite]) -> None:
        """End the rest of these; without any, the pause of all."""
        if not jobs:
            self.paused = False
        self._resting.difference_update(jobs)
        for job in jobs:
            if self._waited_for.get(job.session) is job:
                del self._waited_for[job.session]

    def resting(self) -> list[WriteThrough]:
        """List the writes that rest and that somebody waits for."""
        return [job.through for job in self._resting if job.through is not None]
