"""Functions with a `yield`, in all their shapes: a call of one runs nothing of it."""

from __future__ import annotations

import functools
from collections.abc import Callable
from contextlib import contextmanager
from typing import Any

import pytest

from actorbot.errors import ConfigError


def generator(*_: Any) -> Any:
    yield "one"


async def async_generator(*_: Any) -> Any:
    yield "one"


class Streams:
    def __call__(self, *_: Any) -> Any:
        yield "one"

    async def method(self, *_: Any) -> Any:
        yield "one"

    @staticmethod
    async def static(*_: Any) -> Any:
        yield "one"

    @functools.wraps(generator)
    def wraps(self, *args: Any) -> Any:
        return generator(*args)


class Retried:
    """A decorator that is a class."""

    def __init__(self, function: Callable[..., Any]) -> None:
        functools.update_wrapper(self, function)
        self.function = function

    def __call__(self, *args: Any) -> Any:
        return self.function(*args)


def logged(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that hands on what the function returns."""

    @functools.wraps(function)
    def wrapper(*args: Any) -> Any:
        return function(*args)

    return wrapper


WITH_YIELD: dict[str, Callable[..., Any]] = {
    "a generator": generator,
    "an async generator": async_generator,
    "a partial": functools.partial(functools.partial(async_generator, 1), 2),
    "a method": Streams().method,
    "a static method": Streams.static,
    "an object": Streams(),
    "a partial of an object": functools.partial(Streams(), 1),
    "a decorated function": logged(logged(generator)),
    "a decorated async function": logged(async_generator),
    "a decorated method": Streams().wraps,
    "a decorator that is a class": Retried(generator),
    "a partial of a decorated one": functools.partial(logged(async_generator)),
    "a context manager": contextmanager(generator),
}


async def later(*_: Any) -> Any: ...


def refuses(field: str) -> Any:
    return pytest.raises(ConfigError, match=rf"^{field}=.*without `yield`")
