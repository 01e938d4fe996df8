"""actorbot as a contender, in both homes: a manager embedded as a bot embeds it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Literal

from actorbot import (
    Context,
    FileSessionStore,
    FlushPolicy,
    MemorySessionStore,
    MongoSessionStore,
    RedisSessionStore,
    SessionManager,
)
from actorbot.stores.base import RecordStore
from benchmarks._servers import DATABASE, Place
from benchmarks._workload import remember, remember_and_await

StoreName = Literal["memory", "file", "redis", "mongo"]
HandlerName = Literal["async", "awaits", "sync"]


async def handle(context: Context) -> None:
    remember(context.session, context.event)


async def handle_and_await(context: Context) -> None:
    await remember_and_await(context.session, context.event)


def handle_sync(context: Context) -> None:
    remember(context.session, context.event)


HANDLERS: Mapping[HandlerName, Callable[[Context], Any]] = {
    "async": handle,
    "awaits": handle_and_await,
    "sync": handle_sync,
}


def make_store(store: StoreName, url: str, sessions: int) -> tuple[RecordStore, Callable[[], object]]:
    """Make an empty store with room for that many sessions.

    Return the store, and a function that removes all that the store holds.
    """
    if store == "memory":
        return MemorySessionStore(max_sessions=sessions), _nothing_to_clear  # evicts nobody
    if store == "file":
        folder = tempfile.mkdtemp(prefix="actorbot-benchmark-")
        return FileSessionStore(folder), lambda: shutil.rmtree(folder)
    place = Place(store, url)
    if store == "redis":
        return RedisSessionStore(url, key_prefix=f"{place.name}:"), place.clear
    return MongoSessionStore(url, database=DATABASE, collection_name=place.name), place.clear


def _nothing_to_clear() -> None:
    pass


class Actorbot:
    """A fresh manager over a fresh, empty store."""

    name = "actorbot"

    def __init__(self, store: StoreName, url: str, policy: str, handler: HandlerName, users: int) -> None:
        self._store, self._clear = make_store(store, url, users)
        self._manager = SessionManager(
            self._store, handler=HANDLERS[handler], flush=FlushPolicy.parse(policy), max_resident=users
        )

    def counter_of(self, session_id: str) -> int:
        stored = self._store.read(session_id)
        return 0 if stored is None else int(stored["n"])

    def writes_per_event(self, events: int) -> float:
        return self._manager.stats().store_writes / events


class LoopActorbot(Actorbot):
    @property
    def dispatch(self) -> Callable[[str, str], Awaitable[Any]]:
        return self._manager.dispatch

    async def open(self, users: Sequence[str]) -> None:
        await self._manager.start()

    async def flush(self) -> None:
        await self._manager.flush()

    async def close(self) -> None:
        await self._manager.close()
        self._clear()


class ThreadActorbot(Actorbot):
    @property
    def dispatch(self) -> Callable[[str, str], Any]:
        return self._manager.dispatch_sync

    def open(self, users: Sequence[str]) -> None:
        self._manager.start_sync()

    def flush(self) -> None:
        self._manager.flush_sync()

    def close(self) -> None:
        self._manager.close_sync()
        self._clear()
