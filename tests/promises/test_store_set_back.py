"""G5: a store that has gone back in time is no other process; what is in memory stays."""

from __future__ import annotations

import asyncio
import copy
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actorbot import FlushPolicy, MemorySessionStore, Retry, SessionManager, errors
from actorbot.stores.base import Write
from actorbot.stores.mongo import MongoSessionStore
from actorbot.testing import FaultyStore, ManualClock
from tests import inside
from tests.backends import AsyncDictStore, ComparingStore, DictStore, each_store
from tests.handlers import count, count_plainly
from tests.homes import both_homes
from tests.journals import kill
from tests.servers import mongo_servers
from tests.tiers import tiers
from tests.waiting import until

POLICIES: dict[str, Callable[[Path], FlushPolicy]] = {
    "write-behind": lambda _: FlushPolicy.write_behind(max_delay=3600.0),
    "write-through": lambda _: FlushPolicy.write_through(),
    "journaled": lambda folder: FlushPolicy.journaled(folder / "journal", max_delay=3600.0),
}
each_policy = pytest.mark.parametrize("policy", POLICIES)
MANY = 20  # writes: more than the 16 whose ids are in a record


def backup(store: Any, folder: Path, session_id: str = "ann") -> Callable[[], None]:
    """Return a function after which the store has of a session what it has now."""
    if isinstance(store, AsyncDictStore):
        store = store.inner
    if isinstance(store, DictStore):
        data = copy.deepcopy(store.data)
        return lambda: store.data.update(copy.deepcopy(data))
    if isinstance(store, MongoSessionStore):
        with mongo_servers.raw(store) as collection:
            document = collection.find_one({"_id": session_id})

        def put_back() -> None:
            with mongo_servers.raw(store) as collection:
                collection.replace_one({"_id": session_id}, document)

        return put_back
    record = store.read_many([session_id])[0]
    return lambda: store.write_many([Write(record, None)]) and None


def compares(store: Any) -> bool:
    """Tell whether a write of the store would be refused where it meets another record."""
    return isinstance(store, ComparingStore) or not isinstance(store, DictStore | AsyncDictStore)


@each_store
@each_policy
async def test_what_is_counted_after_the_store_has_gone_back_is_kept_and_is_no_conflict(
    make_store: Callable[[Path], Any], policy: str, tmp_path: Path
) -> None:
    store, told = make_store(tmp_path), []
    async with SessionManager(
        store, handler=count, flush=POLICIES[policy](tmp_path), on_conflict=lambda *lost: told.append(lost)
    ) as manager:
        await manager.dispatch("ann", "hi", durable=True)
        await manager.flush()
        go_back = await asyncio.to_thread(backup, store, tmp_path)
        for _ in range(MANY):
            await manager.dispatch("ann", "hi", durable=True)
            await manager.flush()
        await asyncio.to_thread(go_back)

        assert await manager.dispatch("ann", "hi") == MANY + 2
        async with manager.turn("ann") as turn:
            count_plainly(turn)
        await manager.flush()

        assert await manager.peek("ann") == {"n": MANY + 3}
        assert manager.stats().set_back == compares(store)
        assert manager.stats().conflicts == manager.stats().failed == 0
        assert manager.conflicts() == told == []
    async with SessionManager(store, handler=count) as heir:
        assert await heir.peek("ann") == {"n": MANY + 3}


@both_homes
@each_policy
def test_so_it_is_in_both_homes(home: Any, policy: str, tmp_path: Path) -> None:
    store = MemorySessionStore()
    with home(store=store, handler=count_plainly, flush=POLICIES[policy](tmp_path)) as manager:
        manager.dispatch_sync("ann", "hi", durable=True)
        manager.flush_sync()
        go_back = backup(store, tmp_path)
        for _ in range(MANY):
            manager.dispatch_sync("ann", "hi", durable=True)
            manager.flush_sync()
        go_back()

        assert manager.dispatch_sync("ann", "hi") == MANY + 2
        with manager.turn_sync("ann") as turn:
            count_plainly(turn)
        manager.flush_sync("ann")

        assert manager.stats().set_back == 1
    assert (store.read("ann") or {})["n"] == MANY + 3


@each_policy
async def test_what_an_earlier_process_of_the_bot_had_written_is_an_older_state_too(
    policy: str, tmp_path: Path
) -> None:
    store = MemorySessionStore()
    store.outlives_process = True  # type: ignore[misc]  # it stands for a server
    clock = ManualClock()
    async with SessionManager(store, handler=count, flush=POLICIES[policy](tmp_path), clock=clock) as before:
        await before.dispatch("ann", "hi")
        await before.flush()
        go_back = backup(store, tmp_path)
        await before.dispatch("ann", "hi")
    await clock.advance(10.0)
    async with SessionManager(store, handler=count, flush=POLICIES[policy](tmp_path), clock=clock) as manager:
        for _ in range(MANY):
            await manager.dispatch("ann", "hi")
            await manager.flush()
        go_back()

        assert await manager.dispatch("ann", "hi") == MANY + 3
        await manager.flush()

        assert (manager.stats().set_back, manager.stats().conflicts) == (1, 0)
    assert (store.read("ann") or {})["n"] == MANY + 3


