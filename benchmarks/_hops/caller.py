"""A caller of clusters, one for each group."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack

from actorbot.cluster import Cluster
from benchmarks._hops._orders import read_job, take_orders


async def main() -> None:
    job = read_job()
    async with AsyncExitStack() as stack:
        clusters = {
            group: await stack.enter_async_context(Cluster(job["url"], cluster=name))
            for group, name in job["groups"].items()
        }
        await take_orders({group: cluster.dispatch for group, cluster in clusters.items()}, job["users"])


asyncio.run(main())
