"""One shard whose network is cut, both ways or one way, for three leases, and is whole again."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actorbot.cluster import Cluster
from tests.cluster._load import TIMEOUT, Verdict, judge, load
from tests.cluster._shards import Shards
from tests.faults._kills import ForkServer
from tests.faults._scale import scaled
from tests.servers.proxy import Proxy
from tests.servers.redis_servers import Server

LEASE = 1.0  # seconds
patient = pytest.mark.timeout(scaled(180, 1800))

WAYS = {
    "both ways": {"holds_requests": True, "holds_replies": True},
    "requests only": {"holds_requests": True},
    "replies only": {"holds_replies": True},
    "swallowed": {"black_hole": True},
}
NO_CUT = {"holds_requests": False, "holds_replies": False, "black_hole": False}


def change(proxy: Proxy, how: dict[str, bool]) -> None:
    for name, value in how.items():
        setattr(proxy, name, value)


async def cut_again_and_again(
    fork: ForkServer, server: Server, way: str, times: int, rate: float, *, store_too: bool, **shape: Any
) -> Verdict:
    """Cut one of three shards off from the log, and from the store if *store_too*."""
    with Proxy(server.port) as proxy, Shards(fork, server.url, server.url, lease=LEASE, **shape) as shards:
        behind = f"redis://127.0.0.1:{proxy.port}/0"
        await asyncio.to_thread(shards.start, 2)
        await asyncio.to_thread(shards.start, url=behind, store=behind if store_too else server.url)
        async with Cluster(server.url, cluster="bot", timeout=TIMEOUT) as cluster, load(cluster, rate=rate) as platform:
            await platform.goes_on(100)
            for _ in range(times):
                change(proxy, WAYS[way])
                await platform.passes(3 * LEASE)
                change(proxy, NO_CUT)
                if way == "swallowed":  # what was on its way is lost, and with it the connections
                    await asyncio.to_thread(proxy.reset)
                await platform.catches_up()
                await platform.passes(LEASE)
        await asyncio.to_thread(shards.end)
        return judge(platform, shards)


@patient
@pytest.mark.long
@pytest.mark.parametrize("store_too", [True, False], ids=["store too", "log only"])
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("policy", ["write-behind:max_delay=0.5", "write-through"])
def test_a_shard_that_is_cut_off_costs_nobody_an_event(
    redis_server: Server, fork: ForkServer, policy: str, way: str, store_too: bool
) -> None:
    times, rate = scaled(1, 5), scaled(100, 300)
    shape = {"store_too": store_too, "policy": policy, "thinks": 0.05}

    verdict = asyncio.run(cut_again_and_again(fork, redis_server, way, times, rate, **shape))

    assert verdict.wrong == {}


@patient
@pytest.mark.long
def test_a_shard_that_may_settle_late_answers_for_another(redis_server: Server, fork: ForkServer) -> None:
    shape = {"store_too": True, "thinks": 0.2, "without": "the epoch"}

    verdict = asyncio.run(cut_again_and_again(fork, redis_server, "both ways", 2, 150, **shape))

    assert verdict.answered_by_two
