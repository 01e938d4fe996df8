"""How sessions end of age, and who is told."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actorbot import (
    Context,
    FileSessionStore,
    MemorySessionStore,
    SessionManager,
)
from actorbot._state.record import Record
from actorbot.stores.base import Write
from actorbot.testing import ManualClock
from tests.handlers import count
from tests.waiting import breathe, until


async def test_a_session_expires_by_its_last_event_and_says_goodbye() -> None:
    clock = ManualClock()
    ended: list[Any] = []
    store = MemorySessionStore(expires_in=10)
    starts: list[str] = []
    async with SessionManager(
        store, handler=count, clock=clock, idle_timeout=1000.0,
        on_session_expire=lambda session_id, state: ended.append((session_id, state)),
        on_session_start=lambda context: starts.append(context.session_id),
    ) as manager:  # fmt: skip
        for _ in range(3):
            await manager.dispatch("ann", "hi")
            await clock.advance(9.0)
        assert await manager.peek("ann") == {"n": 3}
        clock.jump_wall(2.0)
        assert await manager.peek("ann") is None
        assert await manager.dispatch("ann", "hi") == 1
    assert ended == [("ann", {"n": 3})]
    assert starts == ["ann", "ann"]


async def test_each_life_of_a_session_has_an_end_of_its_own_that_is_told() -> None:
    clock = ManualClock()
    ended: list[Any] = []
    async with SessionManager(
        MemorySessionStore(expires_in=10.0), handler=count, clock=clock, idle_timeout=3.0,
        on_session_expire=lambda *each: ended.append(each),
    ) as manager:  # fmt: skip
        for _ in range(3):
            assert await manager.dispatch("ann", "hi") == 1
            await clock.advance(30.0)
    assert ended == [("ann", {"n": 1})] * 3


@pytest.mark.parametrize(("expires_at", "found"), [(1_500.0, None), (4e9, {"n": 1})])
async def test_the_records_own_stamp_decides_whether_it_has_ended(expires_at: float, found: Any) -> None:
    store = MemorySessionStore(expires_in=10.0)
    record = Record("ann", 1, b"\x81\xa1n\x01", b"", b"", 1_000.0, expires_at).next_write()
    store.write_many([Write(record, b"")])
    async with SessionManager(store, handler=count) as manager:
        assert await manager.peek("ann") == found
        assert await manager.dispatch("ann", "hi") == (2 if found else 1)


async def test_peek_neither_activates_nor_slides_the_expiry() -> None:
    clock = ManualClock()
    async with SessionManager(MemorySessionStore(expires_in=100.0), handler=count, clock=clock, idle_timeout=5.0) as m:
        await m.dispatch("ann", "hi")
        await clock.advance(30.0)
        activations = m.stats().activations
        assert await m.peek("ann") == {"n": 1}
        assert await m.peek("nobody") is None
        assert m.stats().activations == activations
        assert list(m.resident()) == []
        clock.jump_wall(69.0)
        assert await m.peek("ann") == {"n": 1}
        clock.jump_wall(2.0)
        assert await m.peek("ann") is None
        copy = await m.peek("ann")
        assert copy is None


async def test_an_event_that_changes_nothing_slides_the_expiry() -> None:
    clock, store = ManualClock(), MemorySessionStore(expires_in=10.0)

    async def handle(context: Context) -> int:
        if context.event == "touch":
            return 0
        return await count(context)

    async with SessionManager(store, handler=handle, clock=clock, idle_timeout=2.0) as manager:
        await manager.dispatch("ann", "hi")
        for _ in range(5):
            await clock.advance(8.0)
            await manager.dispatch("ann", "touch")
        await clock.advance(8.0)
        assert await manager.dispatch("ann", "hi") == 2


async def test_swept_and_read_expiries_are_told(tmp_path: Path) -> None:
    clock = ManualClock()
    ended: list[Any] = []
    store = FileSessionStore(tmp_path / "s", expires_in=50.0)
    async with SessionManager(store, handler=count, clock=clock, idle_timeout=2.0) as manager:
        await manager.dispatch("read", "hi")
        await manager.dispatch("swept", "hi")
    clock.jump_wall(60.0)
    async with SessionManager(
        store, handler=count, clock=clock, idle_timeout=20.0, on_session_expire=lambda *each: ended.append(each)
    ) as manager:
        assert await manager.dispatch("read", "hi") == 1
        await until(lambda: len(ended) == 1)
        assert ended == [("read", {"n": 1})]
        await clock.advance(20.0)
        await until(lambda: len(ended) == 2)
        assert ended[1] == ("swept", {"n": 1})


@pytest.mark.parametrize("idle_timeout", [20.0, 100.0, 200.0])
async def test_one_expiry_is_told_once(idle_timeout: float) -> None:
    clock = ManualClock()
    ended: list[Any] = []
    async with SessionManager(
        MemorySessionStore(expires_in=100.0),
        handler=count,
        clock=clock,
        idle_timeout=idle_timeout,
        on_session_expire=lambda *each: ended.append(each),
    ) as manager:
        await clock.advance(1.0)  # out of step with the sweeps of the store
        await manager.dispatch("ann", "hi")
        await clock.advance(400.0)
    assert ended == [("ann", {"n": 1})]


async def test_a_resident_session_leaves_memory_when_it_expires_long_before_it_counts_as_idle() -> None:
    clock = ManualClock()
    ended: list[Any] = []
    async with SessionManager(
        MemorySessionStore(expires_in=10.0), handler=count, clock=clock, idle_timeout=3_600.0,
        on_session_expire=lambda *each: ended.append(each),
    ) as manager:  # fmt: skip
        await manager.dispatch("ann", "hi")
        await clock.advance(300.0)

        assert list(manager.resident()) == []
        assert ended == [("ann", {"n": 1})]


async def test_one_expiry_is_told_once_when_the_event_that_met_it_fails() -> None:
    clock = ManualClock()
    ended: list[Any] = []

    async def handle(context: Context) -> int:
        if context.event == "fail":
            raise ValueError("no")
        return await count(context)

    async with SessionManager(
        MemorySessionStore(expires_in=100.0), handler=handle, clock=clock, idle_timeout=2.0,
        on_session_expire=lambda *each: ended.append(each),
    ) as manager:  # fmt: skip
        await manager.dispatch("ann", "hi")
        await clock.advance(5.0)
        clock.jump_wall(200.0)
        for _ in range(2):
            with pytest.raises(ValueError):
                await manager.dispatch("ann", "fail")
        await clock.advance(60.0)
    assert ended == [("ann", {"n": 1})]


async def test_a_goodbye_may_be_said_to_the_session_whose_turn_met_the_expiry() -> None:
    clock = ManualClock()
    outcomes: list[Any] = []

    async def goodbye(session_id: str, _: Any) -> None:
        outcomes.extend(await asyncio.gather(manager.dispatch("ann", "bob ended"), return_exceptions=True))

    async def handle(context: Context) -> str:
        if context.event == "ask bob":
            await manager.dispatch("bob", "hi")
            await breathe()
        return "done"

    async with SessionManager(
        MemorySessionStore(expires_in=10.0), handler=handle, clock=clock, on_session_expire=goodbye
    ) as manager:
        await manager.dispatch("bob", "hi")
        clock.jump_wall(11.0)
        await manager.dispatch("ann", "ask bob")
        await until(lambda: outcomes)
    assert outcomes == ["done"]
