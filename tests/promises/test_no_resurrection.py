"""G6: a destroyed session does not come back."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from actorbot import (
    Context,
    FlushPolicy,
    MemorySessionStore,
    Retry,
    SessionManager,
    errors,
)
from actorbot.stores.base import Write
from actorbot.testing import FaultyStore, ManualClock
from tests.backends import DictStore, each_store
from tests.handlers import count
from tests.journals import Server, kill, make_manager
from tests.waiting import SOON, breathe, soon, until


@each_store
async def test_a_destroyed_session_is_gone_and_does_not_come_back(
    make_store: Callable[[Path], Any], tmp_path: Path
) -> None:
    store = make_store(tmp_path)
    async with SessionManager(store, handler=count) as manager:
        await manager.dispatch("ann", "hi")
        await manager.destroy("ann")
        assert await manager.peek("ann") is None
        await manager.flush()
    async with SessionManager(store, handler=count) as manager:
        assert await manager.peek("ann") is None
        assert await manager.dispatch("ann", "hi") == 1


async def test_a_destroy_after_a_failed_flush_writes_the_tombstone_and_not_the_old_state() -> None:
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        store.fail_writes(1)
        await clock.advance(1.0)
        destroying = asyncio.create_task(manager.destroy("ann"))
        await asyncio.sleep(0)
        await clock.advance(1.0)
        await destroying

        assert store.read("ann") is None


async def test_what_another_process_destroyed_does_not_come_back_by_a_flush() -> None:
    store = MemorySessionStore()
    async with SessionManager(store, handler=count) as theirs, SessionManager(store, handler=count) as ours:
        await ours.dispatch("ann", "hi")
        await ours.flush()
        await ours.dispatch("ann", "hi")
        await theirs.destroy("ann")
        with pytest.raises(errors.ConflictError):
            await ours.flush()
        assert store.read("ann") is None
        assert await ours.dispatch("ann", "hi") == 1


async def test_a_destroy_takes_its_place_in_line() -> None:
    go_on = asyncio.Event()
    new: list[tuple[Any, bool]] = []

    async def handle(context: Context) -> int:
        new.append((context.event, context.is_new))
        await go_on.wait()
        return await count(context)

    async with SessionManager(handler=handle) as manager:
        calls = [asyncio.create_task(manager.dispatch("ann", 1)), asyncio.create_task(manager.dispatch("ann", 2))]
        await until(lambda: manager.stats().running == 1)
        await asyncio.sleep(0)
        calls.append(asyncio.create_task(manager.destroy("ann")))
        await asyncio.sleep(0)
        calls.append(asyncio.create_task(manager.dispatch("ann", 3)))
        await asyncio.sleep(0)
        go_on.set()
        assert await soon(asyncio.gather(*calls)) == [1, 2, None, 1]
    assert new == [(1, True), (2, False), (3, True)]


async def test_a_destroy_waits_for_the_write_in_flight_and_nothing_comes_back() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(DictStore):
        def write(self, session_id: str, data: dict[str, Any]) -> None:
            entered.set()
            go_on.wait(SOON)
            super().write(session_id, data)

    store = Slow()
    async with SessionManager(store, handler=count, flush=FlushPolicy.write_behind(max_delay=0.01)) as manager:
        await manager.dispatch("ann", "hi")
        await until(entered.is_set)
        destroying = asyncio.create_task(manager.destroy("ann"))
        await breathe()
        assert not destroying.done()
        go_on.set()
        await soon(destroying)
        assert await manager.peek("ann") is None
        await manager.flush()
        assert store.data == {}


async def test_a_wait_for_a_held_destroy_is_bounded_and_the_session_stays_when_it_failed() -> None:
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        store.outage()
        destroying = asyncio.create_task(manager.destroy("ann"))
        await asyncio.sleep(0)
        for _ in range(20):
            await clock.advance(1.0)
        with pytest.raises(errors.StoreUnavailableError):
            await soon(destroying)
        assert await manager.peek("ann") == {"n": 1}
        assert await manager.dispatch("ann", "hi") == 2
        store.restore()
        await clock.advance(10.0)
        await manager.flush()
        assert (store.read("ann") or {})["n"] == 2


async def test_a_destroy_that_was_refused_is_not_done_later() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:max_delay=60,batch_size=1,retry.attempts=2,retry.base=0.01,retry.cap=0.01")
    async with SessionManager(store, handler=count, flush=policy, close_timeout=0.5) as manager:
        for user in ("ann", "bob"):
            await manager.dispatch(user, "hi")
            await manager.flush()
        store.outage()
        refused = await soon(asyncio.gather(manager.destroy("ann"), manager.destroy("bob"), return_exceptions=True))
        assert [isinstance(each, errors.StoreUnavailableError) for each in refused] == [True, True]
        store.restore()
        for user in ("ann", "bob"):
            assert await soon(manager.dispatch(user, "hi")) == 2
        await soon(manager.flush())
        assert [(store.read(user) or {}).get("n") for user in ("ann", "bob")] == [2, 2]


async def test_what_a_refused_destroy_has_overtaken_is_flushed_when_the_store_is_back() -> None:
    clock, store = ManualClock(), FaultyStore()
    policy = FlushPolicy.parse("write-behind:retry.attempts=1")
    async with SessionManager(store, handler=count, flush=policy, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        store.lose_replies(1)
        await clock.advance(1.0)  # written, though the flusher does not know
        store.outage()
        with pytest.raises(errors.StoreUnavailableError):
            await soon(manager.destroy("ann"))
        store.restore()
        await manager.dispatch("ann", "hi")
        await clock.advance(10.0)
        assert (store.read("ann") or {})["n"] == 2
        assert manager.stats().conflicts == 0


class Withholding(FaultyStore):
    """Does not answer a write that it has, which comes late: when `late` is written."""

    late: Sequence[Write] = ()
    withholds = False

    def write_many(self, writes: Sequence[Write]) -> Sequence[errors.ActorbotError | None]:
        if not self.withholds:
            return super().write_many(writes)
        self.late = writes
        raise errors.OutcomeUnknownError("test", "the process that has sent it was killed")


@pytest.mark.parametrize("policy", ["write-through:retry.attempts=1", "write-behind:retry.attempts=1"])
async def test_a_destroy_that_comes_late_takes_nothing_that_has_begun_since(policy: str) -> None:
    inner = MemorySessionStore()
    store = Withholding(inner)
    async with SessionManager(store, handler=count, flush=FlushPolicy.parse(policy), close_timeout=0.1) as dead:
        await dead.dispatch("ann", "hi")
        await dead.flush()
        store.withholds = True
        with pytest.raises(errors.OutcomeUnknownError):
            await soon(dead.destroy("ann"))

        async with SessionManager(inner, handler=count, flush=FlushPolicy.write_through()) as heir:
            assert await heir.dispatch("ann", "hi") == 2
            assert isinstance(inner.write_many(store.late)[0], errors.ConflictError)
            assert (inner.read("ann") or {})["n"] == 2


@pytest.mark.parametrize("is_read", [True, False])
async def test_a_destroy_takes_also_what_somebody_else_has_written_since(is_read: bool) -> None:
    store = MemorySessionStore()
    async with SessionManager(store, handler=count) as manager, SessionManager(store, handler=count) as other:
        await (manager if is_read else other).dispatch("ann", "hi")
        await (manager if is_read else other).flush()
        await other.dispatch("ann", "hi")
        await other.flush()
        await manager.destroy("ann")
        assert store.read("ann") is None
        assert await manager.dispatch("ann", "hi") == 1


async def test_a_session_destroyed_during_an_outage_stays_gone_after_a_kill(tmp_path: Path) -> None:
    store = Server()
    policy = {"retry": Retry(attempts=1, base=1.0)}  # `destroy` waits for one try, and the next is far
    async with make_manager(store, tmp_path / "journal", policy=policy) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        store.outage()
        await manager.destroy("ann")
        assert await manager.peek("ann") is None
        left = kill(tmp_path / "journal")
        store.restore()
        async with make_manager(store, left) as heir:
            assert await heir.peek("ann") is None
            assert await heir.dispatch("ann", "hi") == 1
    assert (store.read("ann") or {})["n"] == 1
