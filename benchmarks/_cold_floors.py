"""What one writes by hand to bring a session into memory.

The session is read when its first event comes, is decoded, and is kept encoded in a dict. There is
nothing else: no lock, nothing that keeps two events from reading the same session twice, and
nothing that ever writes it back.
"""

from __future__ import annotations

import asyncio
import shutil
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import msgpack
import pymongo
import redis
import redis.asyncio

from benchmarks._floors import FolderShelf, Shelf
from benchmarks._servers import DATABASE, Place
from benchmarks._stored import in_batches, stored_state
from benchmarks._workload import remember

__all__ = ["ColdFloor", "make_cold_floor"]


class ColdFloor(ABC):
    """Contender of `activation`, filled once and opened for each run."""

    name: str

    def __init__(self) -> None:
        self.resident: dict[str, bytes] = {}

    @abstractmethod
    def fill(self, session_ids: Sequence[str]) -> None: ...

    @abstractmethod
    async def _read(self, session_id: str) -> dict[str, Any]: ...

    async def open(self, in_flight: int) -> None:
        self.resident.clear()

    async def dispatch(self, session_id: str, text: str) -> None:
        state = await self._read(session_id)
        remember(state, text)
        self.resident[session_id] = msgpack.packb(state)

    async def flush(self) -> None:  # noqa: B027  # nothing waits to be written
        pass

    def wrong_counters(self, expected: Mapping[str, int]) -> dict[str, int]:
        """A contender in memory: nothing is written, so each run begins with what was filled in."""
        missing = {one: count - msgpack.unpackb(self.resident[one])["n"] for one, count in expected.items()}
        return {one: count for one, count in missing.items() if count}

    async def close(self) -> None:  # noqa: B027  # not every floor holds something
        pass

    @abstractmethod
    def clear(self) -> None: ...


class ShelfReads(ColdFloor):
    name = "read per session"

    def __init__(self, shelf: Shelf) -> None:
        super().__init__()
        self._shelf = shelf

    def fill(self, session_ids: Sequence[str]) -> None:
        data = msgpack.packb(stored_state())
        for session_id in session_ids:
            self._shelf[session_id] = data

    async def _read(self, session_id: str) -> dict[str, Any]:
        data = self._shelf.get(session_id)
        assert data is not None
        state: dict[str, Any] = msgpack.unpackb(data)
        return state

    def clear(self) -> None:
        if isinstance(self._shelf, FolderShelf):
            shutil.rmtree(self._shelf.folder)


class RedisGets(ColdFloor):
    name = "GET per session (redis.asyncio)"

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    def fill(self, session_ids: Sequence[str]) -> None:
        data = msgpack.packb(stored_state())
        with redis.Redis.from_url(self._place.url) as client:
            for batch in in_batches(session_ids):
                client.mset({f"{self._place.name}:{session_id}": data for session_id in batch})

    async def open(self, in_flight: int) -> None:
        await super().open(in_flight)
        self._client = redis.asyncio.Redis.from_url(self._place.url, max_connections=in_flight)
        await asyncio.gather(*(self._client.ping() for _ in range(in_flight)))  # connects them all

    async def _read(self, session_id: str) -> dict[str, Any]:
        state: dict[str, Any] = msgpack.unpackb(await self._client.get(f"{self._place.name}:{session_id}"))
        return state

    async def close(self) -> None:
        await self._client.aclose()

    def clear(self) -> None:
        self._place.clear()


class MongoFinds(ColdFloor):
    name = "find_one per session (AsyncMongoClient)"

    def __init__(self, place: Place) -> None:
        super().__init__()
        self._place = place

    def fill(self, session_ids: Sequence[str]) -> None:
        state = stored_state()
        with pymongo.MongoClient[dict[str, Any]](self._place.url) as client:
            for batch in in_batches(session_ids):
                client[DATABASE][self._place.name].insert_many([{"_id": session_id, **state} for session_id in batch])

    async def open(self, in_flight: int) -> None:
        await super().open(in_flight)
        self._client = pymongo.AsyncMongoClient[dict[str, Any]](self._place.url)  # at most 100 connections
        await asyncio.gather(*(self._client.admin.command("ping") for _ in range(in_flight)))

    async def _read(self, session_id: str) -> dict[str, Any]:
        state = await self._client[DATABASE][self._place.name].find_one({"_id": session_id})
        assert state is not None
        return state

    async def close(self) -> None:
        await self._client.close()

    def clear(self) -> None:
        self._place.clear()


def make_cold_floor(store: str, url: str) -> ColdFloor:
    if store == "redis":
        return RedisGets(Place(store, url))
    if store == "mongo":
        return MongoFinds(Place(store, url))
    return ShelfReads({} if store == "memory" else FolderShelf())
