"""`run`: a bot's whole life on an event loop of its own, from its start to its exit status."""

from __future__ import annotations

import asyncio
import logging
import sys
from asyncio import FIRST_COMPLETED, CancelledError
from collections.abc import Callable
from inspect import isawaitable
from math import inf
from time import monotonic
from typing import Any, Final, Protocol

from actorbot._running.shown import shown
from actorbot._running.signals import HURRY, Signals
from actorbot._running.threads import DaemonThreads
from actorbot.errors import ActorbotError, ConfigError, WrongLoopError

__all__ = ["run"]

logger = logging.getLogger("actorbot")

LEFT_BEHIND: Final = 1  # exit statuses
NOT_STARTED: Final = 2
RECEIVING: Final = 0.8  # the part of the time after a signal in which `receive` may clean up
LOOK_AGAIN: Final = 0.05  # seconds until a wait looks again whether its time is up
MOMENT: Final = 0.3  # seconds for what ends just in time
THREADS: Final = 1.0  # seconds for calls in threads that nobody waits for any more


class Runnable(Protocol):
    """A bot, as far as `run` knows it."""

    async def start(self) -> Any: ...

    async def receive(self) -> None: ...

    async def close(self) -> Any: ...

    _close_time: float | None
    """The seconds that `close` takes when it is not told how many."""
    _told: Callable[[], None] | None
    """Called by `close`, whoever calls that."""
    _shows: Callable[[str], None] | None
    """Called, again and again, while `start` waits for another process: which that is."""

    def _hurry(self, seconds: float) -> None:
        """Let the close that is under way take at most *seconds* from now."""

    def _give_up(self, seconds: float) -> None:
        """Flush what can be flushed without the loop. Any thread."""

    def _is_open(self) -> bool:
        """Tell whether it has started, and has not been closed."""

    def _is_flushed(self) -> bool:
        """Tell whether it was closed, and left no session behind."""


def run(bot: Runnable, close_timeout: float) -> None:
    """Start *bot*, let it receive, and close it.

    Raises: what the author's code raises; SystemExit with a status if sessions were left behind, or
    if the bot could not start.
    """
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        pass
    else:
        raise WrongLoopError(
            "run() makes an event loop of its own, and one is running here: await start(), and close() at the end"
        )
    with shown():
        status, error = _Run(bot, close_timeout).run()
    if error is not None and not (status and isinstance(error, SystemExit)):
        raise error
    if status:
        raise SystemExit(status)


