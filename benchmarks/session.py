"""How many events a second, and how late: actorbot beside what one writes by hand, in the same run."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from actorbot import FlushPolicy
from actorbot.errors import ConfigError
from benchmarks import _report
from benchmarks._actorbot import HandlerName, LoopActorbot, StoreName, ThreadActorbot
from benchmarks._drive import Run, Series, run_in_threads, run_on_loop, time_in_threads, time_on_loop
from benchmarks._floors import FolderShelf, LockFloor, PykkaFloor, Shelf
from benchmarks._workload import Workload, make_workload

AnyContender = LockFloor | PykkaFloor | LoopActorbot | ThreadActorbot


@dataclass(frozen=True, slots=True)
class Setting:
    """Who is measured, and how often."""

    store: StoreName
    policy: str
    home: Literal["loop", "threads"]
    handler: HandlerName
    repeats: int
    seconds: float
    """The least that a measured run lasts."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--store", choices=("memory", "file"), default="memory")
    add("--policy", type=_policy, default="write-behind:max_delay=0.5", help="actorbot's flush policy (%(default)s)")
    add("--home", choices=("loop", "threads"), default="loop", help="who calls: tasks, or threads (%(default)s)")
    add(
        "--handler", choices=("async", "awaits", "sync"), help="async in the loop, sync in threads; awaits: awaits once"
    )
    add("--users", type=_positive, default=1000, metavar="N", help="(%(default)s)")
    add("--events", type=_positive, default=100_000, metavar="N", help="repeated until the time is over (%(default)s)")
    add("--in-flight", type=_positive, default=64, metavar="N", help="tasks or threads (%(default)s)")
    add(
        "--distribution",
        choices=("uniform", "zipf"),
        default="uniform",
        help="of the events over the users (%(default)s)",
    )
    add("--repeats", type=_positive, default=3, metavar="N", help="(%(default)s)")
    add("--seconds", type=float, default=5.0, help="the least that a measured run lasts (%(default)s)")
    add("--json", metavar="FILE", help="write all figures there, too")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status: 1 if a counter was wrong."""
    handler = args.handler or ("async" if args.home == "loop" else "sync")
    setting = Setting(args.store, args.policy, args.home, handler, args.repeats, args.seconds)
    workload = make_workload(args.users, args.events, args.in_flight, args.distribution)
    with _report.progress(2 * (setting.repeats + 1)) as begin:
        floor, actorbot = measure(setting, workload, begin)
    title = f"{args.store}, {args.policy}, {args.home}, {handler} handler, {args.users:,} users, {args.distribution}"
    _report.print_session(title, floor, actorbot)
    if args.json:
        options = {name: value for name, value in vars(args).items() if name not in ("json", "main")}
        _report.write_json(args.json, options | {"handler": handler}, _report.session_figures(floor, actorbot))
    return int(any(run.wrong_counters for series in (floor, actorbot) for run in series.runs))


def measure(setting: Setting, workload: Workload, begin: Callable[[str], None]) -> tuple[Series, Series]:
    """Measure the floor and actorbot by turns, then how late each is; return both, the floor first.

    *begin* is told what comes next, outside the measured time.
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
    if isinstance(contender, LockFloor | LoopActorbot):
        return asyncio.run(run_on_loop(contender, workload, seconds))
    return run_in_threads(contender, workload, seconds)


def _time(contender: AnyContender, workload: Workload) -> list[int]:
    if isinstance(contender, LockFloor | LoopActorbot):
        return asyncio.run(time_on_loop(contender, workload))
    return time_in_threads(contender, workload)


def _floor(setting: Setting, workload: Workload) -> AnyContender:
    shelf: Shelf = {} if setting.store == "memory" else FolderShelf()
    return LockFloor(shelf, setting.handler) if setting.home == "loop" else PykkaFloor(shelf)


def _actorbot(setting: Setting, workload: Workload) -> AnyContender:
    make = LoopActorbot if setting.home == "loop" else ThreadActorbot
    return make(setting.store, setting.policy, setting.handler, len(workload.users))


def _policy(text: str) -> str:
    try:
        FlushPolicy.parse(text)
    except ConfigError as exc:
        raise argparse.ArgumentTypeError(str(exc)) from exc
    return text


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected at least 1")
    return number
