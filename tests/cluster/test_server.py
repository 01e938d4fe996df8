"""The server between callers and shards is frozen, killed, or replaced by its replica."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from actorbot.cluster import Cluster
from tests.cluster._load import TIMEOUT, Verdict, balanced, judge, load
from tests.cluster._shards import Shards
from tests.cluster._slots import owners
from tests.faults._kills import ForkServer
from tests.faults._scale import scaled
from tests.servers.redis_servers import KINDS, Server

LEASE = 1.0  # seconds
patient = pytest.mark.timeout(scaled(180, 1800))

BEHIND = "write-behind:max_delay=0.5"
POLICIES = [(BEHIND, "flushed"), ("write-through", "flushed"), (BEHIND, "acknowledged")]
Fault = Callable[[], Awaitable[None]]


async def strike_again_and_again(
    fork: ForkServer, server: Server, strike: Fault, times: int, rate: float, **shape: Any
) -> tuple[Verdict, bool]:
    """Do to the server what *strike* does; return what the judge says, and whether owners stay."""
    with Shards(fork, server.url, server.url, lease=LEASE, **shape) as shards:
        await asyncio.to_thread(shards.start, 3)
        before = await balanced(shards)
        async with Cluster(server.url, cluster="bot", timeout=TIMEOUT) as cluster, load(cluster, rate=rate) as platform:
            await platform.goes_on()
            for _ in range(times):
                await strike()
                await platform.catches_up()
                await platform.passes(LEASE)
        stay = owners(server.url) == before
        await asyncio.to_thread(shards.end)
        return judge(platform, shards), stay


@patient
@pytest.mark.long
@pytest.mark.parametrize(("policy", "keep"), POLICIES)
def test_a_server_that_is_frozen_costs_nothing_but_the_wait(
    redis_server: Server, fork: ForkServer, policy: str, keep: str
) -> None:
    verdict, stay = frozen(redis_server, fork, policy=policy, keep=keep)

    assert verdict.wrong == {}
    assert stay
    assert verdict.duplicates <= 0.001 * verdict.events


def frozen(server: Server, fork: ForkServer, **shape: Any) -> tuple[Verdict, bool]:
    """Freeze the server for four leases, again and again."""

    async def freeze() -> None:
        server.freeze()
        await asyncio.sleep(4 * LEASE)  # for which it is frozen
        server.thaw()

    times, rate = scaled(1, 10), scaled(100, 300)  # so that a busy machine can renew in time
    return asyncio.run(strike_again_and_again(fork, server, freeze, times, rate, **shape))


@patient
@pytest.mark.long
def test_members_that_do_not_wait_for_each_other_to_renew_take_each_others_slots(
    redis_server: Server, fork: ForkServer
) -> None:
    _, stay = frozen(redis_server, fork, without="the moment to renew")

    assert not stay


@pytest.fixture(params=KINDS)
def careful_server(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """A server that has on its disk what it says that it has."""
    with Server(request.param, tmp_path, "--appendfsync", "always") as server:
        yield server


@patient
@pytest.mark.long
@pytest.mark.parametrize(("policy", "keep"), POLICIES)
def test_a_server_that_is_killed_and_forgets_nothing_costs_nothing_but_the_wait(
    careful_server: Server, fork: ForkServer, policy: str, keep: str
) -> None:
    async def kill() -> None:
        await asyncio.to_thread(careful_server.kill)
        await asyncio.sleep(0.5 * LEASE)  # for which it is away
        await asyncio.to_thread(careful_server.start)

    times, rate = scaled(2, 20), scaled(100, 300)
    strike = strike_again_and_again(fork, careful_server, kill, times, rate, policy=policy, keep=keep)
    verdict, stay = asyncio.run(strike)

    assert verdict.wrong == {}
    assert stay
    assert verdict.duplicates <= 0.001 * verdict.events


@patient
@pytest.mark.long
def test_a_server_that_forgets_everything_loses_events(fork: ForkServer, tmp_path: Path) -> None:
    with Server("valkey", tmp_path, "--appendonly", "no") as server:

        async def kill() -> None:
            await asyncio.to_thread(server.kill)
            await asyncio.to_thread(server.start)

        verdict, _ = asyncio.run(
            strike_again_and_again(fork, server, kill, 1, 100, policy="write-through", idle_timeout=0.1)
        )

    assert verdict.lost
