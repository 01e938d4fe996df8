"""What each flush policy costs in speed, and what a kill would cost under it.

That is measured at some moments of a run, and shown beside what is promised.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

from actorbot import FlushPolicy, SessionManager
from benchmarks import _report
from benchmarks._actorbot import StoreName, handle, make_store
from benchmarks._ledger import Instant, Ledger, noting_commits
from benchmarks._report import Figure, Result, Table, figures_of, options_of
from benchmarks._servers import URLS
from benchmarks._stored import wrong_counters
from benchmarks._timed import Timed, latency_figures, looking, time_rounds
from benchmarks._workload import Distribution, Workload, make_workload
from benchmarks.session import policy

POLICIES = (
    "write-through",
    "write-behind:max_delay=0.05",
    "write-behind:max_delay=0.5",
    "write-behind:max_delay=5",
    "write-behind:max_delay=0.5,max_events=10",
    "journaled:sync=full",
    "journaled:sync=normal",
)
INSTANTS = 20  # moments at which a run is looked at
LOOKS = 100  # looks at `stats().oldest_dirty`


@dataclass(frozen=True, slots=True)
class Kept:
    """What one run measured."""

    policy: str
    timed: Timed
    store_writes: int
    loss: int
    """Acknowledged events that a kill would have cost, at the worst of the moments."""
    loss_of_one: int
    """The same, of one session."""
    at_risk: int
    """The highest `stats().events_at_risk` at the same moments."""
    understated: int
    """Moments at which that was less than what a kill would have cost."""
    broken: int
    """Sessions that would have lost more than the policy allows, summed over the moments."""
    oldest_dirty: float
    """Seconds: the highest `stats().oldest_dirty`."""
    longest_call: float
    """Seconds that each write of the store took, a batch each."""
    lost: int
    """Events that are missing in their sessions' counters after the flush."""
    wrong_counters: int


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _report.positive
    add("--store", choices=get_args(StoreName), default="redis", help="(%(default)s)")
    add("--url", help="the server's URL, for --store redis or mongo (this machine, the usual port)")
    add("--policies", nargs="+", type=policy_without_path, default=POLICIES, metavar="POLICY", help="(%(default)s)")
    add("--users", type=count, default=1_000, metavar="N", help="(%(default)s)")
    add("--events", type=count, default=20_000, metavar="N", help="repeated until --seconds are over (%(default)s)")
    add("--in-flight", type=count, default=64, metavar="N", help="tasks (%(default)s)")
    add("--distribution", choices=get_args(Distribution), default="uniform", help="of events over users (%(default)s)")
    add("--repeats", type=count, default=2, metavar="N", help="measured runs of each (%(default)s)")
    add("--seconds", type=float, default=6.0, help="the least that a measured run lasts (%(default)s)")
    add("--folder", help="where the journals are, on the disk to be measured (the system's temporary folder)")


def policy_without_path(text: str) -> str:
    """Read an option that is a flush policy; a journal's path is added for each run."""
    policy(with_path(text, "-"))
    return text