class _Run:
    """One run. All but `run` is called on its loop."""

    def __init__(self, bot: Runnable, close_timeout: float) -> None:
        self._bot = bot
        self._seconds = close_timeout
        self._loop = asyncio.new_event_loop()
        self._threads = DaemonThreads()
        self._loop.set_default_executor(self._threads)
        self._task: asyncio.Task[BaseException | None] | None = None
        self._until = inf  # the time at which all must have ended, once somebody has told it to end
        self._enough = self._loop.create_future()  # done when the author's code is not waited for any more
        self._closing = False
        self._waits = False

    def run(self) -> tuple[int, BaseException | None]:
        """Return the exit status, and the error that ended it."""
        signals = Signals(self._loop, self._seconds, self._end, self._hurry, self._bot._give_up)
        with signals:
            asyncio.set_event_loop(self._loop)
            self._bot._told, self._bot._shows = self._end, self._show
            try:
                outcome = self._lead()
                self._loop.run_until_complete(self._clear())
                return outcome
            finally:
                self._bot._told = self._bot._shows = self._bot._close_time = None
                asyncio.set_event_loop(None)
                self._loop.close()
                self._threads.close()

    def _lead(self) -> tuple[int, BaseException | None]:
        life = self._loop.create_task(self._live())
        exited: BaseException | None = None
        while not life.done():
            try:
                self._loop.run_until_complete(life)
            except (SystemExit, KeyboardInterrupt) as raised:  # in a task of the author's
                exited = raised
                self._end()
        status, error = life.result()
        return status, error or exited

    # --- being told to end -----------------------------------------------------------------------

    def _end(self) -> None:
        if self._until < inf or self._closing:
            return
        self._until = monotonic() + self._seconds
        self._loop.call_later(RECEIVING * self._seconds, self._shorten, (1 - RECEIVING) * self._seconds)
        if self._task is not None and self._task is not asyncio.current_task(self._loop):
            self._task.cancel()

    def _hurry(self) -> None:
        logger.warning("told to end for the second time: the bot waits for nothing more than %g s", HURRY)
        self._shorten(HURRY)

    def _shorten(self, seconds: float) -> None:
        self._until = min(self._until, monotonic() + seconds)
        if not self._enough.done():
            self._enough.set_result(None)
        if self._closing:
            self._bot._hurry(seconds)

    # --- the steps -------------------------------------------------------------------------------

    async def _live(self) -> tuple[int, BaseException | None]:
        started = await self._do(self._bot.start)
        if isinstance(started, ActorbotError):
            logger.debug("the bot could not start", exc_info=started)
            _say(f"could not start: {started} (a log at DEBUG has the traceback)")
            return NOT_STARTED, None
        outcomes = [started]
        if started is None:
            outcomes.append(await self._do(self._bot.receive))
        status = 0
        if self._bot._is_open():  # or else it was told to end while it started
            outcomes.append(await self._close())
            status = 0 if self._bot._is_flushed() else LEFT_BEHIND
        errors = (each for each in outcomes if each is not None and not isinstance(each, CancelledError))
        return status, next(errors, None)

    def _show(self, owner: str) -> None:
        if not self._waits:
            self._waits = True
            _say(f"waits for the owner of its store, before it starts: {owner}")

    async def _do(self, step: Callable[[], object]) -> BaseException | None:
        """Take a step of the author's until it ends or is not waited for; return what it raised."""
        if self._until < inf:
            return CancelledError()
        self._task = task = self._loop.create_task(_outcome(step))
        await asyncio.wait({task, self._enough}, return_when=FIRST_COMPLETED)
        if not task.done():
            logger.warning("%s() was cancelled and does not end: the bot ends without it", step.__name__)
        return task.result() if task.done() and not task.cancelled() else CancelledError()

    async def _close(self) -> BaseException | None:
        if self._until < inf:
            self._bot._close_time = max(self._until - monotonic(), (1 - RECEIVING) * self._seconds)
        self._closing = True
        task = self._loop.create_task(_outcome(self._bot.close))
        if await self._until_done({task}, inf):
            logger.error("close() does not end: the bot ends without it")
            return None
        return None if task.cancelled() else task.result()

    async def _clear(self) -> None:
        """Cancel what still runs, as `asyncio.run` does, but do not wait for it for ever."""
        until = monotonic() + self._seconds
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        if tasks:  # the close has ended turns, whose callers are to learn of that rather than be cancelled
            _, tasks = await asyncio.wait(tasks, timeout=LOOK_AGAIN)
        for task in tasks:
            task.cancel()
        for task in await self._until_done(tasks, until):
            logger.warning("a task was cancelled and does not end: the bot ends without it: %r", task)
        await self._until_done({self._loop.create_task(self._loop.shutdown_asyncgens())}, until)
        until = monotonic() + THREADS
        while self._threads.is_busy() and monotonic() < min(until, self._until):  # noqa: ASYNC110  # other threads
            await asyncio.sleep(LOOK_AGAIN)

    async def _until_done(self, tasks: set[asyncio.Task[Any]], until: float) -> set[asyncio.Task[Any]]:
        """Wait for *tasks*; return those that do not end in time."""
        moment = monotonic() + MOMENT
        while tasks and monotonic() < max(moment, min(until, self._until + MOMENT)):
            _, tasks = await asyncio.wait(tasks, timeout=LOOK_AGAIN)
        return tasks


def _say(text: str) -> None:
    """Print one line, whatever is logged where. In one piece: under PYTHONUNBUFFERED each piece is
    a write of its own, and the line of another process could come between.
    """
    print(f"actorbot: {' '.join(text.split())}\n", end="", file=sys.stderr, flush=True)


async def _outcome(step: Callable[[], object]) -> BaseException | None:
    """Take a step; what it raises must not end the loop before everything is flushed."""
    try:
        awaitable = step()
        if not isawaitable(awaitable):
            raise ConfigError(step.__name__, awaitable, "an `async def` method; this one returned nothing to await")
        await awaitable
    except BaseException as error:
        return error
    return None
