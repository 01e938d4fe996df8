"""A session's values as bytes and as a JSON-safe document: each comes back equal and of the same type, or is refused.

*Bytes* are one msgpack map. msgpack has no tuples, sets, dates and so on; a state that holds one is *extended*: the
byte 0xC1, which msgpack never uses, stands in front, a tuple or set is an array whose first element is a marker, and
the rest are extension types that hold text. (Markers, because nested extensions would need one `unpackb`, with 40 KB of
C stack, inside the other.) *Documents* tag the same values: `{"$tuple": [...]}`, `{"$date": "2017-05-01"}`.
"""

from __future__ import annotations

import threading
from base64 import b64decode, b64encode
from collections.abc import Callable, Iterator, Mapping, Set
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from itertools import count
from math import isfinite
from typing import Any, Final, NamedTuple
from uuid import UUID
from zoneinfo import ZoneInfo

from msgpack import ExtType, Packer, packb, unpackb

from actorbot.errors import NotEncodableError, SessionTooLargeError

MAX_DEPTH: Final = 64
"""How many levels of dicts, lists, tuples and sets a session may have, itself included."""

RESERVED: Final = "$actorbot"
"""The key of a document for what is not one of the session's values. A session's own key of this name is escaped."""

MAX_DOCUMENT_BOXES: Final = 1_000_000

_MAX_INT: Final = 2**63 - 1
_EXTENDED: Final = 0xC1
_JOINED: Final = 16
_join: Final = "".join
_BUFFER: Final = 4096  # of a packer, which lets it grow; its default of 256 KB takes longer to get than a state to pack

# All that unpacking, `fromisoformat`, ZoneInfo, UUID and Decimal raise for malformed input.
_MALFORMED: Final = (ArithmeticError, ImportError, LookupError, OSError, TypeError, ValueError)


class UndecodableError(ValueError):
    """Bytes or a document are not a session's values. Who knows the session makes a CorruptSessionError of it."""


# --- the values that msgpack and JSON lack ----------------------------------------------------------------------------


def _datetime_text(value: datetime) -> str:
    """Return ISO 8601, with the zone behind it as in RFC 9557: `2024-10-27T02:30:00[Europe/Paris][_fold=1]`."""
    zone = value.tzinfo
    if zone is None or zone is UTC:
        text = value.isoformat()
    else:
        try:
            text = _zoned_text(value, zone)
        except Exception as error:  # a tzinfo may be anyone's code
            raise ValueError("its time zone is neither a ZoneInfo nor a fixed offset") from error
    return f"{text}[_fold=1]" if value.fold else text


def _zoned_text(value: datetime, zone: tzinfo) -> str:
    if isinstance(zone, ZoneInfo) and zone.key:
        try:
            if value.replace(tzinfo=ZoneInfo(zone.key)) == value:
                return f"{value.replace(tzinfo=None).isoformat()}[{zone.key}]"
        except (LookupError, OSError, ValueError):
            pass  # read from a file under a name of its own: is it a fixed offset?
    offset = zone.utcoffset(value)
    if offset is None or value.replace(tzinfo=timezone(offset)) != value:
        raise ValueError("unequal")  # in a fold always: https://peps.python.org/pep-0495/#inter-zone-comparison
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


class _Scalar(NamedTuple):
    """How a value without parts is written as text; `code` is its msgpack extension, and never changes its meaning."""

    name: str
    code: int
    dump: Callable[[Any], str]
    load: Callable[[str], Any]


_SCALARS: Final[dict[type, _Scalar]] = {
    datetime: _Scalar("datetime", 16, _datetime_text, _read_datetime),
    date: _Scalar("date", 17, date.isoformat, date.fromisoformat),
    timedelta: _Scalar("timedelta", 18, _timedelta_text, _read_timedelta),
    UUID: _Scalar("uuid", 19, str, UUID),
    Decimal: _Scalar("decimal", 20, _decimal_text, _read_decimal),
}
_MARKERS: Final[dict[type, ExtType]] = {tuple: ExtType(1, b""), set: ExtType(2, b""), frozenset: ExtType(3, b"")}
_BOXES: Final = frozenset({dict, list, *_MARKERS})

_BY_CODE: Final = {scalar.code: scalar for scalar in _SCALARS.values()}
_GROUP_BY_CODE: Final = {marker.code: group for group, marker in _MARKERS.items()}
_SCALAR_BY_TAG: Final = {f"${scalar.name}": scalar for scalar in _SCALARS.values()}
_GROUP_BY_TAG: Final[dict[str, type]] = {f"${group.__name__}": group for group in _MARKERS}
_TAGS: Final = frozenset({"$bytes", *_SCALAR_BY_TAG, *_GROUP_BY_TAG})


# --- bytes ------------------------------------------------------------------------------------------------------------


