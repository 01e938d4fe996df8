"""Looks at the slots of the cluster "bot" in the server itself."""

from __future__ import annotations

import json
from typing import NamedTuple

import redis

from actorbot.cluster._redis_log import RedisLog

BASE = RedisLog("redis://127.0.0.1", "bot")._base.decode()
"""What its keys begin with."""


class Owner(NamedTuple):
    """Who owns a slot."""

    pid: int
    """0 if nobody does."""
    epoch: int


def owners(url: str) -> dict[int, Owner]:
    """Return the owner of each slot that ever had one."""
    with redis.Redis.from_url(url, decode_responses=True) as client:
        pids = {member: json.loads(info)["pid"] for member, info in client.hgetall(f"{BASE}:infos").items()}
        leases = {int(slot): lease.split("|", 2) for slot, lease in client.hgetall(f"{BASE}:leases").items()}
    return {slot: Owner(pids.get(member, 0), int(epoch)) for slot, (epoch, _, member) in leases.items()}


def waiting(url: str) -> int:
    """Return how many entries the log has."""
    with redis.Redis.from_url(url) as client:
        return sum(client.xlen(name) for name in client.scan_iter(f"{BASE}:log:*"))
