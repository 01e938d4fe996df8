"""The annotations of a dataclass, as functions that check values and convert them.

A value comes back equal and of the same type, or its annotation is refused when the manager is
made.
"""

from __future__ import annotations

import dataclasses
from datetime import date, datetime, timedelta
from decimal import Decimal
from enum import Enum
from types import NoneType
from typing import Any, Final, Literal, get_args, get_origin, get_type_hints, is_typeddict
from uuid import UUID

from actorbot._state.fields import Convert, MismatchError, expect, from_dataclass, has_own_code, to_dataclass
from actorbot._state.unions import TAG, AmbiguousError, dataclass_of, needs_tags, options_of
from actorbot.errors import ConfigError

__all__ = ["Converter"]

_LEAVES: Final = frozenset({str, int, bool, float, bytes, NoneType, datetime, date, timedelta, UUID, Decimal})
_LITERALS: Final = frozenset({str, int, bool, bytes, NoneType})
_GROUPS: Final = frozenset({list, tuple, set, frozenset})


class Tags(Enum):
    """What tells a dataclass from the others that may stand in its place; see `unions`."""

    NONE = "nothing: it stands alone"
    WRITTEN = "its name, or all of its fields' names"
    MISSING = "its fields' names, perhaps without some: it was written before there were tags"


class Converter:
    """The annotations of a dataclass, as functions for loading or for dumping; built once.

    The one for dumping is made with the one for loading.
    """

    def __init__(self, root: type, loader: Converter | None = None) -> None:
        self._loader = loader
        self._known: dict[type, Convert] = {}
        self._root_name = root.__qualname__
        self._field = ""  # the one that is built, for errors
        self.root = self._dataclass(root)
        self.has_own_code = any(map(has_own_code, self._known))

    def _refuse(self, expected: str) -> ConfigError:
        return ConfigError("session_type", self._root_name, f"{expected} (in the field {self._field})")

    def _build(self, hint: Any, tags: Tags) -> Convert:
        hint = NoneType if hint is None else hint
        origin, args = get_origin(hint), get_args(hint)
        if hint in (Any, object):
            return _anything
        if len(options_of(hint)) > 1:
            return self._union(hint, args, tags)
        if origin is Literal:
            return self._literal(args)
        kind = origin or hint
        if kind is dict:
            return self._dict(args, tags)
        if kind in _GROUPS:
            fixed = kind is tuple and args and args[-1] is not ...
            return self._tuple(args, tags) if fixed else self._group(kind, args, tags)
        if kind in _LEAVES:
            return _leaf(kind)
        if (known := dataclass_of(hint)) is not None:
            return self._tagged(known, tags)
        raise self._refuse(f"annotations of what a session can keep, not {hint!r}{_instead(kind)}")

    def _union(self, hint: Any, args: tuple[Any, ...], tags: Tags) -> Convert:
        hints = [arg for arg in args if arg is not NoneType]
        optional = NoneType in args
        try:
            needed = tags is not Tags.NONE or needs_tags(hints)
        except AmbiguousError as error:
            raise self._refuse(str(error)) from None
        ways = [tags] if not needed or tags is Tags.WRITTEN else [Tags.WRITTEN]
        if needed and self._loader is None and tags is not Tags.WRITTEN:
            ways.append(Tags.MISSING)
        options = [self._build(arg, way) for way in ways for arg in hints]
        classes = {found: self._tagged(found, ways[0]) for arg in hints if (found := dataclass_of(arg)) is not None}
        by_name = {kind.__name__: convert for kind, convert in classes.items()}
        alone = len(hints) == 1

        def convert(value: Any, depth: int) -> Any:
            if value is None and optional:
                return None
            # Its error says more precisely where.
            if (one := classes.get(type(value)) or by_name.get(_tag_of(value))) is not None:
                return one(value, depth)
            for option in options:
                try:
                    return option(value, depth)
                except MismatchError as error:
                    if alone and (error.path or error.cause):
                        raise
            raise MismatchError(f"expected {hint}, found {_name_of(value)}")

        return convert

    def _dict(self, args: tuple[Any, ...], tags: Tags) -> Convert:
        if args and args[0] is not str:
            raise self._refuse("dicts with keys of type str")
        item = self._build(args[1], tags) if args else _anything

        def convert(value: Any, depth: int) -> Any:
            expect(dict, value, depth)
            if item is _anything:
                return value
            converted = {}
            try:
                for key, part in value.items():
                    converted[key] = item(part, depth + 1)
            except MismatchError as error:
                raise error.inside(f"[{key!r}]") from None
            return converted

        return convert

    def _group(self, kind: type, args: tuple[Any, ...], tags: Tags) -> Convert:
        item = self._build(args[0], tags) if args else _anything

        def convert(value: Any, depth: int) -> Any:
            expect(kind, value, depth)
            if item is _anything:
                return value
            parts: list[Any] = []
            try:
                for part in value:
                    parts.append(item(part, depth + 1))  # noqa: PERF401  # its length says where an error is
            except MismatchError as error:
                raise error.inside(f"[{len(parts)}]") from None
            try:
                return parts if kind is list else kind(parts)
            except TypeError as error:  # a set of dataclasses, which are stored as dicts
                raise MismatchError(str(error)) from error

        return convert

    def _tuple(self, args: tuple[Any, ...], tags: Tags) -> Convert:
        items = [self._build(arg, tags) for arg in args]

        def convert(value: Any, depth: int) -> Any:
            expect(tuple, value, depth)
            if len(value) != len(items):
                raise MismatchError(f"expected {len(items)} items, found {len(value)}")
            parts: list[Any] = []
            try:
                for item, part in zip(items, value, strict=True):
                    parts.append(item(part, depth + 1))
            except MismatchError as error:
                raise error.inside(f"[{len(parts)}]") from None
            return tuple(parts)

        return convert

    def _literal(self, options: tuple[Any, ...]) -> Convert:
        for option in options:
            if type(option) not in _LITERALS:
                raise self._refuse(f"a Literal of text, numbers or bytes, not of {option!r}")

        def convert(value: Any, depth: int) -> Any:
            if any(type(value) is type(option) and value == option for option in options):
                return value
            raise MismatchError(f"expected one of {options}, found another {_name_of(value)}")

        return convert

    def _tagged(self, kind: type, tags: Tags) -> Convert:
        convert = self._dataclass(kind)
        if tags is Tags.NONE:
            return convert
        name = kind.__name__
        if self._loader is not None:
            return lambda value, depth: {TAG: name, **convert(value, depth)}
        names = {field.name for field in dataclasses.fields(kind)}

        def told_apart(value: Any, depth: int) -> Any:
            if tags is Tags.WRITTEN and type(value) is dict and TAG not in value and value.keys() != names:
                raise MismatchError(f"these are not the fields of {name}")
            return convert(value, depth)

        return told_apart

    def _dataclass(self, kind: type) -> Convert:
        if kind in self._known:
            return self._later(kind)
        self._known[kind] = _anything  # until it is built: a dataclass may have itself in a field
        try:
            hints = get_type_hints(kind)
        except (AttributeError, NameError, TypeError) as error:
            raise ConfigError("session_type", self._root_name, f"annotations that can be resolved ({error})") from error
        outer, fields = self._field, {}
        for field in dataclasses.fields(kind):
            self._field = f"{kind.__name__}.{field.name}"
            fields[field.name] = self._build(hints[field.name], Tags.NONE)
        self._field = outer
        if self._loader is None:
            self._known[kind] = to_dataclass(kind, fields)
        else:
            self._known[kind] = from_dataclass(kind, fields, self._loader._known[kind])
        return self._known[kind]

    def _later(self, kind: type) -> Convert:
        def convert(value: Any, depth: int) -> Any:
            return self._known[kind](value, depth)

        return convert


