"""A clock that stands still until it is told to go on."""

from __future__ import annotations

import asyncio
import heapq
import itertools
import threading
from concurrent.futures import Future, wait

from actorbot._clock import Action, Clock, Timer

__all__ = ["ManualClock"]

PATIENCE = 3.0  # real seconds; work that takes longer is taken for held up, as by `FaultyStore.hold`, and left to go on


class ManualClock(Clock):
    """Time moves by `advance` alone. Both clocks move together; `jump_wall` moves the wall clock only. Any thread."""

    def __init__(self, start_wall: float = 1_700_000_000.0) -> None:
        self._now = 1_000.0
        self._wall_offset = start_wall - self._now
        self._lock = threading.Lock()  # guards the heap
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
        self._wall_offset += seconds

    async def advance(self, seconds: float) -> None:
        """Let *seconds* pass; return when the work that became due has finished, or is held up. The event loop runs meanwhile."""
        until = self._now + seconds
        while (timer := self._next(until)) is not None:
            done = self._run(timer)
            if done is not None:
                await asyncio.wait([asyncio.wrap_future(done)], timeout=PATIENCE)
        self._now = until

    def advance_sync(self, seconds: float) -> None:
        """The same as `advance`, for threads."""
        until = self._now + seconds
        while (timer := self._next(until)) is not None:
            done = self._run(timer)
            if done is not None:
                wait([done], timeout=PATIENCE)
        self._now = until

    def _next(self, until: float) -> Timer | None:
        with self._lock:
            if self._heap and self._heap[0][0] <= until:
                return heapq.heappop(self._heap)[2]
        return None

    def _run(self, timer: Timer) -> Future[None] | None:
        self._now = max(self._now, timer.when)
        action, timer.action = timer.action, None
        return None if action is None else action()
