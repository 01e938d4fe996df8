"""The goals of the project's speed, and what decides whether a result reaches them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from benchmarks._report import Figure, Result, spread

LEAST_SECONDS = 5.0
"""Seconds of a measured run. For shorter runs a verdict is only a hint."""

NOT_MEASURED, VOID = "not measured", "void"


@dataclass(frozen=True, slots=True)
class Goal:
    """A bound for the median of one figure of actorbot's, measured with these options."""

    text: str
    question: str
    figure: str
    at_least: float | None = None
    at_most: float | None = None
    options: Mapping[str, Any] = field(default_factory=dict)
    table: str = ""
    """A part of the title of the table, where a result has several tables."""
    against: str = ""
    """The figure is divided by the median of this one."""

    @property
    def bound(self) -> str:
        return f"≥ {self.at_least:,g}" if self.at_least is not None else f"≤ {self.at_most:,g}"

    def holds(self, value: float) -> bool:
        return value >= self.at_least if self.at_least is not None else self.at_most is None or value <= self.at_most


@dataclass(frozen=True, slots=True)
class Decision:
    """What became of a goal."""

    goal: Goal
    reached: str
    """The value, with its spread."""
    verdict: str


_WRITE_BEHIND = {"distribution": "uniform", "in_flight": 64, "policy": "write-behind:max_delay=0.5"}


def _session(store: str, home: str, users: int, ratio: float, handler: str = "") -> Goal:
    handler = handler or ("async" if home == "loop" else "sync")
    options = {**_WRITE_BEHIND, "store": store, "home": home, "users": users, "handler": handler}
    awaits = ", handler awaits" if handler == "awaits" else ""
    text = f"{home}, {store}, {users:,} users{awaits}: times the floor"
    return Goal(text, "session", "ratio to the floor", at_least=ratio, options=options)


_STREAM = {"store": "redis", "rate": 20_000, "resident": 100_000, "freeze": False}
_RESIDENTS = {"sessions": 100_000}
_PEERS = {"store": "redis", "users": 1_000, "handler": "async", "distribution": "uniform"}

GOALS = (
    _session("memory", "loop", 100, 0.6),
    _session("memory", "loop", 1_000, 0.6),
    _session("memory", "loop", 10_000, 0.5),
    _session("memory", "loop", 1_000, 0.6, "awaits"),
    _session("redis", "loop", 1_000, 20),
    _session("redis", "loop", 10_000, 8),
    _session("mongo", "loop", 1_000, 30),
    _session("memory", "threads", 100, 15),
    _session("memory", "threads", 1_000, 15),
    _session("memory", "threads", 10_000, 40),
    Goal("journaled, sync=full: times a bare group commit", "journal", "ratio", at_least=0.4, options={"sync": "full", "users": 1_000}),
    Goal("bytes of an idle resident beyond its record", "residents", "bytes beyond the encoded record", at_most=1_500, options=_RESIDENTS),
    Goal(
        "threads with 100,000 residents: times those with 5,000", "residents", "threads, 100,000 resident", at_most=1,
        options=_RESIDENTS, against="threads, 5,000 resident",
    ),
    Goal("passivations/s", "residents", "passivations/s", at_least=15_000, options=_RESIDENTS),
    Goal("activations/s from Redis", "activation", "activations/s", at_least=15_000, options={"store": "redis"}, table=" 64 in flight"),
    Goal("20,000 events/s offered, Redis: p99 of dispatch", "offered", "p99 of dispatch", at_most=5, options=_STREAM),
    Goal("20,000 events/s offered, Redis: longest stall", "offered", "longest stall of the loop", at_most=20, options=_STREAM),
    # Twice the `max_delay`, which is 1 s unless an option names it. A batch may take more time on
    # top of that; this time is not measured, so the goal does not allow for it.
    Goal("20,000 events/s offered, Redis: oldest unflushed state", "offered", "oldest unflushed state", at_most=2, options=_STREAM),
    Goal(
        "64 callers without a pause, Redis, max_delay=0.5: oldest unflushed state", "policies", "oldest unflushed state", at_most=1,
        options={"store": "redis", "users": 1_000}, table="write-behind:max_delay=0.5;",
    ),
    Goal("one event to a shard: times a bare XADD + XREAD, there and back", "cluster", "p50 ÷ XADD + XREAD, redis-py", at_most=3),
    Goal(
        "1,000 in flight to a shard: times the manager without the hop", "cluster", "ratio to manager, no hop", at_least=0.25,
        table="1,000 in flight",
    ),
    Goal("a handler that computes, 2 shards: share of the work of 2 bare loops", "cluster", "share of the work of 2 loops", at_least=0.9),
    Goal("memory of a shard: times that of a manager's process", "cluster", "ratio to a manager alone", at_most=1.3),
    Goal("1,000 users, Redis: times the fastest peer that loses nothing", "peers", "ratio", at_least=5, options=_PEERS),
)  # fmt: skip


def decide(results: Sequence[Result]) -> list[Decision]:
    """Decide each goal by the figures that there are.

    A goal is decided once for each table that was measured as the goal says.
    """
    decisions = []
    for goal in GOALS:
        found = [_decide(goal, figure, result) for result, figure in _figures(goal, results)]
        decisions += found or [Decision(goal, "", NOT_MEASURED)]
    return decisions


def _figures(goal: Goal, results: Sequence[Result]) -> Iterator[tuple[Result, Figure]]:
    for result in results:
        if result.question != goal.question or any(result.options.get(name) != it for name, it in goal.options.items()):
            continue
        for table in result.tables:
            ours = {figure.name: figure for figure in table.figures if figure.of == "actorbot"}
            figure, against = ours.get(goal.figure), ours.get(goal.against)
            if goal.table not in table.title or figure is None:
                continue
            if not goal.against:
                yield result, figure
            elif against is not None and median(against.values):  # threads are counted on Linux only, and 0 elsewhere
                yield result, over(figure, against)


def over(figure: Figure, against: Figure) -> Figure:
    """Return the ratio of a figure to the median of another."""
    return Figure("ratio", tuple(value / median(against.values) for value in figure.values), figure.of)


def _decide(goal: Goal, figure: Figure, result: Result) -> Decision:
    verdict = "reached" if goal.holds(median(figure.values)) else "missed"
    if len({goal.holds(value) for value in figure.values}) > 1:
        verdict += ", not in every run"
    seconds = result.options.get("seconds")
    if isinstance(seconds, int | float) and seconds < LEAST_SECONDS:
        verdict += f", a hint: runs of less than {LEAST_SECONDS:g} s"
    return Decision(goal, spread(figure), VOID if result.wrong else verdict)
