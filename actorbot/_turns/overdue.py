"""`RunningTurns`: which turns run, and the ticker that ends those whose time is up."""

from __future__ import annotations

from collections.abc import Container
from concurrent.futures import Future
from copy import copy
from typing import Final

from actorbot._runtime.clock import Clock
from actorbot._runtime.home import Home, new_future
from actorbot._turns.context import Context
from actorbot.errors import ActorbotError, HandlerTimeoutError, ManagerClosedError

__all__ = ["RunningTurns"]

GRACE: Final = 5.0  # seconds that a handler has to end after it was cancelled


class RunningTurns:
    """The turns that run now. Any thread, unless a method says otherwise.

    All turns of a manager have the same time limit, so one timer serves them all.
    """

    __slots__ = ("_clock", "_home", "deadlines", "handler_timeout", "ticking")

    def __init__(self, home: Home, clock: Clock, handler_timeout: float) -> None:
        self._home = home
        self._clock = clock
        self.handler_timeout = handler_timeout
        self.deadlines: dict[Context, float] = {}
        """When the time of each is up. Whoever takes a turn out of here decides how it ends."""
        self.ticking = False
        """Whether the timer is set."""

    def start_ticking(self, deadline: float) -> None:
        """Look at *deadline* which turns are overdue, and again as long as any turn runs."""
        self.ticking = True
        self._clock.call_at(deadline, self._tick)

    def _tick(self) -> Future[None]:
        done = new_future()

        def at_home() -> None:
            try:
                self._end_overdue()
            finally:
                done.set_result(None)

        self._home.post(at_home)
        return done

    def _end_overdue(self) -> None:
        self.ticking = False
        now = self._clock.monotonic()
        for context, deadline in list(self.deadlines.items()):
            if deadline > now:
                if not self.ticking:
                    self.start_ticking(deadline)
                return
            if self.deadlines.pop(context, None) is not None:
                self._revoke(context, self.timeout_error(context.session_id))

    def timeout_error(self, session_id: str) -> HandlerTimeoutError:
        """Make the error of a turn whose time is up."""
        return HandlerTimeoutError(
            session_id,
            f"the turn took longer than {self.handler_timeout:g} s (handler_timeout); its changes were discarded",
        )

    def revoke(self, actors: Container[object], error: ActorbotError) -> None:
        """Revoke the turns of *actors*; their callers get *error*. Any thread."""
        for context in list(self.deadlines):
            if context._actor in actors and self.deadlines.pop(context, None) is not None:
                context._revoked = copy(error)  # each caller's own: it is raised with his traceback
                self._home.post(self._revoke, context, context._revoked)

    def end_all(self, error: ActorbotError | None = None) -> None:
        """Revoke every turn, because of *error*. From now on none begins. At home."""
        running, self.deadlines = self.deadlines, _NoMore(error)
        for context in list(running):
            if running.pop(context, None) is not None:
                self._revoke(context, _closed() if error is None else copy(error))

    def refuse_all(self) -> None:
        """Let no turn commit, and none begin. Any thread: the loop has gone, or is blocked."""
        running, self.deadlines = self.deadlines, _NoMore()
        for context in list(running):
            context._revoked = _closed()

    def _revoke(self, context: Context, error: ActorbotError) -> None:
        """Take the session from a turn that is out of `deadlines`; its caller gets *error*."""
        context._revoked = error
        context._session = None
        if context._task is not None and context._may_cancel:
            # The mailbox is left when the handler has ended, or when the grace is over.
            context._task.cancel()
            context._interrupted = True
            self._clock.call_at(self._clock.monotonic() + GRACE, lambda: self._home.post(_leave_for, context))
            return
        if context._interrupt is not None:
            context._interrupt()
        _leave_for(context)  # a `def` handler cannot be stopped: it goes on without its session


def _closed() -> ManagerClosedError:
    return ManagerClosedError("the manager was closed while the handler ran; its changes were discarded")


def _leave_for(context: Context) -> None:
    """Leave the mailbox of a revoked turn for a handler that has not ended. At home."""
    if not context._passed_on:
        context._passed_on = True
        context._actor.leave()


class _NoMore(dict[Context, float]):
    """The running turns of a manager that has ended: none can begin."""

    def __init__(self, error: ActorbotError | None = None) -> None:
        super().__init__()
        self._error = error or ManagerClosedError("the manager was closed before the event had its turn")

    def __setitem__(self, context: Context, deadline: float) -> None:
        raise copy(self._error)
