"""Rolling deploys under load, and shards that come and go: no event is lost, none fails, and no
more slots change hands than must.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from typing import Any

import pytest

from actorbot.cluster import Cluster
from tests.cluster._load import TIMEOUT, Platform, Verdict, balanced, judge, load, patiently, rounded
from tests.cluster._shards import Process, Shards
from tests.cluster._slots import owners
from tests.faults._kills import ForkServer
from tests.faults._scale import scaled
from tests.servers.redis_servers import Server
from tests.tiers import tiers

LEASE = 1.0  # seconds
SLOTS = 256
BEHIND = "write-behind:max_delay=0.5"
POLICIES = [(BEHIND, "flushed"), ("write-through", "flushed"), (BEHIND, "acknowledged")]
patient = pytest.mark.timeout(scaled(180, 1800))


async def deploy_again_and_again(
    fork: ForkServer, url: str, times: int, count: int, rate: float, **shape: Any
) -> Verdict:
    """Replace each of *count* shards by a new one, one after the other, and so on."""
    waits = []
    with Shards(fork, url, url, lease=LEASE, slots=SLOTS, **shape) as shards:
        await asyncio.to_thread(shards.start, count)
        async with Cluster(url, cluster="bot", timeout=TIMEOUT) as cluster, load(cluster, rate=rate) as platform:
            await platform.goes_on()
            for _ in range(times):
                mark = len(platform.sent)
                for old in shards.living:
                    await asyncio.to_thread(shards.start)
                    await platform.goes_on()
                    assert await asyncio.to_thread(old.end) == 0
                    await platform.goes_on()
                await platform.catches_up()
                waits.append(platform.longest_wait(mark))
        await asyncio.to_thread(shards.end)
        print(f"{times} deploys of {count}; longest waits {rounded(waits)}")
        return judge(platform, shards)


@patient
@pytest.mark.parametrize(("policy", "keep"), tiers(POLICIES))
def test_a_rolling_deploy_loses_nothing_and_fails_nobody(
    redis_server: Server, fork: ForkServer, policy: str, keep: str
) -> None:
    first = (policy, keep) == POLICIES[0]
    times, count, rate = scaled(1, 10), scaled(1 if first else 3, 3), scaled(100, 500)

    shape = {"policy": policy, "keep": keep}
    verdict = asyncio.run(deploy_again_and_again(fork, redis_server.url, times, count, rate, **shape))

    assert verdict.wrong == {}
    assert verdict.errors == {}
    assert verdict.duplicates == 0
    assert verdict.conflicts == 0


@patient
@pytest.mark.long
def test_a_shard_that_gives_its_slots_back_before_it_has_flushed_loses_events(
    redis_server: Server, fork: ForkServer
) -> None:
    shape = {"keep": "acknowledged", "without": "the flush"}

    verdict = asyncio.run(deploy_again_and_again(fork, redis_server.url, 1, 3, 100, **shape))

    assert verdict.lost or verdict.conflicts


@patient
@pytest.mark.long
@pytest.mark.parametrize(("policy", "keep"), POLICIES)
def test_shards_come_and_go_and_no_more_slots_move_than_must(
    redis_server: Server, fork: ForkServer, policy: str, keep: str
) -> None:
    asyncio.run(come_and_go(fork, redis_server.url, scaled(100, 300), policy=policy, keep=keep))


async def come_and_go(fork: ForkServer, url: str, rate: float, **shape: Any) -> None:
    """Have 2, 3, 1, 2 shards."""
    with Shards(fork, url, url, lease=LEASE, slots=SLOTS, **shape) as shards:
        first, second = await asyncio.to_thread(shards.start, 2)
        await balanced(shards)
        async with Cluster(url, cluster="bot", timeout=TIMEOUT) as cluster, load(cluster, rate=rate) as platform:
            await platform.goes_on()
            await moved(url, shards, platform, SLOTS // 3, start=1)
            ending = [first, second]
            held = Counter(each.pid for each in owners(url).values())
            await moved(url, shards, platform, held[first.pid] + held[second.pid], end=ending)
            await moved(url, shards, platform, SLOTS // 2, start=1)
        await asyncio.to_thread(shards.end)
        verdict = judge(platform, shards)
    assert verdict.wrong == {}
    assert verdict.errors == {}


async def moved(
    url: str, shards: Shards, platform: Platform, needed: int, *, start: int = 0, end: list[Process] | None = None
) -> None:
    """Start so many shards, or end some at once; see that few more slots move than *needed*."""
    before = owners(url)
    if start:
        await asyncio.to_thread(shards.start, start)
    for process in end or []:
        process.ask_to_end()
    if end:
        await patiently(lambda: all(process.status is not None for process in end))
        assert [process.status for process in end] == [0] * len(end)
    after = await balanced(shards)
    moves = sum(after[slot].epoch - before[slot].epoch for slot in after)
    print(f"{moves} moves, {needed} needed; now {Counter(each.pid for each in after.values())}")
    assert moves <= 1.2 * needed
    await platform.goes_on()
