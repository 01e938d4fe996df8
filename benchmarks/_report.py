"""The progress bar, the result tables and the JSON file."""

from __future__ import annotations

import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks._drive import Series

PERCENTILES = (50.0, 99.0, 99.9)


@contextmanager
def progress(steps: int) -> Iterator[Callable[[str], None]]:
    """Show a bar on standard error; yield what is called at the beginning of each step.

    It is drawn between the steps only: a thread that draws would take part in what is measured.
    """
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), auto_refresh=False, transient=True) as bar:
        task = bar.add_task("", total=steps)
        begun = 0

        def begin(what: str) -> None:
            nonlocal begun
            bar.update(task, description=what, completed=begun, refresh=True)
            begun += 1

        yield begin


def print_session(title: str, floor: Series, actorbot: Series) -> None:
    """Print both, and how many times the floor's events actorbot handles in a second."""
    table = Table(title=title, caption=machine(), title_justify="left", caption_justify="left")
    for column in ("", "events/s", "ratio", "p50 µs", "p99 µs", "p99.9 µs", "lost updates", "writes/event", "peak MB"):
        table.add_column(column, justify="left" if not column else "right")
    for series, ratio in ((floor, "1"), (actorbot, spread(ratios(floor, actorbot), "{:.2f}"))):
        table.add_row(
            series.name,
            spread([run.events_per_second for run in series.runs], "{:,.0f}"),
            ratio,
            *(f"{percentile(series.durations, percent) / 1000:,.1f}" for percent in PERCENTILES),
            f"{sum(run.lost for run in series.runs):,}",
            f"{median(run.writes_per_event for run in series.runs):.4f}",
            f"{max(run.peak_rss for run in series.runs) / 1e6:,.0f}",
        )
    console = Console()
    console.print(table)
    if wrong := sum(run.wrong_counters for series in (floor, actorbot) for run in series.runs):
        console.print(f"[bold red]{wrong:,} wrong counters in the store")


def session_figures(floor: Series, actorbot: Series) -> dict[str, Any]:
    """Return what `print_session` prints, and each run."""
    return {
        "ratio": ratios(floor, actorbot),
        "contenders": [
            {
                "name": series.name,
                "events_per_second": [run.events_per_second for run in series.runs],
                "latency_ns": {f"p{percent:g}": percentile(series.durations, percent) for percent in PERCENTILES},
                "runs": [asdict(run) for run in series.runs],
            }
            for series in (floor, actorbot)
        ],
    }


def print_figures(title: str, figures: Mapping[str, str]) -> None:
    """Print one figure a line."""
    table = Table(title=title, caption=machine(), title_justify="left", caption_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for name, value in figures.items():
        table.add_row(name, value)
    Console().print(table)


def write_json(file: str, options: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    Path(file).write_text(json.dumps({"machine": machine(), "options": options, **figures}, indent=2) + "\n")


def ratios(floor: Series, actorbot: Series) -> list[float]:
    """Return actorbot's events a second over the floor's, of each pair of neighbouring runs."""
    pairs = zip(floor.runs, actorbot.runs, strict=True)
    return [ours.events_per_second / theirs.events_per_second for theirs, ours in pairs]


def spread(values: Sequence[float], form: str) -> str:
    """Return "median (least-most)"."""
    if len(values) == 1:
        return form.format(values[0])
    return f"{form.format(median(values))} ({form.format(min(values))}-{form.format(max(values))})"


def percentile(ordered: Sequence[int], percent: float) -> int:
    """Return the smallest value that *percent* of the ordered values do not exceed."""
    return ordered[max(0, -int(-len(ordered) * percent // 100) - 1)]


def machine() -> str:
    """Describe the machine as far as it explains the figures."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("pykka", "msgpack"))
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {packages}, {platform.system()}, {os.cpu_count()} cores"
