"""Takes a store's lease for one manager, renews it, and gives it back.

All that asks the store runs on a thread of its own, which no handler and no slow flush can hold up.
Times are counted from before the store was asked: whoever is told late has less of them, not more.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from copy import copy
from dataclasses import replace
from functools import partial
from math import inf
from typing import Any, Final, NamedTuple

from actorbot._ownership.lease import WATCHED, Holder, Lease, Lost, Mode, renew, take, without
from actorbot._ownership.obstacle import Obstacle
from actorbot._ownership.stays import has_ended, stays
from actorbot._reports import Ownership
from actorbot._runtime.clock import Clock, Timer
from actorbot._runtime.deadline_thread import DeadlineThread
from actorbot._runtime.home import Home, new_future
from actorbot._runtime.process import this_process
from actorbot.errors import OutcomeUnknownError, OwnershipLostError, StoreError, StoreUnavailableError
from actorbot.stores.base import RecordStore

__all__ = ["Keeper"]

logger = logging.getLogger("actorbot")

LEASE: Final = 10.0
"""Seconds for which an owner has a store without renewing its lease."""
RENEWED: Final = 0.3
"""The part of a lease after which it is renewed."""
PATIENCE: Final = 0.3
"""The part of a lease that a renewal may take: an outage is known before the lease runs out."""
RETRY: Final = 0.25
"""Seconds until that is tried again, if the store did not answer."""
POLL: Final = 0.02
"""Seconds until a start that waits for the lease looks again: it is the pause of a hand-over."""
SAY_AGAIN: Final = 5.0  # seconds
TRIES: Final = 5  # at once, while others change the lease: several may share it


class Keeper:
    """Keeps the lease of one store for one manager. Any thread, unless a method says otherwise."""

    def __init__(
        self,
        store: RecordStore,
        opened: object,
        mode: Mode,
        clock: Clock,
        deadline: float,
        on_lost: Callable[[OwnershipLostError], None],
    ) -> None:
        """*opened* is the store object that the author made; *on_lost* is called in any thread."""
        self._store = store
        self._opened = opened
        self._mode: Mode = mode
        self._clock = clock
        # An attribute, since each turn asks. It stands still in a machine that sleeps, whose owner
        # then finds out at its next renewal. A clock that does not (CLOCK_BOOTTIME) would cost each
        # event another 1 %.
        self.now = clock.monotonic
        """Returns the monotonic second that `until` belongs to."""
        self._deadline = min(deadline, PATIENCE * LEASE)
        self._on_lost = on_lost
        self._thread = DeadlineThread("actorbot-lease", store.name, clock, deadline)
        self._me = ""
        self._mine: Holder | None = None
        self._seen: tuple[str | None, float] | None = None  # the last text, and since when it is the same
        self._proven = False  # whether the server has taken a write since then
        self._newest = 0  # the last epoch that was seen
        self._lock = threading.Lock()  # guards `_flying`, `_asked`, `_timer`, `_ended` and `lost`
        self._flying: Future[None] | None = None  # a renewal that is under way
        self._asked = 0.0  # when it began
        self._timer: Timer | None = None
        self._ended = False
        self.until = inf
        """The monotonic second from which on a turn asks (`confirm`) before it commits."""
        self._runs_out = inf  # the monotonic second from which on others may take the lease
        self.lost: OwnershipLostError | None = None
        self.trouble: str | None = None
        """Why the lease could not be renewed the last time."""
        self.waits_for: str | None = None
        """Whom a start waits for."""

    @property
    def claims(self) -> bool:
        """Whether an earlier owner may still write: see `claim_first`."""
        return self._mine is not None and self._mine.claims

    def ownership(self) -> Ownership | None:
        """Say who owns the store, as far as this process knows."""
        if (mine := self._mine) is None:
            return None
        remaining = 0.0 if self.lost else max(0.0, self._runs_out - self.now())
        return Ownership(str(mine.process), mine.mode, mine.epoch, remaining)

    # --- taking it -------------------------------------------------------------------------------

    async def acquire(self, home: Home, timeout: float, on_wait: Callable[[str, bool], None]) -> None:
        """Take the lease, and wait for it at most *timeout* seconds. At home.

        At each look that is in vain, *on_wait* is told what is in the way, and whether it passes.

        Raises: StoreLockedError; StoreError, StoreUnavailableError.
        """
        self._me = stays.join(self._opened)
        began = said = self.now()
        while (obstacle := await self._look(home)) is not None:
            now = self.now()
            if now - began >= timeout and not obstacle.passes:
                raise obstacle.error or obstacle.locked(self._store.name, now - began)
            if self.waits_for is None or now - said >= SAY_AGAIN:
                said = now
                logger.info("%s: waits for its owner: %s", self._store.name, obstacle.reason)
            self.waits_for = obstacle.reason
            on_wait(obstacle.reason, obstacle.passes)
            with suppress(TimeoutError):
                await home.wait(new_future(), POLL)
        assert self._mine is not None
        logger.info("%s: owned by this process, %s, epoch %d", self._store.name, self._mode, self._mine.epoch)
        self.waits_for = None

    async def _look(self, home: Home) -> Obstacle | None:
        try:
            return await home.wait(self._thread.call(self._take))  # type: ignore[no-any-return]
        except StoreUnavailableError as error:
            # At once, but for an answer that is lost: who has asked for the lease may have it.
            if self._seen is None or (self.waits_for is None and not isinstance(error, OutcomeUnknownError)):
                raise
            self._seen = None, inf  # whoever is away may have been kept from renewing, too
            return Obstacle(f"the store does not answer: {error}", passes=False, error=error)

    def _take(self) -> Obstacle | None:
        """Take the lease, or say what is in the way. On the thread."""
        asked = self.now()
        found = self._store.read_lease()
        if self._seen is None or self._seen[0] != found.text or self._seen[1] == inf:
            self._seen, self._proven = (found.text, self.now()), False
        watched = asked - self._seen[1]
        lease = Lease.parse(found.text, self._store.name)
        enough = WATCHED * LEASE
        young = found.text is None if found.up is None else found.up < enough
        if watched < enough and (young or lease.epoch < self._newest):
            reason = "the server was just started, or has lost the lease, and an owner may be about to renew it"
            return Obstacle(reason, passes=True)
        self._newest = max(lease.epoch, self._newest)
        lease = replace(lease, epoch=self._newest)
        mine = Holder(this_process(), self._mode, LEASE)
        is_gone = partial(has_ended, mine.process)
        outcome = take(lease, self._me, mine, found.now, watched if self._proven else 0.0, is_gone=is_gone)
        if not isinstance(outcome, Lease):
            if found.text is not None and not self._proven and (outcome.overdue or watched >= enough):
                # It may answer, and refuse to write: then a living owner cannot renew its lease.
                self._store.swap_lease(found.text, found.text)
                self._seen, self._proven = (found.text, self.now()), True
            reason = "; ".join(each.say(found.now) for each in outcome.holders)
            is_here = any(each.process == mine.process for each in outcome.holders)
            return Obstacle(reason, passes=not outcome.may_renew, is_here=is_here)
        if self._ended:  # as in `_renew`: the start was given up meanwhile
            return None
        if not self._store.swap_lease(found.text, outcome.to_text()):
            return Obstacle("somebody else has just taken it", passes=True)
        with self._lock:
            if not self._ended:
                self._renewed(outcome.holders[self._me], asked)
        return None

    # --- keeping it ------------------------------------------------------------------------------

    async def confirm(self, home: Home) -> None:
        """Wait until it is certain that this process still owns the store. At home.

        While the server does not answer, it does: nobody has been seen to take it.
        Raises: OwnershipLostError, StoreUnavailableError if the manager was closed.
        """
        while self.now() >= self.until:
            if self.lost is not None or self._ended:
                raise copy(
                    self.lost or StoreUnavailableError(self._store.name, "it was closed before it said who owns it")
                )
            await home.wait(self._renew_soon())

    def check_before_writing(self) -> None:
        """Refuse to write once the lease has run out, until it is renewed. Any thread.

        What another owner wrote may have been read here since: to go on from that is no conflict.
        Raises: OwnershipLostError, StoreUnavailableError.
        """
        if self.now() >= self._runs_out:
            raise self.lost or StoreUnavailableError(self._store.name, "its lease has run out, and is being renewed")

    def _renew_soon(self) -> Future[None]:
        """Begin a renewal, unless one is under way. The future ends with it, and never fails."""
        with self._lock:
            if self._flying is not None:
                return self._flying
            done = new_future()
            if self._ended:
                done.set_result(None)
                return done
            self._flying, self._asked = done, self.now()
            if self.trouble is not None and self._asked < self.until:
                self.until = max(self.until, self._asked + self._deadline + RETRY)
            if self._timer is not None:
                self._timer.cancel()
        self._thread.call(self._renew, deadline=self._deadline).add_done_callback(self._note)
        return done

    def _tick(self) -> None:
        self._renew_soon()

    def _renew(self) -> _Renewed | Lost:
        """Renew the lease. On the thread."""
        mine = self._mine
        assert mine is not None
        for _ in range(TRIES):
            asked = self.now()
            found = self._store.read_lease()
            outcome = renew(Lease.parse(found.text, self._store.name), self._me, mine, found.now)
            if isinstance(outcome, Lost):
                return outcome
            if self._ended:  # after the reading: a call that was late must not put back what was given back
                break
            if self._store.swap_lease(found.text, outcome.to_text()):
                return _Renewed(outcome.holders[self._me], asked)
        raise StoreUnavailableError(self._store.name, f"others changed its lease meanwhile, {TRIES} times")

    def _note(self, answer: Future[Any]) -> None:
        """Note what became of a renewal, and begin the next one in time. Any thread."""
        error = answer.exception()
        outcome = None if error is not None else answer.result()
        with self._lock:
            done, self._flying = self._flying, None
            if not self._ended:
                if isinstance(outcome, Lost):
                    self.lost = self._lost_to(outcome.holder)
                    self.until = self._runs_out = -inf
                elif isinstance(outcome, _Renewed):
                    self._renewed(*outcome)
                else:
                    self._failed(error)
        try:
            if isinstance(outcome, Lost) and self.lost is not None:
                self._on_lost(self.lost)
        finally:
            if done is not None:
                done.set_result(None)

    def _renewed(self, mine: Holder, asked: float) -> None:
        # The caller holds the lock.
        if self.trouble is not None:
            logger.info("%s: the lease is renewed again (%s, epoch %d)", self._store.name, mine.mode, mine.epoch)
        self._mine, self.trouble = mine, None
        self.until = self._runs_out = asked + mine.lease
        self._again(asked + RENEWED * mine.lease - self.now())

    def _again(self, seconds: float) -> None:
        self._timer = self._clock.call_at(self.now() + seconds, self._tick)

    def _failed(self, error: BaseException | None) -> None:
        """Go on until the next try has begun: nobody is known to have taken the store.

        But a failure that is noticed late says nothing of it: the process was frozen meanwhile.
        """
        mine = self.ownership()
        if self.trouble is None and mine is not None:
            logger.warning(
                "%s: the lease cannot be renewed, which is tried again (%s, epoch %d, for %.1f s more): %s",
                self._store.name, mine.mode, mine.epoch, mine.remaining, error,
            )  # fmt: skip
        self.trouble = str(error)
        if (now := self.now()) < self._asked + self._deadline + RETRY:
            self.until = max(self.until, now + 2 * RETRY)
        self._again(RETRY)

    def _lost_to(self, holder: Holder | None) -> OwnershipLostError:
        named = holder is not None and f"{holder.process}, {holder.mode}, epoch {holder.epoch}"
        who = named or "somebody who has given it back since"
        return OwnershipLostError(
            self._store.name,
            f"it was taken over by {who}, since this process had not renewed its lease for {LEASE:g} s."
            " Nothing more is acknowledged here; what was not flushed is in conflicts(). Restart this process",
        )

    # --- giving it back --------------------------------------------------------------------------

    def release(self, *, give_back: bool = True) -> Future[None]:
        """Give the lease back, unless another manager of this process has the store open.

        If it must not *give_back*, since a write may still come late, the next owner finds out that
        this one has ended. The thread ends. Twice is no error. The future may fail: StoreError.
        """
        released = new_future()
        with self._lock:
            if self._ended:
                released.set_result(None)
                return released
            self._ended = True
            if self._timer is not None:
                self._timer.cancel()
        if self.now() < self.until:  # or else a turn that asks can have no answer any more
            self.until = inf
        if self._me and stays.leave(self._opened, clean=give_back):
            released = self._thread.call(self._give_back)
        else:
            released.set_result(None)
        self._thread.close()
        return released

    def _give_back(self) -> None:
        for _ in range(TRIES):
            found = self._store.read_lease()
            lease = Lease.parse(found.text, self._store.name)
            if self._me not in lease.holders and self._me not in lease.away:
                return
            if self._store.swap_lease(found.text, without(lease, self._me).to_text()):
                return
        raise StoreError(self._store.name, "others changed its lease meanwhile; it runs out by itself")


class _Renewed(NamedTuple):
    mine: Holder
    asked: float
    """The monotonic second before the store was asked."""
