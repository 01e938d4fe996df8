"""How quickly sessions come into memory from the store: actorbot beside a read for each session.

Both are measured in the same run.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from time import perf_counter, process_time
from typing import Any, Protocol

from actorbot import SessionManager
from benchmarks import _report
from benchmarks._actorbot import StoreName, handle, make_store
from benchmarks._cold_floors import make_cold_floor
from benchmarks._report import Figure, Result, Table, figures_of, options_of
from benchmarks._servers import URLS
from benchmarks._stored import TEXTS, fill, wrong_counters

TEXT = "Hello, it is me again"


class ColdContender(Protocol):
    """A contender whose sessions are in a store.

    `open` and `close` begin and end a run. At its beginning no session is in memory.
    """

    name: str

    def fill(self, session_ids: Sequence[str]) -> None: ...
    async def open(self, in_flight: int) -> None: ...
    async def dispatch(self, session_id: str, text: str) -> Any: ...
    async def flush(self) -> None: ...
    def wrong_counters(self, expected: Mapping[str, int]) -> dict[str, int]: ...
    async def close(self) -> None: ...
    def clear(self) -> None: ...


class ColdActorbot:
    """A fresh manager for each run, over the same store."""

    name = "actorbot"

    def __init__(self, store: StoreName, url: str, sessions: int) -> None:
        self._store, self._clear = make_store(store, url, sessions)
        self._sessions = sessions
        self._runs = 0

    def fill(self, session_ids: Sequence[str]) -> None:
        self._store.init()
        fill(self._store, session_ids)
        self._store.close()

    async def open(self, in_flight: int) -> None:
        self._runs += 1
        self._manager = SessionManager(self._store, handler=handle, max_resident=self._sessions)
        await self._manager.start()
        self.dispatch = self._manager.dispatch

    async def flush(self) -> None:
        await self._manager.flush()

    def wrong_counters(self, expected: Mapping[str, int]) -> dict[str, int]:
        """Count in the store, where all runs so far have left their events."""
        return wrong_counters(self._store, {one: count + self._runs - 1 for one, count in expected.items()})

    async def close(self) -> None:
        await self._manager.close()

    def clear(self) -> None:
        self._clear()


@dataclass(frozen=True, slots=True)
class Run:
    """What one run measured."""

    contender: str
    in_flight: int
    sessions: int
    seconds: float
    """From the first event until all are handled."""
    flush_seconds: float
    """From the first event to the end of the flush."""
    cpu_seconds: float
    """The processor time of all threads of the process until all were handled."""
    lost: int
    """Events that their sessions' counters miss."""
    wrong_counters: int

    @property
    def activations_per_second(self) -> float:
        return self.sessions / self.seconds


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _report.positive
    add("--store", choices=("memory", "file", "redis", "mongo"), default="redis", help="(%(default)s)")
    add("--url", help="the server's URL, for --store redis or mongo (this machine, the usual port)")
    add("--sessions", type=count, default=50_000, metavar="N", help="(%(default)s)")
    add("--in-flight", type=count, nargs="+", default=[64, 512], metavar="N", help="tasks; each is measured (64 512)")
    add("--repeats", type=count, default=3, metavar="N", help="measured runs of each (%(default)s)")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status: 1 if a counter was wrong."""
    url = args.url or URLS.get(args.store, "")
    makers: tuple[Callable[[], ColdContender], ...] = (
        lambda: make_cold_floor(args.store, url),
        lambda: ColdActorbot(args.store, url, args.sessions),
    )
    names = [f"bench:{number}" for number in range(args.sessions)]
    with _report.progress(2 + 2 * args.repeats * len(args.in_flight)) as begin:
        runs = measure(makers, names, args.in_flight, args.repeats, begin)
    return Result(
        question="activation",
        options=options_of(args),
        tables=tuple(
            Table(
                f"{args.store}, {args.sessions:,} sessions, {in_flight:,} in flight",
                tuple(figures(*split(runs, in_flight))),
            )
            for in_flight in args.in_flight
        ),
        wrong=sum(run.wrong_counters for run in runs),
        details={"runs": [asdict(run) for run in runs]},
    ).conclude(args.json)


def measure(
    makers: Sequence[Callable[[], ColdContender]],
    names: Sequence[str],
    in_flights: Sequence[int],
    repeats: int,
    begin: Callable[[str], None],
) -> list[Run]:
    """Fill each contender's store once, then measure the contenders by turns.

    *begin* is told what comes next, outside of the measured time.
    """
    contenders: list[ColdContender] = []
    runs = []
    try:
        for make in makers:
            contenders.append(make())
            begin(f"{contenders[-1].name}: writing the sessions")
            contenders[-1].fill(names)
        for in_flight in in_flights:
            for repeat in range(1, repeats + 1):
                for contender in contenders:
                    begin(f"{contender.name}, {in_flight} in flight, run {repeat} of {repeats}")
                    runs.append(asyncio.run(activate(contender, names, in_flight)))
    finally:
        for contender in contenders:
            contender.clear()
    return runs


async def activate(contender: ColdContender, names: Sequence[str], in_flight: int) -> Run:
    """Send each session one event, *in_flight* at a time, and check every counter."""
    await contender.open(in_flight)
    try:
        numbers = iter(names)
        gc.collect()  # what the run before left behind; during a run the collector keeps its defaults
        cpu, started = process_time(), perf_counter()
        async with asyncio.TaskGroup() as tasks:
            for _ in range(in_flight):
                tasks.create_task(_greet(contender.dispatch, numbers))
        seconds, cpu_seconds = perf_counter() - started, process_time() - cpu
        await contender.flush()
        flush_seconds = perf_counter() - started
        wrong = contender.wrong_counters(dict.fromkeys(names, TEXTS + 1))
    finally:
        await contender.close()
    return Run(
        contender=contender.name,
        in_flight=in_flight,
        sessions=len(names),
        seconds=seconds,
        flush_seconds=flush_seconds,
        cpu_seconds=cpu_seconds,
        lost=sum(wrong.values()),
        wrong_counters=len(wrong),
    )


async def _greet(dispatch: Callable[[str, str], Any], names: Iterator[str]) -> None:
    for name in names:
        await dispatch(name, TEXT)


def split(runs: Sequence[Run], in_flight: int) -> tuple[list[Run], list[Run]]:
    """Return the floor's runs and actorbot's, with that many events in flight."""
    these = [run for run in runs if run.in_flight == in_flight]
    return these[::2], these[1::2]


def figures(floor: Sequence[Run], actorbot: Sequence[Run]) -> list[Figure]:
    """Return what is shown; the ratio is that of neighbouring runs. The floor writes nothing."""
    return [
        *_figures(floor),
        Figure("ratio to the floor", (1.0,), floor[0].contender),
        *_figures(actorbot),
        Figure("ratio to the floor", tuple(ratios(floor, actorbot)), actorbot[0].contender, "", "higher"),
        *figures_of(actorbot[0].contender, actorbot, ("with the flush", "s", "lower", lambda run: run.flush_seconds)),
    ]


def _figures(runs: Sequence[Run]) -> list[Figure]:
    return figures_of(
        runs[0].contender,
        runs,
        ("activations/s", "", "higher", lambda run: run.activations_per_second),
        ("CPU per activation", "µs", "lower", lambda run: run.cpu_seconds / run.sessions * 1e6),
        ("lost updates", "", "lower", lambda run: run.lost),
    )


def ratios(floor: Sequence[Run], actorbot: Sequence[Run]) -> list[float]:
    """Return actorbot's activations a second over the floor's, for each two neighbouring runs."""
    pairs = zip(floor, actorbot, strict=True)
    return [ours.activations_per_second / theirs.activations_per_second for theirs, ours in pairs]
