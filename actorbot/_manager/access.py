"""`Access`: when the verbs of a manager may be called, and from where.

Also how a `_sync` verb gets from the calling thread to the manager's home and back.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from copy import copy
from enum import Enum
from threading import get_ident
from typing import Any

from actorbot._checks import check_timeout
from actorbot._reports import ShutdownReport
from actorbot._runtime.home import Home
from actorbot._runtime.loop_home import LoopHome
from actorbot._runtime.thread_home import ThreadHome, run_inline
from actorbot._turns.shared import TurnShared
from actorbot.errors import ForkedError, ManagerClosedError, OwnershipLostError, TurnTimeoutError, WrongLoopError

__all__ = ["Access", "Life"]


class Life(Enum):
    """The life of a manager, in this order; LOST is left out by most.

    In a forked child, FORKED follows OPEN or CLOSING.
    """

    NEW = "new"
    STARTING = "starting"
    OPEN = "open"
    LOST = "lost"  # to another process, which has taken over the store
    CLOSING = "closing"
    CLOSED = "closed"
    FORKED = "forked"


def running_loop() -> asyncio.AbstractEventLoop:
    """Return the loop that runs in this thread. Raises: WrongLoopError if none of asyncio's is."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        raise WrongLoopError(
            "the async verbs need asyncio, and no loop of asyncio's runs here; under trio or curio use `with` or"
            " start_sync(), and call the _sync verbs in threads: await trio.to_thread.run_sync(manager.dispatch_sync, …)"
        ) from None


def _loop_is_closed() -> ManagerClosedError:
    return ManagerClosedError(
        "the event loop that the manager was started on has been closed; close_sync() the manager, which flushes what"
        " it can"
    )


