"""What a session may hold besides what JSON has, and how such a value is written as text.

A value comes back equal and of the same type, or is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any, Final, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

MAX_DEPTH: Final = 64
"""How many levels of dicts, lists, tuples and sets a session may have, itself included."""

MAX_INT: Final = 2**63 - 1

MALFORMED: Final = (ArithmeticError, ImportError, LookupError, OSError, TypeError, ValueError)
"""What unpacking, `fromisoformat`, ZoneInfo, UUID and Decimal raise for malformed input."""


class UndecodableError(ValueError):
    """Some bytes or a document are no session's values.

    Code that knows which session it is makes a CorruptSessionError of this.
    """


def _datetime_text(value: datetime) -> str:
    """Return ISO 8601 with the zone of RFC 9557: `2024-10-27T02:30:00[Europe/Paris][_fold=1]`."""
    zone = value.tzinfo
    if zone is None or zone is UTC:
        text = value.isoformat()
    else:
        try:
            text = _zoned_text(value, zone)
        except RecursionError:
            raise
        except Exception as error:  # a tzinfo may be anyone's code
            raise ValueError("its time zone is neither a ZoneInfo nor a fixed offset") from error
    return f"{text}[_fold=1]" if value.fold else text


def _zoned_text(value: datetime, zone: tzinfo) -> str:
    if isinstance(zone, ZoneInfo) and zone.key:
        try:
            if value.replace(tzinfo=ZoneInfo(zone.key)) == value:
                return f"{value.replace(tzinfo=None).isoformat()}[{zone.key}]"
        except (LookupError, OSError, ValueError):
            pass  # it was read from a file, and has a name of its own: is it a fixed offset?
    offset = zone.utcoffset(value)
    if offset is None or value.replace(tzinfo=timezone(offset)) != value:
        raise ValueError("unequal")  # always so inside a fold: https://peps.python.org/pep-0495/#inter-zone-comparison
    if offset.microseconds:  # `fromisoformat` takes offsets below a second for UTC
        return f"{value.replace(tzinfo=None).isoformat()}[_offset={_timedelta_text(offset)}]"
    return value.replace(tzinfo=timezone(offset)).isoformat()


def _read_datetime(text: str) -> datetime:
    rest = text.removesuffix("[_fold=1]")
    local, bracket, key = rest.partition("[")
    value = datetime.fromisoformat(local)
    if bracket:
        if value.tzinfo is not None or not key.endswith("]"):
            raise ValueError("malformed time zone")
        name, _, offset = key[:-1].partition("_offset=")
        value = value.replace(tzinfo=timezone(_read_timedelta(offset)) if offset else ZoneInfo(name))
    return value if rest == text else value.replace(fold=1)


def _timedelta_text(value: timedelta) -> str:
    return f"{value.days} {value.seconds} {value.microseconds}"


def _read_timedelta(text: str) -> timedelta:
    days, seconds, microseconds = map(int, text.split())
    return timedelta(days, seconds, microseconds)


def _decimal_text(value: Decimal) -> str:
    if not value.is_finite():
        raise ValueError("is not a finite number")
    return str(value)


def _read_decimal(text: str) -> Decimal:
    value = Decimal(text)
    _decimal_text(value)
    return value


class Scalar(NamedTuple):
    """How a value without parts is written as text.

    `code` is its msgpack extension. It never changes its meaning.
    """

    name: str
    code: int
    dump: Callable[[Any], str]
    load: Callable[[str], Any]


SCALARS: Final[dict[type, Scalar]] = {
    datetime: Scalar("datetime", 16, _datetime_text, _read_datetime),
    date: Scalar("date", 17, date.isoformat, date.fromisoformat),
    timedelta: Scalar("timedelta", 18, _timedelta_text, _read_timedelta),
    UUID: Scalar("uuid", 19, str, UUID),
    Decimal: Scalar("decimal", 20, _decimal_text, _read_decimal),
}
GROUPS: Final[dict[type, int]] = {tuple: 1, set: 2, frozenset: 3}
"""The boxes that msgpack and JSON lack, and the msgpack extension that marks each."""

BOXES: Final = frozenset({dict, list, *GROUPS})
