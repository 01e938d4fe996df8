"""What `actorbot.ext` may ask of a manager: the turn that a bot library's code runs in, a turn of its own, and how it is set up."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from actorbot._manager.access import Life
from actorbot._manager.manager import SessionManager
from actorbot._runtime.current import current
from actorbot._turns.context import Context, chain, find_held
from actorbot.errors import ConfigError

__all__ = [
    "SessionManager",
    "borrowed",
    "check_commit",
    "check_dict",
    "held",
    "is_in_turn",
    "is_open",
    "joined",
    "max_mailbox",
    "values",
    "wall",
]


def held(manager: SessionManager, session_id: str) -> Context | None:
    """Return the open turn of the session that the running code is part of, a task spawned inside it included; else `None`.

    Asking for a second turn of the session there would be refused (DeadlockError): what a library stores while its handler runs goes
    into the turn that is held.

    Raises: TurnEndedError if that turn was taken from the code (`handler_timeout`): what it still stores would be half of an event.
    """
    return find_held(manager._parts.shared, session_id)


def is_in_turn() -> bool:
    """Tell whether the running code is part of any turn, of whatever manager."""
    return next(chain(), None) is not None


@asynccontextmanager
async def borrowed(manager: SessionManager, session_id: str, event_id: str | None = None) -> AsyncIterator[Context]:
    """Do as `SessionManager.turn`; after its end the turn hides no longer what `held` looks for, and one that timed out refuses nothing."""
    before = current.get()
    try:
        async with manager.turn(session_id, event_id=event_id) as turn:
            yield turn
    finally:
        current.set(before)


@asynccontextmanager
async def joined(manager: SessionManager, session_id: str) -> AsyncIterator[Context]:
    """Lend the turn that is held, or a short one of its own where none is. Raises: as `held` and `SessionManager.turn`."""
    context = held(manager, session_id)
    if context is not None:
        yield context
        return
    async with borrowed(manager, session_id) as turn:
        yield turn


async def values(manager: SessionManager, session_id: str) -> dict[str, Any]:
    """Return the session's values to be read: those of the turn that is held, or else a copy of what was committed last."""
    context = held(manager, session_id)
    if context is not None:
        return context.session  # type: ignore[no-any-return]
    return await manager.peek(session_id) or {}


def check_commit(turn: Context) -> None:
    """Raises: what would keep the open *turn* from being committed: TurnEndedError, NotEncodableError, SessionTooLargeError."""
    turn._actor.check_commit(turn)


def check_dict(manager: SessionManager, what: str) -> None:
    """Raises: ConfigError if the manager's sessions are of the author's own type: *what* a library does needs a key in a dict."""
    if manager._options.shape is not None:
        raise ConfigError("session_type", "a dataclass", f"dict: {what} in the session, under a key of its own")


def is_open(manager: SessionManager) -> bool:
    """Tell whether the manager was started, and is not closed."""
    return manager._life is Life.OPEN


def max_mailbox(manager: SessionManager) -> int:
    """Return how many events may wait for their turn in one session."""
    return manager._options.max_mailbox


def wall(manager: SessionManager) -> float:
    """Return the wall-clock seconds of the manager's clock."""
    return manager._options.clock.wall()
