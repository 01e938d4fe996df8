"""`actorbot doctor`: is this a good place for sessions?"""

from __future__ import annotations

import dataclasses
import os
import secrets
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from statistics import median
from typing import Final

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actorbot._state.codec import encode_state
from actorbot._state.record import Record
from actorbot.cli._format import clean, write_json
from actorbot.cli._owner import judge_owner
from actorbot.cli._store import made
from actorbot.errors import ActorbotError, ConflictError, StoreError
from actorbot.stores import Finding, RecordStore, Write

__all__ = ["doctor"]

READS: Final = 20
FAR: Final = 0.05  # seconds for a read; the first event of each user waits for one
PROBE_AGE: Final = 60.0  # seconds after which what is left of the probe ends
COLOURS: Final = {"ok": "green", "warning": "yellow", "failure": "red"}


@click.command()
@click.argument("url")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def doctor(url: str, as_json: bool) -> None:
    """Look at the store of URL, and say what may lose sessions.

    A session with a random id is written, read and destroyed. The exit status is 0 if all is well
    or there are warnings, and 1 if a bot cannot use the store.
    """
    with made(url) as store:
        findings = [replace(each, text=clean(each.text)) for each in _examine(store)]
        name = store.name
    if as_json:
        level = next((each for each in ("failure", "warning") if each in {one.level for one in findings}), "ok")
        write_json({"store": name, "level": level, "findings": [dataclasses.asdict(each) for each in findings]})
        sys.exit(level == "failure")
    failures = [each.text for each in findings if each.level == "failure"]
    _show(each if each.level != "failure" else replace(each, text="see the error") for each in findings)
    for text in failures[:-1]:
        click.echo(f"Error: {text}", err=True)
    if failures:
        raise click.ClickException(failures[-1])


def _show(findings: Iterable[Finding]) -> None:
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for each in findings:
        table.add_row(Text(each.level, COLOURS[each.level]), each.what, Text(each.text))
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)  # for grep: one line for each finding
    console.print(table)


def _examine(store: RecordStore) -> Iterator[Finding]:
    """Yield what is found, step by step; end after a step that fails."""
    steps: dict[str, Callable[[], Iterable[Finding]]] = {
        "reach": store.examine,
        "owner": partial(judge_owner, store),
        "round trip": partial(_round_trips, store),
        "probe": partial(_probe, store),
    }
    for name, step in steps.items():
        failed = False
        try:
            for finding in step():
                failed |= finding.level == "failure"
                yield finding
        except ActorbotError as error:
            failed = True
            yield Finding(name, "failure", str(error))
        if failed or store.look() is not None:  # a probe would make what is missing
            return


def _round_trips(store: RecordStore) -> Iterator[Finding]:
    store.init()
    seconds = []
    for _ in range(READS):
        began = time.perf_counter()
        answer = store.read_many([_random_id()])[0]
        seconds.append(time.perf_counter() - began)
        if isinstance(answer, ActorbotError):
            raise answer
    typical, worst = median(seconds), max(seconds)
    text = f"reading takes {typical * 1000:.2f} ms, at worst {worst * 1000:.2f} ms of {READS} times"
    if typical > FAR:
        yield Finding("round trip", "warning", f"{text}; bring the bot nearer to its store")
    else:
        yield Finding("round trip", "ok", text)


def _random_id() -> str:
    return f"actorbot-doctor:{secrets.token_hex(8)}"


def _probe(store: RecordStore) -> Iterator[Finding]:
    """Write a session, read it, try to overwrite it with a stale write, destroy it."""
    now = time.time()
    first = Record(_random_id(), 1, encode_state({"probe": True}, 1000), os.urandom(8), b"", now, now + PROBE_AGE)
    try:
        _write(store, Write(first, b""))
        _expect(store, first)
        yield Finding("write and read", "ok", "a session comes back as it was written")
        yield _compare(store, first)
    finally:
        end = replace(Record.tombstone(first.session_id, now=now), expires_at=now + PROBE_AGE)
        _write(store, Write(end, None))
    _expect(store, None, first.session_id)
    yield Finding("destroy", "ok", "a session that is destroyed is gone")


def _compare(store: RecordStore, stored: Record) -> Finding:
    """Try a write whose base is not what is stored."""
    error = store.write_many([Write(stored.next_write(), os.urandom(8))])[0]
    if isinstance(error, ConflictError):
        return Finding("compare", "ok", "a write on something else than what is stored is refused")
    if error is not None:
        raise error
    text = (
        "a stale write is not refused: let no two processes have the same session, or give the driver compare_and_write"
    )
    return Finding("compare", "warning", text)


def _write(store: RecordStore, write: Write) -> None:
    error = store.write_many([write])[0]
    if error is not None:
        raise error


def _expect(store: RecordStore, wanted: Record | None, session_id: str = "") -> None:
    session_id = session_id if wanted is None else wanted.session_id
    found = store.read_many([session_id])[0]
    if isinstance(found, ActorbotError):
        raise found
    if wanted is None and found is not None and found.state is None:
        return
    if found != wanted:
        raise StoreError(store.name, f"what was written comes back as {found!r}", session_id=session_id)
