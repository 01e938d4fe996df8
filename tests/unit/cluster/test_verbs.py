"""All verbs of a cluster, of both kinds, with real shards and a real server."""

from __future__ import annotations

import asyncio
import os
from typing import Any

import pytest

from actorbot import DUPLICATE, Context, Event
from actorbot.cluster import Cluster
from actorbot.errors import ConfigError, RemoteHandlerError, TurnTimeoutError
from tests.servers import redis_servers
from tests.servers.proxy import Proxy
from tests.unit.cluster.shards import SLOTS, bench
from tests.waiting import soon, until


async def count(context: Context) -> Any:
    event = context.event.message.text if isinstance(context.event, Event) else context.event
    if event == "bad":
        raise LookupError("no such cart")
    context.session["n"] = context.session.get("n", 0) + 1
    return {"n": context.session["n"], "event": event}


def ask_all(cluster: Cluster) -> None:
    """Use each verb as a thread does."""
    assert cluster.dispatch_sync("ann", "hi") == {"n": 1, "event": "hi"}
    assert cluster.dispatch_sync("ann", Event.from_text("hi"), event_id="7", durable=True)["n"] == 2
    assert cluster.dispatch_sync("ann", "hi", event_id="7") is DUPLICATE
    assert cluster.dispatch_sync("ann", "hi", event_id="8", on_duplicate="result")["n"] == 3
    assert cluster.dispatch_sync("ann", "hi", event_id="8", on_duplicate="result")["n"] == 3
    with pytest.raises(RemoteHandlerError, match="session 'ann': the handler raised LookupError: no such cart"):
        cluster.dispatch_sync("ann", "bad")
    receipt = cluster.submit_sync("ann", "hi")
    assert receipt.result_sync()["n"] == 4
    receipt.durable_sync()
    assert cluster.peek_sync("ann") == {"n": 4}
    cluster.destroy_sync("ann")
    assert cluster.peek_sync("ann") is None
    cluster.dispatch_sync("bob", "hi")
    cluster.flush_sync("bob")
    cluster.flush_sync()


async def test_each_verb_does_what_it_does_in_a_manager_whoever_owns_the_session() -> None:
    async with bench() as table:
        await table.shard(count)
        await table.shard(count)
        cluster = await table.cluster()
        for whose in (f"user:{number}" for number in range(2 * SLOTS)):
            assert await soon(cluster.dispatch(whose, "hi")) == {"n": 1, "event": "hi"}
            assert await soon(cluster.dispatch(whose, "hi", event_id="7", durable=True)) == {"n": 2, "event": "hi"}
            assert await soon(cluster.dispatch(whose, "hi", event_id="7")) is DUPLICATE
            again = [await soon(cluster.dispatch(whose, "x", event_id="8", on_duplicate="result")) for _ in range(2)]
            assert again == [{"n": 3, "event": "x"}] * 2
            with pytest.raises(RemoteHandlerError, match="LookupError: no such cart"):
                await soon(cluster.dispatch(whose, "bad"))
            receipt = await soon(cluster.submit(whose, "hi"))
            assert (await soon(receipt.result()))["n"] == 4
            await soon(receipt.durable())
            assert table.entries(whose) == 0
            assert await soon(cluster.peek(whose)) == {"n": 4}
            await soon(cluster.destroy(whose))
            assert await soon(cluster.peek(whose)) is None


async def test_a_flush_of_all_leaves_nothing_unflushed_in_any_shard() -> None:
    async with bench() as table:
        shards = [await table.shard(count), await table.shard(count)]
        cluster = await table.cluster()
        await soon(asyncio.gather(*(cluster.dispatch(f"user:{number}", "hi") for number in range(50))))
        assert sum(table.entries(f"user:{number}") for number in range(50)) > 0
        await soon(cluster.flush())
        assert sum(table.entries(f"user:{number}") for number in range(50)) == 0
        assert len(shards) == len(await soon(cluster.members()))


