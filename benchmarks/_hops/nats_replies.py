"""Request and reply over NATS: a subject for each shard, sessions in the memory of its process."""

from __future__ import annotations

import asyncio
from collections import defaultdict
from typing import Any

import nats

from benchmarks._hops._orders import Ask, read_job, shard_of, spin, take_orders, until_the_end
from benchmarks._workload import remember


async def call(job: dict[str, Any], client: Any) -> None:
    def group(name: str, shards: int) -> Ask:
        async def ask(user: str, text: str) -> None:
            await client.request(f"{name}.{shard_of(user, shards)}", f"{user} {text}".encode(), timeout=30)

        return ask

    await take_orders({name: group(name, shards) for name, shards in job["groups"].items()}, job["users"])


async def answer(job: dict[str, Any], client: Any) -> None:
    sessions = defaultdict[str, dict[str, Any]](dict)

    async def handle(message: Any) -> None:
        user, _, text = message.data.decode().partition(" ")
        spin(job["spins"])
        remember(sessions[user], text)
        await message.respond(b"%d" % sessions[user]["n"])

    await client.subscribe(job["subject"], cb=handle)
    await client.flush()
    await until_the_end()


async def main() -> None:
    job = read_job()
    client = await nats.connect(job["url"], max_reconnect_attempts=100, reconnect_time_wait=0.1)
    await {"caller": call, "shard": answer}[job["side"]](job, client)
    await client.close()


asyncio.run(main())
