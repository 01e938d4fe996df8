"""Sessions in a server: the floors that one writes by hand, and where a run writes."""

from __future__ import annotations

import asyncio
import secrets
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgpack
import pymongo
import redis
import redis.asyncio

from benchmarks._workload import remember, remember_and_await

URLS = {"redis": "redis://localhost:6379/0", "mongo": "mongodb://localhost:27017/"}
DATABASE = "actorbot-benchmark"

Change = Callable[[Any, str], Awaitable[None]]


async def _remember(session: Any, text: str) -> None:
    remember(session, text)


CHANGES: dict[str, Change] = {"async": _remember, "awaits": remember_and_await}


class Place:
    """A part of a server that is one run's own."""

    def __init__(self, store: str, url: str) -> None:
        self.store = store
        self.url = url
        self.name = f"benchmark-{secrets.token_hex(4)}"

    def clear(self) -> None:
        """Remove what the run wrote."""
        if self.store == "redis":
            with redis.Redis.from_url(self.url) as client:
                for keys in _in_batches(client.scan_iter(f"*{self.name}*", count=1000)):
                    client.unlink(*keys)
        else:
            with pymongo.MongoClient[dict[str, Any]](self.url) as client:
                for name in (self.name, f"{self.name}.lease", f"{self.name}.damaged"):
                    client[DATABASE].drop_collection(name)


def _in_batches(keys: Any, size: int = 1000) -> Any:
    batch = []
    for key in keys:
        batch.append(key)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


class ServerFloor:
    """asyncio: one `asyncio.Lock` per user around a read, the change, and a write."""

    name = ""

    def __init__(self, place: Place, handler: str) -> None:
        self._place = place
        self._change = CHANGES[handler]
        self._locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    def writes_per_event(self, events: int) -> float:
        return 1.0

    async def flush(self) -> None:
        pass


class RedisFloor(ServerFloor):
    name = "lock + GET + SET per event"

    async def open(self, users: Sequence[str]) -> None:
        self._client = redis.asyncio.Redis.from_url(self._place.url)
        self._sync = redis.Redis.from_url(self._place.url)

    async def dispatch(self, session_id: str, text: str) -> None:
        key = f"{self._place.name}:{session_id}"
        async with self._locks[session_id]:
            data = await self._client.get(key)
            state = {} if data is None else msgpack.unpackb(data)
            await self._change(state, text)
            await self._client.set(key, msgpack.packb(state))

    def counter_of(self, session_id: str) -> int:
        data: Any = self._sync.get(f"{self._place.name}:{session_id}")
        return 0 if data is None else int(msgpack.unpackb(data)["n"])

    async def close(self) -> None:
        await self._client.aclose()
        self._sync.close()
        self._place.clear()


class MongoFloor(ServerFloor):
    name = "lock + find_one + replace_one per event"

    async def open(self, users: Sequence[str]) -> None:
        self._client = pymongo.AsyncMongoClient[dict[str, Any]](self._place.url, w="majority", journal=True)
        self._sync = pymongo.MongoClient[dict[str, Any]](self._place.url)

    async def dispatch(self, session_id: str, text: str) -> None:
        sessions = self._client[DATABASE][self._place.name]
        async with self._locks[session_id]:
            state = await sessions.find_one({"_id": session_id}) or {"_id": session_id}
            await self._change(state, text)
            await sessions.replace_one({"_id": session_id}, state, upsert=True)

    def counter_of(self, session_id: str) -> int:
        state = self._sync[DATABASE][self._place.name].find_one({"_id": session_id})
        return 0 if state is None else int(state["n"])

    async def close(self) -> None:
        await self._client.close()
        self._sync.close()
        self._place.clear()


FLOORS: dict[str, type[RedisFloor | MongoFloor]] = {"redis": RedisFloor, "mongo": MongoFloor}
