"""The checks of numbers, words and functions that users give. The error names option and value."""

from __future__ import annotations

import inspect
from functools import partial
from types import FunctionType, MethodType
from typing import Any

from actorbot.errors import ConfigError

__all__ = ["DAY", "check_count", "check_function", "check_plain", "check_seconds", "check_timeout", "check_word"]

DAY = 86_400.0  # seconds


def check_seconds(field: str, value: Any, *, least: float | None = None, most: float = 1e9) -> float:
    """Return *value* as float: above 0 or at least *least*, at most *most*. Raises: ConfigError."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not (value > 0 if least is None else value >= least) or value > most:
        bound = "above 0" if least is None else f"at least {least:g}"
        raise ConfigError(field, value, f"seconds, {bound}, up to {most:,.15g}")
    return float(value)


def check_timeout(value: Any) -> float:
    """Return the `timeout=` of a verb, which is not `None`. Raises: ConfigError.

    With 0 seconds a call asks without waiting. Infinity is refused: no call waits for ever.
    """
    return check_seconds("timeout", value, least=0.0)


def check_count(field: str, value: Any, least: int = 1, most: int = 1 << 40) -> int:
    """Return *value*. Raises: ConfigError if it is no whole number from *least* to *most*."""
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise ConfigError(field, value, f"a whole number from {least:,} to {most:,}")
    return value


def check_word(field: str, value: object, words: tuple[str, ...]) -> None:
    """Raises: ConfigError if *value* is none of *words*."""
    if value not in words:
        raise ConfigError(field, value, " or ".join(words))


def check_function(field: str, value: Any, what: str = "a function, def or async def") -> None:
    """Raises: ConfigError if *value* cannot be called, or if a call of it would not run its body.

    To call a function with a `yield` in it only makes a generator.
    """
    if not callable(value):
        raise ConfigError(field, value, what)
    if _yields(value):
        # Not the object that a method or a partial has: its `repr` may have a password.
        what = f"{what}, without `yield`: a call makes a generator, and runs nothing of it"
        raise ConfigError(field, _code(value), what)


def check_plain(field: str, value: Any, what: str) -> None:
    """As `check_function`, and refuse an `async def`, which nobody would await."""
    check_function(field, value, what)
    if inspect.iscoroutinefunction(_code(value)):
        raise ConfigError(field, _code(value), f"{what}, a plain `def`: nobody awaits it")


def _yields(function: Any) -> bool:
    """Tell whether a call of *function* gives a generator.

    A plain wrapper is taken to hand on what it wraps. An `async def` wrapper may run through it.
    """
    for _ in range(100):  # layers; an object may even name itself as what it wraps
        code = _code(function)
        if inspect.isgeneratorfunction(code) or inspect.isasyncgenfunction(code):
            return True
        if inspect.iscoroutinefunction(code):
            return False
        function = next((each.__wrapped__ for each in (function, code) if _is_wrapper(each)), None)
        if function is None:
            return False
    return False


def _code(function: Any) -> Any:
    """Return what a call of *function* runs: it may be a partial, a method or a callable object."""
    while True:
        call = type(function).__call__
        if isinstance(function, partial):
            function = function.func
        elif isinstance(function, MethodType):
            function = function.__func__
        elif isinstance(call, FunctionType) and not isinstance(function, FunctionType):
            function = call
        else:
            return function


def _is_wrapper(function: Any) -> bool:
    return inspect.getattr_static(function, "__wrapped__", None) is not None
