"""`actorbot sessions copy`: all sessions of one store into another."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from actorbot.cli._format import clean, write_json
from actorbot.cli._owner import warn_of_owner
from actorbot.cli._store import opened
from actorbot.stores import CopyReport, RecordStore
from actorbot.stores import copy as copy_sessions

__all__ = ["copy"]

INTERRUPTED = 130  # as a shell counts it


@click.command()
@click.argument("source")
@click.argument("target")
@click.option("--json", "as_json", is_flag=True, help="Print the report as one JSON object.")
def copy(source: str, target: str, as_json: bool) -> None:
    """Copy all sessions of the store SOURCE into the store TARGET.

    They keep the times at which they end. First stop the bots that use the two stores. If you run
    it again, it goes on where it ended, and writes nothing twice. A session of TARGET that somebody
    else has written is left alone and reported. The exit status is 1 if one was not copied.
    """
    if source == target:
        raise click.UsageError("SOURCE and TARGET are the same store")
    with opened(source) as old, opened(target, to_read=False) as new:
        warn_of_owner(old, "What it has in memory and has not flushed yet is not copied")
        warn_of_owner(new, "If it has a session in memory that is copied there, its next flush of that is a conflict")
        try:
            with _bar(old) as progress:
                report = copy_sessions(old, new, progress=progress)
        except KeyboardInterrupt:
            click.echo("interrupted: run the same command again, and it goes on", err=True)
            sys.exit(INTERRUPTED)
    _tell(report, as_json)
    if report.failed:
        sys.exit(1)


@contextmanager
def _bar(source: RecordStore) -> Iterator[Callable[[int], None]]:
    """Yield a function that moves a bar on stderr, if that is a terminal."""
    columns = TextColumn("sessions"), BarColumn(), MofNCompleteColumn(), TaskProgressColumn(), TimeRemainingColumn()
    console = Console(stderr=True)
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("", total=source.count())
        yield lambda done: bar.update(task, completed=done)


def _tell(report: CopyReport, as_json: bool) -> None:
    failed = [clean(str(error)) for error in report.failed]
    numbers = {name: getattr(report, name) for name in ("copied", "already_there", "expired", "destroyed")}
    if as_json:
        write_json(numbers | {"failed": failed})
        return
    for text in failed:
        click.echo(f"not copied: {text}", err=True)
    numbers["failed"] = len(failed)
    click.echo(", ".join(f"{number} {name.replace('_', ' ')}" for name, number in numbers.items()))
