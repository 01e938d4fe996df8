"""`actorbot sessions`: list, show, edit, destroy, export and copy what a store holds."""

from __future__ import annotations

import sys
import time
from contextlib import ExitStack
from typing import Any

import click
from rich.console import Console
from rich.pretty import Pretty

from actorbot._state.codec import decode_state
from actorbot._state.session_id import check_session_id
from actorbot._state.values import UndecodableError
from actorbot.cli._copy import copy
from actorbot.cli._edit import edit
from actorbot.cli._export import export
from actorbot.cli._format import clean, count_of, show_id, show_when, write_json
from actorbot.cli._owner import tell_owner, warn_of_owner
from actorbot.cli._store import opened
from actorbot.cli._table import SessionTable
from actorbot.errors import ActorbotError, ConflictError, CorruptSessionError, ForeignSessionError
from actorbot.stores import Record, RecordStore, Write

__all__ = ["sessions"]


@click.group()
def sessions() -> None:
    """List, show, edit, destroy, export and copy the sessions of a store.

    Bots may go on meanwhile, except with a store of files, which one process at a time can open.
    What a bot has in memory and has not flushed yet is not seen.
    """


sessions.add_command(copy)
sessions.add_command(edit)
sessions.add_command(export)


# --- ls -----------------------------------------------------------------------------------------


@sessions.command()
@click.argument("url")
@click.option("--prefix", default="", metavar="TEXT", help="Only ids that begin with TEXT.")
@click.option("--limit", type=click.IntRange(min=1), metavar="N", help="No more than N.")
@click.option("--all", "everything", is_flag=True, help="Also those that have expired or were destroyed.")
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object per line.")
def ls(url: str, prefix: str, limit: int | None, everything: bool, as_json: bool) -> None:
    """List the sessions, in the store's own order. The exit status is 1 if one cannot be read."""
    listed = unreadable = 0
    with opened(url) as store, ExitStack() as at_last:
        tell_owner(store)
        table = SessionTable()
        if not as_json:
            at_last.callback(table.flush)  # also when the store fails in the middle
        for found in store.scan():
            if isinstance(found, ActorbotError):
                session_id = getattr(found, "session_id", None) or ""
                if session_id and not session_id.startswith(prefix):
                    continue
                unreadable += 1
                _tell_unreadable(session_id, found, as_json)
            elif found.session_id.startswith(prefix) and (everything or _status(found) == "alive"):
                if as_json:
                    _print_json(found)
                else:
                    table.add(found)
            else:
                continue
            listed += 1
            if listed == limit:
                break
    if not listed:
        others = "" if everything else " that is alive; --all lists the others too"
        click.echo(f"there is no session{f' that begins with {show_id(prefix)}' if prefix else ''}{others}", err=True)
    if unreadable:
        sys.exit(1)


def _status(record: Record) -> str:
    if record.state is None:
        return "destroyed"
    return "expired" if record.is_expired(time.time()) else "alive"


def _print_json(record: Record) -> None:
    write_json({"session_id": record.session_id, "status": _status(record), **_stamps(record)})


def _stamps(record: Record) -> dict[str, Any]:
    return {
        "bytes": 0 if record.state is None else len(record.state),
        "version": record.version,
        "last_activity": record.last_activity,
        "expires_at": record.expires_at,
    }


def _tell_unreadable(session_id: str, error: ActorbotError, as_json: bool) -> None:
    if as_json:
        write_json({"session_id": session_id, "error": clean(str(error))})
    else:
        click.echo(f"unreadable: {clean(str(error))}", err=True)


# --- show ---------------------------------------------------------------------------------------


@sessions.command()
@click.argument("url")
@click.argument("session_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the session's JSON document, as drivers see it.")
def show(url: str, session_id: str, as_json: bool) -> None:
    """Show what a session holds. The exit status is 1 if there is none."""
    check_session_id(session_id)
    with opened(url) as store:
        record = _read(store, session_id)
        if record is None or record.state is None:
            raise click.ClickException(f"{store.name}: there is no session {session_id!r}")
        try:
            if as_json:
                write_json(record.to_document())
            else:
                _show(record, decode_state(record.state))
        except UndecodableError as error:
            raise CorruptSessionError(store.name, session_id, str(error)) from error


def _read(store: RecordStore, session_id: str) -> Record | None:
    found = store.read_many([session_id])[0]
    if isinstance(found, ActorbotError):
        raise found
    return found


def _show(record: Record, state: dict[str, Any]) -> None:
    click.echo(f"session        {show_id(record.session_id)}")
    click.echo(f"version        {record.version}, {len(record.state or b'')} bytes")
    click.echo(f"last activity  {show_when(record.last_activity)}")
    click.echo(f"{'expired' if _status(record) == 'expired' else 'expires'}        {show_when(record.expires_at)}")
    Console(soft_wrap=True).print(Pretty(state, expand_all=True))


# --- rm -----------------------------------------------------------------------------------------


@sessions.command()
@click.argument("url")
@click.argument("session_ids", metavar="ID...", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
def rm(url: str, session_ids: tuple[str, ...], yes: bool) -> None:
    """Destroy sessions, for every bot that uses the store.

    If one is not there, that is no error. One that cannot be read is destroyed too. The exit status
    is 1 if one was written by somebody else at the same moment: then it stays. Try again.
    """
    for session_id in session_ids:
        check_session_id(session_id)
    with opened(url) as store:
        warn_of_owner(store, "If it has one of these sessions in memory, its next flush of that is a conflict")
    if not yes:  # while nothing is open: a bot may want the folder
        _ask(len(session_ids))
    conflicts = 0
    with opened(url) as store:
        for session_id in dict.fromkeys(session_ids):
            try:
                click.echo(f"{show_id(session_id)}: {_destroy(store, session_id)}")
            except ConflictError as error:
                conflicts += 1
                click.echo(f"not destroyed: {clean(str(error))}; try again", err=True)
    if conflicts:
        sys.exit(1)


def _ask(number: int) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("nobody is there to ask: add --yes")
    click.confirm(f"Destroy {count_of(number, 'session')}?", abort=True)


def _destroy(store: RecordStore, session_id: str) -> str:
    """Destroy what is there now, and say what it was. Raises: ConflictError; errors of stores."""
    base: bytes | None
    try:
        record = _read(store, session_id)
    except ForeignSessionError:
        raise  # another bot has it, and can read it
    except CorruptSessionError:
        base, there = None, "it could not be read"  # so there is nothing to compare with
    else:
        if record is None or record.state is None:
            return "was not there"
        base, size = record.write_id, len(record.state)
        there = f"version {record.version}, {size} bytes, last activity {show_when(record.last_activity)}"
    error = store.write_many([Write(Record.tombstone(session_id, now=time.time()), base)])[0]
    if error is not None:
        raise error
    return f"destroyed ({there})"