class _Packers(threading.local):
    """One packer per thread: shared between threads it mixes their bytes. Kept, it costs half of `packb`."""

    def __init__(self) -> None:
        self.pack: Callable[[object], bytes] = Packer(strict_types=True, buf_size=_BUFFER).pack


_packers: Final = _Packers()


def encode_state(state: dict[str, Any], max_bytes: int) -> bytes:
    """Return *state* as bytes, at most *max_bytes* of them.

    Raises: NotEncodableError, SessionTooLargeError; both say where.
    """
    try:
        if _is_plain(state, max_bytes) or not _scan(state, max_bytes):
            data: bytes = _packers.pack(state)
        else:
            data = b"\xc1" + packb(state, default=_pack_extension, strict_types=True, buf_size=_BUFFER)
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise _explain(state, max_bytes, error) from None
    if len(data) > max_bytes:
        raise SessionTooLargeError(
            "session", f"takes {len(data)} bytes, more than the {max_bytes} allowed", limit=max_bytes
        )
    return data


def decode_state(data: bytes, trusted: bool = False) -> dict[str, Any]:
    """Return the values that *data* holds, which are such that `encode_state` takes them.

    *trusted* skips the proof of that, half of the time: for bytes that this process encoded, or decoded once before.
    A key that stands twice in a map goes unnoticed, the last one counts: noticing would cost a Python call per map.

    Raises: UndecodableError, and for untrusted bytes nothing else.
    """
    try:
        extended = data and data[0] == _EXTENDED
        state = unpackb(data[1:], ext_hook=_unpack_extension, list_hook=_regroup) if extended else unpackb(data)
    except _MALFORMED as error:
        raise UndecodableError(f"malformed: {_text(error)}") from None
    if trusted:
        return state  # type: ignore[no-any-return]
    if type(state) is not dict:
        raise UndecodableError(f"a session is a map, not {type(state).__name__}")
    try:
        _scan(state, len(data))
    except (TypeError, ValueError) as error:
        raise UndecodableError(str(_explain(state, len(data), error))) from None
    return state


def pack_fields(value: object) -> bytes:
    """Return *value*, which is made of plain values and not checked, as msgpack: for the frame of a record."""
    return _packers.pack(value)


def unpack_fields(data: bytes) -> Any:
    """Return what `pack_fields` packed, or whatever else *data* holds. Raises: UndecodableError."""
    try:
        return unpackb(data)
    except ValueError as error:
        raise UndecodableError(f"malformed: {_text(error)}") from None


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _pack_extension(value: object) -> object:
    """Return what msgpack knows in place of *value*; called by the packer for what it does not know."""
    kind = type(value)
    if kind in _MARKERS:
        return [_MARKERS[kind], *value]  # type: ignore[misc]
    scalar = _SCALARS.get(kind)
    if scalar is None:
        raise TypeError(kind)
    return ExtType(scalar.code, scalar.dump(value).encode())


def _unpack_extension(code: int, payload: bytes) -> object:
    if code in _GROUP_BY_CODE and not payload:
        return _GROUP_BY_CODE[code]  # the type itself is the marker: no session can hold it, so a stray one is found
    scalar = _BY_CODE.get(code)
    if scalar is None:
        raise ValueError(f"unknown extension type {code}")
    return scalar.load(payload.decode())


def _regroup(items: list[Any]) -> object:
    return items.pop(0)(items) if items and type(items[0]) is type else items


# --- the check --------------------------------------------------------------------------------------------------------


def _is_plain(state: dict[str, Any], budget: int) -> bool:
    """Tell, quickly, whether *state* can be packed as it is; `False` if that takes `_scan` to say.

    It is so for text, numbers and short lists of text, which is what most sessions hold: 230 ns instead of 410.
    """
    for key, value in state.items():
        kind = type(value)
        if type(key) is not str:
            return False
        if kind is str:
            budget -= len(value)
        elif kind is list:
            if not value or type(value[0]) is not str or len(value) > _JOINED:
                return False
            try:
                budget -= len(_join(value))
            except TypeError:
                return False
        elif kind is int:
            if value > _MAX_INT:
                return False
        elif kind is not bool and value is not None:
            return False
        budget -= len(key)
    return budget >= 0