async def test_threads_ask_by_a_cluster_that_is_at_home_on_a_loop_or_has_one_of_its_own() -> None:
    async with bench() as table:
        await table.shard(count)
        await asyncio.to_thread(ask_all, await table.cluster())

        def with_its_own() -> None:
            with Cluster(table.url, cluster=table.name) as cluster:
                ask_all(cluster)
                assert cluster.members_sync()[0].slots == SLOTS

        await asyncio.to_thread(with_its_own)


async def test_the_members_are_the_shards_with_what_they_own() -> None:
    async with bench() as table:
        await table.shard(count)
        await table.shard(count)
        cluster = await table.cluster()
        await soon(cluster.dispatch("ann", "hi"))
        members = await soon(cluster.members())

    assert [member.pid for member in members] == [os.getpid()] * 2
    assert sum(member.slots for member in members) == SLOTS
    assert members[0].since <= members[1].since
    assert all(member.remaining > 0 and not member.leaving and member.host and member.program for member in members)


async def test_a_caller_that_comes_first_waits_for_the_first_shard() -> None:
    async with bench() as table:
        starting = asyncio.create_task(table.cluster())
        with pytest.raises(ConfigError, match="actorbot cluster run"):
            async with Cluster(table.url, cluster=table.name, timeout=0.01):
                raise AssertionError("there is no shard")
        await table.shard(count)
        cluster = await soon(starting)
        assert (await soon(cluster.dispatch("ann", "hi")))["n"] == 1


async def test_an_event_whose_caller_has_given_up_is_handled_all_the_same() -> None:
    go_on = asyncio.Event()

    async def handle(context: Context) -> Any:
        await go_on.wait()
        return await count(context)

    async with bench() as table:
        await table.shard(handle)
        cluster = await table.cluster()
        with pytest.raises(TurnTimeoutError, match="accepted, and goes on"):
            await soon(cluster.dispatch("ann", "hi", event_id="7", timeout=0.05))
        asking = asyncio.create_task(cluster.dispatch("ann", "hi", event_id="7"))
        go_on.set()
        assert await soon(asking) is DUPLICATE
        assert await soon(cluster.peek("ann")) == {"n": 1}


@pytest.mark.parametrize("verb", ["dispatch", "submit", "destroy"])
async def test_what_the_log_could_not_confirm_is_done_once_whatever_happens_meanwhile(verb: str) -> None:
    async with bench() as table:
        await table.shard(count)
        beside = await table.cluster()
        await soon(beside.dispatch("ann", "before"))
        with Proxy(redis_servers.shared().port) as between:
            url = f"redis://127.0.0.1:{between.port}/0"
            async with Cluster(url, cluster=table.name) as cluster:
                between.loses = lambda request: b"EVALSHA" in request or b"XREAD" in request
                asking = asyncio.create_task(getattr(cluster, verb)("ann", *([] if verb == "destroy" else ["hi"])))
                await until(lambda: cluster.stats().repeated)
                between.loses = lambda request: False
                if verb == "destroy":
                    expected = (await soon(beside.dispatch("ann", "after")))["n"]
                    await soon(asking)
                    assert await soon(beside.peek("ann")) == {"n": expected}
                    return
                await soon(beside.destroy("ann"))
                receipt = await soon(asking)
                assert (receipt if verb == "dispatch" else await soon(receipt.result()))["n"] == 2
                assert await soon(beside.peek("ann")) is None


async def test_a_million_bytes_come_through_and_back() -> None:
    async def give_back(context: Context) -> Any:
        return context.event

    async with bench() as table:
        await table.shard(give_back)
        cluster = await table.cluster()
        event = {"photo": b"x" * 1_000_000, "n": [1, 2.5, None, True]}
        assert await soon(cluster.dispatch("ann", event)) == event


def test_a_cluster_is_made_by_its_url_and_connects_nowhere_yet() -> None:
    cluster = Cluster("redis://:hunter2@127.0.0.1:1/0", cluster="shop")

    assert repr(cluster) == "Cluster(cluster='shop')"
    with pytest.raises(ConfigError):
        Cluster("redis://localhost/0", cluster="a name with spaces")
    with pytest.raises(ConfigError):
        Cluster("postgres://localhost/0")
