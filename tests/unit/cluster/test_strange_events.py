"""Handlers and entries that do what nobody expects: no session stands still because of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actorbot import Context, FlushPolicy
from actorbot.cluster._lane import MOST_IN_LOG
from actorbot.errors import ManagerClosedError, OwnershipLostError, RemoteHandlerError
from tests.unit.cluster.shards import bench, remember
from tests.waiting import breathe, soon, until


class SilentError(Exception):
    """One that cannot say what it is."""

    def __str__(self) -> str:
        raise ValueError("no text")


@pytest.mark.parametrize("error", [ValueError("a name of bytes: \udcff"), SilentError()])
async def test_an_error_whose_text_cannot_be_sent_reaches_its_caller_all_the_same(error: Exception) -> None:
    async def handle(context: Context) -> int:
        if context.event == "bad":
            raise error
        return await remember(context)

    async with bench() as b:
        await b.shard(handle)
        cluster = await b.cluster()
        with pytest.raises(RemoteHandlerError) as caught:
            await soon(asyncio.ensure_future(cluster.dispatch("ann", "bad")))
        assert caught.value.type_name == type(error).__name__
        assert await cluster.dispatch("ann", "good") == 1


@pytest.mark.parametrize("error", [ManagerClosedError("of a handler's own"), OwnershipLostError("file", "ann")])
async def test_a_handler_that_uses_something_closed_fails_as_any_other(error: Exception, monkeypatch: Any) -> None:
    monkeypatch.setattr("actorbot.cluster._lane.TRIES", 3)

    async def handle(context: Context) -> int:
        if context.event == "bad":
            raise error
        return await remember(context)

    async with bench() as b:
        await b.shard(handle)
        cluster = await b.cluster()
        with pytest.raises(type(error)):
            await soon(asyncio.ensure_future(cluster.dispatch("ann", "bad")))
        await until(lambda: b.entries("ann") == 0)
        assert await cluster.dispatch("ann", "good") == 1


async def test_a_session_has_no_more_unsettled_events_than_its_record_remembers(monkeypatch: Any) -> None:
    async with bench() as b:
        shard, cluster, answers = await b.shard(flush=FlushPolicy.write_through()), await b.cluster(), asyncio.Event()
        settle = shard._log.settle

        async def late(*args: Any) -> list[int]:
            await answers.wait()
            return await settle(*args)

        monkeypatch.setattr(shard._log, "settle", late)
        receipts = [await cluster.submit("ann", number) for number in range(100)]
        await until(lambda: shard.stats().handled >= MOST_IN_LOG)
        await breathe()
        assert shard.stats().handled == MOST_IN_LOG  # the next owner can tell all of them from new ones
        answers.set()
        assert [await receipt.result() for receipt in receipts] == list(range(1, 101))


async def test_who_flushes_or_looks_waits_for_what_the_next_owner_runs_again() -> None:
    lets = asyncio.Event()
    lets.set()

    async def handle(context: Context) -> int:
        await lets.wait()
        return await remember(context)

    async with bench() as b:
        shard, cluster = await b.shard(handle), await b.cluster()
        assert await cluster.dispatch("ann", "one") == 1
        lets.clear()
        b.let_run_out(shard.stats().member)
        b.take_over("ann", "gone")  # the shard has not flushed, and never will
        b.let_run_out("gone")
        shard._manager.abandon("ann")
        await until(lambda: shard.stats().fenced and shard.stats().in_hand == 1)  # it has the slot again
        flushing, looking = (asyncio.ensure_future(each) for each in (cluster.flush(), cluster.peek("ann")))
        await until(lambda: shard.stats().in_hand == 3)
        await breathe()
        assert not flushing.done()
        assert not looking.done()
        lets.set()
        await soon(flushing)
        assert b.store.read("ann") is not None
        assert await soon(looking) == {"seen": ["one"]}
