"""A shard of a cluster; its sessions are in the same server."""

from __future__ import annotations

import asyncio

from actorbot import FlushPolicy, RedisSessionStore
from actorbot.cluster import Shard
from benchmarks._hops._handler import make_handler
from benchmarks._hops._orders import read_job, until_the_end


async def main() -> None:
    job = read_job()
    store = RedisSessionStore(job["url"], key_prefix=f"{job['name']}:")
    flush, handler = FlushPolicy.parse(job["policy"]), make_handler(job["spins"])
    async with Shard(
        job["url"], cluster=job["name"], store=store, handler=handler, flush=flush, max_resident=job["users"]
    ):
        await until_the_end()


asyncio.run(main())
