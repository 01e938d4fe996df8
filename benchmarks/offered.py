"""How late the answers are, and how long the loop stands still, at a fixed rate of events.

An event is offered at its time whether those before are answered or not.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import random
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict, dataclass
from time import perf_counter

from actorbot import SessionManager
from benchmarks import _report
from benchmarks._actorbot import handle, make_store
from benchmarks._open_loop import TICK, offer_events
from benchmarks._report import Figure, Result, Table, figures_of, options_of
from benchmarks._servers import URLS
from benchmarks._stored import TEXTS, fill, wrong_counters
from benchmarks._workload import SEED, make_texts
from benchmarks.session import PERCENTILES, percentile

LOOK = 0.1  # seconds between two looks at `stats()`
WAKING = 512  # sessions that are brought into memory at the same time


@dataclass(frozen=True, slots=True)
class Offered:
    """What one run measured."""

    events: int
    seconds: float
    """From the time of the first event to the last answer."""
    latency_ns: dict[str, int]
    """Of `dispatch`, from the time at which the event was due."""
    stall_ms: float
    """The longest delay of a task that wanted to run every millisecond."""
    full_collections: int
    """How often the garbage collector walked over everything that is in memory."""
    collection_ms: float
    """Its longest pause, of any generation."""
    oldest_dirty: float
    """Seconds: the highest `stats().oldest_dirty`."""
    failed: int
    """Events whose `dispatch` raised."""
    lost: int
    """Events of this run and those before that are missing in the counters in the store.

    Those that failed are among them.
    """
    wrong_counters: int

    @property
    def events_per_second(self) -> float:
        return self.events / self.seconds


@dataclass(slots=True)
class Watcher:
    """Looks at the manager while the events come."""

    manager: SessionManager
    stall: float = 0.0
    oldest_dirty: float = 0.0
    full_collections: int = 0
    collection: float = 0.0
    _began: float = 0.0

    async def tick(self) -> None:
        before = perf_counter()
        while True:
            await asyncio.sleep(TICK)
            now = perf_counter()
            self.stall = max(self.stall, now - before - TICK)
            before = now

    async def look(self) -> None:
        while True:
            await asyncio.sleep(LOOK)
            self.oldest_dirty = max(self.oldest_dirty, self.manager.stats().oldest_dirty)

    def note_collection(self, phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            self._began = perf_counter()
        else:
            self.full_collections += info["generation"] == 2
            self.collection = max(self.collection, perf_counter() - self._began)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _report.positive
    add("--store", choices=("memory", "file", "redis", "mongo"), default="redis", help="(%(default)s)")
    add("--url", help="the server's URL, for --store redis or mongo (this machine, the usual port)")
    add("--rate", type=count, default=20_000, metavar="N", help="events a second (%(default)s)")
    add("--resident", type=count, default=100_000, metavar="N", help="sessions in memory (%(default)s)")
    add("--seconds", type=float, default=10.0, help="how long events are offered (%(default)s)")
    add("--repeats", type=count, default=3, metavar="N", help="measured runs, one after the other (%(default)s)")
    add("--freeze", action="store_true", help="call gc.freeze() once the sessions are in memory, as a large bot should")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status: 1 if a counter was wrong."""
    names = [f"bench:{number}" for number in range(args.resident)]
    with _report.progress(args.repeats + 1) as begin:
        runs = asyncio.run(measure(args, names, begin))
    title = f"{args.store}, {args.resident:,} resident, {args.rate:,} events/s for {args.seconds:g} s"
    title += ", frozen" if args.freeze else ""
    return Result(
        question="offered",
        options=options_of(args),
        tables=(Table(title, tuple(figures(runs))),),
        wrong=runs[-1].wrong_counters,
        details={"runs": [asdict(run) for run in runs]},
    ).conclude(args.json)


