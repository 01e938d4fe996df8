"""What a question gives: figures in tables, printed and as JSON.

Also the options that all questions have.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any, Literal

from rich.console import Console
from rich.measure import Measurement
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table as RichTable

from benchmarks._workload import SEED

__all__ = ["Figure", "Result", "Table", "figures_of", "machine", "positive", "progress", "spread"]

PACKAGES = ("actorbot", "pykka", "msgpack", "redis", "pymongo")


@dataclass(frozen=True, slots=True)
class Figure:
    """One quantity of one contender: a value for each run."""

    name: str
    values: tuple[float, ...]
    of: str = "actorbot"
    unit: str = ""
    better: Literal["higher", "lower", ""] = ""
    """What `compare` calls an improvement; "" if neither is one."""


@dataclass(frozen=True, slots=True)
class Table:
    """Figures that were measured under the same conditions, which the title names."""

    title: str
    figures: tuple[Figure, ...]
    remarks: Mapping[str, str] = field(default_factory=dict)
    """What is to be said of a contender, also of one without figures.

    A table with remarks is printed with one line for each contender.
    """

    @property
    def contenders(self) -> list[str]:
        """The contenders with figures or remarks, each once, in the order of the remarks."""
        return list(dict.fromkeys([*self.remarks, *(figure.of for figure in self.figures)]))

    @property
    def rows(self) -> dict[str, list[str]]:
        """For each quantity, what to print for each contender; "" where there is no such figure."""
        found = {(figure.name, figure.of): spread(figure) for figure in self.figures}
        names = dict.fromkeys(figure.name for figure in self.figures)
        return {name: [found.get((name, of), "") for of in self.contenders] for name in names}


@dataclass(frozen=True, slots=True)
class Result:
    """The answer to one question."""

    question: str
    options: Mapping[str, Any]
    tables: tuple[Table, ...]
    wrong: int
    """Counters that were wrong in the store, or sessions that were not where they must be.

    Any of these makes the run void.
    """
    details: Mapping[str, Any] = field(default_factory=dict)
    """Whatever else was noted, run by run."""

    def as_json(self) -> dict[str, Any]:
        return {
            "question": self.question,
            "command": command(sys.argv[1:]),
            "machine": machine(),
            "seed": SEED,
            "options": dict(self.options),
            "tables": [asdict(table) for table in self.tables],
            "wrong": self.wrong,
            "details": dict(self.details),
        }

    def conclude(self, file: str | None) -> int:
        """Print the tables, and write all as JSON if there is a *file*.

        Return the exit status: 1 if a counter was wrong.
        """
        for table in self.tables:
            _print(table)
        if self.wrong:
            print(f"{self.wrong} counters were wrong: these figures are void", file=sys.stderr)
        if file:
            Path(file).write_text(json.dumps(self.as_json(), indent=2) + "\n")
        return int(self.wrong > 0)


def figures_of(
    of: str, runs: Iterable[Any], *quantities: tuple[str, str, Literal["higher", "lower", ""], Callable[[Any], float]]
) -> list[Figure]:
    """Make a figure of each quantity.

    A quantity is a name, a unit, which direction is better, and a function that takes it from a
    run.
    """
    runs = tuple(runs)
    return [
        Figure(name, tuple(value(run) for run in runs), of, unit, better) for name, unit, better, value in quantities
    ]


def options_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the options that decide about what is measured."""
    found = {name: value for name, value in vars(args).items() if name not in ("json", "main", "question")}
    return {name: without_password(value) if isinstance(value, str) else value for name, value in found.items()}


def command(argv: Sequence[str]) -> str:
    """Return the command line for the report, without the place where results are written."""
    line = " ".join(["python -m benchmarks", *argv])
    return without_password(re.sub(r" --json[ =]\S+", "", line))


def without_password(text: str) -> str:
    """Remove the user and the password of all URLs in *text*: results are published."""
    return re.sub(r"://[^/\s]*@", "://", text)


def spread(figure: Figure) -> str:
    """Return "median (lowest-highest) unit"."""
    values, unit = figure.values, f" {figure.unit}" if figure.unit else ""
    if len(values) == 1 or min(values) == max(values):
        return _number(values[0]) + unit
    return f"{_number(median(values))} ({_number(min(values))}-{_number(max(values))}){unit}"


def _number(value: float) -> str:
    """Return a number to three figures or so."""
    if value == int(value) or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}" if abs(value) >= 0.1 else f"{value:.4f}"


def _print(table: Table) -> None:
    caption = ", ".join(f"{name} {value}" for name, value in machine().items())
    several = len(table.contenders) > 1
    shown = RichTable(
        title=table.title, caption=caption, title_justify="left", caption_justify="left", show_header=several
    )
    shown.add_column()
    if table.remarks:
        for name in table.rows:
            shown.add_column(name, justify="right")
        shown.add_column("")
        for number, contender in enumerate(table.contenders):
            values = [column[number] for column in table.rows.values()]
            shown.add_row(contender, *values, table.remarks.get(contender, ""))
    else:
        for contender in table.contenders:
            shown.add_column(contender, justify="right")
        for name, values in table.rows.items():
            shown.add_row(name, *values)
    console = Console()
    if not console.is_terminal:  # a file has room for every column
        wide = Measurement.get(console, console.options.update(max_width=1_000), shown).maximum
        console = Console(width=max(console.width, wide))
    console.print(shown)


def machine() -> dict[str, str]:
    """Describe the machine and the packages as far as they explain the figures."""
    found = {platform.python_implementation(): platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found | {platform.system(): platform.machine(), "cores": str(os.cpu_count())}


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


def positive(text: str) -> int:
    """Read an option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected at least 1")
    return number