@each_policy
@pytest.mark.parametrize("goes_back_to", tiers(["its end", "before its end"]))
async def test_a_session_that_was_destroyed_and_began_anew_goes_on_where_it_was(
    policy: str, goes_back_to: str, tmp_path: Path
) -> None:
    store = MemorySessionStore()
    async with SessionManager(store, handler=count, flush=POLICIES[policy](tmp_path)) as manager:
        for _ in range(3):
            await manager.dispatch("ann", "hi")
        await manager.flush()
        go_back = backup(store, tmp_path)
        await manager.destroy("ann")
        if goes_back_to == "its end":
            go_back = backup(store, tmp_path)
        for _ in range(MANY):
            await manager.dispatch("ann", "hi")
            await manager.flush()
        go_back()

        assert await manager.dispatch("ann", "hi") == MANY + 1
        await manager.flush()

        assert (manager.stats().set_back, manager.stats().conflicts) == (1, 0)
    assert (store.read("ann") or {})["n"] == MANY + 1


@each_policy
async def test_a_destroy_that_meets_an_older_state_ends_the_session(policy: str, tmp_path: Path) -> None:
    store = MemorySessionStore()
    async with SessionManager(store, handler=count, flush=POLICIES[policy](tmp_path)) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        go_back = backup(store, tmp_path)
        await manager.dispatch("ann", "hi")
        await manager.flush()
        go_back()
        await manager.destroy("ann")

        assert await manager.peek("ann") is None
        assert await manager.dispatch("ann", "hi") == 1
        assert manager.stats().conflicts == 0
    assert (store.read("ann") or {})["n"] == 1


async def test_whoever_goes_on_from_an_older_state_is_another_process() -> None:
    store, handed = MemorySessionStore(), []
    async with SessionManager(store, handler=count, on_conflict=lambda *lost: handed.append(lost)) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        go_back = backup(store, Path())
        for _ in range(MANY):
            await manager.dispatch("ann", "hi")
            await manager.flush()
        go_back()
        async with SessionManager(store, handler=count) as other:
            assert await other.dispatch("ann", "hi") == 2

        assert await manager.dispatch("ann", "hi") == MANY + 2
        with pytest.raises(errors.ConflictError):
            await manager.flush()

        assert manager.stats().set_back == 0
        assert await manager.dispatch("ann", "hi") == 3
    assert handed == [("ann", {"n": MANY + 2})]


async def test_the_end_of_a_session_that_another_process_has_destroyed_is_no_older_state() -> None:
    store, clock, behind = MemorySessionStore(), ManualClock(), ManualClock(1_700_000_000.0 - 60.0)
    async with (
        SessionManager(store, handler=count, clock=clock) as manager,
        SessionManager(store, handler=count, clock=behind) as other,
    ):
        for _ in range(3):
            await manager.dispatch("ann", "hi")
        await manager.flush()
        await other.destroy("ann")
        await manager.dispatch("ann", "hi")
        with pytest.raises(errors.ConflictError):
            await manager.flush()

        assert await manager.peek("ann") is None


async def test_what_another_process_has_begun_anew_is_kept_when_the_clock_was_set_back_meanwhile() -> None:
    store, clock = MemorySessionStore(), ManualClock()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        for _ in range(5):
            await manager.dispatch("ann", "hi")
        await manager.flush()
        await clock.advance(60.0)
        clock.jump_wall(-3600.0)
        async with SessionManager(store, handler=count, clock=clock) as other:
            await other.destroy("ann")
            assert await other.dispatch("ann", "hi") == 1
        await manager.dispatch("ann", "hi")
        with pytest.raises(errors.ConflictError):
            await manager.flush()

        assert await manager.dispatch("ann", "hi") == 2


async def test_an_older_state_that_somebody_has_put_there_by_hand_is_another_process_too() -> None:
    store = MemorySessionStore()
    async with SessionManager(store, handler=count) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        exported = store.read("ann")
        assert exported is not None
        await manager.dispatch("ann", "hi")
        await manager.flush()
        await asyncio.to_thread(store.write, "ann", exported)
        await manager.dispatch("ann", "hi")
        with pytest.raises(errors.ConflictError):
            await manager.flush()

        assert await manager.dispatch("ann", "hi") == 2


