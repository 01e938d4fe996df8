"""Sessions reach the store together, in time, and whoever waits for that is told."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from actorbot import (
    FlushPolicy,
    MemorySessionStore,
    Retry,
    SessionManager,
)
from actorbot.testing import FaultyStore, ManualClock, RecordingStore
from tests import inside
from tests.backends import DictStore
from tests.handlers import count


async def test_events_within_the_delay_cost_one_write() -> None:
    clock, store = ManualClock(), RecordingStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        for _ in range(5):
            await manager.dispatch("ann", "hi")
        assert store.writes == []
        await clock.advance(1.0)

        assert [each.version for each in store.writes] == [5]
        assert manager.stats().dirty_bytes == 0


async def test_a_durable_dispatch_returns_when_the_store_has_it_whatever_the_policy() -> None:
    store = RecordingStore()
    async with SessionManager(store, handler=count, flush=FlushPolicy.write_behind(max_delay=600.0)) as manager:
        await manager.dispatch("ann", "hi", durable=True)

        assert [each.version for each in store.writes] == [1]


async def test_destroying_a_dirty_session_gives_its_bytes_back() -> None:
    clock = ManualClock()
    async with SessionManager(handler=count, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        await manager.destroy("ann")
        await clock.advance(2.0)

        assert manager.stats().dirty_bytes == 0


async def test_sessions_that_are_due_at_about_the_same_time_share_a_write() -> None:
    clock, store = ManualClock(), RecordingStore()
    policy = FlushPolicy.write_behind(max_delay=8.0)
    async with SessionManager(store, handler=count, flush=policy, clock=clock) as manager:
        for user in ("ann", "bob", "cyd"):
            await manager.dispatch(user, "hi")
            await clock.advance(0.4)
        await clock.advance(6.8)

        assert [sorted(record.session_id for record in batch) for batch in store.write_batches] == [
            ["ann", "bob", "cyd"]
        ]


async def test_who_is_told_that_a_flush_succeeded_finds_the_manager_well() -> None:
    clock, store = ManualClock(), FaultyStore()
    policy = FlushPolicy.write_behind(max_delay=1.0, retry=Retry(base=1.0))
    async with SessionManager(store, handler=count, flush=policy, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        store.fail_writes(1)
        await clock.advance(1.0)
        assert manager.health().status == "degraded"
        seen: Future[str] = Future()
        flushed = inside.flusher(manager).flush(inside.table(manager).resident())
        flushed.add_done_callback(lambda _: seen.set_result(manager.health().status))
        await clock.advance(5.0)

        assert seen.result(timeout=5.0) == "ready"


async def test_a_session_that_the_store_refuses_does_not_hold_up_the_others() -> None:
    class Picky(DictStore):
        def write(self, session_id: str, data: dict[str, Any]) -> None:
            if session_id == "bad":
                raise ValueError("document too large")
            super().write(session_id, data)

    clock, store = ManualClock(), Picky()
    async with SessionManager(store, handler=count, clock=clock, close_timeout=0.2) as manager:
        await manager.dispatch("bad", "hi")
        await clock.advance(60.0)
        await manager.dispatch("good", "hi")
        await clock.advance(1.5)
        assert "good" in store.data
        assert manager.health().status != "ready"


async def test_a_record_that_the_store_evicted_is_written_again_by_its_resident() -> None:
    store = MemorySessionStore(max_sessions=1)
    async with SessionManager(store, handler=count) as manager:
        for expected in (1, 2, 3):
            for user in ("ann", "bob"):
                assert await manager.dispatch(user, "hi") == expected
                await manager.flush()
        assert (store.read("bob") or {})["n"] == 3
