"""What tests of the log share: members of a cluster, and hands in what the server holds."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager, suppress
from typing import Any

from actorbot import errors
from actorbot.cluster._log import Settlement, Standing, Terms
from actorbot.cluster._redis_log import RedisLog
from tests.servers.redis_servers import Server
from tests.waiting import HANGS

TERMS = Terms(slots=256, max_waiting=2_000)
LEASE = 60.0  # seconds, which no test lasts: what is to run out is set by hand


class Member:
    """A member with a connection of its own, which does what it is told."""

    def __init__(self, log: RedisLog, name: str) -> None:
        self.log = log
        self.name = name
        self.held: dict[int, int] = {}
        self.leaving = False

    async def renew(self, *, gone: Iterable[str] = (), lease: float = LEASE) -> Standing:
        """Renew the lease; note what is held then."""
        standing = await self.log.lease(self.name, lease, self.held, "{}", leaving=self.leaving, gone=gone)
        for slot in standing.lost:
            del self.held[slot]
        self.held |= {grant.slot: grant.epoch for grant in standing.granted}
        return standing

    async def give_back(self, number: int) -> list[int]:
        """Give back as many slots, the last ones; return them."""
        slots = sorted(self.held)[len(self.held) - number :]
        await self.log.release(self.name, {slot: self.held.pop(slot) for slot in slots})
        return slots

    async def leave(self) -> None:
        await self.log.release(self.name, self.held, leave=True)
        self.held = {}

    async def read(self, room: int = 1_000) -> list[Any]:
        """Return the payloads of what there is to read."""
        return [entry.payload for entry in (await self.log.read(self.name, room)).entries]


class Made:
    """A cluster, and the keys that it has in its server."""

    def __init__(self, server: Server, url: str | None = None) -> None:
        self.server = server
        self.url = url or server.url
        self.name = f"bot-{uuid.uuid4().hex[:12]}"
        self.logs: list[RedisLog] = []

    def log(self, url: str | None = None) -> RedisLog:
        log = RedisLog(url or self.url, self.name)
        self.logs.append(log)
        return log

    async def member(self, name: str, terms: Terms = TERMS, *, url: str | None = None) -> Member:
        """Return a member that has joined, and has no lease yet."""
        log = self.log(url)
        await log.join(name, terms)
        return Member(log, name)

    async def caller(self, *, url: str | None = None) -> RedisLog:
        log = self.log(url)
        await log.open()
        return log

    def key(self, kind: str) -> str:
        return f"actorbot-cluster:{{{self.name}}}:{kind}"

    def ask(self, command: str, kind: str, *args: str | bytes | int) -> Any:
        """Ask the server about a key of the cluster."""
        return self.server.ask(command, self.key(kind), *args)

    def now(self) -> int:
        seconds, micro = self.server.ask("TIME")  # type: ignore[misc]
        return int(seconds) * 1_000 + int(micro) // 1_000

    def run_out(self, member: str) -> None:
        """Have the lease of *member* run out."""
        self.ask("ZADD", "members", self.now() - 1, member)

    def freeze_for(self, seconds: float) -> None:
        """Have it look as if the server had been away for so long."""
        away = int(seconds * 1_000)
        self.ask("HINCRBY", "meta", "last", -away)
        members: Any = self.ask("ZRANGE", "members", 0, -1)
        for member in members:
            self.ask("ZINCRBY", "members", -away, member)

    def end_hold(self) -> None:
        """Have the time be over in which nobody's slots are taken."""
        self.ask("HSET", "meta", "hold", self.now() - 1)

    def leases(self) -> dict[int, tuple[int, str]]:
        """Return epoch and owner of each slot."""
        found = {}
        for slot, record in self.ask("HGETALL", "leases").items():
            epoch, _, owner = record.decode().split("|")
            found[int(slot)] = int(epoch), owner
        return found


@asynccontextmanager
async def a_cluster(server: Server, url: str | None = None) -> AsyncIterator[Made]:
    made = Made(server, url)
    try:
        yield made
    finally:
        for log in made.logs:
            await log.close()


async def goes_round(made: Made, url: str | None = None) -> None:
    """Have an event go through the log, and its answer come back."""
    ann = await made.member("ann", url=url)
    caller = await made.caller(url=url)
    await ann.renew()
    assert await caller.append([(1, b"hi")]) == [True]
    (entry,) = (await ann.log.read("ann", 10)).entries
    await ann.log.settle("ann", [Settlement(1, ann.held[1], [], [entry.id])], {"web": b"hello"})
    assert (await caller.answers("web", "0")).payloads[-1:] == [b"hello"]
    await caller.members()
    await caller.slots()
    await caller.drain(["ann"])
    await ann.leave()


async def until_it_does(ask: Callable[[], Awaitable[Any]]) -> Any:
    """Ask until the server answers; return its answer. It must come soon."""
    async with asyncio.timeout(HANGS):
        while True:
            with suppress(errors.StoreUnavailableError):
                return await ask()
            await asyncio.sleep(0.01)