async def measure(args: argparse.Namespace, names: Sequence[str], begin: Callable[[str], None]) -> list[Offered]:
    """Bring all sessions into memory, then offer events, run after run.

    *begin* is told what comes next.
    """
    store, clear = make_store(args.store, args.url or URLS.get(args.store, ""), len(names))
    try:
        begin("bringing the sessions into memory")
        store.init()
        fill(store, names)
        draw, texts, runs = random.Random(SEED), make_texts(1000), []
        async with SessionManager(store, handler=handle, max_resident=len(names)) as manager:
            await _wake(manager, names)
            if args.freeze:
                gc.collect()
                gc.freeze()
            expected = Counter(dict.fromkeys(names, TEXTS + 1))
            count = max(1, round(args.rate * args.seconds))
            for repeat in range(1, args.repeats + 1):
                begin(f"run {repeat} of {args.repeats}")
                users = draw.choices(names, k=count)
                events = tuple(zip(users, draw.choices(texts, k=count), strict=True))
                expected.update(users)
                runs.append(await offer(manager, events, args.rate, lambda: wrong_counters(store, expected)))
        return runs
    finally:
        gc.unfreeze()
        clear()


async def _wake(manager: SessionManager, names: Sequence[str]) -> None:
    rest = iter(names)

    async def greet() -> None:
        for name in rest:
            await manager.dispatch(name, "Hello, it is me again")

    async with asyncio.TaskGroup() as tasks:
        for _ in range(WAKING):
            tasks.create_task(greet())
    await manager.flush()


async def offer(
    manager: SessionManager,
    events: Sequence[tuple[str, str]],
    rate: float,
    wrong: Callable[[], Mapping[str, int]],
) -> Offered:
    """Dispatch *events* of (session id, text), each in a task of its own at its time.

    Then count what is *wrong* in the store.
    """
    gc.collect()  # what came before; from here on the collector keeps its defaults
    async with watching(manager) as watcher:
        started = perf_counter()
        late, failed = await offer_events(manager.dispatch, events, rate)
        seconds = perf_counter() - started
    await manager.flush()
    missing, ordered = wrong(), sorted(late)
    return Offered(
        events=len(events),
        seconds=seconds,
        latency_ns={f"p{percent:g}": percentile(ordered, percent) for percent in (*PERCENTILES, 100.0)},
        stall_ms=watcher.stall * 1000,
        full_collections=watcher.full_collections,
        collection_ms=watcher.collection * 1000,
        oldest_dirty=watcher.oldest_dirty,
        failed=len(failed),
        lost=sum(missing.values()),
        wrong_counters=len(missing),
    )


@asynccontextmanager
async def watching(manager: SessionManager) -> AsyncIterator[Watcher]:
    watcher = Watcher(manager)
    tasks = [asyncio.create_task(watcher.tick()), asyncio.create_task(watcher.look())]
    gc.callbacks.append(watcher.note_collection)
    try:
        yield watcher
    finally:
        gc.callbacks.remove(watcher.note_collection)
        for task in tasks:
            task.cancel()


def figures(runs: Sequence[Offered]) -> list[Figure]:
    """Return what is shown."""
    late = [
        Figure(
            "longest dispatch" if name == "p100" else f"{name} of dispatch",
            tuple(run.latency_ns[name] / 1e6 for run in runs),
            unit="ms",
            better="lower",
        )
        for name in runs[0].latency_ns
    ]
    return [
        *figures_of("actorbot", runs, ("answered, events/s", "", "higher", lambda run: run.events_per_second)),
        *late,
        *figures_of(
            "actorbot",
            runs,
            ("longest stall of the loop", "ms", "lower", lambda run: run.stall_ms),
            ("full garbage collections", "", "lower", lambda run: run.full_collections),
            ("longest garbage collection", "ms", "lower", lambda run: run.collection_ms),
            ("oldest unflushed state", "s", "lower", lambda run: run.oldest_dirty),
            ("failed", "", "lower", lambda run: run.failed),
            ("lost updates", "", "lower", lambda run: run.lost),
        ),
    ]
