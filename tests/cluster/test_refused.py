"""What a cluster refuses: it says what is wrong, and what to do, and nothing is half done."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from actorbot import FlushPolicy, MemorySessionStore, errors, store_from_url
from actorbot.cluster import Cluster, Shard
from tests.cluster._slots import BASE, waiting
from tests.servers.proxy import Proxy
from tests.servers.redis_servers import QUICK, Server, free_port
from tests.waiting import soon, until

Ask = Any  # what is started: a Cluster, or a Shard


async def count(context: Any) -> int:
    context.session["n"] = context.session.get("n", 0) + 1
    return int(context.session["n"])


def shard(url: str, **options: Any) -> Shard:
    return Shard(url, **{"cluster": "bot", "store": MemorySessionStore(), "handler": count, "lease": 1.0} | options)


@asynccontextmanager
async def running(url: str, **options: Any) -> AsyncIterator[Shard]:
    async with shard(url, **options) as one:
        yield one


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(QUICK, tmp_path, "--repl-diskless-sync-delay", "0") as one:
        yield one


async def refused(starts: Any) -> errors.ActorbotError:
    """Return what `start` raises, after which there is nothing to close."""
    with pytest.raises(errors.ActorbotError) as raised:
        await soon(starts.start())
    await soon(starts.close())
    return raised.value


def keys(server: Server) -> set[Any]:
    found = server.ask("KEYS", "*")
    assert isinstance(found, list)
    return set(found)


async def test_a_shard_with_another_number_of_slots_is_refused(server: Server) -> None:
    async with running(server.url, slots=64), Cluster(server.url, cluster="bot") as cluster:
        error = await refused(shard(server.url, slots=32))

        assert isinstance(error, errors.ConfigError)
        assert "64" in str(error)
        assert "32" in str(error)
        assert len(await cluster.members()) == 1
        assert await soon(cluster.dispatch("ann", "hi")) == 1


@pytest.mark.parametrize("kind", ["caller", "shard"])
async def test_another_version_of_the_protocol_is_refused(server: Server, kind: str) -> None:
    async with running(server.url):
        pass
    server.ask("HSET", f"{BASE}:meta", "protocol", "2")
    before = keys(server)

    error = await refused(Cluster(server.url, cluster="bot") if kind == "caller" else shard(server.url))

    assert isinstance(error, errors.ConfigError)
    assert "2" in str(error)
    assert keys(server) == before


def test_a_journal_is_refused(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="keep"):
        shard("redis://127.0.0.1/0", flush=FlushPolicy.journaled(str(tmp_path / "journal")))

    assert list(tmp_path.iterdir()) == []


async def test_an_event_that_cannot_be_encoded_is_refused_before_it_is_sent(server: Server) -> None:
    async with running(server.url), Cluster(server.url, cluster="bot") as cluster:
        pass
    async with Cluster(server.url, cluster="bot") as cluster:
        for verb in (cluster.dispatch, cluster.submit):
            with pytest.raises(errors.NotEncodableError) as raised:
                await soon(verb("ann", {"when": object()}))
            assert "event" in raised.value.path
        assert waiting(server.url) == 0


@pytest.mark.parametrize("kind", ["caller", "shard"])
async def test_a_server_that_is_too_old_is_refused(server: Server, kind: str) -> None:
    def grow_old(request: bytes) -> bytes:
        """Ask what the server understands as little as an older one understands an exclusive id."""
        return request.replace(b"(0-1", b"((-1")

    with Proxy(server.port) as proxy:
        proxy.changes_requests = grow_old
        url = f"redis://127.0.0.1:{proxy.port}/0"
        error = await refused(Cluster(url, cluster="bot") if kind == "caller" else shard(url))

    assert isinstance(error, errors.ConfigError)
    assert "6.2" in str(error)
    assert keys(server) == set()


@pytest.mark.parametrize("kind", ["caller", "shard"])
async def test_a_server_that_is_not_there_is_named(kind: str) -> None:
    port = free_port()
    url = f"redis://:secret@127.0.0.1:{port}/0"

    error = await refused(Cluster(url, cluster="bot") if kind == "caller" else shard(url))

    assert isinstance(error, errors.StoreUnavailableError)
    assert f"127.0.0.1:{port}" in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize("kind", ["caller", "shard"])
async def test_a_server_that_takes_no_writes_is_refused(server: Server, tmp_path: Path, kind: str) -> None:
    async with running(server.url):
        pass
    (tmp_path / "replica").mkdir()
    with Server(QUICK, tmp_path / "replica", "--replicaof", "127.0.0.1", str(server.port)) as replica:
        await until(lambda: f"{BASE}:meta".encode() in keys(replica))
        error = await refused(Cluster(replica.url, cluster="bot") if kind == "caller" else shard(replica.url))

        assert isinstance(error, errors.StoreUnavailableError)
        assert str(replica.port) in str(error)


async def test_a_store_that_is_not_there_leaves_no_member_behind(server: Server) -> None:
    store = store_from_url(f"redis://127.0.0.1:{free_port()}/0")

    error = await refused(shard(server.url, store=store))

    assert isinstance(error, errors.StoreUnavailableError)
    assert server.ask("ZCARD", f"{BASE}:members") == 0


async def test_a_caller_says_that_no_shard_was_ever_started(server: Server) -> None:
    error = await refused(Cluster(server.url, cluster="bot", timeout=0.3))

    assert isinstance(error, errors.ConfigError)
    assert "bot" in str(error)
    assert keys(server) == set()
