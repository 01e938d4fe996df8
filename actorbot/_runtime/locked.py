"""How a start is told that somebody else owns what it wants: a store, a folder or a journal."""

from __future__ import annotations

from datetime import UTC, datetime

from actorbot.errors import StoreLockedError

__all__ = ["locked", "show_time"]


def locked(
    store: str, owner: str | None, ways_on: str, *, place: str = "it", is_here: bool = False
) -> StoreLockedError:
    """Make the error. *owner* names who it is, as far as is known, and *ways_on* what to do.

    *is_here*: the owner is this process itself.
    """
    who = "this process owns" if is_here else "somebody else owns"
    already = " already" if is_here else ""
    name = owner or "who it is cannot be told"
    return StoreLockedError(
        store, f"{who} {place}{already}: {name}. {ways_on}; docs/processes.md has more", owner=owner
    )


def show_time(wall: float) -> str:
    """Return wall-clock seconds as people write them."""
    try:
        return datetime.fromtimestamp(wall, UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, OSError, ValueError):
        return "a time that is none"
