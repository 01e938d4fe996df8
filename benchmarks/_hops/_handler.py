"""What a shard, and the manager beside it, do with an event."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from actorbot import Context
from benchmarks._hops._orders import spin
from benchmarks._workload import remember


def make_handler(spins: int) -> Callable[[Context], Awaitable[int]]:
    """Make a handler that counts its events, after so much work."""

    async def handle(context: Context) -> int:
        remember(context.session, context.event)
        return int(context.session["n"])

    async def work_and_handle(context: Context) -> int:
        spin(spins)
        return await handle(context)

    return work_and_handle if spins else handle
