"""`actorbot sessions export`: all sessions as lines of JSON."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import click

from actorbot._state.record import Record
from actorbot._state.values import UndecodableError
from actorbot.cli._format import clean, count_of
from actorbot.cli._store import opened
from actorbot.errors import ActorbotError, CorruptSessionError
from actorbot.stores import RecordStore

__all__ = ["export"]


@click.command()
@click.argument("url")
@click.option(
    "-o", "file", metavar="FILE", type=click.Path(path_type=Path), help="Write to FILE, which only you may read."
)
@click.option("--prefix", default="", metavar="TEXT", help="Only ids that begin with TEXT.")
def export(url: str, file: Path | None, prefix: str) -> None:
    """Print each session that is alive as a line of JSON: {"session_id": …, "session": {…}}.

    The exit status is 1 if one cannot be read; the others are exported all the same. FILE appears
    when it is complete.
    """
    file = file and Path(os.path.expanduser(file))  # noqa: PTH111  # `~nobody` stays as it is
    done = unreadable = 0
    with opened(url) as store, _output(file) as write:
        for found in _documents(store, prefix):
            if isinstance(found, bytes):
                write(found)
                done += 1
            else:
                unreadable += 1
                click.echo(f"unreadable: {clean(str(found))}", err=True)
    if file is not None:
        left_out = f", {unreadable} could not be read" if unreadable else ""
        click.echo(f"{count_of(done, 'session')} in {file}{left_out}", err=True)
    if unreadable:
        sys.exit(1)


def _documents(store: RecordStore, prefix: str) -> Iterator[bytes | ActorbotError]:
    for found in store.scan():
        session_id = getattr(found, "session_id", None)
        if session_id and not session_id.startswith(prefix):
            continue
        if isinstance(found, ActorbotError):
            yield found
        elif found.state is not None and not found.is_expired(time.time()):
            try:
                yield _line(found)
            except UndecodableError as error:
                yield CorruptSessionError(store.name, found.session_id, str(error))


def _line(record: Record) -> bytes:
    document = {"session_id": record.session_id, "session": record.to_document()}
    return json.dumps(document, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode() + b"\n"


@contextmanager
def _output(file: Path | None) -> Iterator[Callable[[bytes], object]]:
    """Yield a function that writes to *file*; it is put in place if the `with` block succeeds."""
    if file is None:
        yield lambda line: click.echo(line, nl=False)
        return
    if file.exists() and not file.is_file():
        raise click.UsageError(f"{file} is no regular file; without -o the sessions are printed")
    temporary = file.with_name(f".{file.name}.{os.urandom(4).hex()}.tmp")
    try:
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as stream:
                yield stream.write
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise click.FileError(str(file), error.strerror) from error