@pytest.mark.parametrize("left", ["an older state", "nothing"])
@pytest.mark.parametrize("verb", ["dispatch", "destroy"])
async def test_an_older_state_that_is_read_after_a_lost_reply_takes_nothing_back(left: str, verb: str) -> None:
    inner = MemorySessionStore()
    store = FaultyStore(inner)
    policy = FlushPolicy.write_through(retry=Retry(attempts=1, base=0.01, cap=0.01))
    async with SessionManager(store, handler=count, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        go_back = backup(inner, Path())
        for _ in range(MANY):
            await manager.dispatch("ann", "hi")
        store.lose_replies(1)
        with pytest.raises(errors.OutcomeUnknownError):
            await (manager.dispatch("ann", "hi", event_id="last") if verb == "dispatch" else manager.destroy("ann"))
        store.outage()
        with pytest.raises(errors.StoreUnavailableError):
            await manager.dispatch("ann", "hi", event_id="last")
        store.restore()
        if left == "nothing":
            inner.sweep(1e12)
        else:
            go_back()

        assert await manager.peek("ann") == {"n": MANY + 1}
        assert await manager.dispatch("ann", "hi", event_id="last") == MANY + 2
        assert manager.stats().set_back == (left != "nothing")
        assert manager.stats().conflicts == 0
    assert (inner.read("ann") or {})["n"] == MANY + 2


async def test_a_bot_that_was_killed_after_its_store_had_gone_back_brings_it_what_the_journal_has(
    tmp_path: Path,
) -> None:
    store = MemorySessionStore()
    store.outlives_process = True  # type: ignore[misc]  # it stands for a server
    async with SessionManager(store, handler=count, flush=POLICIES["journaled"](tmp_path)) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        go_back = backup(store, tmp_path)
        for _ in range(MANY):
            await manager.dispatch("ann", "hi")
            await manager.flush()
        await manager.dispatch("ann", "hi")
        left = kill(tmp_path / "journal")
    go_back()
    async with SessionManager(store, handler=count, flush=FlushPolicy.journaled(left)) as heir:
        assert await heir.dispatch("ann", "hi") == MANY + 3
        await heir.flush()
        assert (heir.stats().conflicts, heir.conflicts()) == (0, [])
    assert (store.read("ann") or {})["n"] == MANY + 3


async def test_a_store_that_has_gone_back_is_logged_once_and_each_session_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    store = MemorySessionStore()
    users = [f"user:{number}" for number in range(50)]
    async with SessionManager(store, handler=count) as manager:
        for user in users:
            await manager.dispatch(user, "hi")
        await manager.flush()
        ways_back = [backup(store, Path(), user) for user in users]
        for round_ in range(2):
            for user in users:
                await manager.dispatch(user, "hi")
            await manager.flush()
            if not round_:
                for go_back in ways_back:
                    go_back()

        assert manager.stats().set_back == len(users)
        assert manager.health().status == "ready"
    said = [each for each in caplog.records if each.levelno >= logging.WARNING]
    assert ["gone back in time" in each.getMessage() for each in said] == [True]


@each_policy
async def test_sessions_without_an_event_are_brought_back_too(policy: str, tmp_path: Path) -> None:
    store = MemorySessionStore()
    users = [f"user:{number}" for number in range(20)]
    async with SessionManager(store, handler=count, flush=POLICIES[policy](tmp_path)) as manager:
        for user in users:
            await manager.dispatch(user, "hi")
        await manager.flush()
        ways_back = [backup(store, Path(), user) for user in users]
        for user in users:
            await manager.dispatch(user, "hi")
        await manager.flush()
        for go_back in ways_back:
            go_back()
        await manager.dispatch(users[0], "hi")
        await manager.flush()
        await until(lambda: manager.stats().set_back == len(users))

        assert (manager.stats().conflicts, manager.stats().events_at_risk) == (0, 0)
        assert [(store.read(user) or {})["n"] for user in users] == [3, *[2] * 19]


async def test_what_another_process_has_gone_on_from_is_read_again_and_no_conflict_when_nothing_is_lost() -> None:
    store, handed = MemorySessionStore(), []
    async with SessionManager(store, handler=count, on_conflict=lambda *lost: handed.append(lost)) as manager:
        for user in ("ann", "bob"):
            await manager.dispatch(user, "hi")
        await manager.flush()
        go_back = backup(store, Path())
        await manager.dispatch("ann", "hi")
        await manager.flush()
        async with SessionManager(store, handler=count) as other:
            await other.dispatch("bob", "hi")
        go_back()
        await manager.dispatch("ann", "hi")
        await manager.flush()
        await until(lambda: inside.resident(manager, "bob").committed is None)

        assert await manager.dispatch("bob", "hi") == 3
        await manager.flush()
        assert (manager.stats().conflicts, manager.stats().set_back, manager.stats().events_at_risk) == (0, 1, 0)
    assert handed == []
