"""One dataclass: from its instance to a dict of its fields, and back by its author's own code."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator, Mapping
from copy import deepcopy
from types import FunctionType, MemberDescriptorType
from typing import Any

from actorbot._state.unions import TAG
from actorbot._state.values import MAX_DEPTH
from actorbot.errors import SessionTooLargeError

__all__ = ["Convert", "MismatchError", "expect", "from_dataclass", "has_own_code", "to_dataclass"]

Convert = Callable[[Any, int], Any]
"""Checks a value at a depth, and returns it with dataclasses in place of dicts, or the reverse."""


class MismatchError(Exception):
    """A value is not what its annotation says; `path` grows while the error rises."""

    def __init__(self, reason: str, cause: BaseException | None = None) -> None:
        super().__init__(reason)
        self.reason = reason
        self.cause = cause  # what the author's own code has raised
        self.path = ""

    def inside(self, label: str) -> MismatchError:
        self.path = label + self.path
        return self


def expect(kind: type, value: Any, depth: int) -> None:
    if type(value) is not kind:
        subclass = "; annotate it with its own class" if isinstance(value, kind) else ""
        raise MismatchError(f"expected {kind.__name__}, found {type(value).__name__}{subclass}")
    if depth > MAX_DEPTH:
        reason = f"is nested deeper than {MAX_DEPTH} levels, or a cycle"
        raise SessionTooLargeError("session", reason, limit=MAX_DEPTH)


def to_dataclass(kind: type, fields: Mapping[str, Convert]) -> Convert:
    init = {field.name for field in dataclasses.fields(kind) if field.init}

    def convert(value: Any, depth: int) -> Any:
        expect(dict, value, depth)
        values = {}
        unknown = value.keys() - fields.keys()
        if unknown and TAG in unknown and value[TAG] == kind.__name__:
            unknown.discard(TAG)
        if unknown:
            raise MismatchError(f"{kind.__name__} has no field {min(unknown)!r}")
        try:
            for name, part in value.items():
                if name in fields:
                    values[name] = fields[name](part, depth + 1)
        except MismatchError as error:
            raise error.inside(f".{name}") from None
        try:
            made = kind(**{name: part for name, part in values.items() if name in init})
            for name in values.keys() - init:
                object.__setattr__(made, name, values[name])
        # A nested dataclass without its fields, or the author's own code, which may raise anything.
        except (Exception, SystemExit) as error:
            raise MismatchError(_reason(error), error) from error
        return made

    return convert


def from_dataclass(kind: type, fields: Mapping[str, Convert], make: Convert) -> Convert:
    """Make the reverse of *make*, which is what `to_dataclass` has returned."""
    names = frozenset(fields)
    own_code = has_own_code(kind)

    def convert(value: Any, depth: int) -> Any:
        expect(kind, value, depth)
        values = {}
        try:
            for name, item in fields.items():
                values[name] = item(_get(value, name), depth + 1)
        except MismatchError as error:
            raise error.inside(f".{name}") from None
        attributes = getattr(value, "__dict__", None)
        if attributes is not None and not attributes.keys() <= names:
            strangers = [name for name in _strangers(kind, attributes) if name not in names]
            if strangers and own_code:  # a `__post_init__` may set what it computes from the fields
                strangers = sorted(set(strangers) - vars(make(_copy(values), depth)).keys())
            if strangers:
                reason = f"{kind.__name__} has no such field, and its value would be lost; the fields are "
                raise MismatchError(reason + ", ".join(fields)).inside(f".{strangers[0]}")
        return values

    return convert


def _get(value: Any, name: str) -> Any:
    try:
        return getattr(value, name)
    except (Exception, SystemExit) as error:  # it was deleted, or it is the author's property
        raise MismatchError(f"has no value: {_reason(error)}", error) from error


def _strangers(kind: type, attributes: Mapping[str, Any]) -> Iterator[str]:
    """Yield the attributes that a handler may have misspelt.

    Not private ones, and not what a `cached_property` keeps: they hold nothing that must last.
    """
    for name in attributes:
        known = inspect.getattr_static(kind, name, None)
        if not name.startswith("_") and (isinstance(known, FunctionType) or not hasattr(known, "__get__")):
            yield name


def has_own_code(kind: type) -> bool:
    """Tell whether its author's code runs, and may refuse, when an instance of *kind* is made."""
    made: Any = kind
    if hasattr(made, "__post_init__") or not _is_generated(made.__init__):
        return True
    if made.__setattr__ is not object.__setattr__ and not _is_generated(made.__setattr__):
        return True
    if made.__new__ is not object.__new__ or type(made).__call__ is not type.__call__:
        return True
    fields = (inspect.getattr_static(kind, field.name, None) for field in dataclasses.fields(kind))
    return any(hasattr(type(each), "__set__") and not isinstance(each, MemberDescriptorType) for each in fields)


def _is_generated(function: object) -> bool:
    """Tell whether `@dataclass` has made *function*."""
    return isinstance(function, FunctionType) and function.__code__.co_filename == "<string>"


def _copy(values: dict[str, Any]) -> dict[str, Any]:
    try:
        return deepcopy(values)
    except Exception:
        return values  # no session keeps what cannot be copied: the codec will say where it is


def _reason(error: BaseException) -> str:
    text = str(error)
    return text if text and isinstance(error, TypeError | ValueError) else f"{type(error).__name__}: {text}"
