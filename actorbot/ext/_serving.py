"""A manager's life inside a server, which serves already while the manager waits for its store."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from actorbot._manager.embedding import SessionManager, on_lost, on_wait
from actorbot._running.shown import shown
from actorbot.errors import OwnershipLostError
from actorbot.ext._ending import end_process

__all__ = ["serving"]

logger = logging.getLogger("actorbot")


@asynccontextmanager
async def serving(manager: SessionManager) -> AsyncIterator[None]:
    """Start *manager* on the running loop, and close it at the end.

    While it waits for the owner of its store, the start goes on behind. If it fails there, or if
    the store is lost later, the process is told to end. Raises: what fails before any wait.
    """
    waits: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def wait(owner: str) -> None:
        if not waits.done():
            waits.set_result(None)
            with shown():  # servers set up no logging but their own
                logger.warning("not ready yet: events are refused, and wait for the owner of the store: %s", owner)

    on_wait(manager, wait)
    on_lost(manager, end_process)
    starting = asyncio.create_task(manager.start())
    either: set[asyncio.Future[Any]] = {starting, waits}
    try:
        await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            await starting
        starting.add_done_callback(_note)
        yield
    finally:
        starting.cancel()
        await asyncio.wait({starting})
        if _error(starting) is None:
            await manager.close()


def _note(starting: asyncio.Task[SessionManager]) -> None:
    error = _error(starting)
    if isinstance(error, Exception) and not isinstance(error, OwnershipLostError):  # of which it is told already
        end_process(error)


def _error(starting: asyncio.Task[SessionManager]) -> BaseException | None:
    return asyncio.CancelledError() if starting.cancelled() else starting.exception()
