"""A manager's life inside a server, which serves already while the manager waits for its store."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from actorbot._manager.embedding import SessionManager, on_wait
from actorbot.errors import OwnershipLostError
from actorbot.ext._owning import end_process, watch

__all__ = ["serving"]


@asynccontextmanager
async def serving(manager: SessionManager) -> AsyncIterator[None]:
    """Start *manager* on the running loop, and close it at the end.

    While it waits for the owner of its store, the start goes on behind. If it fails there, or if
    the store is lost later, the process is told to end. Raises: what fails before any wait.
    """
    waits: asyncio.Future[str] = asyncio.get_running_loop().create_future()

    watch(manager)
    on_wait(manager, waits.set_result)
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
