"""There and back with nothing else: an XADD and a blocked XREAD on each side.

The job says which side, and with which client.
"""

from __future__ import annotations

import asyncio
from typing import Any

import redis
import redis.asyncio

from benchmarks._hops._orders import read_job, take_orders, until_the_end

BLOCK = 500  # ms: after that the other side looks whether this is the end


class Plain:
    """redis-py, as one uses it where nothing is asynchronous."""

    def __init__(self, url: str) -> None:
        self._client = redis.Redis.from_url(url)

    async def add(self, stream: str, data: Any) -> None:
        self._client.xadd(stream, {"d": data})

    async def read(self, stream: str, after: Any) -> list[tuple[Any, Any]]:
        return _entries(self._client.xread({stream: after}, block=BLOCK))


class Asynchronous:
    """redis.asyncio. A connection that is blocked is no use for anything else: there are two."""

    def __init__(self, url: str) -> None:
        self._client = redis.asyncio.Redis.from_url(url)

    async def add(self, stream: str, data: Any) -> None:
        await self._client.xadd(stream, {"d": data})

    async def read(self, stream: str, after: Any) -> list[tuple[Any, Any]]:
        return _entries(await self._client.xread({stream: after}, block=BLOCK))


CLIENTS: dict[str, type[Plain] | type[Asynchronous]] = {"redis-py": Plain, "redis.asyncio": Asynchronous}


def _entries(answer: Any) -> list[tuple[Any, Any]]:
    """Return the entries of the one stream that was read, each with its id: in RESP2 and RESP3."""
    if not answer:
        return []
    found = answer.values() if isinstance(answer, dict) else (entries for _, entries in answer)
    (entries,) = found
    return entries[0] if isinstance(answer, dict) else entries  # type: ignore[no-any-return]


async def call(job: dict[str, Any], client: Plain | Asynchronous) -> None:
    """Be the caller: add a question, and wait for the answer behind the last one."""
    cursor: Any = "0"

    async def ask(user: str, text: str) -> None:
        nonlocal cursor
        await client.add(f"{job['name']}:there", text)
        while not (entries := await client.read(f"{job['name']}:back", cursor)):
            pass
        cursor = entries[-1][0]

    await take_orders({"trivial": ask}, job["users"])


async def answer(job: dict[str, Any], client: Plain | Asynchronous) -> None:
    """Be the other side: answer what comes, until this is the end."""
    cursor: Any = "0"
    end = asyncio.create_task(until_the_end())
    while not end.done():
        for entry, fields in await client.read(f"{job['name']}:there", cursor):
            cursor = entry
            await client.add(f"{job['name']}:back", fields[b"d"])
        if isinstance(client, Plain):
            await asyncio.sleep(0)


async def main() -> None:
    job = read_job()
    await {"caller": call, "shard": answer}[job["side"]](job, CLIENTS[job["client"]](job["url"]))


asyncio.run(main())
