"""What the turns of one manager have in common, first of all their time: which run, and what becomes of one that runs too long."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Final

from actorbot._flushing.dirty import DirtySessions
from actorbot._flushing.flusher import Flusher
from actorbot._journal.journal import Journal
from actorbot._policy import FlushPolicy
from actorbot._runtime.clock import Clock
from actorbot._runtime.home import Home, new_future
from actorbot._state.typed import SessionShape
from actorbot._turns.context import Context
from actorbot._turns.outbox import Outbox
from actorbot.errors import ActorbotError, ManagerClosedError

__all__ = ["TurnShared"]

GRACE: Final = 5.0  # seconds that a handler has to end after it was cancelled for running too long

Bound = Callable[..., Coroutine[Any, Any, Any]]


@dataclass(slots=True, eq=False)
class TurnShared:
    """What every turn asks for, without a detour, and the ticker that ends the overdue ones. Methods: any thread, or as they say."""

    home: Home
    clock: Clock
    policy: FlushPolicy
    store: str
    expires_in: float
    shape: SessionShape | None
    """What makes the author's own type of a session's values; `None` where they are a dict."""
    max_session_bytes: int
    max_mailbox: int
    dirty: DirtySessions
    flusher: Flusher
    journal: Journal | None
    outbox: Outbox
    handle: Bound
    handle_here: Callable[[Context], Any] | None
    """The handler itself, where it is plain and may run in whatever thread has the turn: it then costs no coroutine."""
    on_start: Bound | None
    on_error: Callable[[Context, BaseException], Coroutine[Any, Any, None]]
    on_expire: Callable[[str, bytes, float], None]
    """Told the session's id, its state, and the wall-clock second of its end."""
    handler_timeout: float
    load: Bound = field(init=False)
    """Reads the record of an actor, whose turn the caller holds; on failure everybody in its line is told. Set by the registry."""
    running: dict[Context, float] = field(default_factory=dict)
    """The turns that run now and when their time is up. Whoever takes a turn out of here, in one step, decides how it ends."""
    ticking: bool = False
    """Whether somebody looks after the time of `running`."""
    many_events: int = field(init=False)
    """So many unflushed events of a session are reason to look closer: half of the policy's `max_events`."""
    handled: int = 0
    ended: int = 0
    """Versions that `destroy` has made."""
    failed: int = 0
    duplicates: int = 0
    writes_through: bool = field(init=False)
    wall: Callable[[], float] = field(init=False)
    monotonic: Callable[[], float] = field(init=False)

    def __post_init__(self) -> None:
        self.many_events = max(1, self.policy.max_events // 2)
        self.writes_through = self.policy.mode == "write-through"
        self.wall, self.monotonic = self.clock.wall, self.clock.monotonic

    def at_risk(self) -> int:
        """Count the events that only this process has, where there is no journal; without a look at each session, of which there may be
        100,000: a loop that asked ten times a second stood still for 15 ms each time."""
        return max(0, self.handled + self.ended - self.flusher.settled)

    def start_ticking(self, deadline: float) -> None:
        """Look at the turns' time at *deadline*. One ticker serves all turns, since all have the same time."""
        self.ticking = True
        self.clock.call_at(deadline, self._tick)

    def _tick(self) -> Future[None]:
        done = new_future()

        def at_home() -> None:
            try:
                self._end_overdue()
            finally:
                done.set_result(None)

        self.home.post(at_home)
        return done

    def _end_overdue(self) -> None:
        self.ticking = False
        now = self.monotonic()
        for context, deadline in list(self.running.items()):
            if deadline > now:
                if not self.ticking:
                    self.start_ticking(deadline)
                return
            if self.running.pop(context, None) is not None:
                self._revoke(context, context._actor.overdue())

    def end_all(self) -> None:
        """Take the session from every turn, for good: a late one does not begin. At home."""
        running, self.running = self.running, _NoMore()
        for context in list(running):
            if running.pop(context, None) is not None:
                error = ManagerClosedError("the manager was closed while the handler ran; its changes were discarded")
                self._revoke(context, error)

    def _revoke(self, context: Context, error: ActorbotError) -> None:
        """Take the session from a turn that was taken out of `running`; its caller gets *error*."""
        context._revoked = error
        context._session = None
        if context._task is not None:
            context._task.cancel()  # the turn is left when the handler has ended, or else after some grace
            self.clock.call_at(self.monotonic() + GRACE, lambda: self.home.post(_take_turn_from, context))
            return
        if context._interrupt is not None:
            context._interrupt()
        _take_turn_from(context)  # a `def` handler cannot be stopped: it goes on without its session


def _take_turn_from(context: Context) -> None:
    """Leave a revoked turn in place of a handler that does not end; at home, as the handler's end is."""
    if not context._passed_on:
        context._passed_on = True
        context._actor.leave()


class _NoMore(dict[Context, float]):
    """The running turns of a manager that was closed: a late one does not begin."""

    def __setitem__(self, context: Context, deadline: float) -> None:
        raise ManagerClosedError("the manager was closed before the event had its turn")
