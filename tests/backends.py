"""The one table of stores that the tests run over."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from actorbot import FileSessionStore, MemorySessionStore
from actorbot.stores import LeaseFound
from actorbot.stores.redis import RedisSessionStore
from tests.servers import mongo_servers, redis_servers


class DictStore:
    """A driver of four plain methods."""

    def __init__(self) -> None:
        self.data: dict[str, dict[str, Any]] = {}

    def init(self) -> None:
        pass

    def read(self, session_id: str) -> dict[str, Any] | None:
        return copy.deepcopy(self.data.get(session_id))

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        self.data[session_id] = data

    def destroy(self, session_id: str) -> None:
        self.data.pop(session_id, None)


class AsyncDictStore:
    """A driver of four `async def` methods."""

    def __init__(self) -> None:
        self.inner = DictStore()

    async def init(self) -> None:
        pass

    async def read(self, session_id: str) -> dict[str, Any] | None:
        return self.inner.read(session_id)

    async def write(self, session_id: str, data: dict[str, Any]) -> None:
        self.inner.write(session_id, data)

    async def destroy(self, session_id: str) -> None:
        self.inner.destroy(session_id)


class ComparingStore(DictStore):
    """A driver that compares before it writes."""

    def compare_and_write(self, session_id: str, data: dict[str, Any], base: str | None) -> bool:
        stored = self.data.get(session_id)
        if stored is None:
            newest = None
        elif "$actorbot" in stored:
            newest = stored["$actorbot"]["write_ids"][0]
        else:
            newest = "adopted"
        if newest != base:
            return False
        self.write(session_id, data)
        return True


class LeasedStore(ComparingStore):
    """A driver that keeps a lease."""

    def __init__(self) -> None:
        super().__init__()
        self.lease: str | None = None
        self._lock = threading.Lock()  # guards `lease`

    def read_lease(self) -> tuple[str | None, float]:
        return self.lease, time.time()

    def swap_lease(self, old: str | None, new: str) -> bool:
        with self._lock:
            if self.lease != old:
                return False
            self.lease = new
            return True


class LeasedMemoryStore(MemorySessionStore):
    """A store of records that keeps a lease, as if several processes could reach it."""

    keeps_lease = True

    def __init__(self) -> None:
        super().__init__()
        self.driver = LeasedStore()

    def read_lease(self) -> LeaseFound:
        return LeaseFound(*self.driver.read_lease())

    def swap_lease(self, old: str | None, new: str) -> bool:
        return self.driver.swap_lease(old, new)


def redis_store(kind: str, folder: Path) -> RedisSessionStore:
    """Make a store on the shared server of *kind*; the same sessions for the same *folder*, which
    is one test's.
    """
    url = f"{redis_servers.shared(kind).url}?socket_timeout=20"  # a machine with neighbours is slow
    return RedisSessionStore(url, key_prefix=f"{sha256(bytes(folder)).hexdigest()[:16]}:")


STORES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: MemorySessionStore(),
    "file": lambda folder: FileSessionStore(folder / "sessions"),
    "mongo": mongo_servers.shared_store,
    "driver": lambda _: DictStore(),
    "async driver": lambda _: AsyncDictStore(),
    "comparing driver": lambda _: ComparingStore(),
    **{kind: partial(redis_store, kind) for kind in redis_servers.PLACES},
}
FURTHER = redis_servers.PLACES.keys() - {redis_servers.QUICK}  # stores that `make test` leaves to `make test-all`

each_store = pytest.mark.parametrize(
    "make_store",
    [pytest.param(make, id=name, marks=pytest.mark.long if name in FURTHER else ()) for name, make in STORES.items()],
)
