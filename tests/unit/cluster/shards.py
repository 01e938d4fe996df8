"""Shards of a test's own on a real server, and what stands in their log."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from actorbot import Context, FlushPolicy, MemorySessionStore
from actorbot.cluster import Cluster, Shard
from actorbot.cluster._slots import slot_of
from tests.servers import redis_servers

SLOTS = 8
LATER = FlushPolicy.write_behind(max_delay=1_000.0)
"""Nothing is flushed until somebody asks for it."""


async def remember(context: Context) -> int:
    """Keep each event, reply to it, and return how many there are."""
    seen: list[Any] = context.session.setdefault("seen", [])
    seen.append(context.event)
    context.send_text(f"reply to {context.event}")
    return len(seen)


class Bench:
    """One cluster, with a store and the replies that were sent."""

    def __init__(self, stack: AsyncExitStack) -> None:
        self.url = redis_servers.shared().url
        self.name = uuid.uuid4().hex
        self.store: Any = MemorySessionStore()
        self.replies: list[str] = []
        self._stack = stack

    async def shard(self, handler: Callable[..., Any] = remember, **options: Any) -> Shard:
        settings: dict[str, Any] = {
            "store": self.store, "handler": handler, "deliver": self._deliver, "flush": LATER, "slots": SLOTS,
            "drain_timeout": 5.0,
        }  # fmt: skip
        return await self._stack.enter_async_context(Shard(self.url, cluster=self.name, **settings | options))

    async def cluster(self, **options: Any) -> Cluster:
        return await self._stack.enter_async_context(Cluster(self.url, cluster=self.name, **options))

    async def _deliver(self, _: str, message: Any) -> None:
        self.replies.append(message)

    # --- what stands in the log, and changes of it by hand ---------------------------------------

    def key(self, kind: str, number: object = "") -> str:
        return f"actorbot-cluster:{{{self.name}}}:{kind}" + (f":{number}" if number != "" else "")

    def entries(self, session_id: str) -> int:
        count: Any = redis_servers.shared().ask("XLEN", self.key("log", slot_of(session_id, SLOTS)))
        return int(count)

    def lease_of(self, session_id: str) -> list[str]:
        """Return epoch, the time until which it is claimed, and owner of a session's slot."""
        record: Any = redis_servers.shared().ask("HGET", self.key("leases"), slot_of(session_id, SLOTS))
        return list(record.decode().split("|"))

    def take_over(self, session_id: str, owner: str = "somebody-else") -> None:
        """Have another member own the slot, as if its owner had been frozen."""
        epoch, claims, _ = self.lease_of(session_id)
        redis_servers.shared().ask(
            "HSET", self.key("leases"), slot_of(session_id, SLOTS), f"{int(epoch) + 1}|{claims}|{owner}"
        )
        redis_servers.shared().ask("ZADD", self.key("members"), 2**52, owner)  # it is alive

    def let_run_out(self, owner: str) -> None:
        """Have a member's lease run out now."""
        redis_servers.shared().ask("ZADD", self.key("members"), 1, owner)


@asynccontextmanager
async def bench() -> AsyncIterator[Bench]:
    async with AsyncExitStack() as stack:
        yield Bench(stack)
