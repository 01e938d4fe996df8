"""What the programs share: the job, the orders, callers with a clock, the work of a handler."""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import sys
from array import array
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping
from math import ceil
from time import perf_counter
from typing import Any
from zlib import crc32

from benchmarks._workload import make_workload

EVENTS = 20_000  # drawn beforehand, and repeated
YIELD_EVERY = 16  # events after which a caller lets the others run: one whose event waits for nothing never would

Ask = Callable[[str, str], Awaitable[Any]]
"""Send a session's event, and wait for the answer."""


def read_job() -> dict[str, Any]:
    """Read what the program is to do: the first line."""
    job: dict[str, Any] = json.loads(sys.stdin.readline())
    return job


def say(**what: Any) -> None:
    """Answer an order; without anything: say that the program is ready."""
    sys.stdout.write(json.dumps(what) + "\n")
    sys.stdout.flush()


async def next_order() -> dict[str, Any] | None:
    """Wait for an order; `None` is the end."""
    line = await asyncio.to_thread(sys.stdin.readline)
    return json.loads(line) if line else None


async def until_the_end() -> None:
    """Say that the program is ready, and wait for its end."""
    say()
    while await next_order() is not None:
        pass


async def take_orders(groups: Mapping[str, Ask], users: int, **ready: Any) -> None:
    """Send events to the group that an order names, and say how long the answers took.

    A group is shards that share sessions. *ready* is told first.
    """
    events = itertools.cycle(make_workload(users, EVENTS, 1, "uniform").events)
    say(**ready)
    while (order := await next_order()) is not None:
        counted, durations = Counter[str](), array("d")
        ask = _counting(groups[order["group"]], counted)
        gc.collect()  # what came before; from here on the collector keeps its defaults
        started = perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(order["in_flight"]):
                tasks.create_task(_call(events, ask, durations, started + order["seconds"]))
        seconds, ordered = perf_counter() - started, sorted(durations)
        say(
            events=len(ordered), seconds=seconds, p50=percentile(ordered, 50.0), p99=percentile(ordered, 99.0),
            counted=counted,
        )  # fmt: skip


def _counting(ask: Ask, counted: Counter[str]) -> Ask:
    async def asked(user: str, text: str) -> None:
        await ask(user, text)
        counted[user] += 1

    return asked


async def _call(events: Iterator[tuple[str, str]], ask: Ask, durations: array[float], until: float) -> None:
    for count, (user, text) in enumerate(events, 1):
        began = perf_counter()
        await ask(user, text)
        ended = perf_counter()
        durations.append(ended - began)
        if ended >= until:
            break
        if not count % YIELD_EVERY:
            await asyncio.sleep(0)


def percentile(ordered: list[float], percent: float) -> float:
    """Return the smallest of the ordered values that *percent* of them do not exceed."""
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def spin(spins: int) -> int:
    """Work in pure Python, always as much: what a CPU-bound handler does."""
    value = 0
    for number in range(spins):
        value = (value * 31 + number) & 0xFFFF
    return value


def shard_of(user: str, shards: int) -> int:
    """Return which of its shards has a user, where nothing else says so."""
    return crc32(user.encode()) % shards
