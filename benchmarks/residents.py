"""What a resident session costs in memory and time, and how quickly sessions come and leave."""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from time import perf_counter, process_time
from typing import ClassVar, Self

from actorbot import ONE_YEAR, FlushPolicy, SessionManager
from actorbot.errors import ActorbotError
from actorbot.stores.base import Record, RecordStore, Write
from actorbot.testing import ManualClock
from benchmarks import _memory, _report
from benchmarks._actorbot import handle
from benchmarks._report import Result, Table, figures_of, options_of
from benchmarks._stored import TEXTS, stored_record
from benchmarks._workload import SEED

IN_FLIGHT = 64
IDLE_TIMEOUT = 900.0
MAX_DELAY = 1.0
WAVE = 5_000  # sessions activated between two flushes: what one second may bring
EVENTS = 50_000  # events that are sent to resident sessions
WARM_UP = 1_000  # sessions of a manager before: it brings code, thread stacks and buffers


class FarStore(RecordStore):
    """Stands for a server.

    Every id has a record of the same ten texts, and nothing that is written stays in the process.
    """

    name: ClassVar[str] = "far"
    expires_in = ONE_YEAR

    def __init__(self, now: float) -> None:
        self._record = stored_record(now)

    def init(self) -> Self:
        return self

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        encoded = ((session_id, self.encode(session_id)) for session_id in session_ids)
        return [Record.from_bytes(data, session_id=session_id, store=self.name) for session_id, data in encoded]

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        return [None] * len(writes)

    def encode(self, session_id: str) -> bytes:
        return replace(self._record, session_id=session_id).to_bytes()


@dataclass(frozen=True, slots=True)
class Residents:
    """What was measured."""

    sessions: int
    record_bytes: int
    """Bytes of one encoded record."""
    resident_bytes: int
    """Bytes by which the process grew for each session, its encoded state included.

    The sessions are resident, idle and flushed.
    """
    threads_first: int
    """Threads of the process when 5,000 sessions are resident."""
    threads_last: int
    """Threads of the process when all sessions are resident."""
    activations_per_second: float
    """Sessions a second, read from a store that answers at once.

    Each comes with its first event, 64 in flight.
    """
    passivations_per_second: float
    """Sessions a second that leave when all of them, flushed and idle, may leave."""
    event_us: float
    """Microseconds of processor time that an event takes, its flush included.

    All sessions are resident, and each may get the next event.
    """
    collection_ms: float
    """How long the interpreter stands still while the garbage collector walks over everything."""
    left_behind: int
    """Sessions that should have left memory and did not."""
    wrong_counters: int

    @property
    def overhead_bytes(self) -> int:
        return self.resident_bytes - self.record_bytes


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--sessions", type=_report.positive, default=100_000, metavar="N", help="(%(default)s)")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status.

    It is 1 if a counter was wrong, or if a session did not leave memory.
    """
    with _report.progress(4) as begin:
        result = asyncio.run(measure(args.sessions, begin))
    figures = figures_of(
        "actorbot",
        [result],
        ("bytes beyond the encoded record", "", "lower", lambda one: one.overhead_bytes),
        ("encoded record", "bytes", "", lambda one: one.record_bytes),
        (f"threads, {min(WAVE, args.sessions):,} resident", "", "lower", lambda one: one.threads_first),
        (f"threads, {args.sessions:,} resident", "", "lower", lambda one: one.threads_last),
        ("CPU per event", "µs", "lower", lambda one: one.event_us),
        ("full garbage collection", "ms", "lower", lambda one: one.collection_ms),
        ("activations/s", "", "higher", lambda one: one.activations_per_second),
        ("passivations/s", "", "higher", lambda one: one.passivations_per_second),
    )
    return Result(
        question="residents",
        options=options_of(args),
        tables=(Table(f"{args.sessions:,} resident sessions", tuple(figures)),),
        wrong=result.left_behind + result.wrong_counters,
        details=asdict(result) | {"overhead_bytes": result.overhead_bytes},
    ).conclude(args.json)


async def measure(sessions: int, begin: Callable[[str], None]) -> Residents:
    """Activate *sessions* sessions, let them be idle, and let all of them leave.

    *begin* is told what comes next.
    """
    begin("warm-up")
    await _activate_and_leave(WARM_UP)
    clock = ManualClock()  # idle time-out and flushes come when they are wanted
    store = FarStore(clock.wall())
    async with _manager(store, clock, sessions) as manager:
        threads, rss_empty = [], _settled_rss()
        begin("activation")
        activation = 0.0
        for first in range(0, sessions, WAVE):
            activation += await _activate(manager, range(first, min(first + WAVE, sessions)))
            await clock.advance(MAX_DELAY)  # flushes them
            threads.append(_memory.threads())
        resident = manager.stats().resident
        rss_full = _settled_rss()
        begin("events")
        collection = _time_collection()
        expected = dict.fromkeys(range(sessions), TEXTS + 1)
        spent = 0.0
        draw = random.Random(SEED)
        for _ in range(0, EVENTS, WAVE):
            called = draw.choices(range(sessions), k=WAVE)
            used = process_time()
            await _activate(manager, called)
            await clock.advance(MAX_DELAY)
            spent += process_time() - used
            for number in called:
                expected[number] += 1
        wrong = [number for number, count in expected.items() if await _counter(manager, number) != count]
        begin("passivation")
        started = perf_counter()
        await clock.advance(IDLE_TIMEOUT * 1.5)
        passivation = perf_counter() - started
        left = manager.stats().resident
    return Residents(
        sessions=sessions,
        record_bytes=len(store.encode(f"bench:{sessions - 1}")),
        resident_bytes=(rss_full - rss_empty) // resident,
        threads_first=threads[0],
        threads_last=threads[-1],
        activations_per_second=sessions / activation,
        passivations_per_second=(resident - left) / passivation,
        event_us=spent / EVENTS * 1e6,
        collection_ms=collection * 1000,
        left_behind=left,
        wrong_counters=len(wrong),
    )


def _manager(store: FarStore, clock: ManualClock, sessions: int) -> SessionManager:
    policy = FlushPolicy.write_behind(max_delay=MAX_DELAY)
    return SessionManager(
        store, handler=handle, flush=policy, idle_timeout=IDLE_TIMEOUT, max_resident=sessions, clock=clock
    )


async def _activate_and_leave(sessions: int) -> None:
    clock = ManualClock()
    async with _manager(FarStore(clock.wall()), clock, sessions) as manager:
        await _activate(manager, range(sessions))
        await clock.advance(IDLE_TIMEOUT * 1.5)


async def _activate(manager: SessionManager, sessions: Iterable[int]) -> float:
    """Send each session one event; return the seconds that it took."""
    numbers = iter(sessions)
    started = perf_counter()
    async with asyncio.TaskGroup() as tasks:
        for _ in range(IN_FLIGHT):
            tasks.create_task(_greet(manager, numbers))
    return perf_counter() - started


async def _greet(manager: SessionManager, numbers: Iterator[int]) -> None:
    for number in numbers:
        await manager.dispatch(
            f"bench:{number}", "Hello, it is me again"
        )  # a new str: its bytes are the session's, too


async def _counter(manager: SessionManager, number: int) -> int:
    session = await manager.peek(f"bench:{number}")
    return 0 if session is None else int(session["n"])


def _time_collection() -> float:
    gc.collect()
    started = perf_counter()
    gc.collect()
    return perf_counter() - started


def _settled_rss() -> int:
    gc.collect()
    return _memory.rss()
