"""A session's values as a JSON-safe document.

What JSON lacks is tagged: `{"$tuple": [...]}`, `{"$date": "2017-05-01"}`.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Callable, Mapping, Set
from itertools import count
from typing import Any, Final

from actorbot._state.values import GROUPS, MALFORMED, MAX_DEPTH, SCALARS, UndecodableError

__all__ = ["RESERVED", "from_document", "to_document"]

RESERVED: Final = "$actorbot"
"""The key of a document for all that is no value of the session.

A session's own key of this name is escaped.
"""

MAX_DOCUMENT_BOXES: Final = 1_000_000

_SCALAR_BY_TAG: Final = {f"${scalar.name}": scalar for scalar in SCALARS.values()}
_GROUP_BY_TAG: Final[dict[str, type]] = {f"${group.__name__}": group for group in GROUPS}
_TAGS: Final = frozenset({"$bytes", *_SCALAR_BY_TAG, *_GROUP_BY_TAG})
_PLAIN: Final = frozenset({str, int, float, bool, type(None)})
_EXACT: Final[dict[type, Callable[[Any], Any]]] = {int: int.__int__, float: float.__float__, str: str.__str__}


def to_document(state: dict[str, Any]) -> dict[str, Any]:
    """Return *state*, as decoded, as a fresh dict for `json.dumps(allow_nan=False)`."""
    return {_escape(key, {RESERVED}): _tag(value) for key, value in state.items()}


def from_document(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return a fresh dict of the values of *document*. Without tags, they come back as they are.

    Values that a session cannot hold are passed on: `encode_state` refuses them.

    Raises: UndecodableError.
    """
    count_up = count().__next__
    items = document.items()
    return {_unescape(key, {RESERVED}): _untag(value, 2, count_up) for key, value in items if key != RESERVED}


def _escape(key: str, names: Set[str]) -> str:
    """Put one more `$` before a key that is one of *names*, even if it has more `$` already."""
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
    if kind in GROUPS:
        return {f"${kind.__name__}": [_tag(part) for part in value]}
    if kind is bytes:
        return {"$bytes": b64encode(value).decode("ascii")}
    if kind in SCALARS:
        return {f"${SCALARS[kind].name}": SCALARS[kind].dump(value)}
    return value


def _untag(value: Any, depth: int, count_up: Callable[[], int]) -> Any:
    """Return what *value* stands for.

    Depth and number are bounded: a driver may give the same list in many places, as YAML can.
    """
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


def _to_exact(value: Any) -> Any:
    """Return a number or text of a driver's own type, such as pymongo's `Int64`, as a plain one."""
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
    except MALFORMED as error:
        raise UndecodableError(f"malformed {tag}: {error}") from None
