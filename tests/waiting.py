"""How tests wait: for a condition or for an answer, never for a time. The bound is there to end a test that hangs."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Awaitable, Callable
from typing import Any

SOON = 10.0  # real seconds; nothing takes a tenth of it unless it hangs


async def soon(awaitable: Awaitable[Any]) -> Any:
    """Await something that must not hang."""
    return await asyncio.wait_for(awaitable, SOON)


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
