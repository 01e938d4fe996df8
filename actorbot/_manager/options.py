"""What a manager is made with, and the checks that say at once what is wrong with it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from actorbot._policy import FlushPolicy
from actorbot._runtime.clock import Clock, SystemClock
from actorbot._state.typed import SessionShape
from actorbot._turns.hooks import Hook
from actorbot.errors import ConfigError, StoreUnavailableError
from actorbot.stores.base import RecordStore
from actorbot.stores.driver import DriverStore
from actorbot.stores.memory import MemorySessionStore

__all__ = ["Options", "check_clock", "check_functions", "check_policy", "check_store"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `SessionManager`, with their defaults filled in."""

    store: Any
    policy: FlushPolicy
    idle_timeout: float
    handler_timeout: float
    close_timeout: float
    max_resident: int
    max_mailbox: int
    max_session_bytes: int
    shape: SessionShape | None
    functions: Mapping[str, Hook | None]
    """The handler, `deliver` and the `on_…` hooks, by name."""
    clock: Clock
    own_clock: bool
    """Whether the clock ends with the manager."""


def check_store(store: Any) -> Any:
    """Return *store*, in memory when there is none. Raises: ConfigError if it lacks a method, rather than at the start."""
    if store is None:
        return MemorySessionStore()
    if not isinstance(store, RecordStore):
        DriverStore(store, run=_no_home)
    return store


def _no_home(_: Any) -> Any:
    raise StoreUnavailableError("driver", "the manager has not been started")


def check_policy(flush: FlushPolicy | None) -> FlushPolicy:
    """Return *flush* or the default. Raises: ConfigError."""
    if flush is None:
        return FlushPolicy.write_behind()
    if not isinstance(flush, FlushPolicy):
        raise ConfigError("flush", flush, "a FlushPolicy; FlushPolicy.parse() reads one from text")
    return flush


def check_functions(**functions: Hook | None) -> Mapping[str, Hook | None]:
    """Return *functions* by name. Raises: ConfigError if one cannot be called."""
    for name, function in functions.items():
        if function is not None and not callable(function):
            raise ConfigError(name, function, "a function, def or async def")
    return functions


def check_clock(clock: Clock | None) -> Clock:
    """Return *clock* or the machine's. Raises: ConfigError."""
    if clock is None:
        return SystemClock()
    if not isinstance(clock, Clock):
        raise ConfigError("clock", clock, "a Clock, such as actorbot.testing.ManualClock()")
    return clock
