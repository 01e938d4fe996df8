"""`Handling`: what the lanes of a shard share."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from actorbot._manager.embedding import SessionManager
from actorbot.cluster._held import Slot
from actorbot.cluster._settling import Settling

__all__ = ["Handling"]


@dataclass(slots=True, eq=False)
class Handling:
    """What all lanes of a shard need."""

    manager: SessionManager
    settling: Settling
    may_begin: Callable[[], Awaitable[None] | None]
    """Waits until this shard's lease holds; `None` if it does."""
    keeps: bool
    """Whether acknowledged events stay in the log until they are flushed."""
    gates: bool
    """Whether there is anybody to send replies to."""
    on_unflushed: Callable[[Slot], None]
    """Told of a slot with one more event that is acknowledged and not flushed."""
    reruns: int = 0
    """Events that were run again after a conflict."""
    handled: int = 0