def _anything(value: Any, depth: int) -> Any:
    return value


def _leaf(kind: type) -> Convert:
    # An int is a float too, as it is for type checkers: PEP 484's numeric tower.
    kinds = frozenset({float, int} if kind is float else {kind})

    def convert(value: Any, depth: int) -> Any:
        if type(value) in kinds:
            return value
        raise MismatchError(f"expected {kind.__name__}, found {type(value).__name__}")

    return convert


def _tag_of(value: Any) -> str:
    """Return the name of the dataclass that a stored *value* is of, or nothing."""
    name = value.get(TAG) if type(value) is dict else None
    return name if type(name) is str else ""


def _name_of(value: Any) -> str:
    return _tag_of(value) or type(value).__name__


def _instead(kind: Any) -> str:
    """Say what to write in place of *kind*, which no session keeps."""
    if not isinstance(kind, type):
        return ""
    if issubclass(kind, Enum):
        return ": keep the member's value, and annotate it with its type or a Literal"
    if is_typeddict(kind):
        return ": write dict[str, Any], or a dataclass"
    if issubclass(kind, tuple):
        return ": write tuple[…], or a dataclass"
    parent = next((known for known in kind.__mro__ if known in _LEAVES or known in _GROUPS or known is dict), None)
    return "" if parent is None else f": write {parent.__name__}"
