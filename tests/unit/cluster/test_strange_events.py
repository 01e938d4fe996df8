"""Handlers and entries that do what nobody expects: no session stands still because of them."""

from __future__ import annotations

import asyncio
from contextlib import suppress
from typing import Any

import pytest

from actorbot import DUPLICATE, Context, FlushPolicy, SessionManager
from actorbot._state.codec import pack_fields
from actorbot.cluster import _lane
from actorbot.cluster._lane import MOST_IN_LOG
from actorbot.cluster._slots import slot_of
from actorbot.errors import ConfigError, ManagerClosedError, OwnershipLostError, RemoteHandlerError
from tests.servers import redis_servers
from tests.unit.cluster.shards import SLOTS, bench, remember
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


async def test_an_entry_that_looks_like_a_request_and_is_none_holds_nobody_up() -> None:
    async with bench() as b:
        shard, cluster = await b.shard(), await b.cluster()
        strange = pack_fields(["dispatch", ["ann"], b"", "id", "caller", 1, False, False])
        redis_servers.shared().ask("XADD", b.key("log", slot_of("ann", SLOTS)), "*", "e", strange)
        assert await soon(asyncio.ensure_future(cluster.dispatch("ann", "good"))) == 1
        await cluster.flush()
        assert b.entries("ann") == 0
        assert shard.health().status == "ready"


async def test_an_event_is_settled_also_after_an_error_that_nobody_has_foreseen(monkeypatch: Any) -> None:
    async with bench() as b:
        shard, cluster = await b.shard(flush=FlushPolicy.write_through()), await b.cluster()
        settle, errors = shard._log.settle, [ConfigError("url", "a server", "a newer one"), ValueError("strange")]

        async def fail(*args: Any) -> list[int]:
            if errors:
                raise errors.pop()
            return await settle(*args)

        monkeypatch.setattr(shard._log, "settle", fail)
        assert await soon(asyncio.ensure_future(cluster.dispatch("ann", "one"))) == 1


async def test_a_slot_that_was_lost_and_came_back_is_not_lost_again(monkeypatch: Any) -> None:
    async with bench() as b:
        shard, cluster = await b.shard(flush=FlushPolicy.write_through()), await b.cluster()
        assert await cluster.dispatch("ann", "one") == 1
        slot = slot_of("ann", SLOTS)
        settle, asked, taken, answers = shard._log.settle, asyncio.Event(), asyncio.Event(), asyncio.Event()

        async def late(*args: Any) -> list[int]:
            asked.set()
            await taken.wait()
            refused = await settle(*args)
            await answers.wait()
            return refused

        monkeypatch.setattr(shard._log, "settle", late)
        waiting = asyncio.ensure_future(cluster.dispatch("ann", "two"))
        await soon(asked.wait())
        b.take_over("ann", "")  # somebody has had it, and has given it back
        redis_servers.shared().ask("ZREM", b.key("members"), "")
        taken.set()
        await breathe()
        await shard._membership.renew()
        epoch = shard.stats().slots[slot]
        answers.set()
        await breathe()
        assert shard.stats().slots.get(slot) == epoch
        assert await soon(waiting) is DUPLICATE


async def test_a_shard_that_ends_renews_its_lease_as_long_as_a_handler_runs(monkeypatch: Any) -> None:
    async with bench() as b:
        shard = await b.shard(lease=1.0)
        close, renew, renewed = shard._manager.close, shard._membership.renew, asyncio.Event()

        async def note() -> None:
            await renew()
            renewed.set()

        async def late(seconds: float) -> Any:
            renewed.clear()
            with suppress(TimeoutError):
                await soon(renewed.wait())
            return await close(seconds)

        monkeypatch.setattr(shard._membership, "renew", note)
        monkeypatch.setattr(shard._manager, "close", late)
        assert (await shard.close()).clean
        assert renewed.is_set()


async def test_replies_of_an_event_that_is_run_again_after_a_conflict_are_sent_once(monkeypatch: Any) -> None:
    goals = _lane.committed

    def once_lost(manager: SessionManager, session_id: str) -> None:
        monkeypatch.setattr(_lane, "committed", goals)
        manager.abandon(session_id)  # between its commit and this look

    async with bench() as b:
        await b.shard()
        cluster = await b.cluster()
        monkeypatch.setattr(_lane, "committed", once_lost)
        await cluster.dispatch("ann", "one")
        await cluster.dispatch("ann", "two")
        await until(lambda: "reply to two" in b.replies)
        assert b.replies == ["reply to one", "reply to two"]