class Access(ABC):
    """The base of `SessionManager`, so that the check of a call looks at one object only."""

    _home: Home  # from the start on
    _loop: asyncio.AbstractEventLoop | None  # from the start on; the home's loop, if it has one

    def __init__(self) -> None:
        self._life = Life.NEW
        self._shared: TurnShared | None = None  # what turns have in common, from the start on
        self._lost: OwnershipLostError | None = None
        self._waits_for: str | None = None  # whom its start waits for
        # What a bot or an adapter does about these. Called at home, once.
        self._on_wait: list[Callable[[str], object]] = []
        self._on_lost: list[Callable[[OwnershipLostError], object]] = []
        # The usual event looks at one of these two. They are set only while the manager is open.
        self._here = 0  # the thread of the home loop
        self._inline: ThreadHome | None = None  # the home, if turns run in the calling thread

    @abstractmethod
    async def _close(self, seconds: float) -> ShutdownReport:
        """Close at home."""

    @abstractmethod
    def _close_without_loop(self, seconds: float) -> ShutdownReport:
        """Flush what is committed, and close. Any thread."""

    def _live(self, life: Life) -> None:
        """Go on to *life*."""
        self._life = life
        if life is not Life.OPEN:
            self._here, self._inline = 0, None

    def _wait_for(self, owner: str, passes: bool) -> None:
        self._waits_for = owner
        if not passes:  # else it is over in a moment, and nobody's to see to
            on_wait, self._on_wait = self._on_wait, []
            for tell in on_wait:
                tell(owner)

    def _begin(self, *, on_loop: bool) -> None:
        if on_loop:
            running_loop()
        if self._life is Life.FORKED:
            self._check_open()
        if self._life is not Life.NEW:
            raise ManagerClosedError(f"the manager is {self._life.value}: it can be started once; make a new one")
        self._live(Life.STARTING)

    def _leave_to_parent(self) -> None:
        self._live(Life.FORKED)

    def _check_open(self, closing: bool = False, closed: bool = False, lost: bool = False) -> None:
        life = self._life
        if life is Life.OPEN or (closing and life is Life.CLOSING) or (closed and life is Life.CLOSED):
            return
        if life is Life.LOST and self._lost is not None:
            if lost or closing:
                return
            raise copy(self._lost)
        if life is Life.FORKED:
            raise ForkedError(
                "the process was forked: this manager's threads are the parent's; start a new manager after the fork"
            )
        raise ManagerClosedError(
            "the manager was not started: use `async with`, `with`, start() or start_sync()"
            if life is Life.NEW
            else f"the manager is {life.value}{'; make a new one' if life is Life.CLOSED else ''}"
        )

    def _check_anywhere(self) -> None:
        """Raise unless the manager is open, and its loop, if it has one, has not ended."""
        self._check_open()
        if self._loop is not None and self._loop.is_closed():
            raise _loop_is_closed()

    def _check_here(self, closing: bool = False, closed: bool = False) -> None:
        """Raise unless the caller runs on the home loop."""
        if self._life is not Life.OPEN:
            self._check_open(closing, closed)
        if self._loop is None:
            raise WrongLoopError(
                "a manager started with `with` or start_sync() is at home on threads: use the _sync verbs"
            )
        if running_loop() is not self._loop:
            raise WrongLoopError(
                "this verb belongs to the manager's own event loop; from anywhere else use its _sync twin"
            )

    def _check_away(self, closing: bool = False, closed: bool = False) -> None:
        """Raise if the caller runs on the home loop, which a _sync verb would block.

        Also if that loop has ended: nothing runs on it any more. *closed*: the call needs no loop.
        """
        if self._life is not Life.OPEN:
            self._check_open(closing, closed)
        loop = self._loop
        if loop is not None and loop.is_closed():
            if closed:
                return
            raise _loop_is_closed()
        if get_ident() == self._home.thread_id:
            raise WrongLoopError(
                "a _sync verb on the manager's event loop would block it for ever: await the async verb"
                if loop is not None
                else "a _sync verb on the loop of a threaded manager's `async def` code would block it for ever:"
                " await asyncio.to_thread(manager.dispatch_sync, …)"
            )

    def _run_sync(self, verb: Callable[..., Coroutine[Any, Any, Any]], *args: Any, timeout: float | None = None) -> Any:
        """Run `verb(*args)` at home, for a caller elsewhere that has passed `_check_away`.

        With a *timeout*, the first of *args* is a session's id, which the error needs.
        """
        if timeout is not None:
            check_timeout(timeout)
        if isinstance(self._home, ThreadHome):
            return run_inline(verb(*args)) if timeout is None else self._home.run(verb(*args), args[0], timeout)
        assert isinstance(self._home, LoopHome)
        if self._home.loop.is_closed():
            raise _loop_is_closed()
        waits = True

        async def run() -> Any:
            if not waits:
                raise asyncio.CancelledError  # the loop was busy until now, and the caller has gone
            return await verb(*args)

        with self._home.pool.blocking():  # first: if it refuses, the verb must not run
            future = asyncio.run_coroutine_threadsafe(run(), self._home.loop)
            try:
                return future.result(timeout)
            except TimeoutError:
                if future.done():
                    raise
                waits = False
                future.cancel()
                raise TurnTimeoutError(
                    args[0], f"its turn did not end within {timeout:g} s; it was withdrawn, or it is being committed"
                ) from None
            except CancelledError:
                raise ManagerClosedError("the manager's event loop ended before the call did") from None
            except BaseException:  # a KeyboardInterrupt: nobody waits for the verb any more
                waits = False
                future.cancel()
                raise

    def _run_turn(self, verb: Callable[..., Coroutine[Any, Any, Any]], *args: Any, timeout: float | None = None) -> Any:
        """The same for a verb that acknowledges something: this thread may go on late.

        Raises: OwnershipLostError.
        """
        value = self._run_sync(verb, *args, timeout=timeout)
        if self._shared is not None and self._shared.in_doubt():
            self._run_sync(self._shared.confirm)
        return value

    async def _wait(self, future: Future[Any], timeout: float | None, session_id: str) -> Any:
        try:
            return await self._home.wait(future, timeout)
        except TimeoutError:
            if not future.done():
                raise TurnTimeoutError(session_id, f"it did not end within {timeout:g} s; it goes on") from None
        return future.result()  # the TimeoutError was its own, or it has ended just now
