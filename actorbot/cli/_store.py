"""A store by its URL, opened for one command; it may be a driver of your own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Final

import click

from actorbot.cli._format import clean
from actorbot.errors import ActorbotError
from actorbot.stores import RecordStore, store_from_url
from actorbot.stores.driver import as_records

__all__ = ["make_store", "made", "opened"]

PATIENCE: Final = 5.0  # seconds for a call of an `async def` driver: a manager's default `store_deadline`


def make_store(url: str) -> Any:
    """Make the store of *url*; nothing is opened. Raises: ClickException, ConfigError."""
    try:
        return store_from_url(url)
    except ActorbotError:
        raise
    except ImportError as error:
        raise click.ClickException(str(error)) from error
    except Exception as error:  # an entry point may raise anything
        scheme = url.partition(":")[0]
        raise click.ClickException(f"{scheme}: its store cannot be made: {type(error).__name__}: {error}") from error


@contextmanager
def made(url: str) -> Iterator[RecordStore]:
    """Make the store of *url*, and close it at the end. The `with` block opens it."""
    with as_records(make_store(url), PATIENCE) as store:
        try:
            yield store
        finally:
            store.close()


@contextmanager
def opened(url: str, *, to_read: bool = True) -> Iterator[RecordStore]:
    """Open the store of *url*.

    If it is only *to_read*, a missing folder or collection is not made. What the store warns of
    from then on is told on stderr. Raises: ClickException; errors of stores.
    """
    with made(url) as store:
        missing = store.look() if to_read else None
        if missing is not None:
            raise click.ClickException(f"{store.name}: {missing}")
        if not to_read:
            store.init()
        with _told():
            yield store


@contextmanager
def _told() -> Iterator[None]:
    """Say what actorbot warns of, as of sessions that are left out."""
    notes = _Notes(logging.WARNING)
    logger = logging.getLogger("actorbot")
    if not any(isinstance(each, _Notes) for each in logger.handlers):  # two stores, as in a copy, are told of once
        logger.addHandler(notes)
    try:
        yield
    finally:
        logger.removeHandler(notes)


class _Notes(logging.Handler):
    def emit(self, record: logging.LogRecord) -> None:
        click.echo(f"note: {clean(record.getMessage())}", err=True)
