"""Drives a contender: 64 tasks or threads take events from one sequence.

The clock stops after the flush.
"""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from time import perf_counter, perf_counter_ns, process_time
from typing import Any, Protocol

from benchmarks._memory import peak_rss, reset_peak_rss
from benchmarks._workload import Workload

YIELD_EVERY = 16  # events after which a task lets the others run: an inline turn that waits for nothing never would
MAX_TIMED = 50_000

Events = Iterator[tuple[str, str]]


class Contender(Protocol):
    """Something that handles the workload, for one run."""

    name: str

    def counter_of(self, session_id: str) -> int:
        """Return the session's counter as the store has it; called before `close`."""

    def writes_per_event(self, events: int) -> float:
        """Return how often the store was written for each of *events* events."""


class LoopContender(Contender, Protocol):
    @property
    def dispatch(self) -> Callable[[str, str], Awaitable[Any]]: ...
    async def open(self, users: Sequence[str]) -> None: ...
    async def flush(self) -> None: ...
    async def close(self) -> None: ...


class ThreadContender(Contender, Protocol):
    @property
    def dispatch(self) -> Callable[[str, str], Any]: ...
    def open(self, users: Sequence[str]) -> None: ...
    def flush(self) -> None: ...
    def close(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured."""

    contender: str
    events: int
    seconds: float
    """From the first event to the end of the flush."""
    cpu_seconds: float
    """The processor time of all threads of the process meanwhile.

    Other programs on the machine disturb it least.
    """
    lost: int
    """Events that are missing in their sessions' counters; negative if some counted twice."""
    wrong_counters: int
    """Sessions whose counter is not what it must be."""
    writes_per_event: float
    peak_rss: int
    """Bytes: the process's highest resident memory during the run."""

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds


@dataclass(frozen=True, slots=True)
class Series:
    """All that was measured of one contender."""

    name: str
    runs: tuple[Run, ...]
    durations: tuple[int, ...]
    """Nanoseconds of each `dispatch` of the latency pass, shortest first."""


# --- asyncio ------------------------------------------------------------------------------------


async def run_on_loop(contender: LoopContender, workload: Workload, seconds: float) -> Run:
    """Handle the workload, again and again until *seconds* have passed, and check every counter."""
    await contender.open(workload.users)
    try:
        rounds, watch = 0, Stopwatch()
        while rounds == 0 or watch.seconds < seconds:
            await _loop_round(contender, workload)
            rounds += 1
        await contender.flush()
        return watch.stop(contender, workload, rounds)
    finally:
        await contender.close()


async def time_on_loop(contender: LoopContender, workload: Workload) -> list[int]:
    """Return how long each `dispatch` took, in nanoseconds.

    Measured in a second round, over sessions that are active already.
    """
    workload = workload.head(MAX_TIMED)
    await contender.open(workload.users)
    try:
        await _loop_round(contender, workload)
        return await time_events(contender.dispatch, workload)
    finally:
        await contender.close()


async def time_events(dispatch: Callable[[str, str], Awaitable[Any]], workload: Workload) -> list[int]:
    """Handle the workload once, and return how long each `dispatch` took, in nanoseconds."""
    durations: list[int] = []
    events = iter(workload.events)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(workload.in_flight):
            tasks.create_task(_loop_timer(events, dispatch, durations))
    return durations


async def _loop_round(contender: LoopContender, workload: Workload) -> None:
    events = iter(workload.events)
    async with asyncio.TaskGroup() as tasks:
        for _ in range(workload.in_flight):
            tasks.create_task(_loop_caller(events, contender.dispatch))


async def _loop_caller(events: Events, dispatch: Callable[[str, str], Awaitable[Any]]) -> None:
    for count, (session_id, text) in enumerate(events, 1):
        await dispatch(session_id, text)
        if not count % YIELD_EVERY:
            await asyncio.sleep(0)


async def _loop_timer(events: Events, dispatch: Callable[[str, str], Awaitable[Any]], durations: list[int]) -> None:
    for count, (session_id, text) in enumerate(events, 1):
        started = perf_counter_ns()
        await dispatch(session_id, text)
        durations.append(perf_counter_ns() - started)
        if not count % YIELD_EVERY:
            await asyncio.sleep(0)


# --- threads ------------------------------------------------------------------------------------


def run_in_threads(contender: ThreadContender, workload: Workload, seconds: float) -> Run:
    """The twin of `run_on_loop`."""
    contender.open(workload.users)
    try:
        with ThreadPoolExecutor(workload.in_flight) as pool:
            rounds, watch = 0, Stopwatch()
            while rounds == 0 or watch.seconds < seconds:
                _thread_round(pool, contender, workload)
                rounds += 1
            contender.flush()
            return watch.stop(contender, workload, rounds)
    finally:
        contender.close()


def time_in_threads(contender: ThreadContender, workload: Workload) -> list[int]:
    """The twin of `time_on_loop`."""
    workload = workload.head(MAX_TIMED)
    durations: list[int] = []
    contender.open(workload.users)
    try:
        with ThreadPoolExecutor(workload.in_flight) as pool:
            _thread_round(pool, contender, workload)
            events = iter(workload.events)
            timers = [
                pool.submit(_thread_timer, events, contender.dispatch, durations) for _ in range(workload.in_flight)
            ]
            for timer in timers:
                timer.result()
    finally:
        contender.close()
    return durations


def _thread_round(pool: ThreadPoolExecutor, contender: ThreadContender, workload: Workload) -> None:
    events = iter(workload.events)  # a tuple's iterator: its `next` is one step under the interpreter's lock
    callers = [pool.submit(_thread_caller, events, contender.dispatch) for _ in range(workload.in_flight)]
    for caller in callers:
        caller.result()


def _thread_caller(events: Events, dispatch: Callable[[str, str], Any]) -> None:
    for session_id, text in events:
        dispatch(session_id, text)


def _thread_timer(events: Events, dispatch: Callable[[str, str], Any], durations: list[int]) -> None:
    for session_id, text in events:
        started = perf_counter_ns()
        dispatch(session_id, text)
        durations.append(perf_counter_ns() - started)


# --- both ---------------------------------------------------------------------------------------


class Stopwatch:
    """A clock that runs from the moment it is made."""

    def __init__(self) -> None:
        gc.collect()  # what the run before left behind; during a run the collector keeps its defaults
        reset_peak_rss()
        self._cpu, self._started = process_time(), perf_counter()

    @property
    def seconds(self) -> float:
        return perf_counter() - self._started

    def stop(self, contender: Contender, workload: Workload, rounds: int) -> Run:
        """Return the run, after a check of every counter in the store."""
        seconds, cpu_seconds, peak = self.seconds, process_time() - self._cpu, peak_rss()
        wrong = workload.wrong_counters(rounds, contender.counter_of)
        events = rounds * len(workload.events)
        return Run(
            contender=contender.name,
            events=events,
            seconds=seconds,
            cpu_seconds=cpu_seconds,
            lost=sum(wrong.values()),
            wrong_counters=len(wrong),
            writes_per_event=contender.writes_per_event(events),
            peak_rss=peak,
        )
