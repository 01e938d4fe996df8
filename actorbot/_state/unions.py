"""Which alternatives of an annotation look alike once they are stored, and how they are told apart.

A dataclass is stored as a dict of its fields. So a stored `A | B` could be either. There, a dict
begins with the key `$type` and the name of its class. No field can have that name.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from types import UnionType
from typing import Any, Final, NamedTuple, Union, get_args, get_origin

__all__ = ["TAG", "AmbiguousError", "dataclass_of", "needs_tags", "options_of"]

TAG: Final = "$type"

_GROUPS: Final = frozenset({list, tuple, set, frozenset})
_Place = tuple[type, ...]
"""The boxes around a value, from the outside in."""


class AmbiguousError(Exception):
    """Two alternatives cannot be told apart; says what to write instead."""


def dataclass_of(hint: Any) -> type | None:
    """Return the dataclass that *hint* names, if it names one: `Item`, or `Item[int]`."""
    kind = get_origin(hint) or hint
    return kind if isinstance(kind, type) and dataclasses.is_dataclass(kind) else None


def options_of(hint: Any) -> tuple[Any, ...]:
    """Return the alternatives of a union; of any other *hint* itself."""
    return get_args(hint) if get_origin(hint) in (Union, UnionType) else (hint,)


def needs_tags(hints: Sequence[Any]) -> bool:
    """Tell whether dataclasses in these alternatives need their names in the store.

    They do if two of them may stand in the same place. All other values are stored as they are, so
    that each comes back as what it was. Raises: AmbiguousError.
    """
    found = [_Found(number, place, what) for number, hint in enumerate(hints) for place, what in _reach(hint, ())]
    classes = [one for one in found if dataclass_of(one.what)]
    needed = False
    for one in classes:
        kind, others = one.what, list(_alike(one, found))
        if dict in others:
            raise AmbiguousError(f"a dataclass in place of dict: beside {kind.__name__}, both are dicts in the store")
        if Any in others:
            raise AmbiguousError(f"the types that it can be in place of Any, beside {kind.__name__}")
        needed = needed or any(other is not kind for other in others)
    names: dict[str, type] = {}
    for one in classes if needed else ():
        if names.setdefault(one.what.__name__, one.what) is not one.what:
            raise AmbiguousError(f"another name for one of the two dataclasses that are called {one.what.__name__}")
    return needed


class _Found(NamedTuple):
    number: int
    """Of the alternative that it is, or is in."""
    place: _Place
    what: Any


def _alike(one: _Found, found: list[_Found]) -> Iterator[Any]:
    """Yield what the other alternatives have in the place of the dataclass *one*."""
    for other in found:
        is_there = other.place == one.place[: len(other.place)] if other.what is Any else other.place == one.place
        if is_there and other.number != one.number:
            yield other.what


def _reach(hint: Any, place: _Place) -> Iterator[tuple[_Place, Any]]:
    """Yield the dataclasses, dicts and Any that a value may be or hold, each with its place.

    Not what the fields of a dataclass hold: its name decides about those.
    """
    for option in options_of(hint):
        kind, args = get_origin(option) or option, get_args(option)
        if option is Any or option is object:
            yield place, Any
        elif (found := dataclass_of(option)) is not None:
            yield place, found
        elif kind is dict or kind in _GROUPS:
            if kind is dict:
                yield place, dict
            for part in (args[1:] if kind is dict else args) or (Any,):
                if part is not ...:
                    yield from _reach(part, (*place, kind))