def with_path(text: str, path: str) -> str:
    """Return the policy with a journal at *path*, if it has a journal."""
    return f"{text}{',' if ':' in text else ':'}path={path}" if text.startswith("journaled") else text


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status.

    It is 1 if a counter was wrong, or if a kill would have cost more than is promised.
    """
    workload = make_workload(args.users, args.events, args.in_flight, args.distribution)
    with _report.progress(len(args.policies) * args.repeats) as begin:
        runs = [
            asyncio.run(measure(args, each, workload, begin)) for _ in range(args.repeats) for each in args.policies
        ]
    setting = f"{args.store}, {args.users:,} users, {args.distribution}, {args.in_flight} in flight"
    return Result(
        question="policies",
        options=options_of(args),
        tables=tuple(
            Table(f"{each}; {setting}", tuple(figures([run for run in runs if run.policy == each], args)))
            for each in args.policies
        ),
        wrong=sum(run.wrong_counters + run.broken for run in runs),
        details={"runs": [asdict(run) for run in runs]},
    ).conclude(args.json)


async def measure(args: argparse.Namespace, text: str, workload: Workload, begin: Callable[[str], None]) -> Kept:
    """Handle the workload over an empty store, and look at it at some moments.

    When it is flushed, check every counter.
    """
    begin(text)
    acknowledged: Counter[str] = Counter()
    instants: list[tuple[int, Instant]] = []
    journal: dict[int, bytes] = {}
    oldest = [0.0]
    async with AsyncExitStack() as stack:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="actorbot-benchmark-", dir=args.folder))
        flush = FlushPolicy.parse(with_path(text, str(Path(folder) / "journal")))
        inner, clear = make_store(args.store, args.url or URLS.get(args.store, ""), args.users)
        stack.callback(clear)
        store = Ledger(inner)
        stack.enter_context(noting_commits(journal.update))
        manager = await stack.enter_async_context(SessionManager(store, handler=handle, flush=flush))

        async def dispatch(session_id: str, event: str) -> None:
            await manager.dispatch(session_id, event)
            acknowledged[session_id] += 1

        def look() -> None:
            instants.append((manager.stats().events_at_risk, Instant.take(acknowledged, journal, store)))

        async with (
            looking(look, max(args.seconds, 0.01) / INSTANTS),
            looking(lambda: oldest.append(manager.stats().oldest_dirty), max(args.seconds, 0.01) / LOOKS),
        ):
            timed = await time_rounds(dispatch, manager.flush, workload, args.seconds)
        missing, writes = wrong_counters(inner, acknowledged), manager.stats().store_writes
    losses = [instant.lost() for _, instant in instants]
    allowed = promised_events(flush)
    return Kept(
        policy=text,
        timed=timed,
        store_writes=writes,
        loss=max(loss.total() for loss in losses),
        loss_of_one=max(max(loss.values(), default=0) for loss in losses),
        at_risk=max(risk for risk, _ in instants),
        understated=sum(risk < loss.total() for (risk, _), loss in zip(instants, losses, strict=True)),
        broken=sum(count > allowed for loss in losses for count in loss.values()),
        oldest_dirty=max(oldest),
        longest_call=store.longest_call,
        lost=sum(missing.values()),
        wrong_counters=len(missing),
    )


def promised_events(flush: FlushPolicy) -> int:
    """Return how many events of a session a kill may cost, as docs/guarantees.md says.

    The store is up.
    """
    return flush.max_events if flush.mode == "write-behind" else 0


def aim_of(flush: FlushPolicy, args: argparse.Namespace) -> tuple[str, str, Literal[""], Callable[[Kept], float]]:
    """Return the greatest age that unflushed state is meant to reach.

    Files are so slow that the age depends on how many sessions wait.
    """
    if args.store == "file":
        rate = "aimed at, max_delay + users / flush rate"
        return rate, "s", "", lambda run: flush.max_delay + args.users * run.timed.seconds / run.store_writes
    return "aimed at, 2 max_delay + a batch", "s", "", lambda run: 2 * flush.max_delay + run.longest_call


def figures(runs: Sequence[Kept], args: argparse.Namespace) -> list[Figure]:
    """Return what is shown of the runs with one policy."""
    flush = FlushPolicy.parse(with_path(runs[0].policy, "-"))
    speed = [
        *figures_of("actorbot", runs, ("events/s", "", "higher", lambda run: run.timed.events_per_second)),
        *latency_figures("actorbot", "dispatch", [run.timed.latency_ns for run in runs]),
    ]
    loss = figures_of(
        "actorbot",
        runs,
        ("store writes/event", "", "lower", lambda run: run.store_writes / run.timed.events),
        ("a kill costs, events", "", "lower", lambda run: run.loss),
        ("a kill costs, events of one session", "", "lower", lambda run: run.loss_of_one),
        ("promised, events of one session", "", "", lambda run: promised_events(flush)),
        ("stats().events_at_risk", "", "lower", lambda run: run.at_risk),
        ("instants at which that was too little", "", "lower", lambda run: run.understated),
    )
    age = figures_of(
        "actorbot",
        runs,
        ("oldest unflushed state", "s", "lower", lambda run: run.oldest_dirty),
        ("promised, max_delay + store_deadline", "s", "", lambda run: flush.max_delay + flush.store_deadline),
        aim_of(flush, args),
    )
    lost = figures_of("actorbot", runs, ("lost updates", "", "lower", lambda run: run.lost))
    return [*speed, *loss, *(age if flush.mode != "write-through" else ()), *lost]
