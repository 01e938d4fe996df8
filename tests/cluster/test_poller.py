"""A poller that is killed, and goes on from the offset that it has confirmed: every user's count is
exact, since it confirms what the log has accepted.
"""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from tests import programs
from tests.cluster._load import stored_tags
from tests.cluster._shards import Shards
from tests.faults._kills import ForkServer
from tests.faults._scale import scaled
from tests.servers.redis_servers import Server
from tests.waiting import until_sync

patient = pytest.mark.timeout(scaled(180, 900))
USERS = 20

POLLER = """
import asyncio, os
from pathlib import Path
from actorbot.cluster import Cluster

async def poll():
    offset = Path("offset")
    async with Cluster({url!r}, cluster="bot") as cluster:
        print("polls", flush=True)
        while (first := int(offset.read_text())) < {updates}:
            updates = range(first, min(first + 10, {updates}))
            if not {confirms_first}:
                await submit(cluster, updates)
            Path("new offset").write_text(str(updates.stop))
            os.replace("new offset", offset)
            if {confirms_first}:
                await submit(cluster, updates)

async def submit(cluster, updates):
    for number in updates:
        await cluster.submit("user:%d" % (number % {users}), number // {users}, event_id="update-%d" % number)

asyncio.run(poll())
"""


def poll_and_kill(fork: ForkServer, server: Server, folder: Path, *, confirms_first: bool) -> list[str]:
    """Return the users who do not have each of their updates once, in order."""
    updates = scaled(2_000, 20_000)
    code = POLLER.format(url=server.url, updates=updates, users=USERS, confirms_first=confirms_first)
    offset = folder / "offset"
    offset.write_text("0")
    kills = scaled(6, 40)
    with Shards(fork, server.url, server.url, lease=1.0) as shards:
        shards.start(4)
        for kill in range(kills):
            poller = programs.start(code, folder)
            until_sync(lambda: int(offset.read_text()) >= updates * (kill + random.random()) / (kills + 1))  # noqa: B023
            poller.kill()
            poller.communicate()
        status, _, said = programs.run(code, folder)
        assert status == 0, said
        until_sync(lambda: stored_count(server) == updates or confirms_first)
        shards.end()
        assert shards.faults() == []
    users = [f"user:{number}" for number in range(USERS)]
    stored = stored_tags(server.url, users)
    return [user for user, tags in stored.items() if tags != list(range(updates // USERS))]


def stored_count(server: Server) -> int:
    return sum(map(len, stored_tags(server.url, [f"user:{number}" for number in range(USERS)]).values()))


@patient
@pytest.mark.long
def test_a_poller_that_is_killed_goes_on_at_its_offset(redis_server: Server, fork: ForkServer, tmp_path: Path) -> None:
    assert poll_and_kill(fork, redis_server, tmp_path, confirms_first=False) == []


@patient
@pytest.mark.long
def test_a_poller_that_confirms_before_the_log_has_accepted_loses_updates(
    redis_server: Server, fork: ForkServer, tmp_path: Path
) -> None:
    assert poll_and_kill(fork, redis_server, tmp_path, confirms_first=True)
