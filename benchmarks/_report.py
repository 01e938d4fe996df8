"""The command line's common part: options that count, the progress bar, the result table and the JSON file."""

from __future__ import annotations

import argparse
import json
import os
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table


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


def print_table(title: str, rows: Mapping[str, Sequence[str]], columns: Sequence[str] | None = None) -> None:
    """Print a line for each figure, with a column for each of those it was measured of."""
    table = Table(
        title=title, caption=machine(), title_justify="left", caption_justify="left", show_header=bool(columns)
    )
    table.add_column()
    for column in columns or [""]:
        table.add_column(column, justify="right")
    for name, values in rows.items():
        table.add_row(name, *values)
    Console().print(table)


def write_json(file: str, options: Mapping[str, Any], figures: Mapping[str, Any]) -> None:
    Path(file).write_text(json.dumps({"machine": machine(), "options": options, **figures}, indent=2) + "\n")


def spread(values: Sequence[float], form: str) -> str:
    """Return "median (least-most)"."""
    if len(values) == 1:
        return form.format(values[0])
    return f"{form.format(median(values))} ({form.format(min(values))}-{form.format(max(values))})"


def machine() -> str:
    """Describe the machine as far as it explains the figures."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("pykka", "msgpack"))
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {packages}, {platform.system()}, {os.cpu_count()} cores"


def positive(text: str) -> int:
    """Read an option that counts something."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number}: expected at least 1")
    return number
