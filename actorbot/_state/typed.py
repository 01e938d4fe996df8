"""What `context.session` is: a dict, or a dataclass of the bot's author.

The values of a dataclass are checked when they are loaded and when they are stored.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from datetime import date, datetime, timedelta
from decimal import Decimal
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, Final, Literal, TypeAlias, Union, get_args, get_origin, get_type_hints
from uuid import UUID

from actorbot._state.values import MAX_DEPTH, UndecodableError
from actorbot.errors import ConfigError, NotEncodableError, SessionTooLargeError

__all__ = ["Session", "SessionShape"]


# During a turn, a session's values are a dict, to be changed in place, also deep inside. (A class
# of our own would have to be copied from and to the dict that the codec knows. That takes a
# twentieth of an event's time.)
if TYPE_CHECKING:
    Session: TypeAlias = dict[str, Any]
else:
    Session = dict


class SessionShape:
    """How a session's values become a dataclass of the author's, `session_type=`, and go back.

    `load` makes of decoded values (`{}` for a new session) what a handler sees; `dump` does the
    reverse. Each runs once per turn. Both check the values against the annotations: a value that
    `dump` let through and `load` refused would be lost. All fields need defaults, for new sessions.

    `load` raises UndecodableError, `dump` NotEncodableError or SessionTooLargeError. All name the
    field.
    """

    def __init__(self, session_type: object) -> None:
        """Raises: ConfigError."""
        if not isinstance(session_type, type) or not dataclasses.is_dataclass(session_type):
            raise ConfigError("session_type", session_type, "dict or a dataclass")
        for field in dataclasses.fields(session_type):
            if field.default is field.default_factory is dataclasses.MISSING:
                raise ConfigError("session_type", session_type, f"a default for the field {field.name!r}, as for all")
        self._loader, self._dumper = (_Converter(session_type, loading=loading) for loading in (True, False))

    def load(self, values: dict[str, Any]) -> Any:
        try:
            return self._loader.root(values, 1)
        except _MismatchError as error:
            raise UndecodableError(f"session{error.path}: {error.reason}") from None

    def dump(self, session: Any) -> dict[str, Any]:
        try:
            return self._dumper.root(session, 1)  # type: ignore[no-any-return]
        except _MismatchError as error:
            raise NotEncodableError(f"session{error.path}", error.reason) from None


class _MismatchError(Exception):
    """A value is not what its annotation says; `path` grows while the error rises."""

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
        self.path = ""

    def inside(self, label: str) -> _MismatchError:
        self.path = label + self.path
        return self


_Convert = Callable[[Any, int], Any]
"""Checks a value at a depth, and returns it with dataclasses in place of dicts, or the reverse."""

_LEAVES: Final = frozenset({str, int, bool, float, bytes, NoneType, datetime, date, timedelta, UUID, Decimal})
_GROUPS: Final = frozenset({list, tuple, set, frozenset})


class _Converter:
    """The annotations of a dataclass, as functions for loading or for dumping; built once."""

    def __init__(self, root: type, *, loading: bool) -> None:
        self._loading = loading
        self._known: dict[type, _Convert] = {}
        self._root_name = root.__qualname__
        self.root = self._dataclass(root)

    def _build(self, hint: Any) -> _Convert:
        hint = NoneType if hint is None else hint
        origin, args = get_origin(hint), get_args(hint)
        if hint in (Any, object):
            return _anything
        if origin is Union or origin is UnionType:
            return self._union(hint, args)
        if origin is Literal:
            return _literal(args)
        kind = origin or hint
        if kind is dict:
            return self._dict(args)
        if kind in _GROUPS:
            return self._tuple(args) if kind is tuple and args and args[-1] is not ... else self._group(kind, args)
        if kind in _LEAVES:
            return _leaf(kind)
        if isinstance(kind, type) and dataclasses.is_dataclass(kind):
            return self._dataclass(kind)
        raise ConfigError("session_type", self._root_name, f"annotations of what a session can keep, not {hint!r}")

    def _union(self, hint: Any, args: tuple[Any, ...]) -> _Convert:
        options = [self._build(arg) for arg in args if arg is not NoneType]
        optional = NoneType in args

        def convert(value: Any, depth: int) -> Any:
            if value is None and optional:
                return None
            for option in options:
                try:
                    return option(value, depth)
                except _MismatchError as error:
                    if error.path and len(options) == 1:
                        raise  # there is one type only, and its error says more precisely where
            raise _MismatchError(f"expected {hint}, found {type(value).__name__}")

        return convert

    def _dict(self, args: tuple[Any, ...]) -> _Convert:
        if args and args[0] is not str:
            raise ConfigError("session_type", self._root_name, "dicts with keys of type str")
        item = self._build(args[1]) if args else _anything

        def convert(value: Any, depth: int) -> Any:
            _expect(dict, value, depth)
            if item is _anything:
                return value
            converted = {}
            try:
                for key, part in value.items():
                    converted[key] = item(part, depth + 1)
            except _MismatchError as error:
                raise error.inside(f"[{key!r}]") from None
            return converted

        return convert

    def _group(self, kind: type, args: tuple[Any, ...]) -> _Convert:
        item = self._build(args[0]) if args else _anything

        def convert(value: Any, depth: int) -> Any:
            _expect(kind, value, depth)
            if item is _anything:
                return value
            parts: list[Any] = []
            try:
                for part in value:
                    parts.append(item(part, depth + 1))  # noqa: PERF401  # its length says where an error is
            except _MismatchError as error:
                raise error.inside(f"[{len(parts)}]") from None
            try:
                return parts if kind is list else kind(parts)
            except TypeError as error:  # a set of dataclasses, which are stored as dicts
                raise _MismatchError(str(error)) from error

        return convert

    def _tuple(self, args: tuple[Any, ...]) -> _Convert:
        items = [self._build(arg) for arg in args]

        def convert(value: Any, depth: int) -> Any:
            _expect(tuple, value, depth)
            if len(value) != len(items):
                raise _MismatchError(f"expected {len(items)} items, found {len(value)}")
            parts: list[Any] = []
            try:
                for item, part in zip(items, value, strict=True):
                    parts.append(item(part, depth + 1))
            except _MismatchError as error:
                raise error.inside(f"[{len(parts)}]") from None
            return tuple(parts)

        return convert

    def _dataclass(self, kind: type) -> _Convert:
        if kind in self._known:
            return self._later(kind)
        self._known[kind] = _anything  # until it is built: a dataclass may have itself in a field
        try:
            hints = get_type_hints(kind)
        except (AttributeError, NameError, TypeError) as error:
            raise ConfigError("session_type", self._root_name, f"annotations that can be resolved ({error})") from error
        fields = {field.name: self._build(hints[field.name]) for field in dataclasses.fields(kind)}
        self._known[kind] = _to_dataclass(kind, fields) if self._loading else _from_dataclass(kind, fields)
        return self._known[kind]

    def _later(self, kind: type) -> _Convert:
        def convert(value: Any, depth: int) -> Any:
            return self._known[kind](value, depth)

        return convert


def _expect(kind: type, value: Any, depth: int) -> None:
    if type(value) is not kind:
        raise _MismatchError(f"expected {kind.__name__}, found {type(value).__name__}")
    if depth > MAX_DEPTH:
        reason = f"is nested deeper than {MAX_DEPTH} levels, or a cycle"
        raise SessionTooLargeError("session", reason, limit=MAX_DEPTH)


def _anything(value: Any, depth: int) -> Any:
    return value


def _leaf(kind: type) -> _Convert:
    # An int is a float too, as it is for type checkers: PEP 484's numeric tower.
    kinds = frozenset({float, int} if kind is float else {kind})

    def convert(value: Any, depth: int) -> Any:
        if type(value) in kinds:
            return value
        raise _MismatchError(f"expected {kind.__name__}, found {type(value).__name__}")

    return convert


def _literal(options: tuple[Any, ...]) -> _Convert:
    def convert(value: Any, depth: int) -> Any:
        if any(type(value) is type(option) and value == option for option in options):
            return value
        raise _MismatchError(f"expected one of {options}, found another {type(value).__name__}")

    return convert


def _to_dataclass(kind: type, fields: dict[str, _Convert]) -> _Convert:
    init = {field.name for field in dataclasses.fields(kind) if field.init}

    def convert(value: Any, depth: int) -> Any:
        _expect(dict, value, depth)
        values = {}
        unknown = value.keys() - fields.keys()
        if unknown:
            raise _MismatchError(f"{kind.__name__} has no field {min(unknown)!r}")
        try:
            for name, part in value.items():
                values[name] = fields[name](part, depth + 1)
        except _MismatchError as error:
            raise error.inside(f".{name}") from None
        try:
            made = kind(**{name: part for name, part in values.items() if name in init})
        except (
            TypeError,
            ValueError,
        ) as error:  # a nested dataclass without its fields, or a __post_init__ that refuses
            raise _MismatchError(str(error)) from error
        for name in values.keys() - init:
            object.__setattr__(made, name, values[name])
        return made

    return convert


def _from_dataclass(kind: type, fields: dict[str, _Convert]) -> _Convert:
    def convert(value: Any, depth: int) -> Any:
        _expect(kind, value, depth)
        values = {}
        try:
            for name, item in fields.items():
                values[name] = item(getattr(value, name), depth + 1)
        except _MismatchError as error:
            raise error.inside(f".{name}") from None
        return values

    return convert
