"""G7: a failed read or a broken record is an error, never a new session."""

from __future__ import annotations

import asyncio
import threading
from dataclasses import dataclass
from typing import Any

import pytest

from actorbot import (
    Context,
    FlushPolicy,
    MemorySessionStore,
    SessionManager,
    errors,
)
from actorbot.testing import FaultyStore, ManualClock, RecordingStore
from tests import inside
from tests.backends import DictStore
from tests.handlers import count
from tests.waiting import SOON, breathe, soon, until


async def test_a_failed_read_is_an_error_and_never_a_new_session() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        await manager.dispatch("ann", "hi")
    async with SessionManager(store, handler=count) as manager:
        store.fail_reads(1)
        with pytest.raises(errors.StoreUnavailableError):
            await manager.dispatch("ann", "hi")

        assert await manager.dispatch("ann", "hi") == 2


async def test_a_damaged_record_is_reported_and_left_alone() -> None:
    clock = ManualClock()
    store = FaultyStore(RecordingStore())
    async with SessionManager(store, handler=count, clock=clock) as manager:
        store.corrupt("ann")
        for _ in range(2):
            with pytest.raises(errors.CorruptSessionError):
                await manager.dispatch("ann", "hi")
        assert await manager.dispatch("bob", "hi") == 1
        store.mend("ann")
        await clock.advance(2.0)

        assert await manager.dispatch("ann", "hi") == 1
    assert isinstance(store.inner, RecordingStore)
    assert [each.session_id for each in store.inner.writes] == ["bob", "ann"]


async def test_a_session_whose_read_failed_can_never_be_entered_by_its_old_actor() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.hold()
        store.fail_reads(1)
        waiting = asyncio.create_task(manager.dispatch("ann", "hi"))
        await asyncio.sleep(0)
        old = inside.resident(manager, "ann")
        store.release()
        with pytest.raises(errors.StoreUnavailableError):
            await waiting

        assert not old.turn.acquire(False)
        assert await manager.dispatch("ann", "hi") == 1
        assert inside.resident(manager, "ann") is not old


async def test_a_destroy_behind_an_event_that_meets_the_broken_record_destroys_it() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.corrupt("ann")
        store.hold()
        event = asyncio.create_task(manager.dispatch("ann", "hi"))
        await asyncio.sleep(0)
        destroying = asyncio.create_task(manager.destroy("ann"))
        await asyncio.sleep(0)
        store.release()
        with pytest.raises(errors.CorruptSessionError):
            await event
        await destroying

        assert await manager.dispatch("ann", "hi") == 1


async def test_the_error_of_a_broken_record_does_not_grow_with_each_who_is_told() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.corrupt("ann")
        depths = []
        for _ in range(5):
            with pytest.raises(errors.CorruptSessionError) as caught:
                await manager.dispatch("ann", "hi")
            depths.append(len(caught.traceback))
        assert depths[4] == depths[1]


async def test_a_broken_record_is_left_alone_for_a_while_by_told_events_too() -> None:
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        store.corrupt("ann")
        for _ in range(3):
            with pytest.raises(errors.CorruptSessionError):
                await (await manager.submit("ann", "hi")).result()

        assert manager.stats().store_reads == 1


async def test_a_read_that_is_cancelled_by_its_first_caller_serves_the_next() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.hold()
        first = asyncio.create_task(manager.dispatch("ann", 1))
        await until(lambda: store.read_calls == 1)
        second = asyncio.create_task(manager.dispatch("ann", 2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        store.release()
        assert await soon(second) == 1


async def test_a_failing_store_of_one_session_fails_no_dispatch_of_another() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Picky(DictStore):
        tries = 0

        def write(self, session_id: str, data: dict[str, Any]) -> None:
            if session_id == "bad":
                self.tries += 1
                if self.tries == 2:
                    entered.set()
                    go_on.wait(SOON)
                raise ValueError("document too large")
            super().write(session_id, data)

    store = Picky()
    policy = FlushPolicy.parse("write-through:retry.attempts=2,retry.base=0.01,retry.cap=0.01")
    async with SessionManager(store, handler=count, flush=policy) as manager:
        await manager.dispatch("good", "hi")
        bad = asyncio.create_task(manager.dispatch("bad", "hi"))
        await until(entered.is_set)
        good = asyncio.create_task(manager.dispatch("good", "hi"))
        await breathe()
        go_on.set()
        with pytest.raises(errors.StoreUnavailableError):
            await soon(bad)
        assert await soon(good) == 2


async def test_a_cold_crowd_with_one_broken_record_is_served() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.corrupt("user:7")
        outcomes = await soon(
            asyncio.gather(*(manager.dispatch(f"user:{user}", "hi") for user in range(300)), return_exceptions=True)
        )
        assert [type(each) for each in outcomes if each != 1] == [errors.CorruptSessionError]
        assert store.read_calls < 20


async def test_a_broken_record_can_be_destroyed_as_its_error_says() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.corrupt("ann")
        with pytest.raises(errors.CorruptSessionError, match="destroy"):
            await manager.dispatch("ann", "hi")
        await soon(manager.destroy("ann"))

        assert await soon(manager.dispatch("ann", "hi")) == 1


async def test_health_knows_of_a_store_that_cannot_be_read() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.outage()
        for user in range(3):
            with pytest.raises(errors.StoreUnavailableError):
                await manager.dispatch(f"user:{user}", "hi")
        assert manager.health().status == "degraded"
        store.restore()
        await manager.dispatch("ann", "hi")
        assert manager.health().status == "ready"


async def test_a_record_that_does_not_fit_the_dataclass_is_broken_and_stays() -> None:
    @dataclass
    class Shape:
        n: int = 0

    store = MemorySessionStore()

    async def text(context: Context) -> None:
        context.session["n"] = "text"

    async def wrong(context: Context) -> None:
        context.session.n = context.event

    async with SessionManager(store, handler=text) as manager:
        await manager.dispatch("ann", "hi")
    async with SessionManager(store, handler=wrong, session_type=Shape) as manager:
        with pytest.raises(errors.CorruptSessionError, match="n"):
            await manager.dispatch("ann", 1)
        await manager.dispatch("bob", 1)
        with pytest.raises(errors.NotEncodableError) as caught:
            await manager.dispatch("bob", "text")
        assert caught.value.path == "session.n"
        assert await manager.peek("bob") == {"n": 1}
        assert await manager.peek("ann") == {"n": "text"}