def _scan(state: dict[str, Any], budget: int) -> bool:
    """Check that *state* can be packed within bounds, and tell whether it must be extended. On the path of every event.

    Breadth first, without recursion: hostile depth must not reach what recurses. An element takes at least a byte and a
    string at least its length; *budget* counts that, and so ends cycles and lists of lists of the same lists.
    What it leaves to the packer: subclasses of `str` behind the first element of a list, lone surrogates, small ints.
    Raises: SessionTooLargeError; TypeError, ValueError without a path, which is `_explain`'s.
    """
    limit, extended = budget, False
    boxes: list[Any] = [state]
    for box in boxes:
        budget -= len(box)
        if budget < 0:
            break
        if type(box) is dict:
            for key in box:
                if type(key) is not str:
                    raise TypeError(key)
                budget -= len(key)
            box = box.values()  # noqa: PLW2901  # on the path of every event
        for value in box:
            kind = type(value)
            if kind is str:
                budget -= len(value)
            elif kind is int:
                if value > _MAX_INT:
                    raise ValueError(value)
            elif kind is list:
                if value and type(value[0]) is str:
                    budget -= _strings(value, budget, boxes)
                else:
                    boxes.append(value)
            elif kind is dict:
                boxes.append(value)
            elif kind is not bool and value is not None:
                budget -= _weigh(kind, value, boxes)
                extended = extended or (kind is not float and kind is not bytes)
    if budget < 0:
        raise SessionTooLargeError("session", f"takes more than the {limit} bytes allowed", limit=limit)
    if len(boxes) >= MAX_DEPTH and _is_deep(state):  # fewer boxes cannot be deeper; lists of strings are not among them
        raise SessionTooLargeError("session", f"is nested deeper than {MAX_DEPTH} levels", limit=MAX_DEPTH)
    return extended


def _strings(texts: list[Any], budget: int, boxes: list[Any]) -> int:
    """Return the length of a list of strings at the speed of `join`; hand a list that holds other things to *boxes*.

    In slices: a thousand times the same megabyte is refused when sixteen of them are joined.
    """
    size = len(texts)
    try:
        if size <= _JOINED:
            return size + len(_join(texts))
        for start in range(0, size, _JOINED):
            size += len(_join(texts[start : start + _JOINED]))
            if size > budget:
                break
    except TypeError:
        boxes.append(texts)
        return 0
    return size


def _weigh(kind: type, value: Any, boxes: list[Any]) -> int:
    """Return the least that a value of one of the rarer types adds to its one byte; hand tuples and sets to *boxes*."""
    if kind is bytes:
        return len(value)
    if kind is Decimal:
        return len(value.as_tuple().digits)
    if kind in _MARKERS:
        boxes.append(value)
    elif kind is float:
        if not isfinite(value):
            raise ValueError(value)
    elif kind not in _SCALARS:
        raise TypeError(kind)
    return 0


def _is_deep(state: dict[str, Any]) -> bool:
    level: list[Any] = [state]
    for _ in range(MAX_DEPTH):
        parts = (value for box in level for value in (box.values() if isinstance(box, dict) else box))
        level = [value for value in parts if type(value) in _BOXES]
        if not level:
            return False
    return True


# --- what was wrong, and where: only after a refusal ------------------------------------------------------------------


class _Step(NamedTuple):
    label: str
    box: Any
    parts: Iterator[tuple[str, Any, str | None]]


def _explain(state: dict[str, Any], limit: int, error: Exception) -> NotEncodableError | SessionTooLargeError:
    """Return the first thing wrong in *state* with its path, or else *error*. Depth first, each box once."""
    steps = [_Step("session", state, _parts(state))]
    is_open = {id(state): True}
    deep: SessionTooLargeError | None = None
    budget = limit
    while steps:
        for label, value, problem in steps[-1].parts:
            budget -= 1
            if budget < 0:
                return SessionTooLargeError("session", f"takes more than the {limit} bytes allowed", limit=limit)
            if problem is None and type(value) in _BOXES:
                if is_open.get(id(value)):
                    return NotEncodableError(_path(steps, label), "is a cycle: it is inside itself")
                if id(value) not in is_open:
                    is_open[id(value)] = True
                    steps.append(_Step(label, value, _parts(value)))
                    break
            elif problem := problem or _problem(value):
                return deep or NotEncodableError(_path(steps, label), problem)
        else:
            is_open[id(steps.pop().box)] = False
        if len(steps) > MAX_DEPTH and deep is None:  # and on: it may be a long cycle
            deep = SessionTooLargeError(_path(steps), f"is nested deeper than {MAX_DEPTH} levels", limit=MAX_DEPTH)
    if deep is not None or isinstance(error, SessionTooLargeError):
        return deep or error  # type: ignore[return-value]
    return NotEncodableError("session", str(error))


def _path(steps: list[_Step], label: str = "") -> str:
    return "".join(step.label for step in steps[: MAX_DEPTH + 1]) + label


def _parts(box: Any) -> Iterator[tuple[str, Any, str | None]]:
    """Yield the label, the value and perhaps already the problem of each part of *box*."""
    if not isinstance(box, dict):
        for index, value in enumerate(box):
            yield ("{...}" if isinstance(box, set | frozenset) else f"[{index}]"), value, None
        return
    for key, value in box.items():
        if type(key) is not str:
            yield "", key, f"has a key of type {type(key).__name__}; keys are str"
        elif problem := _problem(key):
            yield "", key, f"has a key that {problem}"
        yield f"[{key[:40]!r}]", value, None


