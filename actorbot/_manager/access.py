"""The door of a manager: when, and from where, its verbs may be called; and how a `_sync` verb gets to the home and back."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from concurrent.futures import CancelledError, Future
from enum import Enum
from threading import get_ident
from typing import Any

from actorbot._runtime.home import Home
from actorbot._runtime.loop_home import LoopHome
from actorbot._runtime.thread_home import ThreadHome, run_inline
from actorbot.errors import ForkedError, ManagerClosedError, TurnTimeoutError, WrongLoopError

__all__ = ["Access", "Life"]


class Life(Enum):
    """How far a manager has come. Each is followed by the next; a fork in a child may follow any of them."""

    NEW = "new"
    STARTING = "starting"
    OPEN = "open"
    CLOSING = "closing"
    CLOSED = "closed"
    FORKED = "forked"


class Access:
    """What `SessionManager` inherits, so that a call passes with one look at one object."""

    _home: Home  # once it is started, like the next
    _loop: asyncio.AbstractEventLoop | None  # of the home, if that is a loop

    def __init__(self) -> None:
        self._life = Life.NEW
        # The two short cuts of an event, which exist only while the manager is open.
        self._here = 0  # the thread of the home loop
        self._inline: ThreadHome | None = None  # the home where turns run in the thread that calls

    def _live(self, life: Life) -> None:
        """Go on to *life*."""
        self._life = life
        if life is not Life.OPEN:
            self._here, self._inline = 0, None

    def _leave_to_parent(self) -> None:
        self._live(Life.FORKED)

    def _check_open(self, closing: bool = False, closed: bool = False) -> None:
        life = self._life
        if life is Life.OPEN or (closing and life is Life.CLOSING) or (closed and life is Life.CLOSED):
            return
        if life is Life.FORKED:
            raise ForkedError(
                "the process was forked: this manager's threads are the parent's; start a new manager after the fork"
            )
        raise ManagerClosedError(
            "the manager was not started: use `async with`, `with`, start() or start_sync()"
            if life is Life.NEW
            else f"the manager is {life.value}"
        )

    def _check_here(self, closing: bool = False, closed: bool = False) -> None:
        """Raise unless the caller runs on the home loop."""
        if self._life is not Life.OPEN:
            self._check_open(closing, closed)
        if self._loop is None:
            raise WrongLoopError(
                "a manager started with `with` or start_sync() is at home on threads: use the _sync verbs"
            )
        if asyncio.get_running_loop() is not self._loop:
            raise WrongLoopError(
                "this verb belongs to the manager's own event loop; from anywhere else use its _sync twin"
            )

    def _check_away(self, closing: bool = False, closed: bool = False) -> None:
        """Raise if the caller runs on the home loop, which a _sync verb would block."""
        if self._life is not Life.OPEN:
            self._check_open(closing, closed)
        if get_ident() == self._home.thread_id:
            raise WrongLoopError(
                "a _sync verb on the manager's event loop would block it for ever: await the async verb"
                if self._loop is not None
                else "a _sync verb on the loop of a threaded manager's `async def` code would block it for ever:"
                " await asyncio.to_thread(manager.dispatch_sync, …)"
            )

    def _run_sync(self, verb: Callable[..., Coroutine[Any, Any, Any]], *args: Any, timeout: float | None = None) -> Any:
        """Run `verb(*args)` at home for a caller elsewhere, who has been checked.

        With a *timeout* the first of *args* must be a session's id, for the error.
        """
        if isinstance(self._home, ThreadHome):
            return run_inline(verb(*args)) if timeout is None else self._home.run(verb(*args), args[0], timeout)
        assert isinstance(self._home, LoopHome)
        if self._home.loop.is_closed():
            raise ManagerClosedError(
                "the event loop that the manager was started on has been closed; close() the manager first"
            )
        with self._home.pool.blocking():  # first: it may refuse, and then nothing must run
            future = asyncio.run_coroutine_threadsafe(verb(*args), self._home.loop)
            try:
                return future.result(timeout)
            except TimeoutError:
                if future.done():
                    raise
                future.cancel()
                raise TurnTimeoutError(
                    args[0], f"its turn did not end within {timeout:g} s; withdrawn, unless it was being committed"
                ) from None
            except CancelledError:
                raise ManagerClosedError("the manager's event loop ended before the call did") from None
            except BaseException:  # a KeyboardInterrupt: nobody waits for it any more
                future.cancel()
                raise

    async def _wait(self, future: Future[Any], timeout: float | None, session_id: str) -> Any:
        try:
            return await self._home.wait(future, timeout)
        except TimeoutError:
            if not future.done():
                raise TurnTimeoutError(session_id, f"not within {timeout:g} s; it goes on") from None
        return future.result()  # its own TimeoutError, or it ended in the same breath
