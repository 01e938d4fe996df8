"""A manager's life inside a server, which serves already while the manager waits for its store."""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from types import FrameType
from typing import Any

from actorbot._manager.embedding import Front, is_here, is_open, on_wait
from actorbot.errors import OwnershipLostError
from actorbot.ext._owning import end_process, watch

__all__ = ["serving"]


@asynccontextmanager
async def serving(manager: Front) -> AsyncIterator[None]:
    """Start *manager* on the running loop, and close it at the end.

    While it waits for the owner of its store, or a cluster for its first shard, the start goes on
    behind. If it fails there, or if the store is lost later, the process is told to end. Raises:
    what fails before any wait.
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
        with _closing_when_told(manager) if is_here(manager) else nullcontext():
            yield
    finally:
        starting.cancel()
        await asyncio.wait({starting})
        if _error(starting) is None:
            await manager.close()


@contextmanager
def _closing_when_told(manager: Front) -> Iterator[None]:
    """Have SIGTERM begin the close of *manager* at once, besides what the server does.

    A server comes to it 0.1 s after it has ceased to listen, or later: so long nobody would answer,
    neither this process nor the one that waits for the store. What comes meanwhile is refused.
    """
    loop, before = asyncio.get_running_loop(), signal.getsignal(signal.SIGTERM)
    if not callable(before) or threading.current_thread() is not threading.main_thread():
        yield  # nobody expects that signal, or it is another thread's
        return
    closing = set[asyncio.Task[Any]]()

    def close() -> None:
        if is_open(manager):
            closing.add(loop.create_task(manager.close()))

    def told(number: int, frame: FrameType | None) -> None:
        with suppress(RuntimeError):  # the loop has ended; another server of this process put this back
            loop.call_soon_threadsafe(close)
        before(number, frame)

    signal.signal(signal.SIGTERM, told)
    try:
        yield
    finally:
        if signal.getsignal(signal.SIGTERM) is told:
            signal.signal(signal.SIGTERM, before)


def _note(starting: asyncio.Task[Any]) -> None:
    error = _error(starting)
    if isinstance(error, Exception) and not isinstance(error, OwnershipLostError):  # of which it is told already
        end_process(error)


def _error(starting: asyncio.Task[Any]) -> BaseException | None:
    return asyncio.CancelledError() if starting.cancelled() else starting.exception()
