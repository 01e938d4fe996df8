"""Time as an argument: what "now" is, and who is called when an instant comes."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from concurrent.futures import Future

__all__ = ["Clock", "SystemClock", "Timer"]

logger = logging.getLogger("actorbot")

# What a timer runs: quick, non-blocking, on any thread. A future it returns is done when all it set
# off is done; only a virtual clock waits for it.
Action = Callable[[], "Future[None] | None"]


class Timer:
    """An action that will be called. `cancel` may be called from any thread, also twice."""

    __slots__ = ("action", "when")

    def __init__(self, when: float, action: Action) -> None:
        self.when = when
        self.action: Action | None = action

    def cancel(self) -> None:
        self.action = None


class Clock(ABC):
    """Where a manager takes the time from.

    `monotonic()` measures idleness and delays, `wall()` stamps expiry; both are seconds as `float`,
    callable from any thread.
    """

    @abstractmethod
    def monotonic(self) -> float: ...

    @abstractmethod
    def wall(self) -> float: ...

    @abstractmethod
    def call_at(self, when: float, action: Action) -> Timer:
        """Call *action* when `monotonic()` has reached *when*; the clock chooses the thread."""

    def close(self) -> None:  # noqa: B027  # most clocks have nothing to stop
        """Stop calling; pending actions are forgotten."""


class SystemClock(Clock):
    """The machine's clocks, and one daemon thread that calls what is due."""

    monotonic = staticmethod(time.monotonic)
    wall = staticmethod(time.time)

    def __init__(self) -> None:
        # Guards _heap, _thread and _closed. Held only for an operation on the heap.
        self._changed = threading.Condition()
        self._heap: list[tuple[float, int, Timer]] = []
        self._thread: threading.Thread | None = None
        self._closed = False
        self._order = itertools.count()

    def call_at(self, when: float, action: Action) -> Timer:
        timer = Timer(when, action)
        with self._changed:
            if self._closed:
                return timer
            heapq.heappush(self._heap, (when, next(self._order), timer))
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="actorbot-clock", daemon=True)
                self._thread.start()
            elif self._heap[0][2] is timer:
                self._changed.notify()
        return timer

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._heap.clear()
            self._changed.notify()
            thread = self._thread
        if thread is not None and thread is not threading.current_thread():
            thread.join(timeout=1.0)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._closed and (not self._heap or self._heap[0][0] > time.monotonic()):
                    self._changed.wait(self._heap[0][0] - time.monotonic() if self._heap else None)
                if self._closed:
                    return
                timer = heapq.heappop(self._heap)[2]
            action, timer.action = timer.action, None
            if action is not None:
                try:
                    action()
                except Exception:
                    logger.exception("a timed action failed")
