"""How the command shows ids, times and errors: no control characters, no passwords."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import lru_cache
from typing import Any, Final

import click

from actorbot.stores._secrets import Secrets

__all__ = [
    "clean",
    "count_of",
    "hide_secrets_of",
    "redact",
    "show_distance",
    "show_id",
    "show_when",
    "shows_secret",
    "write_json",
]

SECRETS: Final = "actorbot.secrets"
"""The key in the context's `meta` for what must not be shown."""

UNITS: Final = (
    (365 * 86_400, "year", 43_200),
    (86_400, "day", 1800),
    (3600, "hour", 30),
    (60, "minute", 0),
    (1, "second", 0),
)
"""Each with its seconds, and how many of them may be missing."""


def hide_secrets_of(context: click.Context, args: Iterable[str]) -> None:
    """Let `redact` take out the passwords of all URLs in *args*."""
    secrets = Secrets("")
    for arg in args:
        if "://" in arg or "@" in arg:
            secrets.add(Secrets(arg))
    context.meta.setdefault(SECRETS, secrets)


def redact(text: str) -> str:
    """Return *text* without secrets."""
    hidden: Secrets | None = click.get_current_context().meta.get(SECRETS)
    return text if hidden is None else hidden.hide(text)


def shows_secret(error: BaseException) -> bool:
    """Tell whether a traceback of *error* would show a secret."""
    hidden: Secrets | None = click.get_current_context().meta.get(SECRETS)
    return hidden is not None and hidden.show_in(error)


def clean(text: str) -> str:
    """Return *text* in one line, without secrets and control characters."""
    return show_id(" ".join(redact(text).split()))


def show_id(text: str) -> str:
    """Return *text* with escapes for what does not print: an id must not control the terminal."""
    if text.isprintable():
        return text
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


def show_when(when: float, *, now: float | None = None) -> str:
    """Return a wall-clock time as local time, and how far from now it is."""
    try:
        seconds = int(when - (time.time() if now is None else now))
        local = _local_minute(int(when // 60))
    except (OverflowError, OSError, ValueError):
        return "in the far future" if when > 0 else "in the far past"
    return f"{local} ({_distance(seconds)})"


def show_distance(when: float) -> str:
    """Return how far from now a wall-clock time is: `in 3 days`."""
    try:
        return _distance(int(when - time.time()))
    except OverflowError:
        return "in the far future" if when > 0 else "in the far past"


def _distance(seconds: int) -> str:
    far = abs(seconds)
    # What ends in a year and was written a second ago ends in a year, not in 364 days: half a unit
    # of the next smaller kind is made up for.
    size, unit, slack = next((each for each in UNITS if far + each[2] >= each[0]), UNITS[-1])
    distance = count_of((far + slack) // size, unit)
    return f"in {distance}" if seconds > 0 else f"{distance} ago"


def count_of(number: int, noun: str) -> str:
    """Return `1 session` or `2 sessions`."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


@lru_cache(1024)
def _local_minute(minute: int) -> str:
    return datetime.fromtimestamp(60 * minute, UTC).astimezone().strftime("%Y-%m-%d %H:%M")


def write_json(value: Any) -> None:
    """Write *value* as one line of JSON, in UTF-8 whatever the locale."""
    line = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    click.echo(line.encode())
