"""`LoopHome`: a home on an event loop. `async def` code runs on it, and `def` code in a pool."""

from __future__ import annotations

import asyncio
import functools
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine, Generator
from concurrent.futures import Future
from contextvars import Context as ContextVars
from contextvars import copy_context
from typing import Any

from actorbot._runtime.clock import Clock
from actorbot._runtime.current import outside_of_turns
from actorbot._runtime.home import (
    AwaitedActor,
    Home,
    Promise,
    TurnWaiter,
    is_async,
    is_to_await,
    run_on,
    too_long,
)
from actorbot._runtime.task_group import take_cancels_back

__all__ = ["LoopHome"]

LOOK = 0.1  # seconds between two looks at how busy the loop is
BUSY = 0.7  # above this share of the time, a loop that computes is busy
BREATH = 2e-5  # seconds; with what the system adds, the 0.1 ms that another thread needs to begin


class LoopHome(Home):
    """A home on the event loop that is running when it is made."""

    def __init__(self, name: str, clock: Clock, patience: float) -> None:
        super().__init__(name, clock, patience)
        self.loop = asyncio.get_running_loop()
        self.thread_id = threading.get_ident()
        self._posted: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._awake = False
        self._nobodys = ContextVars()  # for what is posted: not the variables of who posts first
        self._tasks: set[asyncio.Task[None]] = set()
        self._looked = time.monotonic(), time.thread_time()
        self._next_look: asyncio.TimerHandle | None = None
        self._look_in(LOOK)
        take_cancels_back()

    def bind(self, function: Callable[..., Any], limit: float | None = None) -> Callable[..., Coroutine[Any, Any, Any]]:
        bound = function if is_async(function) else functools.partial(self._in_pool, function)
        return bound if limit is None else functools.partial(self._within, limit, bound)

    def waiter(self, actor: AwaitedActor, timeout: float | None) -> TurnWaiter:
        return LoopWaiter(self, actor)

    def promise(self) -> Promise:
        return self.loop.create_future()

    async def wait(self, future: Promise, timeout: float | None = None) -> Any:
        if future.done():
            return future.result()
        if timeout is None and isinstance(future, asyncio.Future):
            return await future
        answer = self.loop.create_future()
        future.add_done_callback(lambda done: self._hand_on(done, answer))
        if timeout is None:
            return await answer
        async with asyncio.timeout(timeout):
            return await answer

    def _hand_on(self, done: Promise, answer: asyncio.Future[Any]) -> None:
        if not answer.done():  # or else its caller was cancelled, and the loop may have ended
            self.post(_pass_on, done, answer)

    def post(self, function: Callable[..., object], *args: Any) -> None:
        # One wake-up for all that is posted before the loop runs it: 174 k/s became 313 k/s.
        self._posted.append((function, args))
        if not self._awake:
            self._awake = True
            try:
                self.loop.call_soon_threadsafe(self._run_posted, context=self._nobodys)
            except RuntimeError:
                self._posted.clear()  # the loop is closed: nobody is left who could wait for this
                raise

    def _run_posted(self) -> None:
        self._awake = False
        while self._posted:
            function, args = self._posted.popleft()
            function(*args)

    def give_way(self) -> None:
        pass  # user code has one thread here, which `_let_threads_in` pauses when it is busy

    def spawn(self, make: Callable[[], Coroutine[Any, Any, None]], variables: ContextVars | None = None) -> None:
        if variables is None:
            variables = outside_of_turns()
        if threading.get_ident() == self.thread_id:
            self._spawn(make, variables)
        else:
            self.post(self._spawn, make, variables)

    def _spawn(self, make: Callable[[], Coroutine[Any, Any, None]], variables: ContextVars) -> None:
        task = self.loop.create_task(make(), context=variables)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _within(self, limit: float, bound: Callable[..., Coroutine[Any, Any, Any]], *args: Any) -> Any:
        try:
            async with asyncio.timeout(limit) as time:
                return await bound(*args)
        except TimeoutError:
            if time.expired():
                raise too_long(limit) from None
            raise

    async def _in_pool(self, function: Callable[..., Any], *args: Any) -> Any:
        answer = self.loop.create_future()
        variables = copy_context()

        def work() -> None:
            if answer.done():
                return  # withdrawn before there was a thread for it
            try:
                value = variables.run(function, *args)
            except BaseException as error:
                self.post(_end, answer, None, error)
            else:
                self.post(_end, answer, value, None)

        self.pool.submit(work)
        value = await answer
        return await value if is_to_await(value) else value

    def run_awaitable(self, make: Callable[[], Awaitable[Any]]) -> Any:
        return run_on(self.loop, make).result()

    def has_spawned(self, task: asyncio.Task[Any]) -> bool:
        return task in self._tasks

    def spare(self) -> None:
        if (task := self.current_task()) is not None:
            self._tasks.discard(task)

    def current_task(self) -> asyncio.Task[Any] | None:
        return asyncio.current_task(self.loop)

    def _look_in(self, seconds: float) -> None:
        self._next_look = self.loop.call_later(seconds, self._let_threads_in, context=self._nobodys)

    def _let_threads_in(self) -> None:
        """If the loop has been busy, pause it for a moment, so that other threads can run.

        Each round of a loop releases the interpreter while it looks at its sockets, and takes it
        back after 2 us, before a thread that was waked can take it. A thread that waits for the
        interpreter forces its release only if nobody has released it for 5 ms
        (`sys.getswitchinterval`). So while a loop has rounds of 0.1 to 5 ms and is never idle, no
        other thread does anything: 50 users who were never silent had one flush in four seconds
        (docs/decisions/0009).
        """
        began, used = self._looked
        now, use = time.monotonic(), time.thread_time()
        busy = use - used > BUSY * (now - began)
        if busy:
            time.sleep(BREATH)
            now = time.monotonic()
        self._looked = now, use
        self._look_in(sys.getswitchinterval() if busy else LOOK)

    def close(self) -> None:
        if self._next_look is not None:
            self._next_look.cancel()
        self.pool.close()
        for task in self._tasks - {self.current_task()}:
            task.cancel()


