"""How tests wait: for a condition or for an answer, never for a time.

The bound is there to end a test that hangs.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

SOON = 10.0  # real seconds; nothing takes a tenth of it unless it hangs
HANGS = 25.0  # real seconds after which a call that has a deadline of some seconds is taken for a hang; drivers give up after 30


class Call:
    """A call in a daemon thread, so that one that hangs fails its test and no more."""

    def __init__(self, function: Callable[..., Any], *args: Any, **options: Any) -> None:
        self._outcome: list[tuple[Any, BaseException | None]] = []
        self._ended = threading.Event()

        def run() -> None:
            try:
                self._outcome.append((function(*args, **options), None))
            except BaseException as error:
                self._outcome.append((None, error))
            self._ended.set()

        threading.Thread(target=run, daemon=True).start()

    def result(self, timeout: float = HANGS) -> Any:
        value, error = self._end(timeout)
        if error is not None:
            raise error
        return value

    def error(self, timeout: float = HANGS) -> BaseException | None:
        return self._end(timeout)[1]

    def _end(self, timeout: float) -> tuple[Any, BaseException | None]:
        assert self._ended.wait(timeout), "the call hangs"
        return self._outcome[0]


async def soon(awaitable: Awaitable[Any]) -> Any:
    """Await something that must not hang."""
    return await asyncio.wait_for(awaitable, SOON)


async def breathe() -> None:
    """Let all that can go on do so, also on other threads: to show what does not happen."""
    for _ in range(20):
        await asyncio.sleep(0.001)


async def until(condition: Callable[[], object]) -> None:
    """Let the loop and other threads run until *condition* holds."""
    async with asyncio.timeout(SOON):
        for _ in range(100):
            if condition():
                return
            await asyncio.sleep(0)
        while not condition():
            await asyncio.sleep(0.001)  # other threads have work to do first


def until_sync(condition: Callable[[], object]) -> None:
    """Let other threads run until *condition* holds."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        threading.Event().wait(0.001)
