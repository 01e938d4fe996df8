"""What one very busy session costs itself and the others.

All events go to one session; then, to compare, as many events go to 64 sessions.
"""

from __future__ import annotations

import argparse
import asyncio
from array import array
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from time import perf_counter
from typing import Any, get_args

from actorbot import FlushPolicy, SessionManager
from benchmarks import _report
from benchmarks._actorbot import HANDLERS, HandlerName, StoreName, make_store
from benchmarks._report import Figure, Result, Table, figures_of, options_of
from benchmarks._servers import URLS
from benchmarks._stored import wrong_counters
from benchmarks._timed import Timed, latencies, latency_figures, time_rounds
from benchmarks._workload import Workload, make_workload
from benchmarks.session import policy

QUIET = "bench:quiet"
PROBE = 0.005  # seconds from an answer to the quiet user's next event


@dataclass(frozen=True, slots=True)
class Hot:
    """What one run measured."""

    handler: HandlerName
    sessions: int
    timed: Timed
    probes: int
    quiet_ns: dict[str, int]
    """How late the quiet user was answered, from the instant at which the event was due."""
    store_writes: int
    lost: int
    """Events that their sessions' counters miss."""
    wrong_counters: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _report.positive
    add("--store", choices=get_args(StoreName), default="memory", help="(%(default)s)")
    add("--url", help="the server's URL, for --store redis or mongo (this machine, the usual port)")
    add("--policy", type=policy, default="write-behind:max_delay=0.5", help="the flush policy (%(default)s)")
    add(
        "--sessions",
        type=count,
        default=64,
        metavar="N",
        help="how many sessions have the events, to compare (%(default)s)",
    )
    add("--events", type=count, default=50_000, metavar="N", help="repeated until --seconds are over (%(default)s)")
    add("--in-flight", type=count, default=64, metavar="N", help="tasks (%(default)s)")
    add("--repeats", type=count, default=3, metavar="N", help="measured runs of each (%(default)s)")
    add("--seconds", type=float, default=5.0, help="the least that a measured run lasts (%(default)s)")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status: 1 if a counter was wrong."""
    handlers: tuple[HandlerName, ...] = ("async", "awaits")
    sizes = dict.fromkeys((1, args.sessions))
    workloads = [make_workload(size, args.events, args.in_flight, "uniform") for size in sizes]
    with _report.progress(len(handlers) * len(workloads) * args.repeats) as begin:
        runs = [
            asyncio.run(measure(args, workload, handler, begin))
            for _ in range(args.repeats)
            for handler in handlers
            for workload in workloads
        ]
    title = f"{args.store}, {args.policy}, {args.in_flight} in flight"
    return Result(
        question="hotkey",
        options=options_of(args),
        tables=tuple(
            Table(
                f"{title}, {'plain' if handler == 'async' else 'awaiting'} handler",
                tuple(
                    figure
                    for size in sizes
                    for figure in figures([run for run in runs if (run.handler, run.sessions) == (handler, size)])
                ),
            )
            for handler in handlers
        ),
        wrong=sum(run.wrong_counters for run in runs),
        details={"runs": [asdict(run) for run in runs]},
    ).conclude(args.json)


async def measure(
    args: argparse.Namespace, workload: Workload, handler: HandlerName, begin: Callable[[str], None]
) -> Hot:
    """Measure the workload with a fresh manager over an empty store, and check every counter.

    A quiet user sends events meanwhile.
    """
    sessions = len(workload.users)
    begin(f"{handler} handler, {sessions} sessions")
    store, clear = make_store(args.store, args.url or URLS.get(args.store, ""), sessions + 1)
    try:
        async with SessionManager(store, handler=HANDLERS[handler], flush=FlushPolicy.parse(args.policy)) as manager:
            async with probing(manager.dispatch) as late:
                timed = await time_rounds(manager.dispatch, manager.flush, workload, args.seconds)
            await manager.flush()
            once = Counter(user for user, _ in workload.events)
            expected = {user: count * timed.rounds for user, count in once.items()} | {QUIET: len(late)}
            missing = wrong_counters(store, expected)
            return Hot(
                handler=handler,
                sessions=sessions,
                timed=timed,
                probes=len(late),
                quiet_ns=latencies(late),
                store_writes=manager.stats().store_writes,
                lost=sum(missing.values()),
                wrong_counters=len(missing),
            )
    finally:
        clear()


@asynccontextmanager
async def probing(dispatch: Callable[[str, str], Awaitable[Any]]) -> AsyncIterator[array[int]]:
    """Let a quiet user send an event 5 ms after each answer.

    Yields how late these were answered, in nanoseconds from the time at which each was due.
    """
    late, over = array("q"), False

    async def probe() -> None:
        while not (over and late):
            due = perf_counter() + PROBE  # not a fixed rhythm: delays would add up
            await asyncio.sleep(PROBE)
            await dispatch(QUIET, "Is anybody there?")
            late.append(int((perf_counter() - due) * 1e9))

    task = asyncio.create_task(probe())
    try:
        yield late
    finally:
        over = True
        await task


def figures(runs: Sequence[Hot]) -> list[Figure]:
    """Return what is shown of the runs with this number of sessions."""
    of = f"{runs[0].sessions} session{'s' if runs[0].sessions > 1 else ''}"
    return [
        *figures_of(of, runs, ("events/s", "", "higher", lambda run: run.timed.events_per_second)),
        *latency_figures(of, "dispatch", [run.timed.latency_ns for run in runs]),
        *latency_figures(of, "the quiet user", [run.quiet_ns for run in runs]),
        *figures_of(
            of,
            runs,
            ("store writes/event", "", "lower", lambda run: run.store_writes / (run.timed.events + run.probes)),
            ("lost updates", "", "lower", lambda run: run.lost),
        ),
    ]
