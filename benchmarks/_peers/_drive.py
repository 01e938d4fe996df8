"""What all programs in Python share: reading the job, the 64 callers, and printing the result.

This file runs in the environment of the peer, so it imports only the standard library and the
workload. `_drive.js` is its twin.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import json
import sys
from array import array
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, Literal

from benchmarks._workload import remember, remember_and_await

PERCENTILES = (50.0, 99.0, 99.9)
YIELD_EVERY = 16  # events after which a caller lets the others run: one whose event waits for nothing never would

Events = Iterator[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Job:
    """What a program is asked to do."""

    store: Literal["memory", "redis", "mongo"]
    url: str
    place: str
    """The prefix of its keys, or the name of its collection."""
    database: str
    policy: str
    handler: Literal["async", "awaits"]
    variant: str
    in_flight: int
    seconds: float
    """Seconds after which nobody takes another event."""
    users: tuple[str, ...]
    events: tuple[tuple[str, str], ...]
    """(user, text): taken in this order, again and again."""

    @property
    def change(self) -> Callable[[Any, str], Awaitable[None]]:
        """What the handler does with the session and the text."""
        return remember_and_await if self.handler == "awaits" else _remember


async def _remember(session: Any, text: str) -> None:
    remember(session, text)


def read_job() -> Job:
    """Read the file that the command line names."""
    job = json.loads(Path(sys.argv[1]).read_text())
    events = tuple((user, text) for user, text in job.pop("events"))
    return Job(users=tuple(job.pop("users")), events=events, **job)


def number_of(user: str) -> int:
    """Return the number by which Telegram would know the user; no number is 0."""
    return int(user.rpartition(":")[2]) + 1


def update_of(user: str, text: str, update_id: int) -> dict[str, Any]:
    """Return a text message as Telegram sends it, decoded from its JSON."""
    number = number_of(user)
    return {
        "update_id": update_id,
        "message": {
            "message_id": update_id,
            "date": 1_700_000_000,
            "chat": {"id": number, "type": "private", "first_name": "Ann"},
            "from": {"id": number, "is_bot": False, "first_name": "Ann"},
            "text": text,
        },
    }


@dataclass(frozen=True, slots=True)
class Measured:
    """How a run went."""

    seconds: float
    """From the first event to the end of the flush, if there is one."""
    flush_seconds: float
    cpu_seconds: float
    """The processor time of all threads of the process meanwhile."""
    durations: array[float]
    """Seconds that each event took its caller."""

    def print(self, counters: Mapping[str, int]) -> None:
        """Print the one line that the benchmark reads.

        *counters* are those of the users, read back from the store.
        """
        ordered = sorted(self.durations)
        line = {
            "events": len(ordered),
            "seconds": self.seconds,
            "flush_seconds": self.flush_seconds,
            "cpu_seconds": self.cpu_seconds,
            "latency_ms": {f"p{percent:g}": percentile(ordered, percent) * 1000 for percent in PERCENTILES},
            "counters": dict(counters),
        }
        sys.stdout.write(json.dumps(line) + "\n")


def percentile(ordered: list[float], percent: float) -> float:
    """Return the smallest of the ordered values that *percent* of them do not exceed."""
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


async def drive(
    job: Job, dispatch: Callable[[str, str], Awaitable[Any]], flush: Callable[[], Awaitable[None]] | None = None
) -> Measured:
    """Let the callers dispatch until the time is over, then flush."""
    events, durations = itertools.cycle(job.events), array("d")
    gc.collect()  # what starting left behind; from here on the collector keeps its defaults
    cpu, started = process_time(), perf_counter()
    until = started + job.seconds
    async with asyncio.TaskGroup() as tasks:
        for _ in range(job.in_flight):
            tasks.create_task(_call(events, dispatch, durations, until))
    ended = answered = perf_counter()
    if flush is not None:
        await flush()
        ended = perf_counter()
    return Measured(ended - started, ended - answered, process_time() - cpu, durations)


async def _call(
    events: Events, dispatch: Callable[[str, str], Awaitable[Any]], durations: array[float], until: float
) -> None:
    for count, (user, text) in enumerate(events, 1):
        began = perf_counter()
        await dispatch(user, text)
        ended = perf_counter()
        durations.append(ended - began)
        if ended >= until:
            break
        if not count % YIELD_EVERY:
            await asyncio.sleep(0)


def drive_threads(job: Job, dispatch: Callable[[str, str], Any]) -> Measured:
    """The twin of `drive`, with threads for callers."""
    events, durations = itertools.cycle(job.events), array("d")  # the `next` of a cycle is one step under the lock
    gc.collect()
    cpu, started = process_time(), perf_counter()
    until = started + job.seconds

    def call() -> None:
        for user, text in events:
            began = perf_counter()
            dispatch(user, text)
            ended = perf_counter()
            durations.append(ended - began)
            if ended >= until:
                break

    with ThreadPoolExecutor(job.in_flight) as pool:
        for caller in [pool.submit(call) for _ in range(job.in_flight)]:
            caller.result()
    return Measured(perf_counter() - started, 0.0, process_time() - cpu, durations)
