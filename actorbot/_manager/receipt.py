"""`Receipt`: what `submit` returns. It waits until an event is handled, and until it is durable."""

from __future__ import annotations

import threading
from concurrent.futures import Future, wait
from typing import Any, Final

from actorbot._checks import check_timeout
from actorbot._flushing.waiters import Goal
from actorbot._manager.access import Access
from actorbot._runtime.once import Once
from actorbot._runtime.thread_home import run_inline
from actorbot._state.committed import VERSION
from actorbot._turns.context import Context
from actorbot._turns.deadlock import begin_to_wait, end_to_wait
from actorbot._turns.hooks import Hooks
from actorbot._turns.session_actor import SessionActor
from actorbot.errors import ConflictError, ManagerClosedError

__all__ = ["Receipt"]

MOMENT: Final = 1.0  # seconds


def _check(timeout: float | None) -> None:
    """Check a time-out before anything is waited for. Raises: ConfigError."""
    if timeout is not None:
        check_timeout(timeout)


class Receipt:
    """Stands for an event that was accepted, and that is handled while its sender goes on."""

    def __init__(self, access: Access, hooks: Hooks, actor: SessionActor, event: Any, outcome: Future[Any]) -> None:
        self._access = access
        self._hooks = hooks
        self._actor = actor
        self._outcome = outcome
        self._event = event
        self._hearing = Once()  # of a failure: by who waits, or else the dead letters
        self._counting = threading.Lock()  # guards _waiting
        self._waiting = 0  # how many wait for the outcome
        self._version: int | None = None
        self._losses = 0
        outcome.add_done_callback(self._note)

    def _note(self, outcome: Future[Any]) -> None:
        if outcome.exception() is not None:
            self._bury_unless_heard()
            return
        self._hear()
        committed = self._actor.committed
        if committed is not None:
            self._version, self._losses = committed[VERSION], len(self._actor.losses)

    def _bury_unless_heard(self) -> None:
        """Make the event a dead letter, if it failed and nobody waits, or has waited until then."""
        if self._waiting or not self._outcome.done() or (error := self._outcome.exception()) is None:
            return
        event = self._event
        if self._hear():
            self._hooks.bury(self.session_id, event, error)

    def _hear(self) -> bool:
        """Take the outcome; `False` if somebody has taken it. Nobody needs the event any more."""
        first = self._hearing.take()
        self._event = None
        return first

    @property
    def session_id(self) -> str:
        """The session that the event belongs to."""
        return self._actor.session_id

    @property
    def version(self) -> int | None:
        """The session's version that has the event, perhaps with later ones; `None` before that."""
        return self._version

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the handler's value, or raise what it raised. After a close, if it is known.

        Raises: TurnTimeoutError after *timeout* seconds; the event goes on. DeadlockError inside a
        turn that this would wait for.
        """
        _check(timeout)
        self._access._check_here(closing=True, closed=self._outcome.done())
        value = await self._result(timeout)
        await self._actor.shared.confirm()
        return value

    async def durable(self, timeout: float | None = None) -> None:
        """Wait until the store, or the journal where there is one, has what the event changed.

        Raises: TurnTimeoutError, StoreUnavailableError, ConflictError.
        """
        _check(timeout)
        self._access._check_here(closing=True)
        await self._durable(timeout)
        await self._actor.shared.confirm()

    def result_sync(self, timeout: float | None = None) -> Any:
        """The same as `result`, for threads."""
        _check(timeout)
        if not self._outcome.done():
            try:
                self._access._check_away(closing=True)
                return self._access._run_turn(self._result, timeout)
            except ManagerClosedError:
                # The close waits until turns are left, and a turn is left before its outcome is
                # set. So the outcome comes in a moment, unless a handler hangs.
                wait([self._outcome], MOMENT)
                if not self._outcome.done():
                    raise
        self._access._check_away(closing=True, closed=True)
        if self._actor.shared.in_doubt():
            self._access._run_sync(self._actor.shared.confirm)
        return run_inline(self._result(timeout))

    def durable_sync(self, timeout: float | None = None) -> None:
        """The same as `durable`, for threads."""
        _check(timeout)
        self._access._check_away(closing=True)
        self._access._run_turn(self._durable, timeout)

    async def _result(self, timeout: float | None) -> Any:
        mine: list[Context] = []
        self._count(1)
        try:
            if not self._outcome.done():
                mine = begin_to_wait(self._actor)
            return await self._access._wait(self._outcome, timeout, self.session_id)
        except BaseException as error:
            if self._outcome.done() and self._outcome.exception() is error:
                self._hear()
            raise
        finally:
            end_to_wait(mine, self._actor)
            self._count(-1)
            self._bury_unless_heard()

    def _count(self, more: int) -> None:
        with self._counting:
            self._waiting += more

    async def _durable(self, timeout: float | None) -> None:
        await self._result(timeout)
        if self._actor.shared.writes_through or self._actor.shared.journal is not None:
            return
        if self._version is None:  # lost to a conflict before `_note` could read the version
            raise ConflictError(
                self._actor.shared.store, "another process has written the session since", session_id=self.session_id
            )
        goal = Goal(self._actor, self._version, self._losses)
        await self._access._wait(self._actor.shared.flusher.reach([goal]), timeout, self.session_id)
