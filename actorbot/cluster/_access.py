"""`Access`: when the verbs of a `Cluster` may be called, from where, and how threads call them."""

from __future__ import annotations

import asyncio
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from contextlib import suppress
from threading import get_ident
from typing import Any, Final, TypeVar

from actorbot._manager.access import Life, running_loop
from actorbot._runtime.forks import kept_from_children
from actorbot.errors import ForkedError, ManagerClosedError, WrongLoopError

__all__ = ["HANGS", "Access", "Life", "loop_ended"]

T = TypeVar("T")

HANGS: Final = 5.0  # seconds after its time-out in which a call has ended, unless its loop stands still
LOOK: Final = 1.0  # seconds between two looks whether the loop is still there
NEVER: Final = float("inf")


def loop_ended() -> ManagerClosedError:
    return ManagerClosedError("the event loop that the cluster was started on has ended; make a new Cluster")


class Access(ABC):
    """The base of `Cluster`. Its home is the loop it was started on, or one in its own thread."""

    _loop: asyncio.AbstractEventLoop  # from the start on

    def __init__(self) -> None:
        self._life = Life.NEW
        self._thread = 0  # of the loop, from the start on
        self._own_thread: threading.Thread | None = None
        self._closing: asyncio.Task[None] | None = None
        self._waits_for: str | None = None  # what its start waits for
        self._on_wait: list[Callable[[str], object]] = []  # called with that, once

    @abstractmethod
    async def _open(self) -> None:
        """Begin, at home. Raises: what `Cluster.start` raises."""

    @abstractmethod
    async def _end(self) -> None:
        """End, at home."""

    # --- life ------------------------------------------------------------------------------------

    async def _start_here(self) -> None:
        loop = running_loop()
        self._begin()
        self._loop, self._thread = loop, get_ident()
        await self._run_open()

    def _start_away(self) -> None:
        self._begin()
        self._loop = asyncio.new_event_loop()
        self._own_thread = threading.Thread(target=_run, args=(self._loop,), name="actorbot-cluster", daemon=True)
        self._own_thread.start()
        self._thread = self._own_thread.ident or 0
        try:
            self._call(self._run_open())
        except BaseException:  # also a KeyboardInterrupt
            self._forget()
            self._stop()
            raise

    def _begin(self) -> None:
        if self._life is Life.FORKED:
            self._check_life()
        if self._life is not Life.NEW:
            raise ManagerClosedError(f"the cluster is {self._life.value}: it can be started once; make a new one")
        self._life = Life.STARTING
        kept_from_children.add(self)

    def _wait_for(self, what: str) -> None:
        self._waits_for = what
        on_wait, self._on_wait = self._on_wait, []
        for tell in on_wait:
            tell(what)

    async def _run_open(self) -> None:
        try:
            await self._open()
        except BaseException:
            self._forget()
            raise
        self._life = Life.OPEN

    async def _close_here(self) -> None:
        if self._is_over():
            return
        self._check_here(Life.CLOSING)
        await self._close_at_home()

    def _close_away(self) -> None:
        if self._is_over():
            return
        if self._life is not Life.FORKED and self._loop.is_closed():
            self._forget()  # its connections have ended with it
            return
        self._check_away(Life.CLOSING)
        self._call(self._close_at_home(), 0.0)
        self._stop()

    def _is_over(self) -> bool:
        """Tell whether nothing is to be closed. A new cluster is closed here."""
        if self._life is Life.NEW:
            self._life = Life.CLOSED
        return self._life is Life.CLOSED

    async def _close_at_home(self) -> None:
        """Close, once: it goes on if its caller is cancelled, and a second caller waits for it."""
        if self._life is Life.OPEN:
            self._life = Life.CLOSING
            self._closing = self._loop.create_task(self._finish())
        if self._closing is not None:
            await asyncio.shield(self._closing)

    async def _finish(self) -> None:
        try:
            await self._end()
        finally:
            self._forget()

    def _forget(self) -> None:
        self._life = Life.CLOSED
        kept_from_children.discard(self)

    def _stop(self) -> None:
        """End the thread of its own. Nobody waits for what is still to run there."""
        if self._own_thread is not None:
            with suppress(RuntimeError):  # another thread has done it
                self._loop.call_soon_threadsafe(self._loop.stop)
            self._own_thread.join(HANGS)

    def _leave_to_parent(self) -> None:
        self._life = Life.FORKED

    # --- calls -----------------------------------------------------------------------------------

    def _check_life(self, *also: Life) -> None:
        life = self._life
        if life is Life.OPEN or life in also:
            return
        if life is Life.FORKED:
            raise ForkedError(
                "the process was forked: this cluster's connections are the parent's; start a new Cluster after the"
                " fork"
            )
        raise ManagerClosedError(
            "the cluster was not started: use `async with`, `with`, start() or start_sync()"
            if life is Life.NEW
            else f"the cluster is {life.value}{'; make a new one' if life is Life.CLOSED else ''}"
        )

    def _check_here(self, *also: Life) -> None:
        """Raise unless the caller runs on the home loop, and the cluster is open."""
        if self._life is not Life.OPEN:
            self._check_life(*also)
        if running_loop() is not self._loop:
            raise WrongLoopError(
                "a cluster started with `with` or start_sync() is at home in a thread: use the _sync verbs"
                if self._own_thread is not None
                else "this verb belongs to the cluster's own event loop; from anywhere else use its _sync twin"
            )

    def _check_away(self, *also: Life) -> None:
        """Raise if the caller runs on the home loop, which a _sync verb would block."""
        if self._life is not Life.OPEN:
            self._check_life(*also)
        if get_ident() == self._thread and not self._loop.is_closed():
            raise WrongLoopError(
                "a _sync verb on the cluster's event loop would block it for ever: await the async verb"
            )

    def _call(self, coroutine: Coroutine[Any, Any, T], seconds: float = NEVER) -> T:
        """Run *coroutine* at home, for a caller elsewhere. It takes *seconds*, if its loop runs."""
        try:
            future = asyncio.run_coroutine_threadsafe(coroutine, self._loop)
        except RuntimeError:
            coroutine.close()
            raise loop_ended() from None
        try:
            return self._await(future, time.monotonic() + seconds + HANGS)
        except BaseException as error:  # a KeyboardInterrupt, say: nobody waits for it any more
            if future.cancel() and isinstance(error, TimeoutError):
                raise ManagerClosedError("the event loop that the cluster was started on stands still") from None
            raise

    def _await(self, future: Future[T], end: float = NEVER) -> T:
        """Wait in a thread for what ends at home by itself, if its loop runs.

        Raises: TimeoutError at the monotonic time *end*: the loop stands still.
        """
        while True:
            try:
                return future.result(min(LOOK, max(0.0, end - time.monotonic())))
            except CancelledError:
                raise loop_ended() from None
            except TimeoutError:
                if future.done() or time.monotonic() >= end:
                    raise
            if self._loop.is_closed():
                raise loop_ended()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    asyncio.set_event_loop(loop)
    try:
        loop.run_forever()
    finally:
        for task in (left := asyncio.all_tasks(loop)):
            task.cancel()
        loop.run_until_complete(asyncio.gather(*left, return_exceptions=True))
        loop.close()
