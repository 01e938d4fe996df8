"""What a bot is told: an event, and whether it was counted before."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final, Self, final

__all__ = ["DUPLICATE", "Duplicate", "Event", "Message", "WebhookEvent"]


@dataclass(frozen=True, slots=True)
class Message:
    """What the user wrote."""

    text: str


@dataclass(frozen=True, slots=True)
class Event:
    """One thing that the user did, as actorbot's own bots build it. A manager takes any object."""

    message: Message

    @classmethod
    def from_text(cls, text: str) -> Self:
        """Make the event of a user who wrote *text*."""
        return cls(Message(text))


@dataclass(frozen=True, slots=True)
class WebhookEvent(Event):
    """One event of a platform.

    `message.text` is what the user wrote, or the data of a button, or empty.
    """

    raw: Any = None
    """The event as the platform sent it. If a delivery has several events: the part of this one."""
    mode: str = "active"
    """"standby": the platform only tells of the event, and another bot answers. LINE and Meta."""

    @classmethod
    def from_text(cls, text: str, raw: Any = None) -> Self:
        """Make the event of a user who wrote *text*."""
        return cls(Message(text), raw)


@final
class Duplicate:
    """The type of `DUPLICATE`."""

    __slots__ = ()

    def __bool__(self) -> bool:
        return False

    def __repr__(self) -> str:
        return "DUPLICATE"

    def __reduce__(self) -> str:
        return "DUPLICATE"  # pickle and copy give the one that there is


DUPLICATE: Final = Duplicate()
"""What `dispatch` returns for an event id that the session has counted before. It is falsy."""
