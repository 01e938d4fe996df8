"""`actorbot sessions edit`: change what a session holds, by hand."""

from __future__ import annotations

import json
import sys
import time
from typing import Any, Final

import click

from actorbot._state.document import RESERVED
from actorbot._state.session_id import check_session_id
from actorbot._state.values import UndecodableError
from actorbot.cli._format import clean, show_id
from actorbot.cli._owner import warn_of_owner
from actorbot.cli._store import opened
from actorbot.errors import ActorbotError, ConflictError, CorruptSessionError
from actorbot.stores import Record, RecordStore, Write

__all__ = ["edit"]

COSTS: Final = "If it has this session in memory, its next flush of that is a conflict, and your change stands"


@click.command()
@click.argument("url")
@click.argument("session_id", metavar="ID")
def edit(url: str, session_id: str) -> None:
    """Change what a session holds, as JSON in your $EDITOR.

    URL and ID may also come in the other order. What JSON lacks is tagged, as in {"$date":
    "2017-05-01"}. It is written only if nobody has written the session since it was read: if
    somebody has, the exit status is 1, and your text is printed. If you change nothing, nothing is
    written.
    """
    if "://" in session_id and "://" not in url:
        url, session_id = session_id, url
    check_session_id(session_id)
    with opened(url) as store:
        warn_of_owner(store, COSTS)
        if not store.compares:
            click.echo(f"note: {store.name} compares nothing: what somebody writes meanwhile is overwritten", err=True)
        record = _read(store, session_id)
    # Closed meanwhile: a bot may want the folder, and nobody keeps a connection for an hour.
    text, edited = _ask(store, record)
    if edited is None:
        click.echo(f"{show_id(session_id)}: unchanged, nothing was written")
        return
    with opened(url) as store:
        error = store.write_many([Write(edited.next_write(), record.write_id)])[0]
    if isinstance(error, ConflictError):
        click.echo(text.rstrip())  # it would be lost
        raise click.ClickException(f"not written: {clean(str(error))}; try again")
    if error is not None:
        raise error
    click.echo(f"{show_id(session_id)}: written (version {edited.version}, {len(edited.state or b'')} bytes)")


def _read(store: RecordStore, session_id: str) -> Record:
    found = store.read_many([session_id])[0]
    if isinstance(found, ActorbotError):
        raise found
    if found is None or found.state is None or found.is_expired(time.time()):
        raise click.ClickException(f"{store.name}: there is no session {session_id!r}")
    return found


def _ask(store: RecordStore, record: Record) -> tuple[str, Record | None]:
    """Let the user edit the record; return the text, and the new record if that is another."""
    try:
        document = record.to_document()
    except UndecodableError as error:
        raise CorruptSessionError(store.name, record.session_id, str(error)) from error
    rest = document.pop(RESERVED)
    text = json.dumps(document, ensure_ascii=False, allow_nan=False, indent=2) + "\n"
    while (said := click.edit(text, extension=".json")) is not None:
        text = said
        try:
            edited = _parse(text)
            made = Record.from_document(
                edited | {RESERVED: rest}, session_id=record.session_id, store=store.name, expires_in=store.expires_in
            )
        except (ValueError, RecursionError, CorruptSessionError) as error:
            reason = error.reason if isinstance(error, CorruptSessionError) else str(error)
            click.echo(f"this is no session: {clean(reason)}", err=True)
            if not sys.stdin.isatty() or not click.confirm("Edit it again?", default=True, err=True):
                raise click.ClickException("nothing was written") from error
        else:
            return text, None if made.state == record.state else made
    return text, None


def _parse(text: str) -> dict[str, Any]:
    """Read a JSON object. Raises: ValueError, RecursionError."""
    edited = json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse)
    if not isinstance(edited, dict):
        raise ValueError("it must be a JSON object: {…}")
    if RESERVED in edited:
        raise ValueError(f"the key {RESERVED!r} is not yours to set")
    return edited


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) < len(pairs):
        twice = next(key for key, _ in pairs if sum(key == each for each, _ in pairs) > 1)
        raise ValueError(f"the key {twice!r} stands there twice")
    return made


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is no JSON")
