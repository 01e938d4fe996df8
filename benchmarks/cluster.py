"""What the hop to another process costs, and what a second shard brings.

Beside the same without the hop, Redis alone, bare loops, and other systems.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from pathlib import Path
from time import process_time
from typing import Any

import redis

from actorbot import RedisSessionStore
from benchmarks import _report
from benchmarks._contenders import ALONE, ASYNC, GROUPS, LOOPS, OURS, PEERS, PLAIN, POLICY, SMALL, Contenders
from benchmarks._hops._orders import spin
from benchmarks._peer_env import ENVIRONMENTS, MissingPeerError, default_folder
from benchmarks._programs import cpu_seconds, pss
from benchmarks._report import Figure, Result, Table, figures_of, options_of
from benchmarks._servers import URLS, Place
from benchmarks._stored import wrong_counters

ONE, SOME, MANY, SINGLE, DOUBLE = "one by one", "64 in flight", "1,000 in flight", "1 process", "2 processes"
WHAT = {
    ONE: ("trivial", 1, (PLAIN, OURS, ASYNC)),
    SOME: ("trivial", 64, (ALONE, OURS)),
    MANY: ("trivial", 1_000, (ALONE, OURS)),
    SINGLE: ("one", 64, (LOOPS, OURS)),
    DOUBLE: ("two", 64, (OURS, LOOPS)),
}
"""What is measured: with which group, how many in flight, of whom; and also of each peer."""


@dataclass(frozen=True, slots=True)
class Run:
    """One measurement of one contender."""

    of: str
    what: str
    events: int
    seconds: float
    p50: float = 0.0
    p99: float = 0.0
    cpu: dict[str, float] = field(default_factory=dict)
    """Seconds of the processor, by who took them: caller, shard, server."""

    @property
    def rate(self) -> float:
        return self.events / self.seconds


Runs = Mapping[tuple[str, str], Sequence[Run]]
"""By contender and what was measured; those of one place in the sequences are of one round."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _report.positive
    add("--url", default=URLS["redis"], help="the server of the log and of the sessions (%(default)s)")
    add("--users", type=count, default=1_000, metavar="N", help="(%(default)s)")
    add("--repeats", type=count, default=7, metavar="N", help="measurements of each, by turns (%(default)s)")
    add("--each", type=float, default=1.0, metavar="SECONDS", help="how long each takes (%(default)s)")
    add("--work", type=float, default=2.0, metavar="MS", help="of a CPU-bound handler (%(default)s)")
    add("--without", nargs="+", choices=PEERS, default=[], metavar="NAME", help="leave out these, of %(choices)s")
    add("--environments", type=Path, metavar="DIR", help=f"where environments are kept ({default_folder()})")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status: 1 if the store has a wrong count."""
    bench = Bench(args)
    with _report.progress(1 + args.repeats * (3 - len(args.without))) as begin:
        bench.measure(begin)
    return Result(
        question="cluster",
        options={name: value for name, value in options_of(args).items() if name != "environments"},
        tables=tuple(tables(args, bench.valid_runs(), bench.memory, bench.remarks())),
        wrong=bench.wrong,
        details={
            "runs": [asdict(run) for run in bench.runs],
            "memory": bench.memory,
            "missing": bench.missing,
            "environments": {name: ENVIRONMENTS[name].requirements for name in PEERS},
        },
    ).conclude(args.json)


class Bench:
    """What was measured."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.runs: list[Run] = []
        self.memory: dict[str, int] = {}
        """Bytes of a shard's process, after all events."""
        self.missing: dict[str, str] = {}
        self.wrong = 0
        self._args = args
        self._place = Place("redis", args.url)
        self._contenders = Contenders(args.url, self._place.name, args.users, spins_for(args.work / 1e3))
        self._counted = {name: Counter[str]() for name in self._contenders.names()}

    def measure(self, begin: Callable[[str], None]) -> None:
        """Measure all by turns, so that what is compared is measured at almost the same time."""
        begin("start")
        try:
            with ExitStack() as stack:
                self._contenders.start(stack)
                self._repeat("", begin)
                for name in PEERS:
                    if name not in self._args.without:
                        self._measure_peer(name, begin)
            self._check()
        finally:
            self._place.clear()

    def _measure_peer(self, name: str, begin: Callable[[str], None]) -> None:
        """Measure another system after actorbot: it may be busy also when nobody asks it."""
        why = "missing"
        with ExitStack() as stack:
            try:
                self._contenders.start_peer(stack, name, self._args.environments or default_folder())
                why = "failed"
                self._repeat(name, begin)
            except MissingPeerError as exc:
                self.missing[name] = f"{why}: {exc}"
                self.memory.pop(name, None)

    def _repeat(self, peer: str, begin: Callable[[str], None]) -> None:
        list(self._round(peer, min(self._args.each, 0.5)))  # sessions come into memory, connections are made
        for repeat in range(self._args.repeats):
            begin(f"{peer or OURS}, {repeat + 1} of {self._args.repeats}")
            self.runs.extend(self._round(peer, self._args.each))
            if not peer:
                self._load_small(self._args.each)
        self.memory |= {name: pss(pid) for name, pid in self._contenders.shards.items() if name not in self.memory}

    def _round(self, peer: str, seconds: float) -> Iterator[Run]:
        for what, (group, in_flight, names) in WHAT.items():
            for name in (peer,) if peer else names:
                if name == LOOPS:
                    yield self._run_loops(what, GROUPS[group], seconds)
                else:
                    yield self._run(name, what, {"group": group, "in_flight": in_flight, "seconds": seconds})

    def _run(self, name: str, what: str, order: Mapping[str, Any]) -> Run:
        before = self._cpu(name)
        answer = self._contenders.callers[name].ask(order)
        cpu = {whose: after - before[whose] for whose, after in self._cpu(name).items()}
        counted = answer.pop("counted")
        if name in (OURS, ALONE, SMALL):
            self._counted[order["group"] if name == OURS else name].update(counted)
        return Run(name, what, **answer, cpu=cpu)

    def _load_small(self, seconds: float) -> None:
        """Give the manager whose memory is compared about as many events as a shard has had."""
        self._run(SMALL, MANY, {"group": "trivial", "in_flight": WHAT[MANY][1], "seconds": seconds / 10})

    def _run_loops(self, what: str, loops: int, seconds: float) -> Run:
        order, chosen = {"seconds": seconds}, self._contenders.loops[:loops]
        for loop in chosen:
            loop.tell(order)
        answers = [loop.hear(order) for loop in chosen]
        return Run(LOOPS, what, sum(answer["events"] for answer in answers), max(it["seconds"] for it in answers))

    def _cpu(self, name: str) -> dict[str, float]:
        """Return the processor seconds so far of who takes part."""
        caller, shard = self._contenders.callers[name].pid, self._contenders.shards.get(name)
        used = {"caller": cpu_seconds(caller)}
        if shard not in (None, caller):
            used["shard"] = cpu_seconds(shard)
        if name in (OURS, ALONE, SMALL):
            with redis.Redis.from_url(self._args.url) as client:
                told: Any = client.info("cpu")
            used["server"] = told["used_cpu_user"] + told["used_cpu_sys"]
        return used

    def _check(self) -> None:
        """Count the counters that are wrong in the store. All processes have ended."""
        for name, prefix in self._contenders.names().items():
            store = RedisSessionStore(self._args.url, key_prefix=f"{prefix}:").init()
            try:
                self.wrong += len(wrong_counters(store, self._counted[name]))
            finally:
                store.close()

    def valid_runs(self) -> Runs:
        """Return the runs of those that did all of them."""
        found: dict[tuple[str, str], list[Run]] = {}
        for run in self.runs:
            if run.of not in self.missing:
                found.setdefault((run.of, run.what), []).append(run)
        return found

    def remarks(self) -> dict[str, str]:
        """Return what is to be said of the peers."""
        versions = {name: ENVIRONMENTS[name].requirements[0].replace("==", " ") for name in PEERS}
        return {name: self.missing.get(name, versions[name]) for name in PEERS if name not in self._args.without}