def _problem(value: Any) -> str | None:
    """Say why *value*, which has no parts, cannot be kept, or return `None`."""
    kind = type(value)
    try:
        if kind is str:
            value.encode()
        elif kind in _SCALARS:
            _SCALARS[kind].dump(value)
    except UnicodeEncodeError:
        return "holds a lone surrogate, which is not text"
    except ValueError as error:
        return str(error)
    if kind is int and not -_MAX_INT <= value + 1 <= _MAX_INT + 1:
        return "is beyond the integers of signed 64 bit"
    if kind is float and not isfinite(value):
        return "is not a finite number"
    if value is None or kind in _SCALARS or kind in {str, bool, int, float, bytes}:
        return None
    for known in (*_BOXES, *_SCALARS, str, int, float, bytes):
        if isinstance(value, known):
            return f"is of type {kind.__qualname__}; {known.__name__} itself can be kept, its subclasses cannot"
    return f"is of type {kind.__qualname__}, which a session cannot keep"


# --- documents --------------------------------------------------------------------------------------------------------


def to_document(state: dict[str, Any]) -> dict[str, Any]:
    """Return *state*, which is as `decode_state` gives it, as a fresh dict for `json.dumps(allow_nan=False)`."""
    return {_escape(key, {RESERVED}): _tag(value) for key, value in state.items()}


def from_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fresh dict of the values of *document*; a JSON-like dict that has no tags comes back as it is.

    Values that a session cannot hold are passed on, for `encode_state` to refuse. Raises: UndecodableError.
    """
    count_up = count().__next__
    items = document.items()
    return {_unescape(key, {RESERVED}): _untag(value, 2, count_up) for key, value in items if key != RESERVED}


def _escape(key: str, names: Set[str]) -> str:
    """Put one more `$` before a key that is one of *names*, or was made from one by escaping."""
    return f"${key}" if key[:1] == "$" and f"${key.lstrip('$')}" in names else key


def _unescape(key: str, names: Set[str]) -> str:
    return key[1:] if type(key) is str and key[:2] == "$$" and f"${key.lstrip('$')}" in names else key


def _tag(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        if len(value) == 1:
            ((key, only),) = value.items()
            return {_escape(key, _TAGS): _tag(only)}
        return {key: _tag(part) for key, part in value.items()}
    if kind is list:
        return [_tag(part) for part in value]
    if kind in _MARKERS:
        return {f"${kind.__name__}": [_tag(part) for part in value]}
    if kind is bytes:
        return {"$bytes": b64encode(value).decode("ascii")}
    if kind in _SCALARS:
        return {f"${_SCALARS[kind].name}": _SCALARS[kind].dump(value)}
    return value


def _untag(value: Any, depth: int, count_up: Callable[[], int]) -> Any:
    """Return what *value* stands for. Bounded in depth and number: a driver may hand out aliases, as YAML does."""
    kind = type(value)
    if kind in _PLAIN:
        return value
    if kind is not dict and kind is not list and not isinstance(value, dict | list):
        return _to_exact(value)
    if depth > MAX_DEPTH or count_up() > MAX_DOCUMENT_BOXES:
        raise UndecodableError(f"the document is nested deeper than {MAX_DEPTH} levels, or endless")
    if isinstance(value, list):
        return [_untag(part, depth + 1, count_up) for part in value]
    if len(value) == 1:
        ((key, only),) = value.items()
        if key in _TAGS:
            return _untag_one(key, only, depth, count_up)
        return {_unescape(key, _TAGS): _untag(only, depth + 1, count_up)}
    return {key: _untag(part, depth + 1, count_up) for key, part in value.items()}


_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_EXACT: Final[dict[type, Callable[[Any], Any]]] = {int: int.__int__, float: float.__float__, str: str.__str__}


def _to_exact(value: Any) -> Any:
    """Return a number or string of a driver's own type, such as pymongo's `Int64`, as what it stands for."""
    return next((convert(value) for kind, convert in _EXACT.items() if isinstance(value, kind)), value)


def _untag_one(tag: str, payload: Any, depth: int, count_up: Callable[[], int]) -> Any:
    try:
        if tag in _GROUP_BY_TAG:
            if not isinstance(payload, list):
                raise TypeError("needs a list")
            return _GROUP_BY_TAG[tag](_untag(payload, depth, count_up))
        if not isinstance(payload, str):
            raise TypeError("needs a string")
        return b64decode(payload, validate=True) if tag == "$bytes" else _SCALAR_BY_TAG[tag].load(payload)
    except _MALFORMED as error:
        raise UndecodableError(f"malformed {tag}: {error}") from None
