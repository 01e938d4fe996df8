"""What a shard says of itself."""

from __future__ import annotations

from dataclasses import dataclass

from actorbot._reports import Stats

__all__ = ["Progress", "ShardStats", "SlotInfo"]


@dataclass(frozen=True, slots=True)
class SlotInfo:
    """A slot that a shard owns."""

    slot: int
    epoch: int
    """The number of this stay: each owner has the next one."""
    in_hand: int
    """Events of it that were read and are not out of the log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """What a shard has done since its start, and what it has in hand now."""

    handled: int
    in_hand: int
    unflushed: int
    """Events that are acknowledged and stay in the log until the store has what they changed."""
    reruns: int
    """Events that were run again, after a conflict had taken what they changed."""
    conflicts: int
    """Sessions that another owner had written."""
    fenced: int
    """Slots that were taken over, since this shard had not renewed its lease."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardStats(Progress):
    """What a shard has done, what it has, and how its manager is."""

    member: str
    """Its id among the members: host, process and start."""
    slots: dict[int, int]
    """Those that it owns, each with its epoch."""
    lease_remaining: float
    """Seconds until its lease runs out unless it is renewed."""
    manager: Stats
