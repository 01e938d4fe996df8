"""A store that somebody empties while the bot runs: sessions in memory are written again."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actorbot import FileSessionStore, FlushPolicy, MongoSessionStore, RedisSessionStore, SessionManager
from actorbot.testing import ManualClock
from tests.backends import ComparingStore, DictStore
from tests.handlers import count
from tests.servers import mongo_servers, redis_servers
from tests.waiting import soon

Emptied = tuple[Callable[[], Any], Callable[[], None]]
"""Makes the store, and empties it."""


@contextmanager
def redis(folder: Path, command: str) -> Iterator[Emptied]:
    with redis_servers.Server(redis_servers.QUICK, folder) as server:
        yield lambda: RedisSessionStore(server.url), lambda: server.ask(command)


@contextmanager
def mongo(folder: Path, what: str) -> Iterator[Emptied]:
    database = f"emptied_{os.getpid()}_{what}"
    with mongo_servers.shared().client() as client:
        empty = {
            "collection": lambda: client[database].drop_collection("sessions"),
            "database": lambda: client.drop_database(database),
            "documents": lambda: client[database]["sessions"].delete_many({}),
        }[what]
        yield lambda: MongoSessionStore(f"{mongo_servers.shared().url}?timeoutMS=20000", database=database), empty
        client.drop_database(database)


@contextmanager
def files(folder: Path) -> Iterator[Emptied]:
    def remove() -> None:
        for file in (folder / "sessions").glob("*.session"):
            file.unlink()

    yield lambda: FileSessionStore(folder / "sessions"), remove


@contextmanager
def driver(folder: Path, kind: type[DictStore]) -> Iterator[Emptied]:
    store = kind()
    yield lambda: store, store.data.clear


STORES = {
    "FLUSHALL": partial(redis, command="FLUSHALL"),
    "FLUSHDB": partial(redis, command="FLUSHDB"),
    "collection": partial(mongo, what="collection"),
    "database": partial(mongo, what="database"),
    "documents": partial(mongo, what="documents"),
    "files": files,
    "driver": partial(driver, kind=DictStore),
    "comparing driver": partial(driver, kind=ComparingStore),
}
POLICIES = {
    "write-behind": lambda _: FlushPolicy.write_behind(max_delay=60),
    "write-through": lambda _: FlushPolicy.write_through(),
    "journaled": lambda folder: FlushPolicy.journaled(folder / "journal", max_delay=60),
}


@pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
@pytest.mark.parametrize("emptied", STORES.values(), ids=STORES)
async def test_a_session_in_memory_is_written_again_to_a_store_that_was_emptied(
    emptied: Any, policy: Any, tmp_path: Path
) -> None:
    with emptied(tmp_path) as (make_store, empty):
        async with SessionManager(make_store(), handler=count, flush=policy(tmp_path)) as manager:
            for user in ("ann", "bob", "eve"):
                await manager.dispatch(user, "hi")
            await manager.flush()
            empty()
            assert await soon(asyncio.gather(*(manager.dispatch(user, "hi") for user in ("ann", "bob")))) == [2, 2]
            await soon(manager.flush())
            await soon(manager.destroy("bob"))
            assert await manager.dispatch("zoe", "hi") == 1
            assert manager.stats().conflicts == 0
            assert manager.health().status == "ready"
            assert (await manager.close()).clean
        async with SessionManager(make_store(), handler=count, flush=FlushPolicy.write_through()) as manager:
            assert [await manager.peek(user) for user in ("ann", "bob", "zoe")] == [{"n": 2}, None, {"n": 1}]


@pytest.mark.parametrize("what", ["collection", "database"])
async def test_a_dropped_collection_gets_the_index_again_by_which_sessions_expire(what: str, tmp_path: Path) -> None:
    clock = ManualClock()
    with mongo(tmp_path, what) as (make_store, empty), mongo_servers.shared().client() as client:
        collection = client[f"emptied_{os.getpid()}_{what}"]["sessions"]
        async with SessionManager(
            make_store(), handler=count, flush=FlushPolicy.write_through(), clock=clock
        ) as manager:
            await manager.dispatch("ann", "hi")
            empty()
            await manager.dispatch("ann", "hi")
            assert "actorbot_expiry" in collection.index_information()
            empty()
            await manager.dispatch("bob", "hi")  # whom the store did not have before either
            await clock.advance(600.0)
            assert "actorbot_expiry" in collection.index_information()
