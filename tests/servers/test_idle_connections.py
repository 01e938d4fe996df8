"""Connections that were cut while nobody used them: the next user is answered all the same."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from actorbot import FlushPolicy, MongoSessionStore, RedisSessionStore, SessionManager
from actorbot.stores.base import RecordStore, Write
from actorbot.testing._expect import get, make_record, make_tombstone, put, write_all
from tests.handlers import count
from tests.servers import mongo_servers
from tests.servers.proxy import Proxy
from tests.servers.redis_servers import PLACES, QUICK, Server, cluster, shared
from tests.tiers import tiers
from tests.waiting import Call, soon, until_sync

KINDS = tiers([QUICK, "mongo", *(kind for kind in PLACES if kind != QUICK)], QUICK, "mongo")
CUTS = {"reset": Proxy.reset, "forgotten": Proxy.forget}

cut_in_each_way = pytest.mark.parametrize("cut", [pytest.param(each, id=name) for name, each in CUTS.items()])


@pytest.fixture(params=KINDS)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def proxy(kind: str) -> Iterator[Proxy]:
    with Proxy(mongo_servers.shared().port if kind == "mongo" else shared(kind).port) as between:
        yield between


@pytest.fixture
def make_store(kind: str, proxy: Proxy, tmp_path: Path) -> Callable[[], RecordStore]:
    name = tmp_path.name
    if kind == "mongo":
        url = f"mongodb://127.0.0.1:{proxy.port}/"
        return lambda: MongoSessionStore(url, database="actorbot_tests", collection_name=f"idle_{name}")
    return lambda: RedisSessionStore(f"redis://127.0.0.1:{proxy.port}/0", key_prefix=f"{name}:")


@pytest.fixture
def store(make_store: Callable[[], RecordStore]) -> Iterator[RecordStore]:
    opened = make_store().init()
    yield opened
    opened.close()


@pytest.mark.long
@cut_in_each_way
@pytest.mark.parametrize("policy", [FlushPolicy.write_behind(max_delay=0.05), FlushPolicy.write_through()], ids=str)
async def test_the_first_users_after_a_pause_are_answered(
    policy: FlushPolicy,
    cut: Callable[[Proxy], None],
    make_store: Callable[[], RecordStore],
    proxy: Proxy,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.WARNING, "actorbot")
    async with SessionManager(make_store(), handler=count, flush=policy) as manager:
        await soon(manager.dispatch("known", "hi", durable=True))
        for turn in (1, 2):
            cut(proxy)
            assert await soon(manager.dispatch(f"new {turn}", "hi")) == 1
            cut(proxy)
            assert await soon(manager.dispatch("known", "hi")) == 1 + turn
        await soon(manager.flush())
        assert manager.health().status == "ready"
        assert await soon(manager.dispatch("known", "hi")) == 4

    assert cut is Proxy.reset or not [each for each in caplog.records if "does not take writes" in each.getMessage()]


@cut_in_each_way
def test_a_read_on_a_dead_connection_is_done_on_a_new_one(
    cut: Callable[[Proxy], None], store: RecordStore, proxy: Proxy
) -> None:
    put(store, "ann", {"n": 1})
    cut(proxy)

    assert Call(get, store, "ann").result() == {"n": 1}


def open_several(store: RecordStore, proxy: Proxy) -> list[str]:
    """Read several sessions at once, each over a connection of its own; return their ids."""
    ids = [f"user {n}" for n in range(6)]
    with ThreadPoolExecutor(len(ids)) as threads:
        proxy.latency = 0.05
        list(threads.map(lambda each: get(store, each), ids))
        proxy.latency = 0.0
    return ids


def test_several_dead_connections_cost_one_wait_and_are_all_replaced(store: RecordStore, proxy: Proxy) -> None:
    put(store, "ann", {"n": 1})
    ids = open_several(store, proxy)
    proxy.forget()
    Call(get, store, "ann").result()
    dead = proxy.swallowed
    for each in ids:
        assert Call(get, store, each).result() is None

    assert proxy.swallowed == dead


def test_a_write_on_a_dead_connection_is_done_once(store: RecordStore, proxy: Proxy) -> None:
    first = put(store, "ann", {"n": 1})
    second = Write(make_record("ann", {"n": 2}, first), first.write_id)
    end = Write(make_tombstone("bob"), None)
    proxy.forget()
    Call(write_all, store, [second, end]).result()

    assert store.read_many(["ann", "bob"]) == [second.record, end.record]
    assert store.write_many([second, end]) == [None, None]  # done before


@pytest.mark.long
def test_a_look_at_the_clock_on_a_dead_connection_makes_the_others_anew(store: RecordStore, proxy: Proxy) -> None:
    put(store, "ann", {"n": 1})
    open_several(store, proxy)
    proxy.forget()
    assert list(Call(store.sweep, 0.0).result()) == []
    dead = proxy.swallowed
    assert Call(get, store, "ann").result() == {"n": 1}

    assert proxy.swallowed == dead


def slots_of(node: Server) -> Any:
    return node.ask("CLUSTER", "SLOTS")


@pytest.mark.long
def test_in_a_cluster_dead_connections_to_all_nodes_cost_one_wait(tmp_path: Path) -> None:
    with cluster(QUICK, tmp_path) as nodes, ExitStack() as stack:
        between = [stack.enter_context(Proxy(node.port)) for node in nodes]
        for node, one in zip(nodes, between, strict=True):
            node.ask("CONFIG", "SET", "cluster-announce-port", one.port)
        ports = {one.port for one in between}
        until_sync(lambda: all({owner[1] for _, _, owner, *_ in slots_of(node)} == ports for node in nodes))
        store: Any = RedisSessionStore(f"redis://127.0.0.1:{between[0].port}/0").init()
        stack.callback(store.close)
        ids = [f"user {n}" for n in range(30)]
        write_all(store, [Write(make_record(each, {"id": each}), b"") for each in ids])
        assert all(one.connections for one in between)
        for one in between:
            one.forget()
        found = Call(store.read_many, ids).result()

        assert [each.session_id for each in found] == ids
        assert sum(one.swallowed for one in between) == 1
