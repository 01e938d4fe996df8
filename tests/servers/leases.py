"""What tests of a lease share: another bot, which waits for the owner, and a look at the lease."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

from actorbot import SessionManager, errors
from actorbot.stores.base import RecordStore
from tests.handlers import count
from tests.waiting import HANGS, until

LEASE = 4.0  # seconds, in these tests; a busy machine may stand still for one
AGES = 600.0  # seconds for which another bot waits, which is longer than a test


@asynccontextmanager
async def rival(store: RecordStore, **options: Any) -> AsyncIterator[asyncio.Task[SessionManager]]:
    """Start another bot, which waits for the owner of the store; the task is its start."""
    manager = SessionManager(store, handler=count, takeover_timeout=AGES, **options)
    starting = asyncio.create_task(manager.start())
    try:
        await until(lambda: "waits for the owner" in manager.health().reason)
        yield starting
    finally:
        if not starting.cancel():
            await manager.close()
        await asyncio.gather(starting, return_exceptions=True)


def epoch(manager: SessionManager) -> int:
    ownership = manager.stats().ownership
    assert ownership is not None
    return ownership.epoch


async def until_lease(store: RecordStore, holds: Callable[[dict[str, Any]], object]) -> dict[str, Any]:
    """Return the lease of an open *store* as soon as this *holds* of it: `{}` if there is none.

    The server may be away meanwhile.
    """
    async with asyncio.timeout(2 * HANGS):
        while True:
            with suppress(errors.StoreUnavailableError):
                text = (await asyncio.to_thread(store.read_lease)).text
                lease: dict[str, Any] = {} if text is None else json.loads(text)
                if holds(lease):
                    return lease
            await asyncio.sleep(0.01)


async def until_renewed(store: RecordStore, times: int = 1) -> dict[str, Any]:
    """Return the lease when its owner has renewed it so often from now on."""
    lease = await until_lease(store, lambda lease: True)
    for _ in range(times):
        lease = await until_lease(store, lambda now, before=lease: now != before and now.get("holders"))
    return lease


async def flush(manager: SessionManager) -> None:
    """Flush, as often as it takes: a server may be away again."""
    async with asyncio.timeout(2 * HANGS):
        while True:
            with suppress(errors.StoreUnavailableError):
                return await manager.flush()
            await asyncio.sleep(0.01)
