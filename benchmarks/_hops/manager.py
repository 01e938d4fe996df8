"""A manager without a cluster, called in its own process: what a shard has inside.

Each event has an id, as each has that comes through a cluster.
"""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from actorbot import FlushPolicy, RedisSessionStore, SessionManager
from benchmarks._hops._handler import make_handler
from benchmarks._hops._orders import read_job, take_orders


async def main() -> None:
    job = read_job()
    store = RedisSessionStore(job["url"], key_prefix=f"{job['name']}:")
    flush = FlushPolicy.parse(job["policy"])
    async with SessionManager(store, handler=make_handler(0), flush=flush, max_resident=job["users"]) as manager:
        numbers = itertools.count()

        async def ask(user: str, text: str) -> Any:
            return await manager.dispatch(user, text, event_id=f"event:{next(numbers)}")

        await take_orders({"trivial": ask}, job["users"])


asyncio.run(main())
