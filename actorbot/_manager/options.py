"""`Options`: what a manager is made with, checked at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from actorbot._checks import check_count, check_function, check_plain, check_seconds, check_word
from actorbot._policy import FlushPolicy
from actorbot._runtime.clock import Clock, SystemClock
from actorbot._state.typed import SessionShape
from actorbot._turns.hooks import Hook
from actorbot.errors import ConfigError, StoreUnavailableError
from actorbot.stores._lease import keeps_lease
from actorbot.stores.base import RecordStore
from actorbot.stores.driver import DriverStore
from actorbot.stores.file import FileSessionStore
from actorbot.stores.memory import MemorySessionStore

__all__ = ["Options"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The options of `SessionManager`, with their defaults filled in."""

    store: Any
    policy: FlushPolicy
    idle_timeout: float
    handler_timeout: float
    close_timeout: float
    ownership: Literal["exclusive", "shared"] | None
    """How the store is owned; `None`: no lease is taken."""
    takeover_timeout: float
    max_resident: int
    max_mailbox: int
    max_replies: int
    max_session_bytes: int
    shape: SessionShape | None
    functions: Mapping[str, Hook | None]
    """The handler, `deliver` and the `on_…` hooks, by name."""
    clock: Clock
    own_clock: bool
    """Whether the clock ends with the manager."""

    @classmethod
    def checked(
        cls,
        *,
        store: Any,
        flush: FlushPolicy | None,
        session_type: type,
        clock: Clock | None,
        idle_timeout: float,
        handler_timeout: float,
        close_timeout: float,
        ownership: str | None,
        takeover_timeout: float,
        max_resident: int,
        max_mailbox: int,
        max_replies: int,
        max_session_bytes: int,
        **functions: Hook | None,
    ) -> Options:
        """Check what the author gave, and fill in what was left out. Raises: ConfigError."""
        store, policy = _check_store(store), _check_policy(flush)
        return cls(
            store=store,
            policy=policy,
            ownership=_check_ownership(ownership, store, policy),
            takeover_timeout=check_seconds("takeover_timeout", takeover_timeout, least=0.0),
            idle_timeout=check_seconds("idle_timeout", idle_timeout, least=0.0),
            handler_timeout=check_seconds("handler_timeout", handler_timeout),
            close_timeout=check_seconds("close_timeout", close_timeout),
            max_resident=check_count("max_resident", max_resident),
            max_mailbox=check_count("max_mailbox", max_mailbox),
            max_replies=check_count("max_replies", max_replies),
            max_session_bytes=check_count("max_session_bytes", max_session_bytes),
            shape=None if session_type is dict else SessionShape(session_type),
            functions=_check_functions(functions),
            clock=_check_clock(clock),
            own_clock=clock is None,
        )


def _check_store(store: Any) -> Any:
    # A driver that lacks a method is refused here rather than at the start.
    if store is None:
        return MemorySessionStore()
    if not isinstance(store, RecordStore):
        DriverStore(store, run=_no_home)
        return store
    for verb in ("init", "read_many", "write_many", "close"):
        check_plain(f"{type(store).__name__}.{verb}", getattr(type(store), verb), "a method that blocks")
    return store


def _no_home(_: Any) -> Any:
    raise StoreUnavailableError("driver", "the manager has not been started")


def _check_policy(flush: FlushPolicy | None) -> FlushPolicy:
    if flush is None:
        return FlushPolicy.write_behind()
    if not isinstance(flush, FlushPolicy):
        raise ConfigError("flush", flush, "a FlushPolicy; FlushPolicy.parse() reads one from text")
    return flush


def _check_ownership(ownership: str | None, store: Any, policy: FlushPolicy) -> Literal["exclusive", "shared"] | None:
    if ownership is not None:
        check_word("ownership", ownership, ("exclusive", "shared", "none"))
    if ownership == "none":
        return None
    if keeps_lease(store):
        shared = policy.mode == "write-through" if ownership is None else ownership == "shared"
        return "shared" if shared else "exclusive"
    if ownership == "shared" and isinstance(store, FileSessionStore):
        raise ConfigError("ownership", ownership, '"exclusive": one process at a time has a folder of files')
    others_reach_it = not isinstance(store, RecordStore) or store.outlives_process
    if ownership is not None and others_reach_it and not isinstance(store, FileSessionStore):
        raise ConfigError("ownership", ownership, '"none", or a store with the methods read_lease and swap_lease')
    return None  # a store of one process, or one with a lock


def _check_functions(functions: Mapping[str, Hook | None]) -> Mapping[str, Hook | None]:
    for name, function in functions.items():
        if function is not None:
            check_function(name, function)
    return functions


def _check_clock(clock: Clock | None) -> Clock:
    if clock is None:
        return SystemClock()
    if not isinstance(clock, Clock):
        raise ConfigError("clock", clock, "a Clock, such as actorbot.testing.ManualClock()")
    return clock
