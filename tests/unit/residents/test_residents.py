"""A hundred thousand sessions in one process."""

from __future__ import annotations

import asyncio
import gc
import threading
import tracemalloc
from collections.abc import Mapping, Sequence
from typing import Any

import pykka
import pytest

from actorbot import Context, MemorySessionStore, SessionManager
from actorbot._runtime.actor import RELIED_ON, EndOfBatch, Envelope, PooledActor
from actorbot.testing import ManualClock
from tests import inside
from tests.tiers import tiers


class Nowhere:
    """A driver that keeps nothing, so that what is measured is the manager's."""

    def init(self) -> None:
        pass

    def read(self, session_id: str) -> None:
        return None

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        pass

    def destroy(self, session_id: str) -> None:
        pass

    def read_many(self, session_ids: Sequence[str]) -> Mapping[str, Any]:
        return {}

    def write_many(self, items: Sequence[tuple[str, dict[str, Any]]]) -> None:
        pass


@pytest.mark.timeout(300)
@pytest.mark.parametrize("residents", tiers([10_000, 100_000]))
async def test_so_many_residents_are_small_need_no_threads_and_all_can_leave(residents: int) -> None:
    async def handle(context: Context) -> None:
        context.session["texts"] = ["a message of usual length"] * 10

    ids = [f"telegram:{number}" for number in range(residents)]
    numbers = iter(ids)

    async def caller(manager: SessionManager) -> None:
        for each in numbers:
            await manager.dispatch(each, "hi")

    async with SessionManager(Nowhere(), handler=handle, idle_timeout=3600.0) as manager:
        threads = threading.active_count()
        tracemalloc.start()
        await asyncio.gather(*(caller(manager) for _ in range(64)))
        await manager.flush()
        encoded = sum(info.bytes for _, info in manager.resident())
        taken = tracemalloc.get_traced_memory()[0]
        tracemalloc.stop()

        assert manager.stats().resident == residents
        assert threading.active_count() == threads
        assert (taken - encoded) / residents <= 1_500
        table = inside.table(manager)
        left = sum(table.passivate(actor) for actor in table.resident())
        assert left == residents
        assert manager.stats().resident == 0


async def test_unflushed_sessions_give_the_garbage_collector_nothing_more_to_walk_over() -> None:
    async def handle(context: Context) -> None:
        context.session["text"] = context.event

    async with SessionManager(MemorySessionStore(), handler=handle, clock=ManualClock()) as manager:
        ids = [f"telegram:{number}" for number in range(1_000)]
        for each in ids:
            await manager.dispatch(each, "hi")
        await manager.flush()
        gc.collect()
        flushed = len(gc.get_objects())

        for each in ids:
            await manager.dispatch(each, "hello")
        gc.collect()

        assert len(gc.get_objects()) < flushed + 100


@pytest.mark.parametrize("durable", [False, True])
async def test_a_task_for_each_event_leaves_nothing_that_only_the_garbage_collector_can_free(durable: bool) -> None:
    async def handle(context: Context) -> None:
        context.session["text"] = context.event

    async with SessionManager(MemorySessionStore(), handler=handle) as manager:
        await asyncio.gather(*(manager.dispatch(f"telegram:{number}", "hi") for number in range(10)))
        await manager.flush()
        gc.collect()
        gc.disable()
        try:
            events = (manager.dispatch(f"telegram:{number % 10}", "hi", durable=durable) for number in range(500))
            await asyncio.gather(*events)
            await manager.flush()
            assert gc.collect() < 500
        finally:
            gc.enable()


def test_pykka_still_has_what_the_session_actors_are_built_on() -> None:

    class Inbox:
        def __init__(self) -> None:
            self.envelopes = [Envelope("one"), Envelope("two")]

        def get(self) -> Any:
            if not self.envelopes:
                raise EndOfBatch
            return self.envelopes.pop(0)

        def put(self, envelope: Any, /) -> None: ...

        def empty(self) -> bool:
            return not self.envelopes

    seen: list[Any] = []

    class Actor(PooledActor):
        actor_inbox = Inbox()

        def on_receive(self, message: Any) -> None:
            seen.append(message)

    actor = Actor.__new__(Actor)
    actor.run_batch()

    assert all(hasattr(pykka.Actor, name) for name in RELIED_ON)
    assert seen == ["one", "two"]
