"""A cluster's log, and sessions, in one server."""

from __future__ import annotations

from actorbot import RedisSessionStore
from tests.unit.cluster.shards import bench


async def test_who_lists_the_sessions_of_a_server_finds_nothing_of_the_cluster_there() -> None:
    async with bench() as b:
        await b.shard()
        cluster = await b.cluster()
        await cluster.dispatch("ann", "hi")

        store = RedisSessionStore(b.url)  # with the key prefix that it has by itself
        store.init()
        try:
            found = [str(each) for each in store.scan()]
        finally:
            store.close()

    assert not [each for each in found if b.name in each]
