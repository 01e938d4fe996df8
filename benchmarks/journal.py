"""What a journal costs: actorbot with `journaled` beside bare commits of the same records.

The bare commits go to SQLite, too. Both commit groups of the same size, and are measured in the
same run.
"""

from __future__ import annotations

import argparse
import asyncio
import itertools
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, median
from time import perf_counter
from typing import Literal

from benchmarks import _report
from benchmarks._actorbot import LoopActorbot
from benchmarks._drive import Run, run_on_loop
from benchmarks._ledger import Rows, noting_commits
from benchmarks._report import Figure, Result, Table, figures_of, options_of
from benchmarks._workload import Workload, make_workload

RECORDED = 2_000  # transactions that the floor repeats
MAX_DELAY = 0.5

Sync = Literal["full", "normal"]


@dataclass(frozen=True, slots=True)
class Floor:
    """A run of the floor."""

    records: int
    seconds: float

    @property
    def records_per_second(self) -> float:
        return self.records / self.seconds


@dataclass(frozen=True, slots=True)
class Journaled:
    """What was measured."""

    batch: float
    """Records in a transaction, on average, of actorbot and so of the floor."""
    record_bytes: float
    floors: tuple[Floor, ...]
    runs: tuple[Run, ...]

    @property
    def ratios(self) -> list[float]:
        pairs = zip(self.floors, self.runs, strict=True)
        return [ours.events_per_second / floor.records_per_second for floor, ours in pairs]


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _report.positive
    add("--sync", choices=("full", "normal"), default="full", help="(%(default)s)")
    add("--users", type=count, default=1_000, metavar="N", help="(%(default)s)")
    add("--events", type=count, default=100_000, metavar="N", help="repeated until --seconds are over (%(default)s)")
    add("--in-flight", type=count, default=256, metavar="N", help="tasks (%(default)s)")
    add("--repeats", type=count, default=3, metavar="N", help="measured runs of each (%(default)s)")
    add("--seconds", type=float, default=5.0, help="the least that a measured run lasts (%(default)s)")
    add("--folder", help="where the journals are, on the disk to be measured (the system's temporary folder)")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status: 1 if a counter was wrong."""
    workload = make_workload(args.users, args.events, args.in_flight, "uniform")
    with _report.progress(1 + 2 * args.repeats) as begin:
        measured = measure(workload, args.sync, args.folder, args.repeats, args.seconds, begin)
    bare, batch = "bare group commit", Figure("records in a transaction", (measured.batch,), "actorbot")
    figures = [
        *figures_of(
            bare, measured.floors, ("events (records) a second", "", "higher", lambda run: run.records_per_second)
        ),
        *figures_of(
            "actorbot",
            measured.runs,
            ("events (records) a second", "", "higher", lambda run: run.events_per_second),
            ("lost updates", "", "lower", lambda run: run.lost),
        ),
        Figure("ratio", (1.0,), bare),
        Figure("ratio", tuple(measured.ratios), "actorbot", "", "higher"),
        replace(batch, of=bare),
        batch,
        Figure("bytes of a record", (measured.record_bytes,), "actorbot"),
    ]
    return Result(
        question="journal",
        options=options_of(args),
        tables=(Table(f"sync={args.sync}, {args.users:,} users, {args.in_flight} in flight", tuple(figures)),),
        wrong=sum(run.wrong_counters for run in measured.runs),
        details={"runs": [asdict(run) for run in measured.runs]},
    ).conclude(args.json)


def measure(
    workload: Workload, sync: Sync, folder: str | None, repeats: int, seconds: float, begin: Callable[[str], None]
) -> Journaled:
    """Record what actorbot commits, then measure the floor with that, and actorbot, by turns."""
    begin("recording")
    batches: list[Rows] = []
    with noting_commits(batches.append):
        _run(workload, sync, folder, 0.0)
    recorded = batches[:RECORDED]
    floors, runs = [], []
    for repeat in range(1, repeats + 1):
        begin(f"bare group commit, run {repeat} of {repeats}")
        floors.append(_run_floor(recorded, sync, folder, seconds))
        begin(f"actorbot, run {repeat} of {repeats}")
        runs.append(_run(workload, sync, folder, seconds))
    return Journaled(
        batch=mean(map(len, recorded)),
        record_bytes=median(len(data) for rows in recorded for _, data in rows),
        floors=tuple(floors),
        runs=tuple(runs),
    )


def _run(workload: Workload, sync: Sync, folder: str | None, seconds: float) -> Run:
    with tempfile.TemporaryDirectory(prefix="actorbot-benchmark-", dir=folder) as place:
        policy = f"journaled:path={place}/journal,sync={sync},max_delay={MAX_DELAY}"
        contender = LoopActorbot("memory", "", policy, "async", len(workload.users))
        return asyncio.run(run_on_loop(contender, workload, seconds))


def _run_floor(batches: Sequence[Rows], sync: Sync, folder: str | None, seconds: float) -> Floor:
    """Commit *batches* again and again: a transaction each, and nothing else.

    The connection has the settings of actorbot's.
    """
    with tempfile.TemporaryDirectory(prefix="actorbot-benchmark-", dir=folder) as place:
        connection = sqlite3.connect(Path(place) / "floor", isolation_level=None)
        for pragma in ("locking_mode=EXCLUSIVE", "journal_mode=WAL", f"synchronous={sync.upper()}"):
            connection.execute(f"PRAGMA {pragma}")
        connection.execute("CREATE TABLE entries (number INTEGER PRIMARY KEY, data BLOB NOT NULL)")
        records, started = 0, perf_counter()
        for rows in itertools.cycle(batches):
            connection.execute("BEGIN")
            connection.executemany("REPLACE INTO entries VALUES (?,?)", rows)
            connection.execute("COMMIT")
            records += len(rows)
            if perf_counter() - started >= seconds:
                break
        floor = Floor(records, perf_counter() - started)
        connection.close()
        return floor
