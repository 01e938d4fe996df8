"""`TurnShared`: what the turns of one manager have in common."""

from __future__ import annotations

from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any

from actorbot._flushing.dirty import DirtySessions
from actorbot._flushing.flusher import Flusher
from actorbot._journal.journal import Journal
from actorbot._ownership.keeper import Keeper
from actorbot._policy import FlushPolicy
from actorbot._runtime.clock import Clock
from actorbot._runtime.home import Home, Promise
from actorbot._state.committed import Committed
from actorbot._state.typed import SessionShape
from actorbot._turns.answers import Answers
from actorbot._turns.context import Context
from actorbot._turns.outbox import Outbox
from actorbot._turns.overdue import RunningTurns

__all__ = ["TurnShared"]

Bound = Callable[..., Coroutine[Any, Any, Any]]


@dataclass(slots=True, eq=False)
class TurnShared:
    """What every turn needs, one look away. Any thread."""

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
    keeper: Keeper | None
    """Knows whether this process owns the store; `None` where there is no lease."""
    outbox: Outbox
    answers: Answers
    handle: Bound
    handle_here: Callable[[Context], Any] | None
    """The handler itself, if it is plain and runs in the thread that has the turn.

    This saves a coroutine for each event.
    """
    on_start: Bound | None
    on_error: Callable[[Context, BaseException], Coroutine[Any, Any, None]]
    on_expire: Callable[[str, bytes, float], None]
    """Told the session's id, its state, and the wall-clock second of its end."""
    running: RunningTurns
    acknowledge: Callable[[Any, Context, Committed], Promise | None] | None
    """Commits a turn whose answer waits for the store or the journal; `None` in write-behind."""
    load: Bound = field(init=False)
    """Reads the record of an actor, whose turn the caller has. A failure is told to its line."""
    many_events: int = field(init=False)
    """With so many unflushed events a session is flushed early: half of `policy.max_events`."""
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

    async def confirm(self) -> None:
        """Wait until it is certain that this process owns the store, where that is in doubt.

        At home. Raises: as `Keeper.confirm`.
        """
        if self.in_doubt():
            assert self.keeper is not None
            await self.keeper.confirm(self.home)

    def in_doubt(self) -> bool:
        """Tell whether another process may own the store by now. Any thread."""
        return self.keeper is not None and self.keeper.now() >= self.keeper.until

    def is_unclaimed(self, write_ids: bytes) -> bool:
        """Tell whether an earlier owner may still write the session with these ids.

        See `claim_first`.
        """
        return self.keeper is not None and self.keeper.claims and not self.flusher.set_backs.is_own(write_ids)

    def at_risk(self) -> int:
        """Count the events that only this process has, where there is no journal.

        It does not look at each session: there may be 100,000. A loop that asked ten times a second
        stood still for 15 ms each time.
        """
        return max(0, self.handled + self.ended - self.flusher.outcome.settled)
