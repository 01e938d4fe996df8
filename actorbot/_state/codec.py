"""A session's values as bytes: one msgpack map, checked and bounded. Only here is msgpack imported.

msgpack has no tuples, sets, dates and so on. A state that holds one is *extended*: it begins with
the byte 0xC1, which msgpack never uses. In it, a tuple or set is an array whose first element is a
marker. The other types are msgpack extensions that hold text. (Why markers: with extensions in each
other, one `unpackb`, with 40 KB of C stack, would run inside another.)
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from decimal import Decimal
from math import isfinite
from sys import getrefcount
from typing import Any, Final

from msgpack import ExtType, Packer, packb, unpackb

from actorbot._state.refusal import explain
from actorbot._state.values import BOXES, GROUPS, MALFORMED, MAX_DEPTH, MAX_INT, SCALARS, UndecodableError
from actorbot.errors import SessionTooLargeError

__all__ = ["decode_state", "encode_plain", "encode_state", "is_nobody_elses", "pack_fields", "unpack_fields"]

_EXTENDED: Final = 0xC1
_JOINED: Final = 16
_join: Final = "".join
# Bytes that a packer starts with; it grows. Its default of 256 KB takes longer to get than a state
# takes to pack.
_BUFFER: Final = 4096

_MARKERS: Final = {group: ExtType(code, b"") for group, code in GROUPS.items()}
_GROUP_BY_CODE: Final = {code: group for group, code in GROUPS.items()}
_SCALAR_BY_CODE: Final = {scalar.code: scalar for scalar in SCALARS.values()}


class _Packers(threading.local):
    """A packer for each thread: threads that share one mix their bytes. `packb` is half as fast."""

    def __init__(self) -> None:
        self.pack: Callable[[object], bytes] = Packer(strict_types=True, buf_size=_BUFFER).pack


_packers: Final = _Packers()


def encode_plain(state: dict[str, Any], max_bytes: int) -> bytes | None:
    """Return what `encode_state` returns, faster, for a *state* of text, ints and lists of text.

    `None` for any other state, and for one that has to be refused. Most sessions hold only text,
    ints and lists of text: their check takes 230 ns instead of 410.
    """
    if not _is_plain(state, max_bytes):
        return None
    try:
        data = _packers.pack(state)
    except (OverflowError, RuntimeError, TypeError, ValueError):
        return None
    return data if len(data) <= max_bytes else None


def is_nobody_elses(state: dict[str, Any]) -> bool:
    """Tell whether only the caller's one variable refers to *state*, and only *state* to its lists.

    `encode_plain` has taken the *state*. If this is true, nobody else holds a part of the state and
    could change it. So the state stays equal to what its bytes would decode to.
    """
    if getrefcount(state) > _OF_STATE:
        return False
    for value in state.values():  # noqa: SIM110  # on the path of every event
        if type(value) is list and getrefcount(value) > _OF_LIST:
            return False
    return True


def encode_state(state: dict[str, Any], max_bytes: int) -> bytes:
    """Return *state* as bytes, at most *max_bytes* of them.

    Raises: NotEncodableError, SessionTooLargeError; both say where.
    """
    try:
        if not _scan(state, max_bytes):
            data: bytes = _packers.pack(state)
        else:
            data = b"\xc1" + packb(state, default=_pack_extension, strict_types=True, buf_size=_BUFFER)
    except RecursionError:
        raise  # the stack is full, whatever the state is
    except (OverflowError, RuntimeError, TypeError, ValueError) as error:
        raise explain(state, max_bytes, error) from None
    if len(data) > max_bytes:
        raise SessionTooLargeError(
            "session",
            f"takes {len(data)} bytes, more than the {max_bytes} allowed (max_session_bytes)",
            limit=max_bytes,
        )
    return data


def decode_state(data: bytes, trusted: bool = False) -> dict[str, Any]:
    """Return the values in *data*, checked to be such as `encode_state` takes.

    If *trusted*, they are not checked, which saves half of the time. Trusted are bytes that this
    process has encoded, or has decoded before. If a map has a key twice, the last one counts, and
    no error is raised: to notice it would cost a Python call for each map.

    Raises: UndecodableError. For bytes that are not trusted, nothing else is raised.
    """
    try:
        extended = data and data[0] == _EXTENDED
        state = unpackb(data[1:], ext_hook=_unpack_extension, list_hook=_regroup) if extended else unpackb(data)
    except MALFORMED as error:
        raise UndecodableError(f"malformed: {_text(error)}") from None
    if trusted:
        return state  # type: ignore[no-any-return]
    if type(state) is not dict:
        raise UndecodableError(f"a session is a map, not {type(state).__name__}")
    try:
        _scan(state, len(data))
    except (TypeError, ValueError) as error:
        raise UndecodableError(str(explain(state, len(data), error))) from None
    return state


def pack_fields(value: object) -> bytes:
    """Return *value*, made of plain values, as msgpack, unchecked: for the frame of a record."""
    return _packers.pack(value)


def unpack_fields(data: bytes) -> Any:
    """Return what `pack_fields` packed, or what else *data* holds. Raises: UndecodableError."""
    try:
        return unpackb(data)
    except ValueError as error:
        raise UndecodableError(f"malformed: {_text(error)}") from None


def _text(error: Exception) -> str:
    return str(error) or type(error).__name__


def _pack_extension(value: object) -> object:
    """Return something that msgpack knows, in place of *value*. The packer calls this."""
    kind = type(value)
    if kind in _MARKERS:
        return [_MARKERS[kind], *value]  # type: ignore[misc]
    scalar = SCALARS.get(kind)
    if scalar is None:
        raise TypeError(kind)
    return ExtType(scalar.code, scalar.dump(value).encode())


def _unpack_extension(code: int, payload: bytes) -> object:
    if code in _GROUP_BY_CODE and not payload:
        # The type itself is the marker. No session can hold a type, so a marker elsewhere is found.
        return _GROUP_BY_CODE[code]
    scalar = _SCALAR_BY_CODE.get(code)
    if scalar is None:
        raise ValueError(f"unknown extension type {code}")
    return scalar.load(payload.decode())


def _regroup(items: list[Any]) -> object:
    return items.pop(0)(items) if items and type(items[0]) is type else items


def _count_references() -> tuple[int, int]:
    """Return what `getrefcount` says in `is_nobody_elses`; interpreters differ."""

    def count(state: dict[str, Any]) -> tuple[int, int]:
        of_state, of_list = getrefcount(state), 0
        for value in state.values():
            of_list = getrefcount(value)
        return of_state, of_list

    state: dict[str, Any] = {"list": []}
    return count(state)


_OF_STATE, _OF_LIST = _count_references()


# --- the check ----------------------------------------------------------------------------------


def _is_plain(state: dict[str, Any], budget: int) -> bool:
    """Tell quickly whether *state* can be packed as it is; `False` if only `_scan` can say."""
    for key, value in state.items():
        kind = type(value)
        if type(key) is not str:
            return False
        if kind is str:
            budget -= len(value)
        elif kind is list:
            if value and (type(value[0]) is not str or len(value) > _JOINED):
                return False
            try:
                budget -= len(_join(value))
            except TypeError:
                return False
        elif kind is int:
            if value > MAX_INT:
                return False
        elif kind is not bool and value is not None:
            return False
        budget -= len(key)
    return budget >= 0


def _scan(state: dict[str, Any], budget: int) -> bool:
    """Check that *state* can be packed within bounds; tell whether it must be extended.

    It is on the path of every event. It goes breadth first and does not recurse, so that a state
    nested very deeply does no harm. An element takes at least a byte, and a string at least its
    length: *budget* counts those, which ends cycles, and lists of lists of the same lists. Left to
    the packer: subclasses of `str` after the first element of a list, lone surrogates, ints below
    the range.

    Raises: SessionTooLargeError; TypeError or ValueError without a path, which `explain` finds.
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
                if value > MAX_INT:
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
        raise SessionTooLargeError(
            "session", f"takes more than the {limit} bytes allowed (max_session_bytes)", limit=limit
        )
    # Fewer boxes cannot be deeper. Lists of strings are not among them.
    if len(boxes) >= MAX_DEPTH and _is_deep(state):
        raise SessionTooLargeError("session", f"is nested deeper than {MAX_DEPTH} levels", limit=MAX_DEPTH)
    return extended


def _strings(texts: list[Any], budget: int, boxes: list[Any]) -> int:
    """Return the length of a list of strings, as fast as `join`; other lists go to *boxes*.

    Joined in slices: if a list has the same megabyte a thousand times, it is refused after sixteen.
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
    """Return the least number of bytes that a value of a rarer type takes, besides one.

    Tuples and sets go to *boxes*.
    """
    if kind is bytes:
        return len(value)
    if kind is Decimal:
        return len(value.as_tuple().digits)
    if kind in _MARKERS:
        boxes.append(value)
    elif kind is float:
        if not isfinite(value):
            raise ValueError(value)
    elif kind not in SCALARS:
        raise TypeError(kind)
    return 0


def _is_deep(state: dict[str, Any]) -> bool:
    level: list[Any] = [state]
    for _ in range(MAX_DEPTH):
        parts = (value for box in level for value in (box.values() if isinstance(box, dict) else box))
        level = [value for value in parts if type(value) in BOXES]
        if not level:
            return False
    return True
