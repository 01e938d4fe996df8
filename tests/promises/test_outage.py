"""G11: while its store is gone the bot answers from memory; when the store is back, everything
arrives.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any, NamedTuple

import pytest

from actorbot import (
    DUPLICATE,
    Context,
    FlushPolicy,
    MemorySessionStore,
    MongoSessionStore,
    RedisSessionStore,
    Retry,
    SessionManager,
    errors,
)
from actorbot._state.codec import decode_state
from actorbot._state.record import Record
from actorbot.stores.base import RecordStore
from actorbot.testing import FaultyStore, ManualClock
from tests.backends import each_store
from tests.handlers import count
from tests.servers import mongo_servers, redis_servers
from tests.servers.loop_watch import LoopWatch
from tests.tiers import tiers
from tests.waiting import HANGS, breathe, soon, until

# --- a store that fails when told to -------------------------------------------------------------


class Switch:
    """A driver whose calls fail while it is off."""

    def __init__(self, driver: Any) -> None:
        self._driver, self._off = driver, False

    def outage(self) -> None:
        self._off = True

    def restore(self) -> None:
        self._off = False

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._driver, name)

        def check() -> None:
            if self._off:
                raise ConnectionError("told to fail")

        @wraps(method)
        def call(*args: Any) -> Any:
            check()
            return method(*args)

        @wraps(method)
        async def call_async(*args: Any) -> Any:
            check()
            return await method(*args)

        return call_async if inspect.iscoroutinefunction(method) else call


@each_store
async def test_the_bot_goes_on_through_an_outage_and_everything_arrives(
    make_store: Callable[[Path], Any], tmp_path: Path
) -> None:
    clock, made = ManualClock(), make_store(tmp_path)
    store: Any = FaultyStore(made) if isinstance(made, RecordStore) else Switch(made)
    async with SessionManager(store, handler=count, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        store.outage()
        for expected in range(2, 300):
            assert await manager.dispatch("ann", "hi") == expected
            if expected % 50 == 0:
                await clock.advance(2.0)
        assert manager.health().status == "degraded"
        store.restore()
        await clock.advance(10.0)

        assert manager.health().status == "ready"
        assert next(manager.resident())[1].flushed == 299


# --- a server that is killed, or does not answer ------------------------------------------------

USERS = [f"telegram:{n}" for n in range(50)]
SERVERS = [
    *(f"{kind} {how}" for kind in (*redis_servers.PLACES, "mongo") for how in ("killed", "frozen")),
    "mongo replica set killed",
]
FIRST = [f"{kind} {how}" for kind in (redis_servers.QUICK, "mongo") for how in ("killed", "frozen")]


class Place(NamedTuple):
    """A server of the test's own."""

    make_store: Callable[[], RecordStore]
    goes: Callable[[], object]
    comes: Callable[[], object]


@contextmanager
def place(name: str, folder: Path) -> Iterator[Place]:
    kind, _, how = name.rpartition(" ")
    server: Any
    if kind in redis_servers.PLACES:
        with redis_servers.Server(kind, folder) as server:
            yield Place(lambda: RedisSessionStore(f"{server.url}?socket_timeout=1"), *ways(server, how))
    else:
        with mongo_servers.server(replica_set="replica set" in kind) as server:
            yield Place(lambda: MongoSessionStore(server.url), *ways(server, how))


def ways(server: Any, how: str) -> tuple[Callable[[], object], Callable[[], object]]:
    return (server.kill, server.start) if how == "killed" else (server.freeze, server.thaw)


def counted(store: RecordStore, session_ids: Sequence[str]) -> list[int]:
    """Return the counters in the store."""
    store.init()
    try:
        found = store.read_many(session_ids)
    finally:
        store.close()
    return [decode_state(each.state)["n"] for each in found if isinstance(each, Record) and each.state is not None]


@pytest.mark.usefixtures("young_servers_will_do")
@pytest.mark.parametrize("name", tiers(SERVERS, *FIRST))
async def test_the_bot_answers_while_its_server_is_gone_and_nothing_is_lost(name: str, tmp_path: Path) -> None:
    rounds = 0
    policy = FlushPolicy.write_behind(max_delay=0.05, store_deadline=1.0, retry=Retry(cap=0.5))

    async def everyone() -> None:
        nonlocal rounds
        rounds += 1
        assert await soon(asyncio.gather(*(manager.dispatch(user, "hi") for user in USERS))) == [rounds] * len(USERS)

    with place(name, tmp_path) as server:
        async with SessionManager(server.make_store(), handler=count, flush=policy) as manager, LoopWatch() as watch:
            await everyone()
            await manager.flush()
            await asyncio.to_thread(server.goes)
            async with asyncio.timeout(HANGS):
                while manager.health().status == "ready":  # until it is known that the server is gone
                    await everyone()
                    await asyncio.sleep(0.01)
            with pytest.raises(errors.StoreUnavailableError):
                await soon(manager.dispatch("newcomer", "hi"))
            for _ in range(2 * policy.max_events):  # none of which waits for a flush
                await everyone()
            assert manager.health().status == "degraded"
            assert manager.stats().dirty_bytes <= 1_000 * len(USERS)  # however much has been said
            await asyncio.to_thread(server.comes)
            await everything_arrives(manager)
            await until(lambda: manager.health().status == "ready")  # its lease is renewed in a moment
            await everyone()
            assert watch.blocked == []

        assert counted(server.make_store(), USERS) == [rounds] * len(USERS)