class LoopWaiter:
    """A task that waits in line."""

    __slots__ = ("_actor", "_future", "_home")

    def __init__(self, home: LoopHome, actor: AwaitedActor) -> None:
        self._home = home
        self._actor = actor
        self._future = home.loop.create_future()

    def grant(self) -> bool:
        if threading.get_ident() != self._home.thread_id:
            self._home.post(self._grant_on_loop)
            return True
        if self._future.done():
            return False
        self._future.set_result(None)
        return True

    def _grant_on_loop(self) -> None:
        if self._future.done():  # withdrawn while the grant was on its way here
            self._actor.leave()
        else:
            self._future.set_result(None)

    def fail(self, error: BaseException) -> None:
        self._home.post(_end, self._future, None, error)

    def __await__(self) -> Generator[Any, None, None]:
        try:
            yield from self._future
        except asyncio.CancelledError:
            if self._future.done() and not self._future.cancelled() and self._future.exception() is None:
                self._actor.leave()  # granted and cancelled at the same time: pass the turn on
            else:
                self._actor.withdraw(self)
            raise


def _pass_on(done: Future[Any], answer: asyncio.Future[Any]) -> None:
    error = done.exception()
    _end(answer, None if error is not None else done.result(), error)


def _end(answer: asyncio.Future[Any], value: Any, error: BaseException | None) -> None:
    if answer.done():
        return  # its waiter was cancelled or timed out; a handler's late answer is discarded
    if error is None:
        answer.set_result(value)
    elif isinstance(error, StopIteration):
        # A future refuses to carry a StopIteration.
        answer.set_exception(RuntimeError("the handler raised StopIteration"))
    else:
        answer.set_exception(error)