def spins_for(seconds: float) -> int:
    """Return how much of the handler's work takes so long here, if nothing disturbs it."""
    probe, quickest = 20_000, float("inf")
    for _ in range(20):
        began = process_time()
        spin(probe)
        quickest = min(quickest, process_time() - began)
    return max(1, round(probe * seconds / quickest))


# --- figures -------------------------------------------------------------------------------------


def tables(
    args: argparse.Namespace, runs: Runs, memory: Mapping[str, int], remarks: Mapping[str, str]
) -> Iterator[Table]:
    """Return a table for each question. Ratios are of neighbours in a round."""
    where = f"{args.users:,} users, {POLICY}"
    ours = {OURS: ""}
    floors = {PLAIN: "synchronous, there and back", ASYNC: "there and back"}
    yield Table(f"one event at a time, {where}", tuple(_one_by_one(runs)), {**ours, **floors, **remarks})
    alone = {ALONE: "the same manager, in the caller's process"}
    yield Table(f"64 in flight, {where}", tuple(_busy(runs, SOME)), {**ours, **alone, **remarks})
    yield Table(f"1,000 in flight, {where}", tuple(_busy(runs, MANY)), {**ours, **alone, **remarks})
    loops = {LOOPS: "the handler's work, and nothing else"}
    title = f"a handler that computes for {args.work:g} ms, 64 in flight, {where}"
    yield Table(title, tuple(_computing(runs)), {**ours, **loops, **remarks})
    if memory.get(OURS):
        small = {SMALL: "alone, with the same sessions and about as many events"}
        title = f"memory of a process with all sessions, {where}"
        yield Table(title, tuple(_memory(memory)), {**ours, **small, **remarks})


