"""The time of a lease: the server's goes on, whatever a test's clock or a machine asleep does."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import Final

from actorbot._runtime.clock import Clock, SystemClock

__all__ = ["real_clock", "seconds_of"]

# Linux's CLOCK_MONOTONIC stands still in a machine that sleeps. That of macOS does not, but
# `time.monotonic` does there.
_AWAKE_OR_NOT: Final[int | None] = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


def real_clock(clock: Clock) -> Clock:
    """Return a clock that runs as the server's does, also where *clock* is a test's."""
    return clock if isinstance(clock, SystemClock) else SystemClock()


def seconds_of(clock: Clock) -> Callable[[], float]:
    """Return what counts the seconds of a *clock*, if it is real also those of a machine asleep.

    A laptop or a server may be suspended for longer than its lease.
    """
    if not isinstance(clock, SystemClock) or _AWAKE_OR_NOT is None:
        return clock.monotonic
    return partial(time.clock_gettime, _AWAKE_OR_NOT)
