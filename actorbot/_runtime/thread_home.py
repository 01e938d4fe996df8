"""`ThreadHome`: a home on threads.

Our own coroutines never suspend here. What they await blocks the calling thread and returns, so
`run_inline` runs them to their end with one `send`. Those of user code run on a private loop.
"""

from __future__ import annotations

import asyncio
import functools
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextvars import Context as ContextVars
from types import CoroutineType
from typing import Any, NamedTuple, TypeVar

from actorbot._runtime.clock import Clock
from actorbot._runtime.current import current, outside_of_turns
from actorbot._runtime.home import (
    AwaitedActor,
    Home,
    Promise,
    TurnWaiter,
    is_async,
    is_to_await,
    new_future,
    run_on,
)
from actorbot._runtime.once import Once
from actorbot.errors import TurnTimeoutError

__all__ = ["ThreadHome", "run_inline"]

T = TypeVar("T")

BREATH = 2e-5  # seconds; with what the system adds, about 0.1 ms


class _Bound(NamedTuple):
    until: float  # monotonic seconds
    seconds: float
    session_id: str


class ThreadHome(Home):
    """A home on the calling threads. What nobody waits for runs in a pool.

    Coroutines of user code run on a private loop, which is made for the first of them.
    """

    def __init__(self, name: str, clock: Clock, patience: float) -> None:
        super().__init__(name, clock, patience)
        self._name = name
        self.thread_id = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._making_loop = threading.Lock()  # guards the making of the private loop
        self._call = threading.local()  # `bound`: the time limit of this thread's call, or None

    def run(self, coroutine: Coroutine[Any, Any, T], session_id: str, timeout: float) -> T:
        """Run a coroutine to its end in this thread. It waits at most *timeout* seconds in all.

        Raises: TurnTimeoutError.
        """
        outer = getattr(self._call, "bound", None)
        self._call.bound = _Bound(time.monotonic() + timeout, timeout, session_id)
        try:
            return run_inline(coroutine)
        finally:
            self._call.bound = outer

    def _result(self, get: Callable[[float | None], T], timeout: float | None) -> T:
        """Return `get(seconds)`, with no more seconds than this thread's call has left."""
        bound: _Bound | None = getattr(self._call, "bound", None)
        with self.pool.blocking():
            if bound is None:
                return get(timeout)
            left = max(0.0, bound.until - time.monotonic())
            if timeout is not None and timeout <= left:
                return get(timeout)
            try:
                return get(left)
            except TimeoutError as error:
                if time.monotonic() < bound.until:
                    raise  # not ours
                raise TurnTimeoutError(
                    bound.session_id,
                    f"its turn did not end within {bound.seconds:g} s; it was withdrawn, or it is being committed",
                ) from error

    @property
    def loop(self) -> asyncio.AbstractEventLoop:
        """The private loop."""
        with self._making_loop:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                thread = threading.Thread(
                    target=_run_loop, args=(self._loop,), name=f"actorbot-loop-{self._name}", daemon=True
                )
                thread.start()
                self.thread_id = thread.ident
            return self._loop

    def bind(self, function: Callable[..., Any], limit: float | None = None) -> Callable[..., Coroutine[Any, Any, Any]]:
        return functools.partial(self._on_private_loop if is_async(function) else self._here, limit, function)

    def waiter(self, actor: AwaitedActor, timeout: float | None) -> TurnWaiter:
        return ThreadWaiter(self, actor, timeout)

    def promise(self) -> Promise:
        return new_future()

    async def wait(self, future: Promise, timeout: float | None = None) -> Any:
        assert isinstance(future, Future)
        return self._result(future.result, timeout)

    def post(self, function: Callable[..., object], *args: Any) -> None:
        function(*args)

    def give_way(self) -> None:
        # Each thread that computes keeps the interpreter for 5 ms. The flusher's thread waits for
        # all of them, and again after each call to the store. It does not wait for a thread that
        # sleeps (docs/decisions/0014).
        time.sleep(BREATH)

    def spawn(self, make: Callable[[], Coroutine[Any, Any, None]], variables: ContextVars | None = None) -> None:
        running_in = outside_of_turns() if variables is None else variables
        self.pool.submit(lambda: running_in.run(run_inline, make()))

    async def _here(self, limit: float | None, function: Callable[..., Any], *args: Any) -> Any:
        value = function(*args)
        return await self._on_private_loop(limit, lambda: value) if is_to_await(value) else value

    def in_place(self, function: Callable[[Any], Any]) -> Callable[[Any], Any]:
        """Make a function that runs a handler in the calling thread, without a coroutine.

        For a handler that is plain: if it returns what an `async def` has returned to it, that is
        awaited.
        """

        def here(context: Any) -> Any:
            value = function(context)
            return self._finish(None, lambda: value) if type(value) is CoroutineType else value

        return here

    async def _on_private_loop(self, limit: float | None, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return self._finish(limit, lambda: function(*args))

    def _finish(self, limit: float | None, make: Callable[[], Awaitable[Any]]) -> Any:
        answer = run_on(self.loop, make)
        context = current.get()
        if context is not None:
            context._call_when_revoked(answer.interrupt)
        try:
            return self._result(answer.result, limit)
        except BaseException:  # a KeyboardInterrupt, say: nobody waits for the code any more
            answer.interrupt()
            raise

    def run_awaitable(self, make: Callable[[], Awaitable[Any]]) -> Any:
        return run_on(self.loop, make).result()

    def close(self) -> None:
        self.pool.close()
        with self._making_loop:
            if self._loop is not None:
                self._loop.call_soon_threadsafe(self._loop.stop)
                self._loop = None


class ThreadWaiter:
    """A thread that waits in line."""

    __slots__ = ("_actor", "_decision", "_error", "_granted", "_home", "_timeout")

    def __init__(self, home: ThreadHome, actor: AwaitedActor, timeout: float | None) -> None:
        self._home = home
        self._actor = actor
        self._timeout = timeout
        self._granted = threading.Lock()  # held until the turn, or an error, is there
        self._granted.acquire()
        self._decision = Once()  # by who grants or fails, or by the waiter when it gives up
        self._error: BaseException | None = None

    def grant(self) -> bool:
        if not self._decision.take():
            return False
        self._granted.release()
        return True

    def fail(self, error: BaseException) -> None:
        if self._decision.take():
            self._error = error
            self._granted.release()

    def __await__(self) -> Generator[Any, None, None]:
        try:
            with self._home.pool.blocking():
                got = self._granted.acquire(timeout=-1 if self._timeout is None else max(0.0, self._timeout))
        except BaseException:  # too many wait, or a KeyboardInterrupt: nobody will take the turn
            if self._decision.take():
                self._actor.withdraw(self)
            elif self._error is None:
                self._actor.leave()
            raise
        if not got and self._decision.take():
            self._actor.withdraw(self)
            raise TurnTimeoutError(
                self._actor.session_id, f"its turn did not come within {self._timeout:g} s; it was withdrawn"
            )
        if not got:
            self._granted.acquire()  # somebody has just decided: the release comes in a moment
        if self._error is not None:
            raise self._error
        yield from ()  # makes this a generator, which never suspends


def run_inline(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends, in this thread."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value  # type: ignore[no-any-return]
    coroutine.close()
    raise RuntimeError("a coroutine of a threaded home was suspended")


def _run_loop(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()
