"""Events that fail: what their shard owes to those behind them, and to the next owner."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from actorbot import DUPLICATE, Context, MemorySessionStore
from actorbot.cluster._log import Reading
from actorbot.errors import ActorbotError, RemoteHandlerError, StoreUnavailableError
from actorbot.stores import Write
from tests.unit.cluster.shards import bench, remember
from tests.waiting import breathe, soon, until


class ReadOnly(MemorySessionStore):
    """A store that takes no writes for a while."""

    refuses = True

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        if self.refuses:
            raise StoreUnavailableError("memory", "it takes no writes")
        return super().write_many(writes)


async def test_a_duplicate_stays_in_the_log_until_the_store_has_what_the_first_one_changed() -> None:
    async with bench() as b:
        b.store = ReadOnly()
        await b.shard()
        cluster = await b.cluster()
        with pytest.raises(StoreUnavailableError):
            await cluster.dispatch("ann", "one", event_id="1", durable=True)  # it was committed, and left the log
        assert await cluster.dispatch("ann", "one", event_id="1") is DUPLICATE
        assert b.entries("ann") == 1
        b.store.refuses = False
        await cluster.flush("ann")
        await until(lambda: b.entries("ann") == 0)
        assert await cluster.peek("ann") == {"seen": ["one"]}


async def test_a_failure_is_settled_before_the_next_event_is_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[Any] = []

    async def handle(context: Context) -> int:
        begun.append(context.event)
        if context.event == "bad":
            raise ValueError(context.event)
        return await remember(context)

    async with bench() as b:
        shard, cluster, answered = await b.shard(handle), await b.cluster(), asyncio.Event()
        settle = shard._log.settle

        async def late(*args: Any) -> list[int]:
            await answered.wait()
            return await settle(*args)

        monkeypatch.setattr(shard._log, "settle", late)
        bad = asyncio.create_task(cluster.dispatch("ann", "bad"))
        await until(lambda: begun == ["bad"])
        good = asyncio.create_task(cluster.dispatch("ann", "good"))
        await until(lambda: shard.stats().in_hand == 2)
        await breathe()
        assert begun == ["bad"]
        answered.set()
        with pytest.raises(RemoteHandlerError):
            await soon(bad)
        assert await soon(good) == 1


async def test_an_event_that_has_failed_is_not_begun_again_by_a_reading_that_comes_late(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begun: list[Any] = []

    async def handle(context: Context) -> int:
        begun.append(context.event)
        if context.event == "bad" and begun.count("bad") == 1:
            raise ValueError(context.event)  # the next time it would succeed
        return await remember(context)

    async with bench() as b:
        shard, cluster, answered = await b.shard(handle), await b.cluster(), asyncio.Event()
        read, readings = shard._log.read, list[Reading]()

        async def late(member: str, room: int) -> Reading:
            if len(readings) == 1:  # its connection was lost: it begins anew, before the event is settled
                await answered.wait()
                readings.append(readings[0])
                return readings[0]
            reading = await read(member, room)
            readings.extend([reading] if any(b"bad" in entry.payload for entry in reading.entries) else [])
            return reading

        monkeypatch.setattr(shard._log, "read", late)
        await cluster.dispatch("bob", "hello")  # the reading that was under way has ended
        with pytest.raises(RemoteHandlerError):
            await cluster.dispatch("ann", "bad")
        answered.set()
        assert await cluster.dispatch("ann", "good") == 1
        assert begun == ["hello", "bad", "good"]


async def test_after_a_close_nothing_waits_for_a_failure_that_could_not_be_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def handle(context: Context) -> None:
        raise ValueError(context.event)

    async with bench() as b:
        shard, cluster = await b.shard(handle), await b.cluster()

        async def away(*args: Any) -> list[int]:
            raise StoreUnavailableError("log", "away")

        monkeypatch.setattr(shard._log, "settle", away)
        await cluster.submit("ann", "bad")
        await until(lambda: shard.stats().in_hand == 1)
        await shard.close(0.5)
        await until(lambda: not any("Lane" in str(task.get_coro()) for task in asyncio.all_tasks()))
        assert b.entries("ann") == 1
