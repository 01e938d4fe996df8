"""What it costs when more users write than fit into memory.

An event may have to bring one session in, and another session has to leave for it.
"""

from __future__ import annotations

import argparse
import asyncio
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import get_args

from actorbot import FlushPolicy, SessionManager
from actorbot.errors import OverloadedError
from actorbot.stores.base import RecordStore
from benchmarks import _report
from benchmarks._actorbot import StoreName, handle, make_store
from benchmarks._report import Figure, Result, Table, figures_of, options_of
from benchmarks._servers import URLS
from benchmarks._stored import TEXTS, fill, wrong_counters
from benchmarks._timed import Timed, latency_figures, looking, time_rounds
from benchmarks._workload import Distribution, Workload, make_workload
from benchmarks.session import policy

LOOK = 0.05  # seconds between two looks at how many are resident


@dataclass(frozen=True, slots=True)
class Churned:
    """What one run measured."""

    timed: Timed
    activations: int
    passivations: int
    peak_resident: int
    store_writes: int
    refused: int
    """Events that got `OverloadedError`, since no session was found that could leave."""
    lost: int
    """Acknowledged events, of this run and those before, that their sessions' counters miss."""
    wrong_counters: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _report.positive
    add("--store", choices=get_args(StoreName), default="redis", help="(%(default)s)")
    add("--url", help="the server's URL, for --store redis or mongo (this machine, the usual port)")
    add("--policy", type=policy, default="write-behind:max_delay=0.5", help="the flush policy (%(default)s)")
    add("--users", type=count, default=20_000, metavar="N", help="users, all of them in the store (%(default)s)")
    add("--resident", type=count, default=2_000, metavar="N", help="max_resident (%(default)s)")
    add("--events", type=count, default=20_000, metavar="N", help="repeated until --seconds are over (%(default)s)")
    add("--in-flight", type=count, default=64, metavar="N", help="tasks (%(default)s)")
    add("--repeats", type=count, default=3, metavar="N", help="measured runs of each distribution (%(default)s)")
    add("--seconds", type=float, default=5.0, help="the least that a measured run lasts (%(default)s)")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status.

    It is 1 if a counter was wrong, or if more sessions were resident than allowed.
    """
    distributions: tuple[Distribution, ...] = get_args(Distribution)
    with _report.progress(len(distributions) * (1 + args.repeats)) as begin:
        measured = {each: asyncio.run(measure(args, each, begin)) for each in distributions}
    runs = [run for each in measured.values() for run in each]
    return Result(
        question="churn",
        options=options_of(args),
        tables=tuple(
            Table(
                f"{args.store}, {args.policy}, {args.users:,} users, {args.resident:,} resident,"
                f" {args.in_flight} in flight, {distribution}",
                tuple(figures(done)),
            )
            for distribution, done in measured.items()
        ),
        wrong=sum(run.wrong_counters + max(0, run.peak_resident - args.resident) for run in runs),
        details={"runs": [{"distribution": name, **asdict(run)} for name, done in measured.items() for run in done]},
    ).conclude(args.json)


async def measure(args: argparse.Namespace, distribution: Distribution, begin: Callable[[str], None]) -> list[Churned]:
    """Write all sessions into a store, then measure run by run.

    In each run a fresh manager handles the workload, and every counter is checked.
    """
    workload = make_workload(args.users, args.events, args.in_flight, distribution)
    store, clear = make_store(args.store, args.url or URLS.get(args.store, ""), args.users)
    runs = []
    try:
        begin(f"{distribution}: writing the sessions")
        store.init()
        fill(store, workload.users)
        store.close()
        expected = Counter(dict.fromkeys(workload.users, TEXTS))
        for repeat in range(1, args.repeats + 1):
            begin(f"{distribution}, run {repeat} of {args.repeats}")
            runs.append(await churn(args, store, workload, expected))
        return runs
    finally:
        clear()


async def churn(args: argparse.Namespace, store: RecordStore, workload: Workload, expected: Counter[str]) -> Churned:
    """Let a manager handle the workload, and check every counter.

    The *expected* counters grow by what was acknowledged.
    """
    flush, refused, resident = FlushPolicy.parse(args.policy), 0, [0]
    async with SessionManager(store, handler=handle, flush=flush, max_resident=args.resident) as manager:

        async def dispatch(session_id: str, text: str) -> None:
            nonlocal refused
            try:
                await manager.dispatch(session_id, text)
            except OverloadedError:
                refused += 1
            else:
                expected[session_id] += 1

        async with looking(lambda: resident.append(manager.stats().resident), LOOK):
            timed = await time_rounds(dispatch, manager.flush, workload, args.seconds)
        missing, stats = wrong_counters(store, expected), manager.stats()
    return Churned(
        timed=timed,
        activations=stats.activations,
        passivations=stats.passivations,
        peak_resident=max(resident),
        store_writes=stats.store_writes,
        refused=refused,
        lost=sum(missing.values()),
        wrong_counters=len(missing),
    )


def figures(runs: Sequence[Churned]) -> list[Figure]:
    """Return what is shown of the runs with one distribution."""
    return [
        *figures_of(
            "actorbot",
            runs,
            ("events/s", "", "higher", lambda run: run.timed.events_per_second),
            ("activations/s", "", "higher", lambda run: run.activations / run.timed.seconds),
            ("passivations/s", "", "higher", lambda run: run.passivations / run.timed.seconds),
            ("events that had to activate", "%", "", lambda run: 100 * run.activations / run.timed.events),
        ),
        *latency_figures("actorbot", "dispatch", [run.timed.latency_ns for run in runs]),
        *figures_of(
            "actorbot",
            runs,
            ("most resident", "", "lower", lambda run: run.peak_resident),
            ("store writes/event", "", "lower", lambda run: run.store_writes / run.timed.events),
            ("refused", "", "lower", lambda run: run.refused),
            ("lost updates", "", "lower", lambda run: run.lost),
        ),
    ]
