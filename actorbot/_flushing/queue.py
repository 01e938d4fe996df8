"""What is written next, and the batch that is made of it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable
from concurrent.futures import Future

from actorbot._flushing.dirty import DirtySessions
from actorbot._flushing.division import Division
from actorbot._flushing.recovery import is_outdated
from actorbot._flushing.retries import Retries
from actorbot._flushing.set_back import SetBacks
from actorbot._flushing.waiters import ALL, ANY_NEWS, Goal, Waiters, tell_first_error, tell_news
from actorbot._flushing.write import Flushable, PendingWrite, WriteThrough
from actorbot._policy import FlushPolicy
from actorbot._runtime.clock import Clock
from actorbot._state.committed import VERSION, Committed, write_id_of
from actorbot.errors import ActorbotError, ConflictError, OutcomeUnknownError, StoreUnavailableError
from actorbot.stores.base import RecordStore

__all__ = ["WriteQueue"]


class WriteQueue:
    """The sessions that are to be written: first come, first served. On the store's thread.

    A session stands here once, and one batch is out at a time. So is one write of a session.
    """

    def __init__(
        self,
        store: RecordStore,
        policy: FlushPolicy,
        clock: Clock,
        lineage: bytes | None,
        set_backs: SetBacks,
        *,
        dirty: DirtySessions,
        retries: Retries,
        waiters: Waiters,
    ) -> None:
        self._store = store
        self._policy = policy
        self._clock = clock
        self._lineage = lineage  # of this manager's journal; None: there is no journal
        self._set_backs = set_backs
        self._dirty = dirty
        self._retries = retries
        self.division = Division()
        self._waiters = waiters
        self._wanted: OrderedDict[Flushable, WriteThrough | None] = OrderedDict()
        # Sessions of a call that was left behind: their writes may still arrive. By id, since a
        # session that is read again is another object. With each, what is to be written after the
        # call has come back.
        self._out: dict[str, set[Flushable]] = {}

    # --- what is to be written -------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self._wanted)

    def add(self, sessions: Iterable[Flushable]) -> None:
        """Have *sessions* written, if there is still something to write when it is their turn."""
        for session in sessions:
            self._wanted.setdefault(session, None)

    def add_if_behind(self, session: Flushable) -> None:
        """Have *session* written if the store has not all of it."""
        if session.behind() > 0:
            self._wanted.setdefault(session, None)

    def add_through(self, through: WriteThrough) -> None:
        """Have a write made that somebody waits for, in place of a flush of its session."""
        self._wanted[through.session] = through

    def add_again(self, jobs: Iterable[PendingWrite]) -> None:
        """Have *jobs* written again, unless something newer has taken the place or nobody waits."""
        for job in jobs:
            if job.through is None:
                if self._retries.is_failed(job):
                    self._wanted.setdefault(job.session, None)
            elif not job.through.done.done():
                self._wanted[job.session] = job.through

    def add_goals(self, goals: list[Goal], hurry: bool, done: Future[None]) -> None:
        """Write until the store has reached *goals*, or cannot reach some; then end *done*.

        Without *hurry* they are written when their time is up.
        """
        tell = tell_first_error(len(goals), done)
        for goal in goals:
            session = goal.session
            if session.spilled and goal.version > session.flushed:
                tell(self._has_spilled(session))
            elif goal.is_lost():
                lost = ConflictError(self._store.name, "lost to a write of someone else", session_id=session.session_id)
                tell(session.abandoned or lost)
            elif len(session.losses) > goal.losses or goal.version <= session.flushed:
                tell(None)
            else:
                self._waiters.add(session, goal.version, tell)
                if hurry:
                    self._wanted.setdefault(session, None)
        if not goals:
            done.set_result(None)

    def relieve(self, session: Flushable, done: Future[None]) -> None:
        """Write *session*; end *done* at any news of it, or now if it cannot be written now."""
        self._waiters.add(session, ANY_NEWS, tell_news(done))
        known_outage = self._retries.outage_since is not None
        if not known_outage and self._retries.failed(session) is None:
            self.add_if_behind(session)
        if known_outage or session not in self._wanted:
            self._waiters.reached(session, ANY_NEWS)

    def let_go(self, session: Flushable) -> None:
        """Write nothing of *session* any more. It has left memory, and the journal has its state.

        The session comes back as another actor. So nothing of this one must be written: not when a
        timer still knows it, and not when a call that is under way fails.
        """
        self._wanted.pop(session, None)
        self._retries.drop(session)
        session.committed = session.decoded = None
        session.spilled = True
        self._dirty.unmark([session])
        self._dirty.uncharge([(session, None)])
        self._waiters.reached(session, self._has_spilled(session))

    def abandon(self, session: Flushable, error: ActorbotError) -> None:
        """Write nothing of *session* any more, which has nothing to be written; tell who waits."""
        through = self._wanted.pop(session, None)
        resting = self._retries.drop(session)
        for each in (through, resting):
            if each is not None and not each.done.done():
                each.fail(error, self._store.name)
        self.division.reunite([session])
        self._waiters.reached(session, error)

    def _has_spilled(self, session: Flushable) -> StoreUnavailableError:
        reason = "it does not take writes; what it has not is in the journal"
        return StoreUnavailableError(self._store.name, reason, session_id=session.session_id)

    def fail(self, through: WriteThrough, error: BaseException) -> None:
        """Tell who waits that *through* is not tried again. A flush that it replaced goes on."""
        through.fail(error, self._store.name)
        self.add_if_behind(through.session)

    def fail_all(self, error: BaseException) -> None:
        """Fail every write that somebody waits for, also those that were never sent."""
        for through in self.throughs():
            del self._wanted[through.session]
            if through.job is None and isinstance(error, OutcomeUnknownError):
                # The outcome of the others is unknown. This one, for sure, was not sent.
                session_id = through.session.session_id
                unsent = StoreUnavailableError(self._store.name, f"not sent, since {error}", session_id=session_id)
                unsent.__cause__ = error
                self.fail(through, unsent)
            else:
                self.fail(through, error)

    def throughs(self) -> list[WriteThrough]:
        """List the writes that somebody waits for."""
        return [through for through in self._wanted.values() if through is not None]

    # --- a call that was left behind -------------------------------------------------------------

    def leave_behind(self, jobs: Iterable[PendingWrite]) -> None:
        """Write none of the sessions of *jobs* until `come_back`: their writes may still arrive."""
        for job in jobs:
            self._out[job.session.session_id] = set()
            job.unknown = True

    def come_back(self, jobs: Iterable[PendingWrite]) -> None:
        """Write what waited for the end of the call that had *jobs*."""
        for job in jobs:
            self.add(self._out.pop(job.session.session_id, ()))

    def _hold_back(self, session: Flushable, through: WriteThrough | None) -> bool:
        """Keep *session* until an older write of it has come back, and tell who waits.

        `False` if no write of it is out.
        """
        if session.session_id not in self._out:
            return False
        error = StoreUnavailableError(
            self._store.name, "an earlier write has not come back yet; try again", session_id=session.session_id
        )
        if through is not None:
            self.fail(through, error)
        self._out[session.session_id].add(session)
        self._waiters.reached(session, error)
        return True

    # --- the next batch --------------------------------------------------------------------------

    def at_once(self) -> int:
        """Return how many writes go into one batch at most."""
        return min(self._policy.batch_size, self._store.writes_at_once)

    def take_batch(self) -> list[PendingWrite]:
        """Take out as many sessions as go into a batch; return the writes that they need."""
        now = self._clock.monotonic()
        size = self.division.size(self._wanted, min(len(self._wanted), self.at_once()))
        taken = [self._wanted.popitem(False) for _ in range(size)]
        if self._out:
            taken = [each for each in taken if not self._hold_back(*each)]
        self._dirty.note_delay(taken[0][0] if taken and self._retries.outage_since is None else None)
        self._dirty.unmark([session for session, _ in taken])
        made = [self._make_job(*each, now) for each in taken]
        return [job for job in made if job is not None]

    def _make_job(self, session: Flushable, through: WriteThrough | None, now: float) -> PendingWrite | None:
        if through is not None:
            # Who holds the turn waits for this, so nothing newer is committed meanwhile. It
            # replaces a flush that failed before.
            if through.job is None:
                write_id = self._write_id(session, through.committed, kept=through.forced)
                through.job = PendingWrite.make(session, through.committed, write_id, now, through)
            return through.job
        committed = session.committed
        if self._is_overtaken(session, committed):
            return None  # when the destroy has ended, the session comes here again
        if committed is None or committed[VERSION] <= session.flushed:
            self._retries.settle([session])
            self._dirty.uncharge([(session, None)])
            self._waiters.reached(session, ALL)
            return None
        failed = self._retries.failed(session)
        if failed is not None and not is_outdated(failed):
            if not failed.unknown or not self._store.compares:
                # For sure nothing of it was done, or it does not matter. The store may refuse just
                # this state: send the newest one.
                failed.renew(committed, self._write_id(session, committed), now)
            return failed
        return PendingWrite.make(session, committed, self._write_id(session, committed), now)

    def _is_overtaken(self, session: Flushable, committed: Committed | None) -> bool:
        """Tell whether a destroy is under way, which the store may have done by now.

        Nothing older must be written after a destroy.
        """
        lineages = session.lineages
        if lineages and committed is not None and committed[VERSION] < lineages[0].last:
            return True
        return self._retries.is_waited_for(session)

    def _write_id(self, session: Flushable, committed: Committed, *, kept: bool = True) -> bytes:
        """Return a new write id; if the journal *kept* it, one that a later process can derive.

        A claim is not kept: if its answer is lost, another state may get the same version.
        """
        if self._lineage is None or not kept:
            return self._set_backs.write_id()
        version = committed[VERSION]
        name, last = session.lineages[0] if session.lineages else (self._lineage, version)
        return write_id_of(name if last == version else self._lineage, version)
