"""The threads of `asyncio.to_thread` in a bot's own loop."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Final

from actorbot._runtime.clock import SystemClock
from actorbot._runtime.threads import Pool

__all__ = ["DaemonThreads"]

THREADS: Final = 32
LOST: Final = 300.0  # seconds until a call that does not end gets a thread in its place


class DaemonThreads(ThreadPoolExecutor):
    """Runs calls on daemon threads, so that none keeps the program from ending.

    Python waits at its end for every call of its own executor: a `receive` that reads in
    `asyncio.to_thread` would keep a bot that was told to end until the next user writes.
    """

    def __init__(self) -> None:
        super().__init__(max_workers=1)  # it makes its threads when it is used, which is never
        self._clock = SystemClock()
        self._pool = Pool(THREADS, "actorbot-to-thread", self._clock, LOST)
        self._under_way: set[Future[Any]] = set()

    def submit(self, function: Callable[..., Any], /, *args: Any, **options: Any) -> Future[Any]:
        future: Future[Any] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                value = function(*args, **options)
            except BaseException as error:
                future.set_exception(error)
            else:
                future.set_result(value)

        self._under_way.add(future)
        future.add_done_callback(self._under_way.discard)
        self._pool.submit(work)
        return future

    def is_busy(self) -> bool:
        """Tell whether a call is under way."""
        return bool(self._under_way)

    def close(self) -> None:
        """Let the threads end when their calls have; does not wait."""
        self._pool.close()
        self._clock.close()