async def everything_arrives(manager: SessionManager) -> None:
    async with asyncio.timeout(2 * HANGS):
        while True:
            try:
                await manager.flush()
            except errors.StoreUnavailableError:
                continue  # it has been tried as often as a caller waits for
            return


# --- what is said of a write --------------------------------------------------------------------


async def test_write_through_acknowledges_only_what_is_stored() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-through:retry.attempts=1")
    said: list[str] = []

    async def handle(context: Context) -> int:
        context.send_text("hello")
        return await count(context)

    async with SessionManager(store, handler=handle, flush=policy, deliver=lambda _, t: said.append(t)) as manager:
        assert await manager.dispatch("ann", "hi") == 1
        store.fail_writes(1)
        with pytest.raises(errors.StoreUnavailableError):
            await manager.dispatch("ann", "hi", event_id="again")

        assert await manager.dispatch("ann", "hi", event_id="again") == 2
    assert said == ["hello", "hello"]


async def test_a_lost_reply_of_the_store_is_resolved_by_the_write_id() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-through:retry.base=0.001")
    async with SessionManager(store, handler=count, flush=policy) as manager:
        store.lose_replies(2)

        assert [await manager.dispatch("ann", "hi") for _ in range(3)] == [1, 2, 3]


async def test_an_unknown_outcome_is_said_and_the_session_is_read_again() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-through:retry.attempts=1")
    async with SessionManager(store, handler=count, flush=policy) as manager:
        store.lose_replies(1)
        with pytest.raises(errors.OutcomeUnknownError):
            await manager.dispatch("ann", "hi", event_id="one")

        assert await manager.dispatch("ann", "hi", event_id="one") is DUPLICATE


async def test_a_store_that_takes_a_write_after_a_failed_read_is_well_again() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        await manager.dispatch("ann", "hi")
        store.fail_reads(1)
        with pytest.raises(errors.StoreUnavailableError):
            await manager.peek("bob")
        assert manager.health().status == "degraded"
        assert "told to fail" in manager.health().reason
        await manager.flush()
        assert manager.health().status == "ready"


async def test_a_lost_reply_followed_by_an_outage_is_an_unknown_outcome() -> None:
    class GoesDownWithTheReply(FaultyStore):
        def write_many(self, writes: Any) -> Any:
            try:
                return super().write_many(writes)
            except errors.OutcomeUnknownError:
                self.outage()
                raise

    store = GoesDownWithTheReply()
    policy = FlushPolicy.parse("write-through:retry.base=0.01,retry.cap=0.01,retry.attempts=3")
    async with SessionManager(store, handler=count, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        store.lose_replies(1)
        with pytest.raises(errors.OutcomeUnknownError):
            await soon(manager.dispatch("ann", "hi", event_id="two"))
        store.restore()

        assert await soon(manager.dispatch("ann", "hi", event_id="two")) is DUPLICATE


async def test_a_flush_in_an_outage_says_so_in_bounded_time_and_loses_nothing() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:max_delay=60,retry.base=0.01,retry.cap=0.02")
    async with SessionManager(store, handler=count, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        store.outage()
        for _ in range(3):
            with pytest.raises(errors.StoreUnavailableError):
                await soon(manager.flush())
        store.restore()
        await soon(manager.flush())
        assert (store.read("ann") or {})["n"] == 1


async def test_what_comes_after_an_expiry_during_an_outage_is_not_lost_to_an_old_write() -> None:
    clock, store = ManualClock(), FaultyStore(MemorySessionStore(expires_in=10.0))
    conflicts: list[Any] = []
    async with SessionManager(
        store, handler=count, clock=clock, idle_timeout=4.0, on_conflict=lambda *each: conflicts.append(each)
    ) as manager:
        await manager.dispatch("ann", "hi")
        store.outage()
        await clock.advance(30.0)
        store.restore()
        assert await manager.dispatch("ann", "hi") == 1
        await clock.advance(6.0)
        await soon(manager.flush())

        assert conflicts == []
        assert await manager.dispatch("ann", "hi") == 2


async def test_the_wait_for_a_flush_at_max_events_is_suspended_in_an_outage() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:max_events=5,max_delay=60,retry.base=0.01,retry.cap=0.02")
    async with SessionManager(store, handler=count, flush=policy) as manager:
        for expected in range(1, 31):
            assert await soon(manager.dispatch("ann", "hi")) == expected
            assert dict(manager.resident())["ann"].version - dict(manager.resident())["ann"].flushed <= 5
        store.outage()
        for expected in range(31, 61):
            assert await soon(manager.dispatch("ann", "hi")) == expected
        store.restore()
        await breathe()
        await soon(manager.flush())
        assert (store.read("ann") or {})["n"] == 60


async def test_the_oldest_unflushed_state_is_told_during_an_outage_too() -> None:
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock, close_timeout=0.2) as manager:
        await manager.dispatch("ann", "hi")
        store.outage()
        await clock.advance(30.0)
        assert manager.stats().dirty_bytes > 0
        assert manager.stats().oldest_dirty == pytest.approx(30.0)
