"""The lease in Redis and Valkey: restarts, fail-overs and moved slots; and who does not see it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from actorbot import MemorySessionStore, RedisSessionStore, SessionManager
from actorbot._ownership import keeper, lease
from actorbot.stores import copy
from actorbot.testing._expect import put
from tests.handlers import count
from tests.servers.leases import LEASE, epoch, rival, until_renewed
from tests.servers.proxy import Proxy
from tests.servers.redis_servers import KINDS, QUICK, Server, cluster, free_port, shared
from tests.tiers import tiers
from tests.waiting import soon, until


@pytest.fixture(autouse=True)
def leases_of_these_tests(nobody_waits_for_a_young_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "LEASE", LEASE)
    monkeypatch.setattr(keeper, "WATCHED", lease.WATCHED)


def up(server: Server) -> int:
    told = server.ask("INFO", "server")
    assert isinstance(told, dict)
    return int(told["uptime_in_seconds"])


@pytest.mark.parametrize("again", tiers(["empty", "from a snapshot", "as it was"]))
async def test_a_server_that_starts_again_gives_its_owner_time_to_come_back(again: str, tmp_path: Path) -> None:
    options = () if again == "as it was" else ("--appendonly", "no", "--save", "")
    with Server(QUICK, tmp_path, *options) as server, Proxy(server.port) as between:
        far = f"redis://127.0.0.1:{between.port}/0"
        async with SessionManager(RedisSessionStore(server.url), handler=count):
            pass
        if again == "from a snapshot":
            server.ask("SAVE")  # of a store that nobody has
        async with SessionManager(RedisSessionStore(far), handler=count) as owner:
            assert await owner.dispatch("ann", "hi", durable=True) == 1
            assert epoch(owner) == 2
            between.upstream = free_port()
            server.kill()
            server.start()
            async with rival(RedisSessionStore(server.url)) as newcomer:
                between.upstream = server.port
                look = RedisSessionStore(server.url).init()
                held = await until_renewed(look)
                assert (held["epoch"], newcomer.done()) == (2, False)
                assert await owner.dispatch("ann", "hi", durable=True) == 2
                await until_renewed(look)
                look.close()
                assert (epoch(owner), newcomer.done()) == (2, False)
                await owner.close()
                heir = await soon(newcomer)
                assert (epoch(heir), await heir.dispatch("ann", "hi")) == (3, 3)


@pytest.mark.long
async def test_a_replica_that_lagged_and_takes_over_gives_no_second_owner(tmp_path: Path) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        Server(QUICK, tmp_path / "one") as primary,
        Server(QUICK, tmp_path / "two") as replica,
        Proxy(primary.port) as between,
    ):
        url = f"redis://127.0.0.1:{between.port}/0"
        replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        async with SessionManager(RedisSessionStore(url), handler=count):
            pass
        assert primary.ask("WAIT", 1, 10_000) == 1
        replica.ask("REPLICAOF", "NO", "ONE")  # what comes now it has not received when it takes over
        async with (
            SessionManager(RedisSessionStore(url), handler=count) as owner,
            rival(RedisSessionStore(url)) as second,
        ):
            assert (await owner.dispatch("ann", "hi", durable=True), epoch(owner)) == (1, 2)
            await until(lambda: up(replica) > LEASE * lease.WATCHED + 1)
            primary.kill()
            between.upstream = replica.port
            between.reset()
            look = RedisSessionStore(replica.url).init()
            held = await until_renewed(look)
            look.close()
            assert (held["epoch"], epoch(owner), second.done()) == (2, 2, False)
            assert await owner.dispatch("ann", "hi", durable=True) == 2
            await owner.close()
            heir = await soon(second)
            assert (epoch(heir), await heir.dispatch("ann", "hi")) == (3, 3)


# --- a cluster ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with cluster(request.param, tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


def move(nodes: list[Server], key: bytes) -> Server:
    """Move the slot of *key*, with this key alone in it, to another node, and return that one."""
    slot = nodes[0].ask("CLUSTER", "KEYSLOT", key)
    source = next(node for node in nodes if key in node.ask("KEYS", "*"))  # type: ignore[operator]
    target = next(node for node in nodes if node is not source)
    name, value = target.ask("CLUSTER", "MYID"), source.ask("GET", key)
    assert isinstance(value, bytes)
    source.ask("DEL", key)
    for node in (target, *nodes):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", name)
    target.ask("SET", key, value)
    return target


def asked(node: Server, command: str) -> bool:
    told = node.ask("INFO", "commandstats")
    assert isinstance(told, dict)
    return f"cmdstat_{command}" in told


@pytest.mark.long
def test_a_lease_that_has_moved_is_dated_by_the_node_that_has_it(nodes: list[Server]) -> None:
    store = RedisSessionStore(nodes[0].url, key_prefix="dated:").init()
    assert store.swap_lease(None, "a text")
    target = move(nodes, b"dated:\0lease")
    target.ask("CONFIG", "RESETSTAT")
    found = store.read_lease()
    swapped = store.swap_lease("a text", "another")
    store.close()

    assert (found.text, swapped) == ("a text", True)
    assert asked(target, "get")
    assert asked(target, "time")


@pytest.mark.long
async def test_an_owner_in_a_cluster_keeps_its_lease_when_a_slot_moves(nodes: list[Server]) -> None:
    def make() -> RedisSessionStore:
        return RedisSessionStore(nodes[1].url, key_prefix="moves:")

    look = make().init()
    async with SessionManager(make(), handler=count) as owner, rival(make()) as second:
        mine = epoch(owner)
        move(nodes, b"moves:\0lease")
        held = await until_renewed(look, times=2)
        assert (held["epoch"], epoch(owner), second.done()) == (mine, mine, False)
        await owner.close()
        assert epoch(await soon(second)) == mine + 1
    look.close()


# --- who does not see it ------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_no_list_of_sessions_has_a_lease_and_each_has_those_with_odd_names(kind: str, tmp_path: Path) -> None:
    odd = ["lease", ":lease", "\\0lease", "\\x00lease", "x.lease", "two:", "two:lease"]
    url, prefix = shared(kind).url, f"{tmp_path.name}:"
    stores = [RedisSessionStore(url, key_prefix=each).init() for each in (prefix, f"{prefix}two:", f"{prefix}\\0")]
    for store in stores:
        assert store.swap_lease(None, "a text")
    for session_id in odd:
        put(stores[0], session_id, {"n": 1})
    other = MemorySessionStore().init()
    report = copy(stores[0], other)

    assert (stores[0].count(), report.copied, len(report.failed)) == (len(odd), len(odd), 0)
    assert sorted(each.session_id for each in other.scan()) == sorted(odd)  # type: ignore[union-attr]
    for store in stores:
        assert store.read_lease().text == "a text"
        store.close()
