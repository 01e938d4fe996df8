"""Events offered at a fixed rate, each at its time, whether those before are answered or not."""

from __future__ import annotations

import asyncio
from array import array
from collections.abc import Awaitable, Callable, Sequence
from time import perf_counter
from typing import Any

TICK = 0.001  # seconds between two looks at what is due


async def offer_events(
    dispatch: Callable[[str, str], Awaitable[Any]], events: Sequence[tuple[str, str]], rate: float
) -> tuple[array[int], list[int]]:
    """Dispatch *events* of (session id, text), each in a task of its own; the first is due now.

    Return how late each was answered, in nanoseconds from the time at which it was due, and the
    numbers of those that failed.
    """
    late, failed = array("q", bytes(8 * len(events))), list[int]()
    loop, answered, left = asyncio.get_running_loop(), asyncio.Event(), len(events)
    started = perf_counter()

    async def dispatch_one(number: int) -> None:
        nonlocal left
        try:
            await dispatch(*events[number])
        except Exception:
            failed.append(number)
        late[number] = int((perf_counter() - started - number / rate) * 1e9)
        left -= 1
        if not left:
            answered.set()

    sent = 0
    while sent < len(events):
        due = min(len(events), int((perf_counter() - started) * rate) + 1)
        for number in range(sent, due):
            loop.create_task(dispatch_one(number))  # what the task waits for keeps it alive
        sent = due
        await asyncio.sleep(TICK)
    await answered.wait()
    return late, failed
