"""SIGKILL of shards under load, at any moment: what was acknowledged is in the store, each event
once and in order, and every caller has an answer.
"""

from __future__ import annotations

import asyncio
import random
from typing import Any

import pytest

from actorbot.cluster import Cluster
from tests.cluster._load import TIMEOUT, Sent, Verdict, judge, load, p99, rounded
from tests.cluster._shards import Shards
from tests.faults._kills import ForkServer
from tests.faults._scale import scaled
from tests.servers.redis_servers import Server
from tests.tiers import tiers

LEASE = 1.0  # seconds
patient = pytest.mark.timeout(scaled(180, 1800))

BEHIND = "write-behind:max_delay=0.5"
POLICIES = [(BEHIND, "flushed"), ("write-through", "flushed"), (BEHIND, "acknowledged")]


async def kill_again_and_again(fork: ForkServer, url: str, times: int, rate: float = 100.0, **shape: Any) -> Verdict:
    """Kill a shard, start another one, and so on; return what the judge says."""
    chance = random.Random()
    worst, before, after = [], [], []
    with Shards(fork, url, url, lease=LEASE, **shape) as shards:
        await asyncio.to_thread(shards.start, 3)
        async with Cluster(url, cluster="bot", timeout=TIMEOUT) as cluster, load(cluster, rate=rate) as platform:
            await platform.goes_on()
            for _ in range(times):
                first = len(platform.sent)
                await platform.passes(chance.uniform(0.3, 1.5) * LEASE)
                victim = chance.choice(shards.living)
                theirs = set(platform.sessions) - platform.sessions_of(victim.pid)
                mark = len(platform.sent)
                await asyncio.to_thread(victim.kill)
                await platform.passes(chance.uniform(0.0, 1.5) * LEASE)
                await asyncio.to_thread(shards.start)
                await platform.catches_up()
                worst.append(platform.longest_wait(mark))
                before.append(p99(waits_in(platform.sent[first:mark], theirs)))
                after.append(p99(waits_in(platform.sent[mark:], theirs)))
        await asyncio.to_thread(shards.end)
        print(f"{times} kills; longest waits {rounded(worst)}; p99 before {rounded(before)}, after {rounded(after)}")
        return judge(platform, shards)


def waits_in(events: list[Sent], sessions: set[str]) -> list[float]:
    """Return how long the events of these sessions waited."""
    return [each.wait for each in events if each.session in sessions and each.answered]


@patient
@pytest.mark.parametrize(("policy", "keep"), tiers(POLICIES))
@pytest.mark.parametrize("elsewhere", tiers([False, True]), ids=["here", "elsewhere"])
def test_a_kill_costs_no_acknowledged_event(
    redis_server: Server, fork: ForkServer, policy: str, keep: str, elsewhere: bool
) -> None:
    times, rate = scaled(1 if (policy, keep) == POLICIES[0] else 3, 20), scaled(100, 500)
    shape = {"policy": policy, "keep": keep, "elsewhere": elsewhere}

    verdict = asyncio.run(kill_again_and_again(fork, redis_server.url, times, rate, **shape))

    if keep == "flushed":
        assert verdict.wrong == {}
    else:  # the newest of what a killed shard had acknowledged: that is what the policy says
        assert {*verdict.wrong} <= {"lost"}
        assert verdict.gaps == []
        assert len(verdict.lost_by) <= times


@patient
@pytest.mark.long
def test_a_log_that_forgets_what_is_not_flushed_loses_events(redis_server: Server, fork: ForkServer) -> None:
    verdict = asyncio.run(kill_again_and_again(fork, redis_server.url, 3, without="entries until the flush"))

    assert verdict.lost
