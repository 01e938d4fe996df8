"""What a manager says of itself: figures, health, its sessions, how its close went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

__all__ = ["Conflict", "Health", "Ownership", "SessionInfo", "ShutdownReport", "Stats"]


@dataclass(frozen=True, slots=True)
class Ownership:
    """This manager's part in the lease of its store."""

    owner: str
    """The process: its id, host and program."""
    mode: Literal["exclusive", "shared"]
    epoch: int
    """The number of this stay: each owner that begins has the next one."""
    remaining: float
    """Seconds until the lease runs out unless it is renewed; 0.0 if another has taken it."""


@dataclass(frozen=True, slots=True)
class Stats:
    """Counters since the start, and gauges of now."""

    handled: int
    """Events (and borrowed turns) that were committed."""
    failed: int
    """Events that were rolled back."""
    duplicates: int
    activations: int
    passivations: int
    resident: int
    running: int
    """Turns under way."""
    dirty_bytes: int
    """Bytes of unflushed state, rounded up per session."""
    oldest_dirty: float
    """Seconds that the oldest unflushed event has waited; 0.0 if all is flushed."""
    events_at_risk: int
    """Acknowledged events that would be lost if the process were killed now."""
    bytes_at_risk: int
    """Bytes of the sessions that have such events."""
    journal_bytes: int
    """Bytes in the journal that the store does not have yet; 0 without a journal."""
    store_reads: int
    store_writes: int
    store_retries: int
    conflicts: int
    """Sessions whose flush met a write of another process."""
    set_back: int
    """Writes that went over an older state of the same session: the store had gone back in time."""
    damaged: int
    """Damaged records that were set aside, and replaced by what was in memory of their sessions."""
    backed_off: int
    """Sessions that are left alone for a while, because their record cannot be read."""
    dead_letters: int
    replies_waiting: int
    """Replies that `deliver` has not taken yet (`max_replies` bounds them)."""
    reply_bytes: int
    """Bytes of these that are text or `bytes`; a character counts as one."""
    nearly_full: int
    """Sessions in memory that take more than 80 % of `max_session_bytes`.

    The log names each once; `resident()` has the bytes of all.
    """
    ownership: Ownership | None
    """`None` where the store keeps no lease, or the manager asked for none."""


@dataclass(frozen=True, slots=True)
class Health:
    """`ready`, `degraded` (it answers, its store or its `deliver` does not) or `failing`; why."""

    status: Literal["ready", "degraded", "failing"]
    reason: str


@dataclass(frozen=True, slots=True)
class Conflict:
    """State that was acknowledged here and not flushed: another process wrote the session."""

    session_id: str
    state: dict[str, Any] | None
    """The session's values; `None` if it was destroyed here."""
    version: int
    last_activity: float
    """Wall-clock seconds of its last event here."""


@dataclass(frozen=True, slots=True)
class SessionInfo:
    """What is known of a resident session without touching it."""

    version: int
    flushed: int
    """The version in the store; smaller than `version` while something waits to be flushed."""
    idle: float
    """Seconds since its last event."""
    waiting: int
    """Events in line."""
    busy: bool
    bytes: int
    """The size of its encoded state."""


@dataclass(frozen=True, slots=True)
class ShutdownReport:
    """How a close went, or a release of some sessions."""

    unflushed: tuple[str, ...]
    """Ids of sessions whose last events are not in the store."""
    unfinished: int
    """Sessions whose handler was still running when the time was up."""
    undelivered: int
    """Sessions whose replies were still on their way."""
    seconds: float

    @property
    def clean(self) -> bool:
        """Whether nothing was left behind."""
        return not (self.unflushed or self.unfinished or self.undelivered)
