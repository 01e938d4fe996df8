"""What `context.session` is: a dict, or a dataclass of the author's that is checked when it is loaded."""

from __future__ import annotations

import dataclasses
import types
from collections.abc import Callable
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from actorbot._codec import UndecodableError
from actorbot.errors import ConfigError

__all__ = ["Session", "SessionShape"]


class Session(dict[str, Any]):
    """A session's values during a turn: a dict, changed in place, also deep inside."""

    __slots__ = ()


class SessionShape:
    """How the values of a session are handed to the author: `session_type`.

    `load` makes what a handler sees of decoded values, `dump` the reverse; both are called once per turn.
    """

    load: Callable[[dict[str, Any]], Any]
    dump: Callable[[Any], dict[str, Any]]

    def __init__(self, session_type: type) -> None:
        if session_type is dict:
            self.load, self.dump = Session, _same
            return
        if not (dataclasses.is_dataclass(session_type)):
            raise ConfigError("session_type", session_type, "dict or a dataclass")
        try:
            session_type()
        except TypeError:
            raise ConfigError("session_type", session_type, "a dataclass whose fields all have defaults") from None
        self.load = lambda values: _load(session_type, values, session_type.__name__)
        self.dump = _dump


def _same(session: dict[str, Any]) -> dict[str, Any]:
    return session


def _dump(value: Any) -> dict[str, Any]:
    return {
        name: _dump(inner) if dataclasses.is_dataclass(inner) and not isinstance(inner, type) else inner
        for name, inner in ((field.name, getattr(value, field.name)) for field in dataclasses.fields(value))
    }


def _load(kind: type, values: Any, where: str) -> Any:
    if not isinstance(values, dict):
        raise UndecodableError(f"{where}: expected the fields of a {kind.__name__}, found {type(values).__name__}")
    hints = get_type_hints(kind)
    names = {field.name for field in dataclasses.fields(kind)}
    if unknown := values.keys() - names:
        raise UndecodableError(f"{where} has no field {min(unknown)!r}")
    return kind(**{name: _fit(hints[name], value, f"{where}.{name}") for name, value in values.items()})


def _fit(hint: Any, value: Any, where: str) -> Any:
    """Return *value* if it is what *hint* says, a dataclass where that is wanted. Raises: UndecodableError."""
    if hint is Any:
        return value
    origin: Any = get_origin(hint)
    args = get_args(hint)
    if origin is Union or origin is types.UnionType:
        for option in args:
            try:
                return _fit(option, value, where)
            except UndecodableError:
                continue
        raise UndecodableError(f"{where}: expected {hint}, found {type(value).__name__}")
    if origin is Literal:
        if value in args:
            return value
        raise UndecodableError(f"{where}: expected one of {args}, found {value!r}")
    if hint is None:
        hint = type(None)
    kind: Any = origin or hint
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        return _load(kind, value, where)
    if not isinstance(kind, type) or type(value) is not kind:
        raise UndecodableError(f"{where}: expected {hint}, found {type(value).__name__}")
    if kind is dict and args:
        return {key: _fit(args[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if kind is tuple and args and args[-1] is not Ellipsis:
        if len(args) != len(value):
            raise UndecodableError(f"{where}: expected {len(args)} items, found {len(value)}")
        return tuple(_fit(arg, item, f"{where}[{i}]") for i, (arg, item) in enumerate(zip(args, value, strict=True)))
    if kind in (list, set, frozenset, tuple) and args:
        return kind(_fit(args[0], item, f"{where}[{i}]") for i, item in enumerate(value))
    return value
