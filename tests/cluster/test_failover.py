"""The Redis fails over under load: the primary dies, or hangs, and its replica takes its place.

A replica has what the primary has told it, and a primary tells it after it has answered. So what
was accepted in the last moment may be gone. Who waits for an answer sends such an event again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actorbot.cluster import Cluster
from tests.cluster._load import TIMEOUT, Platform, Verdict, judge, load
from tests.cluster._shards import Shards
from tests.faults._kills import ForkServer
from tests.faults._scale import scaled
from tests.servers.redis_servers import Server, free_port, shared, watched
from tests.waiting import until_sync

LEASE = 1.0  # seconds
patient = pytest.mark.timeout(scaled(180, 1800))


async def fail_over(
    fork: ForkServer,
    servers: tuple[Server, Server, Server],
    store: str,
    how: str,
    rate: float,
    behind: bool,
    **shape: Any,
) -> tuple[Verdict, Verdict, set[str]]:
    """Have the primary die or hang, while the replica is *behind* by a tenth of a second.

    Return what the judge says of events whose answer was waited for, what of events that were only
    submitted, and which of these the replica must have had.
    """
    primary, replica, sentinel = servers
    url = f"redis+sentinel://127.0.0.1:{sentinel.port}/bot/0"
    with Shards(fork, url, store, lease=LEASE, **shape) as shards:
        await asyncio.to_thread(shards.start, 3)
        async with (
            Cluster(url, cluster="bot", timeout=TIMEOUT) as cluster,
            load(cluster, rate=rate / 2) as asking,
            load(cluster, rate=rate / 2, name="told", waits=False) as telling,
        ):
            await asking.goes_on(200)
            safe = accepted(telling)
            await asyncio.to_thread(wait_for_replica, primary)
            if behind:  # so that events wait in the log which the replica does not have
                for shard in shards.all:
                    shard.freeze()
                replica.ask("REPLICAOF", "127.0.0.1", free_port())  # where nobody is
                await asking.passes(0.1)
            await asyncio.to_thread(primary.kill if how == "dies" else primary.freeze)
            for shard in shards.all:
                shard.thaw()
            await asyncio.to_thread(until_sync, lambda: is_primary(replica))
            await asking.catches_up()
            if how == "hangs":
                primary.thaw()
            await asking.passes(3 * LEASE)
        await asyncio.to_thread(shards.end)
        return judge(asking, shards), judge(telling, shards), safe


def wait_for_replica(primary: Server) -> None:
    """Wait until the replica has all that was written before."""
    with primary.client() as client:
        client.set("mark", 1)
        assert client.wait(1, 10_000) == 1


def is_primary(server: Server) -> bool:
    return "master" in str(server.ask("ROLE"))


def accepted(telling: Platform) -> set[str]:
    return {f"{each.session}/{each.tag}" for each in telling.sent if each.answered}


@patient
@pytest.mark.long
@pytest.mark.parametrize("kind", ["valkey", "new redis"])
@pytest.mark.parametrize("how", ["dies", "hangs"])
@pytest.mark.parametrize("policy", ["write-behind:max_delay=0.5", "write-through"])
@pytest.mark.parametrize("behind", [False, True], ids=["in step", "behind"])
def test_a_failover_costs_no_more_than_what_the_replica_did_not_have(
    fork: ForkServer, tmp_path: Path, kind: str, how: str, policy: str, behind: bool
) -> None:
    store = f"{shared().url}?key_prefix={tmp_path.name}:"
    with watched(kind, tmp_path) as servers:
        asked, told, safe = asyncio.run(fail_over(fork, servers, store, how, 300.0, behind, policy=policy))

    print(f"lost of those that were accepted, and whose answer nobody waited for: {told.lost}")
    assert asked.wrong == {}
    assert {*told.wrong} <= {"lost"}
    assert not safe & {*told.lost}
