"""A clock that stands still until it is told to go on."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from collections.abc import Iterator
from concurrent.futures import Future, wait

from actorbot._runtime.clock import Action, Clock, Timer

__all__ = ["ManualClock"]

ROUNDING = 1e-9  # seconds; as floats, ten steps of a tenth of a second are not quite one second
# Real seconds. Work that takes longer is taken for held up, as by `FaultyStore.hold`, and goes on
# by itself.
PATIENCE = 3.0


class ManualClock(Clock):
    """Time moves by `advance` alone; `jump_wall` moves the wall clock alone. For any thread."""

    def __init__(self, start_wall: float = 1_700_000_000.0) -> None:
        self._now = 1_000.0
        self._wall_offset = start_wall - self._now
        self._lock = threading.Lock()  # guards all these attributes
        self._heap: list[tuple[float, int, Timer]] = []
        self._order = itertools.count()

    def monotonic(self) -> float:
        return self._now

    def wall(self) -> float:
        return self._now + self._wall_offset

    def call_at(self, when: float, action: Action) -> Timer:
        timer = Timer(when, action)
        with self._lock:
            heapq.heappush(self._heap, (when, next(self._order), timer))
        return timer

    def close(self) -> None:
        with self._lock:
            self._heap.clear()

    def jump_wall(self, seconds: float) -> None:
        """Set the wall clock forward or back, as an administrator would."""
        with self._lock:
            self._wall_offset += seconds

    async def advance(self, seconds: float) -> None:
        """Let *seconds* pass; return when the work that became due has finished, or is held up.

        The event loop runs meanwhile. Timers run in the order of time, each at its own instant, one
        after the other. New timers that they set within *seconds* run too. Raises what the work
        raised.
        """
        for work in self._pass(seconds):
            done, _ = await asyncio.wait([asyncio.wrap_future(work)], timeout=PATIENCE)
            for each in done:
                each.result()

    def advance_sync(self, seconds: float) -> None:
        """The same as `advance`, for threads."""
        for work in self._pass(seconds):
            done, _ = wait([work], timeout=PATIENCE)
            for each in done:
                each.result()

    def _pass(self, seconds: float) -> Iterator[Future[None]]:
        """Run what is due, and yield the work to wait for before the next timer."""
        if not seconds >= 0:
            raise ValueError(f"time does not go back: {seconds!r} seconds")
        until = self._now + seconds
        while (timer := self._next(until)) is not None:
            action, timer.action = timer.action, None
            work = None if action is None else action()
            if work is not None:
                yield work

    def _next(self, until: float) -> Timer | None:
        """Go to the instant of the next timer that is due, and return it.

        If there is none up to *until*, go there and return `None`.
        """
        with self._lock:
            due = bool(self._heap) and self._heap[0][0] <= until + ROUNDING
            timer = heapq.heappop(self._heap)[2] if due else None
            self._now = max(self._now, until if timer is None else timer.when)
        return timer
