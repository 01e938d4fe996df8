"""A cluster by the URL of its server and its name, for a command that looks at it or asks it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Self

import click

from actorbot.cluster import Member
from actorbot.cluster._log import Log
from actorbot.cluster._redis_log import RedisLog
from actorbot.cluster._reports import members_of

__all__ = ["Picture", "reached"]


@asynccontextmanager
async def reached(url: str, name: str) -> AsyncIterator[Log]:
    """Reach the log of the cluster *name*; nothing is made. Raises: ClickException; its errors."""
    log = RedisLog(url, name)
    try:
        if await log.open() is None:
            raise click.ClickException(
                f"cluster {name}: this server knows none of that name, since no shard of it was ever started there"
            )
        yield log
    finally:
        await log.close()


@dataclass(frozen=True, slots=True)
class Picture:
    """The members and the slots of a cluster at one moment."""

    members: list[Member]
    slots: list[tuple[int, str, int]]
    """For each slot its epoch, its owner's id or "", how many entries wait."""

    @classmethod
    async def of(cls, log: Log) -> Self:
        slots = await log.slots()
        return cls(members_of(await log.members(), slots), slots)

    @property
    def unowned(self) -> list[int]:
        """The slots that nobody serves: given back, or their owner's lease has run out."""
        alive = {member.id for member in self.members if member.remaining > 0}
        return [number for number, (_, owner, _) in enumerate(self.slots) if owner not in alive]

    def epoch_of(self, member: str) -> int:
        """The highest epoch of the member's slots: how often these have changed hands."""
        return max((epoch for epoch, owner, _ in self.slots if owner == member), default=0)
