"""SIGSTOP of a shard, for longer than its lease or shorter: whoever has taken its sessions over
goes on, and what the frozen one still believes when it is thawed harms nobody.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from actorbot.cluster import Cluster
from tests.cluster._load import TIMEOUT, Verdict, judge, load, rounded
from tests.cluster._shards import Shards
from tests.faults._kills import ForkServer
from tests.faults._scale import scaled
from tests.servers.redis_servers import Server

LEASE = 1.0  # seconds
patient = pytest.mark.timeout(scaled(180, 1800))

BEHIND = "write-behind:max_delay=0.5"


async def freeze_again_and_again(
    fork: ForkServer,
    url: str,
    times: int,
    rate: float = 100.0,
    seconds: tuple[float, float] = (0.5, 3.0),
    always: bool = False,
    **shape: Any,
) -> Verdict:
    """Freeze a shard for so many leases, and another one, or *always* the same one, and so on."""
    chance = random.Random()
    worst = []
    with Shards(fork, url, url, lease=LEASE, **shape) as shards:
        await asyncio.to_thread(shards.start, 3)
        async with Cluster(url, cluster="bot", timeout=TIMEOUT) as cluster, load(cluster, rate=rate) as platform:
            await platform.goes_on()
            for _ in range(times):
                await platform.passes(chance.uniform(0.0, 1.0) * LEASE)
                victim = shards.all[0] if always else chance.choice(shards.living)
                mark = len(platform.sent)
                victim.freeze()
                await platform.passes(chance.uniform(*seconds) * LEASE)
                victim.thaw()
                await platform.catches_up()
                worst.append(platform.longest_wait(mark))
        await asyncio.to_thread(shards.end)
        print(f"{times} freezes{f' of {shards.all[0].pid}' if always else ''}; longest waits {rounded(worst)}")
        return judge(platform, shards)


@patient
@pytest.mark.long
@pytest.mark.parametrize("thinks", [0.0, 0.02])
@pytest.mark.parametrize("policy", [BEHIND, "write-through"])
def test_a_freeze_costs_no_acknowledged_event(
    redis_server: Server, fork: ForkServer, policy: str, thinks: float
) -> None:
    times, rate = scaled(4, 50), scaled(100, 500)

    verdict = asyncio.run(freeze_again_and_again(fork, redis_server.url, times, rate, policy=policy, thinks=thinks))

    assert verdict.wrong == {}


@patient
@pytest.mark.long
def test_a_shard_that_settles_whoever_owns_the_slot_answers_for_another(redis_server: Server, fork: ForkServer) -> None:
    verdict = asyncio.run(
        freeze_again_and_again(fork, redis_server.url, 4, seconds=(1.5, 3.0), thinks=0.1, without="the epoch")
    )

    assert verdict.answered_by_two


@patient
@pytest.mark.long
@pytest.mark.parametrize("without", ["", "the claim"])
def test_it_is_the_claim_that_keeps_what_the_new_owner_acknowledges(
    redis_server: Server, fork: ForkServer, without: str
) -> None:
    shape = {"policy": BEHIND, "keep": "acknowledged", "slow_write": 0.4, "without": without}
    freezes = freeze_again_and_again(
        fork, redis_server.url, scaled(5, 20), scaled(150, 300), seconds=(1.2, 1.6), always=True, **shape
    )

    verdict = asyncio.run(freezes)

    assert {*verdict.wrong} <= {"lost"}
    # The one that is frozen loses what it had not flushed; that is what the policy says.
    assert (len(verdict.lost_by) > 1) is bool(without)
