"""What callers notice when the store is down for a while, and how long it takes to catch up.

Events go on coming at a fixed rate.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
import tempfile
from array import array
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import get_args

from actorbot import FlushPolicy, SessionManager
from benchmarks import _report
from benchmarks._actorbot import StoreName, handle, make_store
from benchmarks._drive import time_events
from benchmarks._ledger import Ledger
from benchmarks._open_loop import offer_events
from benchmarks._report import Figure, Result, Table, figures_of, options_of
from benchmarks._servers import URLS
from benchmarks._stored import wrong_counters
from benchmarks._timed import latencies, latency_figures, looking
from benchmarks._workload import SEED, Workload, make_texts
from benchmarks.policies import policy_without_path, with_path

POLICIES = ("write-behind", "journaled")
PHASES = ("before", "during", "after")
LOOK = 0.05  # seconds between two looks at `stats()`
LOOK_AT_STORE = 0.01  # seconds between two looks at whether the store has everything
PATIENCE = 60.0  # seconds after the store's return in which it must have everything


@dataclass(frozen=True, slots=True)
class Outage:
    """What one run measured."""

    policy: str
    events: dict[str, int]
    """In each phase."""
    latency_ns: dict[str, dict[str, int]]
    """Of `dispatch`, from the time at which the event was due, in each phase."""
    down: float
    """Seconds for which the store was down."""
    peak_dirty_bytes: int
    peak_journal_bytes: int
    catch_up: float
    """Seconds from the store's return until it had all that was acknowledged at that instant."""
    behind: int
    """Sessions that the store did not have completely when a minute had passed."""
    retries: int
    failed: int
    """Events whose `dispatch` raised."""
    lost: int
    """Acknowledged events that are missing in their sessions' counters at the end."""
    wrong_counters: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _report.positive
    add(
        "--store", choices=get_args(StoreName), default="redis", help="the store that is down for a while (%(default)s)"
    )
    add("--url", help="the server's URL, for --store redis or mongo (this machine, the usual port)")
    add("--policies", nargs="+", type=policy_without_path, default=POLICIES, metavar="POLICY", help="(%(default)s)")
    add("--users", type=count, default=1_000, metavar="N", help="all of them resident (%(default)s)")
    add("--rate", type=count, default=2_000, metavar="N", help="events a second (%(default)s)")
    add("--down", type=float, default=10.0, metavar="SECONDS", help="how long the store is down (%(default)s)")
    add("--hangs", action="store_true", help="while down, the store does not answer, instead of refusing")
    add(
        "--around",
        type=float,
        default=10.0,
        metavar="SECONDS",
        help="measured before the outage, and as long after it (%(default)s)",
    )
    add("--repeats", type=count, default=1, metavar="N", help="measured runs of each policy (%(default)s)")
    add("--folder", help="where the journals are (the system's temporary folder)")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status.

    It is 1 if a counter was wrong, or if the store did not have everything in time.
    """
    with _report.progress(len(args.policies) * args.repeats) as begin:
        runs = [asyncio.run(measure(args, each, begin)) for _ in range(args.repeats) for each in args.policies]
    setting = f"{args.store}, {args.users:,} users, {args.rate:,} events/s, {args.down:g} s {'silent' if args.hangs else 'down'}"
    return Result(
        question="outage",
        options=options_of(args),
        tables=tuple(
            Table(f"{each}; {setting}", tuple(figures([run for run in runs if run.policy == each])))
            for each in args.policies
        ),
        wrong=sum(run.wrong_counters + run.behind for run in runs),
        details={"runs": [asdict(run) for run in runs]},
    ).conclude(args.json)


async def measure(args: argparse.Namespace, text: str, begin: Callable[[str], None]) -> Outage:
    """Offer events before, during and after an outage. When all is flushed, check every counter."""
    begin(text)
    names = tuple(f"bench:{number}" for number in range(args.users))
    draw, texts = random.Random(SEED), make_texts(1000)
    count = max(1, round(args.rate * (2 * args.around + args.down)))
    events = [(draw.choice(names), draw.choice(texts)) for _ in range(count)]
    acknowledged: Counter[str] = Counter()
    dirty, journal = [0], [0]
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="actorbot-benchmark-", dir=args.folder))
        flush = FlushPolicy.parse(with_path(text, str(Path(folder) / "journal")))
        inner, clear = make_store(args.store, args.url or URLS.get(args.store, ""), args.users)
        stack.callback(clear)
        store = Ledger(inner)
        manager = await stack.enter_async_context(
            SessionManager(store, handler=handle, flush=flush, max_resident=args.users)
        )

        async def dispatch(session_id: str, event: str) -> None:
            await manager.dispatch(session_id, event)
            acknowledged[session_id] += 1

        def look() -> None:
            stats = manager.stats()
            dirty.append(stats.dirty_bytes)
            journal.append(stats.journal_bytes)

        await time_events(dispatch, Workload(names, tuple((name, texts[0]) for name in names), 64))
        await manager.flush()
        gc.collect()
        async with looking(look, LOOK):
            began = perf_counter()
            interruption = asyncio.create_task(interrupt(store, acknowledged, args))
            late, failed = await offer_events(dispatch, events, args.rate)
            went, returned, caught_up, behind = await interruption
        await manager.flush()
        missing, retries = wrong_counters(inner, acknowledged), manager.stats().store_retries
    phases = split(late, [round((instant - began) * args.rate) for instant in (went, returned)])
    return Outage(
        policy=text,
        events={name: len(phase) for name, phase in phases.items()},
        latency_ns={name: latencies(phase) for name, phase in phases.items() if phase},
        down=returned - went,
        peak_dirty_bytes=max(dirty),
        peak_journal_bytes=max(journal),
        catch_up=caught_up - returned,
        behind=behind,
        retries=retries,
        failed=len(failed),
        lost=sum(missing.values()),
        wrong_counters=len(missing),
    )


async def interrupt(
    store: Ledger, acknowledged: Counter[str], args: argparse.Namespace
) -> tuple[float, float, float, int]:
    """Take the store down, or let it hang, and let it return.

    Return when it went down, when it returned, and when it had all that was acknowledged at its
    return. Also return how many sessions it did not have completely in time.
    """
    await asyncio.sleep(args.around)
    (store.hold if args.hangs else store.outage)()
    went = perf_counter()
    await asyncio.sleep(args.down)
    (store.release if args.hangs else store.restore)()
    returned, behind = perf_counter(), dict(acknowledged)
    while behind and perf_counter() - returned < PATIENCE:
        # A session's version is its number of events: the sessions began in this manager, and
        # no event came twice.
        behind = {one: n for one, n in behind.items() if one not in store.confirmed or store.confirmed[one].version < n}
        if behind:
            await asyncio.sleep(LOOK_AT_STORE)
    return went, returned, perf_counter(), len(behind)


def split(late: array[int], borders: Sequence[int]) -> dict[str, array[int]]:
    """Return what belongs to each phase, by the time at which the event was due."""
    went, returned = borders
    return dict(zip(PHASES, (late[:went], late[went:returned], late[returned:]), strict=True))


def figures(runs: Sequence[Outage]) -> list[Figure]:
    """Return what is shown of the runs with one policy."""
    late = [
        figure
        for phase in PHASES
        if all(phase in run.latency_ns for run in runs)
        for figure in latency_figures("actorbot", f"dispatch, {phase}", [run.latency_ns[phase] for run in runs])
    ]
    return [
        *late,
        *figures_of(
            "actorbot",
            runs,
            ("most unflushed", "MB", "lower", lambda run: run.peak_dirty_bytes / 1e6),
            ("most in the journal", "MB", "lower", lambda run: run.peak_journal_bytes / 1e6),
            ("until the store had everything", "s", "lower", lambda run: run.catch_up),
            ("writes tried again", "", "", lambda run: run.retries),
            ("failed", "", "lower", lambda run: run.failed),
            ("lost updates", "", "lower", lambda run: run.lost),
        ),
    ]
