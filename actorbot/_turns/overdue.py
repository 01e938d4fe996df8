"""Which turns run, and the ticker that ends those whose time is up."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Final

from actorbot._runtime.clock import Clock
from actorbot._runtime.home import Home, new_future
from actorbot._turns.context import Context
from actorbot.errors import ActorbotError, HandlerTimeoutError, ManagerClosedError

__all__ = ["RunningTurns"]

GRACE: Final = 5.0  # seconds that a handler has to end after it was cancelled for running too long


class RunningTurns:
    """The turns that run now. One ticker looks after all of them, since all have the same time. Any thread, or as a method says."""

    __slots__ = ("_clock", "_home", "deadlines", "handler_timeout", "ticking")

    def __init__(self, home: Home, clock: Clock, handler_timeout: float) -> None:
        self._home = home
        self._clock = clock
        self.handler_timeout = handler_timeout
        self.deadlines: dict[Context, float] = {}
        """When the time of each is up. Whoever takes a turn out of here, in one step, decides how it ends."""
        self.ticking = False
        """Whether somebody looks after their time."""

    def start_ticking(self, deadline: float) -> None:
        """Look after the turns' time at *deadline*, and from then on as long as any turn runs."""
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
            f"it ran longer than {self.handler_timeout:g} s (handler_timeout); its changes were discarded",
        )

    def end_all(self) -> None:
        """Take the session from every turn, for good: a late one does not begin. At home."""
        running, self.deadlines = self.deadlines, _NoMore()
        for context in list(running):
            if running.pop(context, None) is not None:
                error = ManagerClosedError("the manager was closed while the handler ran; its changes were discarded")
                self._revoke(context, error)

    def _revoke(self, context: Context, error: ActorbotError) -> None:
        """Take the session from a turn that was taken out of `deadlines`; its caller gets *error*."""
        context._revoked = error
        context._session = None
        if context._task is not None:
            context._task.cancel()  # the turn is left when the handler has ended, or else after some grace
            self._clock.call_at(self._clock.monotonic() + GRACE, lambda: self._home.post(_leave_for, context))
            return
        if context._interrupt is not None:
            context._interrupt()
        _leave_for(context)  # a `def` handler cannot be stopped: it goes on without its session


def _leave_for(context: Context) -> None:
    """Leave a revoked turn in place of a handler that does not end; at home, as the handler's end is."""
    if not context._passed_on:
        context._passed_on = True
        context._actor.leave()


class _NoMore(dict[Context, float]):
    """The running turns of a manager that was closed: a late one does not begin."""

    def __setitem__(self, context: Context, deadline: float) -> None:
        raise ManagerClosedError("the manager was closed before the event had its turn")
