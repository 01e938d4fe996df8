"""Where the server is: a socket, TLS, a Redis Cluster, Sentinels; and when it is somewhere else."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
import redis

from actorbot import errors
from actorbot.cluster._redis_log import RedisLog
from tests.servers.proxy import Proxy
from tests.servers.redis_servers import KINDS, QUICK, Server, cluster, free_port, sentinel
from tests.unit.cluster.logs import Made, a_cluster, goes_round, until_it_does
from tests.waiting import HANGS

pytestmark = pytest.mark.usefixtures("short_waits")

SECRET = "s3cret-pa55"


async def test_a_unix_socket_and_a_database_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with Server(QUICK, tmp_path, "--unixsocket", str(path)) as server:
        async with a_cluster(server, f"unix://{path}?db=3") as made:
            await goes_round(made)
        told = server.ask("INFO", "keyspace")
        assert isinstance(told, dict)
        assert list(told) == ["db3"]


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a certificate of this machine and its key."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    made = tmp_path / "certificate.pem"
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", tmp_path / "key.pem", "-out", made,
        ],
        check=True, capture_output=True, timeout=HANGS,
    )  # fmt: skip
    made.write_text(made.read_text() + (tmp_path / "key.pem").read_text())
    return made


async def test_tls_is_used_and_the_certificate_checked(server: Server, certificate: Path) -> None:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate)
    with Proxy(server.port, tls=context) as between:
        url = f"rediss://127.0.0.1:{between.port}/0"
        async with a_cluster(server, f"{url}?ssl_ca_certs={certificate}") as made:
            await goes_round(made)
        with pytest.raises(errors.StoreUnavailableError, match="certificate"):
            await RedisLog(url, "mybot").open()
    with pytest.raises(errors.ConfigError, match="TLS options"):
        RedisLog("rediss://localhost?ssl_ca_certs=/nowhere.pem", "mybot")


@pytest.fixture(scope="module", params=[pytest.param(kind.values[0], marks=pytest.mark.long) for kind in KINDS])
def nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with cluster(request.param, tmp_path_factory.mktemp("nodes")) as servers:
        yield servers


async def test_any_node_of_a_redis_cluster_leads_to_the_one_that_has_the_keys(nodes: list[Server]) -> None:
    for _ in range(4):  # names, whose keys are on different nodes
        async with a_cluster(nodes[0]) as made:
            for node in nodes:
                await goes_round(made, node.url)


async def test_a_cluster_goes_with_its_keys_to_another_node(nodes: list[Server]) -> None:
    async with a_cluster(nodes[0]) as made:
        ann, caller = await made.member("ann"), await made.caller()
        await ann.renew()
        await caller.append([(1, b"a")])
        assert await ann.read() == [b"a"]
        hand_over(nodes, made)
        await caller.append([(1, b"b")])
        assert (await ann.renew()).lost == []
        assert await until_it_does(ann.read) == [b"a", b"b"]
        assert await ann.log.settle("ann", [], {"web": b"1"}) == []
        assert (await caller.answers("web", "0")).payloads == [b"1"]


def hand_over(nodes: list[Server], made: Made) -> None:
    """Move the hash slot that has the keys of *made*, and the keys with it, to another node."""
    slot = nodes[0].ask("CLUSTER", "KEYSLOT", made.key("meta"))
    assert isinstance(slot, int)
    source = next(node for node in nodes if node.ask("CLUSTER", "COUNTKEYSINSLOT", slot))
    target = next(node for node in nodes if node is not source)
    names = {node: node.ask("CLUSTER", "MYID") for node in (source, target)}
    target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", names[source])  # type: ignore[arg-type]
    source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", names[target])  # type: ignore[arg-type]
    while moving := source.ask("CLUSTER", "GETKEYSINSLOT", slot, 100):
        source.ask("MIGRATE", "127.0.0.1", target.port, "", 0, 5_000, "KEYS", *moving)  # type: ignore[misc]
    for node in (target, *nodes):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", names[target])  # type: ignore[arg-type]


@pytest.mark.long
async def test_while_its_keys_are_on_their_way_to_another_node_a_cluster_waits(nodes: list[Server]) -> None:
    async with a_cluster(nodes[0]) as made:
        ann = await made.member("ann")
        await ann.renew()
        slot = nodes[0].ask("CLUSTER", "KEYSLOT", made.key("meta"))
        assert isinstance(slot, int)
        source = next(node for node in nodes if node.ask("CLUSTER", "COUNTKEYSINSLOT", slot))
        target = next(node for node in nodes if node is not source)
        target.ask("CLUSTER", "SETSLOT", slot, "IMPORTING", source.ask("CLUSTER", "MYID"))  # type: ignore[arg-type]
        source.ask("CLUSTER", "SETSLOT", slot, "MIGRATING", target.ask("CLUSTER", "MYID"))  # type: ignore[arg-type]
        with pytest.raises(errors.StoreUnavailableError, match="hands the keys of the cluster over to another node"):
            await ann.renew()
        for node in (source, target):
            node.ask("CLUSTER", "SETSLOT", slot, "STABLE")
        assert (await ann.renew()).lost == []


# --- Sentinel -----------------------------------------------------------------------------------


class Watched:
    """A primary, its replica, and a Sentinel that has them change places when told to."""

    def __init__(self, primary: Server, replica: Server, watcher: Server) -> None:
        self.primary, self.replica, self.watcher = primary, replica, watcher
        self.where = f"127.0.0.1:{free_port()},127.0.0.1:{watcher.port}"  # one of them is away

    async def fail_over(self) -> None:
        """Have the replica take over, and the primary become its replica."""
        async with asyncio.timeout(HANGS):
            while True:
                try:
                    self.watcher.ask("SENTINEL", "FAILOVER", "bots")
                    break
                except redis.ResponseError:  # it does not know the replica well enough
                    await asyncio.sleep(0.05)
            while b"%d" % self.replica.port != self.named()[1] or role(self.primary) != b"slave":
                await asyncio.sleep(0.05)

    def named(self) -> Any:
        return self.watcher.ask("SENTINEL", "GET-MASTER-ADDR-BY-NAME", "bots")


def role(server: Server) -> object:
    told = server.ask("ROLE")
    assert isinstance(told, list)
    return told[0]


@pytest.fixture(params=[pytest.param(kind.values[0], marks=pytest.mark.long) for kind in KINDS])
def watched(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Watched]:
    with ExitStack() as stack:
        folders = [tmp_path / name for name in ("primary", "replica", "watcher")]
        for folder in folders:
            folder.mkdir()
        primary, replica = [stack.enter_context(Server(request.param, folder)) for folder in folders[:2]]
        replica.ask("REPLICAOF", "127.0.0.1", primary.port)
        watcher = stack.enter_context(sentinel(request.param, folders[2]))
        watcher.ask("SENTINEL", "MONITOR", "bots", "127.0.0.1", primary.port, 1)
        yield Watched(primary, replica, watcher)


async def test_sentinels_lead_to_the_primary_and_after_a_failover_to_the_new_one(watched: Watched) -> None:
    async with a_cluster(watched.primary, f"redis+sentinel://{watched.where}/bots/0") as made:
        await goes_round(made)
        ann, caller = await made.member("ann"), await made.caller()
        await ann.renew()
        await caller.append([(1, b"a")])
        assert await ann.read() == [b"a"]
        assert watched.primary.ask("WAIT", 1, 10_000) == 1
        await watched.fail_over()
        await until_it_does(lambda: caller.append([(1, b"b")]))
        assert (await until_it_does(ann.renew)).lost == []
        assert await until_it_does(ann.read) == [b"a", b"b"]
        made.server = watched.replica
        assert made.leases()[1] == (ann.held[1], "ann")


async def test_a_sentinel_that_is_taken_for_the_server_says_how_to_write_it(watched: Watched) -> None:
    with pytest.raises(errors.StoreUnavailableError, match=r"redis\+sentinel://"):
        await RedisLog(watched.watcher.url, "mybot").open()


async def test_sentinels_that_do_not_know_the_primary_are_named(watched: Watched) -> None:
    with pytest.raises(errors.StoreUnavailableError, match="knows no primary of this name") as caught:
        await RedisLog(f"redis+sentinel://{watched.where}/others", "mybot").open()
    assert f"127.0.0.1:{watched.watcher.port}" in str(caught.value)
    assert "others" in str(caught.value)


@pytest.mark.long
async def test_a_sentinel_may_have_a_password_of_its_own(tmp_path: Path) -> None:
    for name in ("server", "watcher"):
        (tmp_path / name).mkdir()
    with (
        Server(QUICK, tmp_path / "server", "--requirepass", SECRET) as server,
        sentinel(QUICK, tmp_path / "watcher") as watcher,
    ):
        watcher.ask("SENTINEL", "MONITOR", "bots", "127.0.0.1", server.port, 1)
        watcher.ask("ACL", "SETUSER", "bot", "on", ">other-pa55", "+sentinel|get-master-addr-by-name")
        watcher.ask("ACL", "SETUSER", "default", "resetpass", ">third-pa55")
        url = f"redis+sentinel://:{SECRET}@127.0.0.1:{watcher.port}/bots?sentinel_username=bot&sentinel_password="
        log = RedisLog(url + "other-pa55", "mybot")
        assert await log.open() is None
        await log.close()
        with pytest.raises(errors.StoreUnavailableError) as caught:
            await RedisLog(url + "wr0ng-pa55", "mybot").open()
        assert "pa55" not in f"{caught.value!r} {caught.value.__cause__!r}"