def _one_by_one(runs: Runs) -> Iterator[Figure]:
    yield from _of_each(runs, ONE, ("p50", "ms", "lower", lambda run: run.p50 * 1e3))
    for floor in (PLAIN, ASYNC):
        ratios = _pairwise(runs[OURS, ONE], runs[floor, ONE], lambda run, its: run.p50 / its.p50)
        yield Figure(f"p50 ÷ {floor}", ratios, OURS, "", "lower")
    yield from _of_each(runs, ONE, ("p99", "ms", "lower", lambda run: run.p99 * 1e3))


def _busy(runs: Runs, what: str) -> Iterator[Figure]:
    yield from _of_each(runs, what, ("events/s", "", "higher", lambda run: run.rate))
    ratios = _pairwise(runs[OURS, what], runs[ALONE, what], lambda run, its: run.rate / its.rate)
    yield Figure(f"ratio to {ALONE}", ratios, OURS, "", "higher")
    yield from _of_each(
        runs, what, ("p50", "ms", "lower", lambda run: run.p50 * 1e3), ("p99", "ms", "lower", lambda run: run.p99 * 1e3)
    )
    for whose in ("caller", "shard", "server"):
        for (of, measured), done in runs.items():
            if measured == what and all(run.cpu.get(whose) for run in done):
                values = tuple(run.cpu[whose] / run.events * 1e6 for run in done)
                yield Figure(f"CPU of the {whose} per event", values, of, "µs", "lower")


def _computing(runs: Runs) -> Iterator[Figure]:
    yield from _of_each(runs, SINGLE, ("1 process, events/s", "", "higher", lambda run: run.rate))
    yield from _of_each(runs, DOUBLE, ("2 processes, events/s", "", "higher", lambda run: run.rate))
    gains = {
        of: _pairwise(done, runs[of, SINGLE], lambda run, its: run.rate / its.rate)
        for (of, what), done in runs.items()
        if what == DOUBLE
    }
    for of, gain in gains.items():
        yield Figure("2 ÷ 1", gain, of, "", "higher")
    beside = tuple(ours / bare for ours, bare in zip(gains[OURS], gains[LOOPS], strict=True))
    yield Figure("2 ÷ 1, as a share of the loops'", beside, OURS, "", "higher")
    for number, what in ((1, SINGLE), (2, DOUBLE)):
        shares = _pairwise(runs[OURS, what], runs[LOOPS, what], lambda run, its: run.rate / its.rate)
        yield Figure(f"share of the work of {number} loop{'s' * (number > 1)}", shares, OURS, "", "higher")


def _memory(memory: Mapping[str, int]) -> Iterator[Figure]:
    for of, size in memory.items():
        yield Figure("memory (PSS)", (size / 1e6,), of, "MB", "lower")
    yield Figure("ratio to a manager alone", (memory[OURS] / memory[SMALL],), OURS, "", "lower")


def _of_each(runs: Runs, what: str, *quantities: Any) -> Iterator[Figure]:
    """Make figures of all who did this."""
    for (of, measured), done in runs.items():
        if measured == what:
            yield from figures_of(of, done, *quantities)


def _pairwise(runs: Sequence[Run], others: Sequence[Run], ratio: Callable[[Run, Run], float]) -> tuple[float, ...]:
    return tuple(ratio(run, its) for run, its in zip(runs, others, strict=True))
