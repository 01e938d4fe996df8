"""`stats()` and `health()` say what they mean."""

from __future__ import annotations

import pytest

from actorbot import Context, FlushPolicy, SessionManager
from actorbot.testing import ManualClock
from tests.handlers import count
from tests.waiting import until


async def test_figures_mean_what_they_say() -> None:
    clock = ManualClock()

    async def handle(context: Context) -> int:
        if context.event == "fail":
            raise ValueError("no")
        return await count(context)

    async with SessionManager(handler=handle, clock=clock, idle_timeout=60.0) as manager:
        for number in (1, 1, 2):
            await manager.dispatch("ann", "hi", event_id=str(number))
        with pytest.raises(ValueError):
            await manager.dispatch("bob", "fail")
        await manager.submit("bob", "fail")
        await until(lambda: manager.stats().dead_letters == 1)
        await clock.advance(0.5)
        stats = manager.stats()
        assert (stats.handled, stats.failed, stats.duplicates, stats.resident) == (2, 2, 1, 2)
        assert stats.oldest_dirty == pytest.approx(0.5)
        assert stats.dirty_bytes > 0
        info = dict(manager.resident())["ann"]
        assert (info.version, info.flushed, info.idle, info.waiting, info.busy) == (2, 0, pytest.approx(0.5), 0, False)
        await manager.flush("bob")
        assert dict(manager.resident())["ann"].flushed == 0
        await manager.flush("ann")
        assert dict(manager.resident())["ann"].flushed == 2
        stats = manager.stats()
        assert (stats.dirty_bytes, stats.oldest_dirty, stats.store_writes, stats.running) == (0, 0.0, 1, 0)
        await clock.advance(120.0)
        assert manager.stats().resident == 0
        assert manager.stats().passivations == 2


async def test_the_oldest_unflushed_state_is_not_that_of_a_session_flushed_meanwhile() -> None:
    clock = ManualClock()
    policy = FlushPolicy.write_behind(max_delay=60.0)
    async with SessionManager(handler=count, clock=clock, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        await clock.advance(30.0)
        await manager.flush("ann")
        await manager.dispatch("bob", "hi")
        assert manager.stats().oldest_dirty == pytest.approx(0.0)
