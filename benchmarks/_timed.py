"""What the questions about one manager share.

Callers in flight with a clock around each event, and somebody who looks at the manager meanwhile.
"""

from __future__ import annotations

import asyncio
import gc
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from benchmarks._drive import time_events
from benchmarks._report import Figure
from benchmarks._workload import Workload
from benchmarks.session import PERCENTILES, percentile


@dataclass(frozen=True, slots=True)
class Timed:
    """What a run of whole rounds measured."""

    rounds: int
    events: int
    seconds: float
    """From the first event to the end of the flush."""
    latency_ns: dict[str, int]
    """Of `dispatch`."""

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds


async def time_rounds(
    dispatch: Callable[[str, str], Awaitable[Any]],
    flush: Callable[[], Awaitable[Any]],
    workload: Workload,
    seconds: float,
) -> Timed:
    """Handle the workload, again and again until *seconds* have passed, then flush.

    There is a clock around each event.
    """
    durations, rounds = array("q"), 0
    gc.collect()  # what came before; from here on the collector keeps its defaults
    started = perf_counter()
    while rounds == 0 or perf_counter() - started < seconds:
        durations.extend(await time_events(dispatch, workload))
        rounds += 1
    await flush()
    return Timed(rounds, len(durations), perf_counter() - started, latencies(durations))


def latencies(durations: Sequence[int]) -> dict[str, int]:
    """Return the percentiles of at least one duration, and the longest as p100; the unit stays."""
    ordered = sorted(durations)
    return {f"p{percent:g}": percentile(ordered, percent) for percent in (*PERCENTILES, 100.0)}


def latency_figures(of: str, what: str, runs: Sequence[dict[str, int]]) -> list[Figure]:
    """Make figures of the nanoseconds of each run that `latencies` finds; *what* was timed."""
    return [
        Figure(
            f"longest {what}" if name == "p100" else f"{name} of {what}",
            tuple(run[name] / 1e6 for run in runs),
            of,
            "ms",
            "lower",
        )
        for name in runs[0]
    ]


@asynccontextmanager
async def looking(look: Callable[[], object], every: float) -> AsyncIterator[None]:
    """Call *look* every so many seconds, and once at the end. Raises: what it raises."""

    async def again() -> None:
        while True:
            await asyncio.sleep(every)
            look()

    task = asyncio.create_task(again())
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
    if not task.cancelled():
        task.result()
    look()
