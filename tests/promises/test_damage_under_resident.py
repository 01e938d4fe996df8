"""G7: what is in memory is written over a record that is damaged under it, which is set aside."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actorbot import FileSessionStore, FlushPolicy, MemorySessionStore, Retry, SessionManager, errors, stores
from actorbot.stores.file import file_name
from actorbot.stores.mongo import MongoSessionStore
from actorbot.stores.redis import RedisSessionStore
from actorbot.testing import FaultyStore
from tests.backends import STORES
from tests.handlers import count
from tests.servers import mongo_servers, redis_servers
from tests.tiers import tiers

POLICIES: dict[str, Callable[[Path], FlushPolicy]] = {
    "write-behind": lambda _: FlushPolicy.write_behind(max_delay=3600.0),
    "write-through": lambda _: FlushPolicy.write_through(),
    "journaled": lambda folder: FlushPolicy.journaled(folder / "journal", max_delay=3600.0),
}
WEEK = 7 * 24 * 3600
EVERY = ["file", redis_servers.QUICK, "mongo", "comparing driver"]
KEEPING = EVERY[:3]  # which have a place for what is set aside


def flip(value: bytes) -> bytes:
    return value[:-1] + bytes([value[-1] ^ 1])


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "a bit": flip,
    "its end": lambda value: value[:-7],
    "its beginning": lambda value: b"\0" * 40 + value[40:],
    "all of it": lambda value: b"somebody else's text, which is longer than a record's head would be" * 3,
}


def damage(store: Any, change: Callable[[bytes], bytes] = flip, session_id: str = "ann") -> bytes:
    """Damage the stored record of a session, and return what is there now."""
    if isinstance(store, FileSessionStore):
        path = Path(store.directory) / file_name(session_id)
        path.write_bytes(changed := change(path.read_bytes()))
        return changed
    if isinstance(store, RedisSessionStore):
        with redis_servers.shared().client() as client:
            key = f"{store.key_prefix}{session_id}"
            changed = change(client.get(key))  # type: ignore[arg-type]
            client.set(key, changed)
            return changed
    if isinstance(store, MongoSessionStore):
        with mongo_servers.raw(store) as collection:
            collection.update_one({"_id": session_id}, {"$set": {"state": "broken"}})
        return b"broken"
    store.data[session_id]["$actorbot"]["write_ids"][0] = "broken"
    return b"broken"


def aside(store: Any, session_id: str = "ann") -> list[bytes]:
    """Return what was set aside of a session."""
    if isinstance(store, FileSessionStore):
        stem = file_name(session_id).removesuffix(".session")
        return [path.read_bytes() for path in Path(store.directory).glob(f"{stem}*.session.damaged")]
    if isinstance(store, RedisSessionStore):
        with redis_servers.shared().client() as client:
            keys: Any = client.keys(f"{store.key_prefix}{session_id}.damaged*")
            return [client.get(key) for key in keys if WEEK - 60 < client.ttl(key) <= WEEK]  # type: ignore[misc, operator]
    with mongo_servers.raw(store) as collection:
        beside = collection.database[f"{collection.name}.damaged"]
        found = [each["document"]["state"].encode() for each in beside.find({"session_id": session_id})]
        ends = [index["expireAfterSeconds"] for index in beside.list_indexes() if "expireAfterSeconds" in index]
        assert ends == [WEEK] * bool(found)
        return found


@pytest.mark.parametrize("policy", POLICIES)
@pytest.mark.parametrize("name", EVERY)
async def test_a_record_that_is_damaged_under_its_session_is_set_aside_and_the_session_goes_on(
    name: str, policy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, handed = STORES[name](tmp_path), []
    async with SessionManager(
        store, handler=count, flush=POLICIES[policy](tmp_path), on_conflict=lambda *lost: handed.append(lost)
    ) as manager:
        for _ in range(2):
            await manager.dispatch("ann", "hi")
            await manager.dispatch("bob", "hi")
        await manager.flush()
        damaged = damage(store)
        with caplog.at_level(logging.ERROR):
            for user in ("ann", "bob"):
                assert await manager.dispatch(user, "hi") == 3
            await manager.flush()

        assert manager.stats().damaged == 1
        assert (manager.stats().conflicts, manager.stats().failed, manager.health().status) == (0, 0, "ready")
        said = [each for each in caplog.records if "damaged" in each.getMessage()]
        assert [each.__dict__["session_id"] for each in said] == ["ann"]
        assert await manager.dispatch("ann", "hi") == 4
        await manager.flush()
        assert manager.stats().damaged == 1
    assert handed == []
    async with SessionManager(store, handler=count) as heir:
        assert [await heir.peek(user) for user in ("ann", "bob")] == [{"n": 4}, {"n": 3}]
    if name in KEEPING:
        assert aside(store) == [damaged]


@pytest.mark.parametrize("change", DAMAGES)
@pytest.mark.parametrize("name", ["file", redis_servers.QUICK])
async def test_whatever_has_become_of_the_record(name: str, change: str, tmp_path: Path) -> None:
    store = STORES[name](tmp_path)
    async with SessionManager(store, handler=count) as manager:
        await manager.dispatch("ann", "hi")
        for n in (2, 3):  # also a second time, while the first is still kept
            await manager.flush()
            damaged = damage(store, DAMAGES[change])
            assert await manager.dispatch("ann", "hi") == n
        await manager.flush()

        assert manager.stats().damaged == 2
        assert damaged in aside(store)
        assert [found.session_id for found in store.scan()] == ["ann"]
        assert store.count() == 1


async def test_a_key_that_holds_something_else_than_text_is_set_aside_as_it_is(tmp_path: Path) -> None:
    store = STORES[redis_servers.QUICK](tmp_path)
    async with SessionManager(store, handler=count) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        with redis_servers.shared().client() as client:
            client.delete(f"{store.key_prefix}ann")
            client.rpush(f"{store.key_prefix}ann", "a list")
            await manager.dispatch("ann", "hi")
            await manager.flush()

            assert client.lrange(f"{store.key_prefix}ann.damaged", 0, -1) == [b"a list"]
            assert client.ttl(f"{store.key_prefix}ann.damaged") > 6 * 24 * 3600  # type: ignore[operator]
        assert store.read("ann")["n"] == 2


@pytest.mark.parametrize("name", EVERY)
async def test_a_damaged_record_of_a_session_that_is_not_in_memory_stays_as_it_is(name: str, tmp_path: Path) -> None:
    store = STORES[name](tmp_path)
    async with SessionManager(store, handler=count) as manager:
        await manager.dispatch("ann", "hi")
    damage(store)
    async with SessionManager(store, handler=count) as manager:
        for _ in range(2):
            with pytest.raises(errors.CorruptSessionError):
                await manager.dispatch("ann", "hi")
        await manager.flush()

        assert manager.stats().damaged == 0
        if name in KEEPING:
            assert aside(store) == []
            assert isinstance(store.read_many(["ann"])[0], errors.CorruptSessionError)


@pytest.mark.parametrize("name", tiers(KEEPING, *KEEPING))
async def test_a_damaged_session_that_is_destroyed_leaves_nothing_behind(name: str, tmp_path: Path) -> None:
    store = STORES[name](tmp_path)
    async with SessionManager(store, handler=count) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        damage(store)
        await manager.destroy("ann")

        assert await manager.peek("ann") is None
        assert aside(store) == []
        assert await manager.dispatch("ann", "hi") == 1
    async with SessionManager(store) as heir:
        assert await heir.peek("ann") == {"n": 1}


async def test_damage_that_is_met_after_a_lost_reply_takes_nothing_from_the_session() -> None:
    store = FaultyStore(MemorySessionStore())
    policy = FlushPolicy.write_through(retry=Retry(attempts=1, base=0.01, cap=0.01))
    async with SessionManager(store, handler=count, flush=policy) as manager:
        for _ in range(2):
            await manager.dispatch("ann", "hi")
        store.lose_replies(1)
        with pytest.raises(errors.OutcomeUnknownError):
            await manager.dispatch("ann", "hi", event_id="last")
        store.corrupt("ann")

        assert await manager.dispatch("ann", "hi", event_id="last") == 3
        assert manager.stats().damaged == 1
    assert (store.read("ann") or {})["n"] == 3


@pytest.mark.parametrize("name", EVERY)
async def test_what_a_newer_release_has_written_is_no_damage(name: str, tmp_path: Path) -> None:
    store = STORES[name](tmp_path)
    policy = FlushPolicy.write_behind(retry=Retry(attempts=1, base=0.01, cap=0.01))
    async with SessionManager(store, handler=count, flush=policy, close_timeout=0.1) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        if isinstance(store, FileSessionStore | RedisSessionStore):
            damage(store, lambda value: value.replace(b"ABS\1", b"ABS\2").replace(value[1:9], b"theirs.."))
        elif isinstance(store, MongoSessionStore):
            with mongo_servers.raw(store) as collection:
                collection.update_one({"_id": "ann"}, {"$set": {"format": 2}})
        else:
            store.data["ann"]["$actorbot"].update(format=2, write_ids=["of another kind"])
        await manager.dispatch("ann", "hi")
        with pytest.raises((errors.CorruptSessionError, errors.StoreUnavailableError)):
            await manager.flush("ann")

        assert manager.stats().damaged == 0
        assert name not in KEEPING or aside(store) == []


async def test_what_was_set_aside_is_no_session(tmp_path: Path) -> None:
    store, target = STORES[redis_servers.QUICK](tmp_path), MemorySessionStore()
    async with SessionManager(store, handler=count) as manager:
        for user in ("ann", "ann.damaged"):  # whose key is that under which damage is set aside
            await manager.dispatch(user, "hi")
        await manager.flush()
        damage(store)
        await manager.dispatch("ann", "hi")
        await manager.flush()

        assert stores.copy(store, target).failed == ()
        assert [target.read(user)["n"] for user in ("ann", "ann.damaged")] == [2, 1]  # type: ignore[index]
        assert len(aside(store)) == 1
        assert await manager.dispatch("ann.damaged", "hi") == 2


@pytest.mark.parametrize("name", tiers(KEEPING))
async def test_what_was_set_aside_is_kept_when_the_record_is_damaged_again(name: str, tmp_path: Path) -> None:
    store = STORES[name](tmp_path)
    async with SessionManager(store, handler=count, flush=FlushPolicy.write_through()) as manager:
        await manager.dispatch("ann", "hi")
        first = damage(store)
        await manager.dispatch("ann", "hi")
        second = damage(store)
        assert await manager.dispatch("ann", "hi") == 3

        assert manager.stats().damaged == 2
    assert sorted(aside(store)) == sorted([first, second])


async def test_a_folder_in_place_of_a_file_is_set_aside_beside_an_earlier_damage(tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path / "sessions")
    async with SessionManager(store, handler=count, flush=FlushPolicy.write_through()) as manager:
        await manager.dispatch("ann", "hi")
        damage(store)
        await manager.dispatch("ann", "hi")
        path = Path(store.directory) / file_name("ann")
        path.unlink()
        path.mkdir()

        assert await manager.dispatch("ann", "hi") == 3
        assert path.is_file()


async def test_files_that_were_set_aside_go_after_a_week(tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path / "sessions")
    async with SessionManager(store, handler=count) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        damage(store)
        await manager.dispatch("ann", "hi")
        await manager.flush()
        day = 24 * 3600.0
        list(store.sweep(time.time() + 6 * day))
        assert len(aside(store)) == 1
        list(store.sweep(time.time() + 8 * day))
        assert aside(store) == []
        assert store.count() == 1
