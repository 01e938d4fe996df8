"""G9: an event id among the last 64 of its session is not run again."""

from __future__ import annotations

from pathlib import Path

import pytest

from actorbot import (
    DUPLICATE,
    Context,
    FileSessionStore,
    FlushPolicy,
    MemorySessionStore,
    SessionManager,
    errors,
)
from actorbot.testing import FaultyStore, ManualClock
from tests.handlers import count
from tests.waiting import soon


async def test_an_event_delivered_twice_counts_once() -> None:
    async with SessionManager(handler=count) as manager:
        assert await manager.dispatch("ann", "hi", event_id="update-1") == 1
        assert await manager.dispatch("ann", "hi", event_id="update-1") is DUPLICATE
        with pytest.raises(errors.DuplicateEventError):
            async with manager.turn("ann", event_id="update-1"):
                pass


async def test_the_id_of_a_failed_event_may_come_again() -> None:
    fail = True

    async def handle(context: Context) -> str:
        if fail:
            raise ValueError
        return "done"

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "hi", event_id="update-1")
        fail = False

        assert await manager.dispatch("ann", "hi", event_id="update-1") == "done"


async def test_the_event_ids_of_an_ended_session_end_with_it() -> None:
    clock = ManualClock()
    async with SessionManager(MemorySessionStore(expires_in=10.0), handler=count, clock=clock) as manager:
        assert await manager.dispatch("ann", "hi", event_id="one") == 1
        clock.jump_wall(11.0)

        assert await manager.dispatch("ann", "hi", event_id="one") == 1


async def test_ids_are_remembered_up_to_the_last_sixty_four_through_passivation_and_restart(tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path / "sessions")
    clock = ManualClock()
    async with SessionManager(store, handler=count, clock=clock, idle_timeout=5.0) as manager:
        for number in range(65):
            await manager.dispatch("ann", "hi", event_id=f"update-{number}")
        await clock.advance(30.0)
        assert list(manager.resident()) == []
        assert await manager.dispatch("ann", "hi", event_id="update-64") is DUPLICATE
    async with SessionManager(store, handler=count, clock=clock) as manager:
        assert await manager.dispatch("ann", "hi", event_id="update-1") is DUPLICATE
        with pytest.raises(errors.DuplicateEventError):
            async with manager.turn("ann", event_id="update-2"):
                raise AssertionError("entered")
        assert await manager.dispatch("ann", "hi", event_id="update-0") == 66


async def test_the_id_of_a_reset_is_remembered() -> None:
    async def handle(context: Context) -> bool:
        if context.event == "/reset":
            context.end_session()
        return context.is_new

    store = MemorySessionStore()
    async with SessionManager(store, handler=handle) as manager:
        await manager.dispatch("ann", "hi", event_id="1")
        await manager.dispatch("ann", "/reset", event_id="2")
        assert await manager.dispatch("ann", "/reset", event_id="2") is DUPLICATE
        assert await manager.peek("ann") is None
    async with SessionManager(store, handler=handle) as manager:
        assert await manager.dispatch("ann", "/reset", event_id="2") is DUPLICATE
        assert await manager.dispatch("ann", "hi", event_id="3") is True


async def test_a_failed_borrowed_turn_does_not_record_its_id() -> None:
    async with SessionManager() as manager:
        with pytest.raises(ValueError):
            async with manager.turn("ann", event_id="1"):
                raise ValueError
        async with manager.turn("ann", event_id="1") as turn:
            assert turn.is_new


async def test_a_duplicate_of_an_event_that_is_not_in_the_store_yet_waits_for_it_when_it_is_to_be_durable() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:max_delay=60,retry.base=0.001,retry.cap=0.001,retry.attempts=2")
    async with SessionManager(store, handler=count, flush=policy, close_timeout=0.5) as manager:
        await manager.dispatch("ann", "hi", durable=True)
        store.outage()
        with pytest.raises(errors.StoreUnavailableError):
            await soon(manager.dispatch("ann", "hi", event_id="one", durable=True))
        with pytest.raises(errors.StoreUnavailableError):
            await soon(manager.dispatch("ann", "hi", event_id="one", durable=True))
        store.restore()
        assert await soon(manager.dispatch("ann", "hi", event_id="one", durable=True)) is DUPLICATE
        assert (store.inner.read("ann") or {})["n"] == 2
