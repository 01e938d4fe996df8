"""The time of a lease: the server's goes on, whatever a test's clock does."""

from __future__ import annotations

from actorbot._runtime.clock import Clock, SystemClock

__all__ = ["real_clock"]


def real_clock(clock: Clock) -> Clock:
    """Return a clock that runs as the server's does, also where *clock* is a test's."""
    return clock if isinstance(clock, SystemClock) else SystemClock()
