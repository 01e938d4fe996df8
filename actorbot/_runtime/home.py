"""`Home`: where turns run, on an event loop or on threads.

The rooms above this one are written once, as coroutines, and run in both homes.
"""

from __future__ import annotations

import asyncio
import functools
import inspect
import types
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future, InvalidStateError
from contextvars import Context as ContextVars
from contextvars import copy_context
from typing import Any, Protocol

from actorbot._runtime.clock import Clock
from actorbot._runtime.mailbox import Waiter
from actorbot._runtime.threads import Pool

__all__ = [
    "Home",
    "AwaitedActor",
    "Promise",
    "Sent",
    "TurnWaiter",
    "is_async",
    "is_plain",
    "is_to_await",
    "new_future",
    "run_on",
    "too_long",
]

Promise = Future[Any] | asyncio.Future[Any]

POOL_SIZE = 32  # threads for user code that may block; an idle pool has none


class AwaitedActor(Protocol):
    """An actor whose turn somebody waits for in line."""

    session_id: str

    def leave(self) -> None: ...

    def withdraw(self, waiter: Any) -> bool: ...


class TurnWaiter(Waiter, Awaitable[None], Protocol):
    """A place in line. To await it gives the turn."""


class Home(ABC):
    """What turns need of the place they run in. Any thread, unless a method says otherwise."""

    thread_id: int | None
    """The thread of the loop that user code runs on. No `_sync` verb may block it."""

    def __init__(self, name: str, clock: Clock, patience: float) -> None:
        self.pool = Pool(POOL_SIZE, f"actorbot-pool-{name}", clock, patience)

    @abstractmethod
    def bind(self, function: Callable[..., Any], limit: float | None = None) -> Callable[..., Coroutine[Any, Any, Any]]:
        """Make a coroutine function that runs user code, `def` or `async def`, where it belongs.

        If the code returns an awaitable, that is awaited. After *limit* real seconds TimeoutError
        is raised; in a threaded home only `async def` code can be stopped.
        """

    @abstractmethod
    def waiter(self, actor: AwaitedActor, timeout: float | None) -> TurnWaiter:
        """Make a place in line. Called where it will be awaited."""

    @abstractmethod
    def promise(self) -> Promise:
        """Make a future that is set and awaited at home, by one. Cancelling that one cancels it."""

    @abstractmethod
    async def wait(self, future: Promise, timeout: float | None = None) -> Any:
        """Wait for *future*. If the wait is cancelled, the future is not.

        Raises: TimeoutError after *timeout* real seconds.
        """

    @abstractmethod
    def post(self, function: Callable[..., object], *args: Any) -> None:
        """Run a quick function: soon, on the loop, or, in a threaded home, now and here."""

    @abstractmethod
    def spawn(self, make: Callable[[], Coroutine[Any, Any, None]], variables: ContextVars | None = None) -> None:
        """Run a coroutine in the background. No turn waits for it; it handles its own errors."""

    @abstractmethod
    def run_awaitable(self, make: Callable[[], Awaitable[Any]]) -> Any:
        """Run an awaitable of user code on the loop, and block the calling thread until it ends.

        In a threaded home that is the private loop.
        """

    @abstractmethod
    def give_way(self) -> None:
        """Let the flusher's thread, which is late, run. Called before a turn begins."""

    def has_spawned(self, task: asyncio.Task[Any]) -> bool:
        """Tell whether *task* runs what was given to `spawn`."""
        return False

    def spare(self) -> None:
        """Let the running code, which waits for the close of this home, go on after it."""
        return  # a thread goes on anyway

    def current_task(self) -> asyncio.Task[Any] | None:
        """Return the task that runs here; `None` in a threaded home, which has none to cancel."""
        return None

    def is_ending(self, error: BaseException) -> bool:
        """Tell whether *error* ends the running coroutine, or only something that it has called."""
        if isinstance(error, asyncio.CancelledError):
            task = self.current_task()
            return task is not None and task.cancelling() > 0
        return isinstance(error, GeneratorExit)

    @abstractmethod
    def close(self) -> None:
        """End the threads and what runs in the background. Called once, last, at home."""


class Sent:
    """A reply on its way. It need not be awaited.

    To await a gated reply, which leaves after the turn, gives `None` at once. To await an ungated
    one gives what `deliver` returned.
    """

    __slots__ = ("_delivered",)

    def __init__(self, delivered: Future[Any] | None = None) -> None:
        self._delivered = delivered

    def __await__(self) -> Generator[Any, None, Any]:
        if self._delivered is None:
            return None
        return (yield from asyncio.wrap_future(self._delivered).__await__())


def new_future() -> Future[Any]:
    """Make a future that only its maker ends: whoever waits for it cannot cancel it."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future


def is_async(function: Callable[..., Any]) -> bool:
    """Tell whether a call of *function* gives a coroutine."""
    while isinstance(function, functools.partial):
        function = function.func
    call = type(function).__call__ if isinstance(type(function).__call__, types.FunctionType) else None
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


def is_plain(function: Callable[..., Any]) -> bool:
    """Tell whether *function* is a `def` that most likely gives no awaitable.

    A lambda, a wrapper or a callable object often returns one.
    """
    function = getattr(function, "__func__", function)
    plain = isinstance(function, types.FunctionType) and not inspect.iscoroutinefunction(function)
    return plain and function.__name__ != "<lambda>" and not hasattr(function, "__wrapped__")


def is_to_await(value: Any) -> bool:
    return inspect.isawaitable(value) and not isinstance(value, Sent)  # a reply need not be awaited


def too_long(limit: float) -> TimeoutError:
    return TimeoutError(f"it took longer than {limit:g} s (handler_timeout)")


def run_on(loop: asyncio.AbstractEventLoop, make: Callable[[], Awaitable[Any]]) -> _Answer:
    """Run an awaitable of user code on *loop*, with the variables of the calling thread."""
    answer = _Answer(loop)
    variables = copy_context()

    def start() -> None:
        answer._task = loop.create_task(answer._run(make), context=variables)

    loop.call_soon_threadsafe(start)
    return answer


class _Answer:
    """The outcome of an awaitable of user code on another thread's loop."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._future: Future[Any] = new_future()
        self._task: asyncio.Task[Any] | None = None

    def result(self, limit: float | None = None) -> Any:
        try:
            return self._future.result(limit)
        except TimeoutError:
            if self._future.done():
                return self._future.result()
            self.interrupt()
            assert limit is not None
            raise too_long(limit) from None

    def interrupt(self) -> None:
        """End the wait now, since the code may block its loop, and cancel the code. Any thread."""
        if self._future.done():
            return
        self._end(None, asyncio.CancelledError())
        self._loop.call_soon_threadsafe(self._cancel)

    def _cancel(self) -> None:
        if self._task is not None:
            self._task.cancel()

    def _end(self, value: Any, error: BaseException | None) -> None:
        try:
            if error is None:
                self._future.set_result(value)
            else:
                self._future.set_exception(error)
        except InvalidStateError:
            return  # it has ended: by the end of the code, or by an interruption

    async def _run(self, make: Callable[[], Awaitable[Any]]) -> None:
        try:
            value = await make()
        except BaseException as error:  # a SystemExit would end the loop and all that runs on it
            self._end(None, error)
        else:
            self._end(value, None)
