"""How long a close takes when the store lacks many sessions, and what the store has afterwards."""

from __future__ import annotations

import argparse
import asyncio
import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import get_args

from actorbot import FlushPolicy, SessionManager, ShutdownReport
from actorbot.stores.base import RecordStore
from benchmarks import _report
from benchmarks._actorbot import StoreName, handle, make_store
from benchmarks._drive import time_events
from benchmarks._report import Figure, Result, Table, figures_of, options_of
from benchmarks._servers import URLS
from benchmarks._stored import TEXTS, wrong_counters
from benchmarks._workload import Workload, make_texts

IN_FLIGHT = 64
POLICY = FlushPolicy.write_behind(max_delay=3600.0)  # nothing is due before the close


@dataclass(frozen=True, slots=True)
class Drained:
    """What one run measured."""

    sessions: int
    dirty: int
    """Acknowledged events that the store did not have when the close began."""
    report: ShutdownReport
    reported_in_vain: int
    """Sessions that the report says are not flushed although the store has them."""
    lost: int
    """Events that are missing in the counters of sessions that the report says are flushed."""
    wrong_counters: int
    """Sessions with such events, and sessions that are stored in part or missing in the report.

    Stored in part: the store has some of the session's events, but not all.
    """

    @property
    def flushed(self) -> int:
        return self.sessions - len(self.report.unflushed)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _report.positive
    add("--store", choices=get_args(StoreName), default="redis", help="(%(default)s)")
    add("--url", help="the server's URL, for --store redis or mongo (this machine, the usual port)")
    add("--sessions", type=count, nargs="+", default=[1_000, 10_000, 50_000], metavar="N", help="(%(default)s)")
    add("--close-timeout", type=float, default=10.0, metavar="SECONDS", help="(%(default)s)")
    add("--repeats", type=count, default=3, metavar="N", help="measured runs of each size (%(default)s)")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status: 1 if the store and the report disagree."""
    with _report.progress(2 * len(args.sessions) * args.repeats) as begin:
        runs = [asyncio.run(measure(args, size, begin)) for size in args.sessions for _ in range(args.repeats)]
    return Result(
        question="drain",
        options=options_of(args),
        tables=tuple(
            Table(
                f"{args.store}, {size:,} sessions, close_timeout {args.close_timeout:g} s",
                tuple(figures([run for run in runs if run.sessions == size])),
            )
            for size in dict.fromkeys(args.sessions)
        ),
        wrong=sum(run.wrong_counters for run in runs),
        details={"runs": [asdict(run) for run in runs]},
    ).conclude(args.json)


async def measure(args: argparse.Namespace, sessions: int, begin: Callable[[str], None]) -> Drained:
    """Send each session ten events, close the manager, and look into the store."""
    begin(f"{sessions:,} sessions: their events")
    names = tuple(f"bench:{number}" for number in range(sessions))
    events = tuple((name, text) for text in make_texts(TEXTS) for name in names)
    store, clear = make_store(args.store, args.url or URLS.get(args.store, ""), sessions)
    try:
        manager = SessionManager(store, handler=handle, flush=POLICY, max_resident=sessions)
        async with manager:
            await time_events(manager.dispatch, Workload(names, events, IN_FLIGHT))
            dirty = manager.stats().events_at_risk
            gc.collect()  # what came before; during the close the collector keeps its defaults
            begin(f"{sessions:,} sessions: the close")
            report = await manager.close(args.close_timeout)
        return check(store, names, dirty, report)
    finally:
        clear()


def check(store: RecordStore, names: Sequence[str], dirty: int, report: ShutdownReport) -> Drained:
    """Open the store again and compare every counter with the *report*.

    A session must be stored as a whole, or be named there.
    """
    store.init()
    try:
        missing = wrong_counters(store, dict.fromkeys(names, TEXTS))
    finally:
        store.close()
    named = set(report.unflushed)
    unnamed = {name: count for name, count in missing.items() if name not in named}
    torn = [name for name, count in missing.items() if name in named and count != TEXTS]
    return Drained(
        sessions=len(names),
        dirty=dirty,
        report=report,
        reported_in_vain=len(named - set(missing)),
        lost=sum(unnamed.values()),
        wrong_counters=len(unnamed) + len(torn),
    )


def figures(runs: Sequence[Drained]) -> list[Figure]:
    """Return what is shown of the runs of one size."""
    return figures_of(
        "actorbot",
        runs,
        ("events that the store did not have", "", "", lambda run: run.dirty),
        ("close", "s", "lower", lambda run: run.report.seconds),
        ("sessions flushed/s", "", "higher", lambda run: run.flushed / run.report.seconds),
        ("clean", "", "higher", lambda run: int(run.report.clean)),
        ("sessions not flushed", "", "lower", lambda run: len(run.report.unflushed)),
        ("… that the store has", "", "lower", lambda run: run.reported_in_vain),
        ("lost updates", "", "lower", lambda run: run.lost),
    )
