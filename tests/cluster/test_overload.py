"""A slot that nobody owns, or whose owner is slow: callers are told at once, and nothing grows."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actorbot import errors
from actorbot.cluster import Cluster
from tests.cluster._load import patiently, stored_tags
from tests.cluster._shards import Shards
from tests.cluster._slots import waiting
from tests.faults._kills import ForkServer
from tests.servers.redis_servers import Server

MOST = 50  # entries that a slot may have


async def send(cluster: Cluster, session: str, count: int) -> list[Any]:
    """Submit so many events at once; return the receipts, and the errors of those without one."""
    events = (cluster.submit(session, tag, event_id=f"{session}/{tag}") for tag in range(count))
    return await asyncio.gather(*events, return_exceptions=True)


def test_events_of_a_slot_without_an_owner_wait_up_to_its_bound(redis_server: Server, fork: ForkServer) -> None:
    asyncio.run(fill_a_slot_without_an_owner(fork, redis_server))


async def fill_a_slot_without_an_owner(fork: ForkServer, server: Server) -> None:
    with Shards(fork, server.url, server.url, max_waiting=MOST) as shards:
        await asyncio.to_thread(shards.start)
        await asyncio.to_thread(shards.end)
        async with Cluster(server.url, cluster="bot") as cluster:
            sent = await send(cluster, "ann", 4 * MOST)
            refused = [each for each in sent if isinstance(each, errors.OverloadedError)]
            assert len(refused) == 3 * MOST
            assert waiting(server.url) == MOST

            await asyncio.to_thread(shards.start)
            for receipt in sent[:MOST]:
                await receipt.result()
        await asyncio.to_thread(shards.end)
    assert stored_tags(server.url, ["ann"])["ann"] == list(range(MOST))


@pytest.mark.long
def test_a_slow_owner_has_so_much_in_hand_and_no_more(redis_server: Server, fork: ForkServer) -> None:
    asyncio.run(flood_a_slow_owner(fork, redis_server))


async def flood_a_slow_owner(fork: ForkServer, server: Server) -> None:
    with Shards(fork, server.url, server.url, max_waiting=MOST, max_in_hand=10, thinks=0.02) as shards:
        (shard,) = await asyncio.to_thread(shards.start)
        async with Cluster(server.url, cluster="bot") as cluster:
            before = resident(shard.pid)
            sessions = [f"user:{number}" for number in range(100)]
            sent = [
                each for flood in await asyncio.gather(*(send(cluster, s, 200) for s in sessions)) for each in flood
            ]
            accepted = [each for each in sent if not isinstance(each, BaseException)]
            refused = [each for each in sent if isinstance(each, errors.OverloadedError)]
            assert len(accepted) + len(refused) == len(sent)
            assert refused
            assert waiting(server.url) <= MOST * shards.shape.slots
            await patiently(lambda: waiting(server.url) == 0)
            print(
                f"{len(accepted)} accepted, {len(refused)} refused; the shard: {before} KiB, then {resident(shard.pid)}"
            )
            for receipt in accepted:
                await receipt.result()
        await asyncio.to_thread(shards.end)
    assert sum(map(len, stored_tags(server.url, sessions).values())) == len(accepted)


def resident(pid: int) -> int:
    """Return how many KiB of memory a process has of its own."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text("ascii").splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_"))


def test_without_that_bound_a_slot_takes_whatever_comes(redis_server: Server, fork: ForkServer) -> None:
    async def fill() -> None:
        with Shards(fork, redis_server.url, redis_server.url) as shards:
            await asyncio.to_thread(shards.start)
            await asyncio.to_thread(shards.end)
            async with Cluster(redis_server.url, cluster="bot") as cluster:
                sent = await send(cluster, "ann", 4 * MOST)
        assert not [each for each in sent if isinstance(each, BaseException)]

    asyncio.run(fill())
