"""What a bot is told, and what actors tell each other: commands in the imperative, facts in the past tense."""

from __future__ import annotations

from concurrent.futures import Future
from contextvars import Context as ContextVars
from dataclasses import dataclass
from typing import Any, Final, Self, final

__all__ = ["DUPLICATE", "Duplicate", "Event", "Handle", "Message", "Sweep"]


@dataclass(frozen=True, slots=True)
class Message:
    """What the user wrote."""

    text: str


@dataclass(frozen=True, slots=True)
class Event:
    """One thing the user did, as the bots of actorbot build it. A manager takes any object for an event."""

    message: Message

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Make the event of a user who wrote *text*."""
        return cls(Message(text))


@final
class Duplicate:
    """The type of `DUPLICATE`."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "DUPLICATE"


DUPLICATE: Final = Duplicate()
"""What `dispatch` returns, instead of the handler's value, for an event id that the session has counted before. It is falsy."""


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """To a session actor: handle an event whose sender does not stand in line for it."""

    event: Any
    event_id: str | None
    outcome: Future[Any]
    variables: ContextVars


@dataclass(frozen=True, slots=True)
class Sweep:
    """To the registry: passivate what is idle, expire what has ended."""

    done: Future[None]
