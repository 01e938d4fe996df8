"""How many events a second, and how late: actorbot beside what one writes by hand, in one run."""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from math import ceil
from typing import Literal

from actorbot import FlushPolicy
from actorbot.errors import ConfigError
from benchmarks import _report
from benchmarks._actorbot import HandlerName, LoopActorbot, StoreName, ThreadActorbot
from benchmarks._drive import Run, Series, run_in_threads, run_on_loop, time_in_threads, time_on_loop
from benchmarks._floors import FolderShelf, LockFloor, PykkaFloor, Shelf
from benchmarks._report import Figure, Result, Table, figures_of, options_of
from benchmarks._servers import FLOORS, URLS, MongoFloor, Place, RedisFloor
from benchmarks._workload import Workload, make_workload

PERCENTILES = (50.0, 99.0, 99.9)

OnLoop = LockFloor | RedisFloor | MongoFloor | LoopActorbot
AnyContender = OnLoop | PykkaFloor | ThreadActorbot


@dataclass(frozen=True, slots=True)
class Setting:
    """What is measured, and how often."""

    store: StoreName
    url: str
    policy: str
    home: Literal["loop", "threads"]
    handler: HandlerName
    repeats: int
    seconds: float
    """Seconds that a measured run lasts at least."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _report.positive
    add("--store", choices=("memory", "file", "redis", "mongo"), default="memory", help="(%(default)s)")
    add("--url", help="the server's URL, for --store redis or mongo (this machine, the usual port)")
    add("--policy", type=policy, default="write-behind:max_delay=0.5", help="actorbot's flush policy (%(default)s)")
    add("--home", choices=("loop", "threads"), default="loop", help="who calls: tasks, or threads (%(default)s)")
    add(
        "--handler",
        choices=("async", "awaits", "sync"),
        help="awaits: async, and awaits (async on a loop, sync on threads)",
    )
    add("--users", type=count, default=1_000, metavar="N", help="(%(default)s)")
    add("--events", type=count, default=100_000, metavar="N", help="repeated until --seconds are over (%(default)s)")
    add("--in-flight", type=count, default=64, metavar="N", help="tasks or threads (%(default)s)")
    add("--distribution", choices=("uniform", "zipf"), default="uniform", help="of events over users (%(default)s)")
    add("--repeats", type=count, default=3, metavar="N", help="measured runs of each (%(default)s)")
    add("--seconds", type=float, default=5.0, help="the least that a measured run lasts (%(default)s)")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status: 1 if a counter was wrong."""
    handler: HandlerName = args.handler or ("async" if args.home == "loop" else "sync")
    if args.store in URLS and (args.home != "loop" or handler == "sync"):
        print("--store redis and mongo are measured on a loop, with an async handler", file=sys.stderr)
        return 2
    setting = Setting(
        args.store, args.url or URLS.get(args.store, ""), args.policy, args.home, handler, args.repeats, args.seconds
    )
    workload = make_workload(args.users, args.events, args.in_flight, args.distribution)
    with _report.progress(2 * (setting.repeats + 1)) as begin:
        floor, actorbot = measure(setting, workload, begin)
    title = f"{args.store}, {args.policy}, {args.home}, {handler} handler, {args.users:,} users, {args.distribution}"
    both = (floor, actorbot)
    return Result(
        question="session",
        options=options_of(args) | {"handler": handler},
        tables=(Table(title, (*figures(floor, 1.0), *figures(actorbot, *ratios(floor, actorbot)))),),
        wrong=sum(run.wrong_counters for series in both for run in series.runs),
        details={"runs": [asdict(run) for series in both for run in series.runs]},
    ).conclude(args.json)


def measure(setting: Setting, workload: Workload, begin: Callable[[str], None]) -> tuple[Series, Series]:
    """Measure the floor and actorbot by turns, then how late each is; return both, the floor first.

    *begin* is told what comes next, outside of the measured time.
    """
    makers: tuple[Callable[[Setting, Workload], AnyContender], ...] = (_floor, _actorbot)
    runs: tuple[list[Run], ...] = ([], [])
    for repeat in range(1, setting.repeats + 1):
        for make, done in zip(makers, runs, strict=True):
            contender = make(setting, workload)
            begin(f"{contender.name}, run {repeat} of {setting.repeats}")
            done.append(_run(contender, workload, setting.seconds))
    series = []
    for make, done in zip(makers, runs, strict=True):
        contender = make(setting, workload)
        begin(f"{contender.name}, latency")
        series.append(Series(contender.name, tuple(done), tuple(sorted(_time(contender, workload)))))
    return series[0], series[1]


def _run(contender: AnyContender, workload: Workload, seconds: float) -> Run:
    if isinstance(contender, OnLoop):
        return asyncio.run(run_on_loop(contender, workload, seconds))
    return run_in_threads(contender, workload, seconds)


def _time(contender: AnyContender, workload: Workload) -> list[int]:
    if isinstance(contender, OnLoop):
        return asyncio.run(time_on_loop(contender, workload))
    return time_in_threads(contender, workload)


def _floor(setting: Setting, workload: Workload) -> AnyContender:
    if setting.store in FLOORS:
        return FLOORS[setting.store](Place(setting.store, setting.url), setting.handler)
    shelf: Shelf = {} if setting.store == "memory" else FolderShelf()
    return LockFloor(shelf, setting.handler) if setting.home == "loop" else PykkaFloor(shelf)


def _actorbot(setting: Setting, workload: Workload) -> AnyContender:
    make = LoopActorbot if setting.home == "loop" else ThreadActorbot
    return make(setting.store, setting.url, setting.policy, setting.handler, len(workload.users))


def figures(series: Series, *ratio: float) -> list[Figure]:
    """Return what is shown of a contender; the *ratio* to the floor is of neighbouring runs."""
    late = [
        Figure(f"p{percent:g}", (percentile(series.durations, percent) / 1000,), series.name, "µs", "lower")
        for percent in PERCENTILES
    ]
    return [
        *figures_of(series.name, series.runs, ("events/s", "", "higher", lambda run: run.events_per_second)),
        Figure("ratio to the floor", ratio, series.name, "", "higher"),
        *figures_of(
            series.name, series.runs, ("CPU per event", "µs", "lower", lambda run: run.cpu_seconds / run.events * 1e6)
        ),
        *late,
        *figures_of(
            series.name,
            series.runs,
            ("lost updates", "", "lower", lambda run: run.lost),
            ("store writes/event", "", "lower", lambda run: run.writes_per_event),
            ("peak memory", "MB", "lower", lambda run: run.peak_rss / 1e6),
        ),
    ]


def ratios(floor: Series, actorbot: Series) -> list[float]:
    """Return actorbot's events a second over the floor's, for each two neighbouring runs."""
    pairs = zip(floor.runs, actorbot.runs, strict=True)
    return [ours.events_per_second / theirs.events_per_second for theirs, ours in pairs]


def percentile(ordered: Sequence[int], percent: float) -> int:
    """Return the smallest of the ordered values that *percent* of them do not exceed."""
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def policy(text: str) -> str:
    """Read an option that is a flush policy, and keep it as it was written."""
    try:
        FlushPolicy.parse(text)
    except ConfigError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return text
