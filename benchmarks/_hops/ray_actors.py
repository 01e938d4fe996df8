"""Named actors of Ray on a node of their own: a shard is an actor, with sessions in its memory."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from typing import Any

import ray

from benchmarks._hops._orders import Ask, read_job, shard_of, spin, take_orders
from benchmarks._workload import remember


class Shard:
    """Sessions in the memory of an actor."""

    def __init__(self, spins: int) -> None:
        self._sessions = defaultdict[str, dict[str, Any]](dict)
        self._spins = spins

    async def dispatch(self, user: str, text: str) -> int:
        spin(self._spins)
        remember(self._sessions[user], text)
        return int(self._sessions[user]["n"])

    async def pid(self) -> int:
        return os.getpid()


def group(name: str, shards: int, spins: int) -> Ask:
    """Start the actors of a group; return how to ask them."""
    actor: Any = ray.remote(num_cpus=0, max_restarts=-1)(Shard)
    started = [actor.options(name=f"{name}.{number}").remote(spins) for number in range(shards)]
    ray.get([shard.pid.remote() for shard in started])

    async def ask(user: str, text: str) -> None:
        await started[shard_of(user, shards)].dispatch.remote(user, text)

    return ask


async def main() -> None:
    job = read_job()
    ray.init(
        num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="error", _temp_dir=job["folder"],
        _node_ip_address="127.0.0.1", object_store_memory=100_000_000,
    )  # fmt: skip
    try:
        groups = {name: group(name, shards, job["spins"][name]) for name, shards in job["groups"].items()}
        pid = ray.get(ray.get_actor("trivial.0").pid.remote())
        await take_orders(groups, job["users"], pid=pid)
    finally:
        ray.shutdown()


asyncio.run(main())
