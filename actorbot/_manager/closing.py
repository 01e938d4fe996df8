"""How a manager ends: first accepted events, then the flush, the replies, the hooks and the store.

All of it has one deadline, in real time: a close must end, also under a virtual clock.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable
from concurrent.futures import Future
from contextvars import Context as ContextVars
from math import inf
from time import monotonic
from typing import Any, Final

from actorbot._manager.parts import Parts
from actorbot._reports import ShutdownReport
from actorbot._runtime.home import Home, new_future
from actorbot._runtime.loop_home import LoopHome
from actorbot._runtime.thread_home import run_inline
from actorbot._turns.session_actor import SessionActor
from actorbot.errors import ActorbotError, ManagerClosedError

__all__ = ["Close", "recover_or_end", "shut", "shut_without_loop"]

logger = logging.getLogger("actorbot")

FLUSH_AGAIN: Final = 0.1  # seconds until a close tries again what could not be flushed


class Close:
    """The one close of a manager. All who ask for it wait for the same end.

    It goes on if a caller is cancelled.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _ended
        self._ended: Future[ShutdownReport] | None = None
        self._task: asyncio.Task[None] | None = None  # kept here: a loop keeps no task alive

    async def wait(self, home: Home, shut: Callable[[], Coroutine[Any, Any, ShutdownReport]]) -> ShutdownReport:
        """Begin it with *shut*, if nobody has yet. Return the report at its end."""
        with self._lock:
            ended, begun = self._ended, self._ended is not None
            if ended is None:
                ended = self._ended = new_future()
        if not begun:
            self._begin(home, self._run(ended, shut))
        return await home.wait(ended)  # type: ignore[no-any-return]

    def _begin(self, home: Home, closing: Coroutine[Any, Any, None]) -> None:
        if isinstance(home, LoopHome):
            self._task = home.loop.create_task(closing, context=ContextVars())
            return
        # In a thread of its own: user code may hold all threads of the pool.
        thread = threading.Thread(target=run_inline, args=(closing,), name="actorbot-close", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            run_inline(closing)  # at the end of the program, Python 3.12 and later start no thread

    async def _run(
        self, ended: Future[ShutdownReport], shut: Callable[[], Coroutine[Any, Any, ShutdownReport]]
    ) -> None:
        try:
            report = await shut()
        except BaseException as error:  # as when its loop cancels it; close may be tried again
            self._ended = None
            ended.set_exception(ManagerClosedError(f"the close broke off ({error!r}); close again"))
            raise
        ended.set_result(report)


async def shut(parts: Parts, seconds: float) -> ShutdownReport:
    """End everything but the threads, in about *seconds*."""
    start = monotonic()
    until = start + seconds
    home, shared, table = parts.home, parts.shared, parts.table
    table.close_intake()
    actors = list(table.resident())
    shared.flusher.flush(actors)  # while handlers run, which may take all the time
    await _settle(parts, actors, until - seconds / 10)
    unfinished = table.dismiss_all()
    shared.running.end_all()
    parts.loader.close()
    await _flush_until(parts, actors, until)
    await _try(home, shared.outbox.emptied(), until)
    for running in list(parts.hooks.running):
        await _try(home, running, until)
    shared.flusher.stop()
    await _try(home, parts.close_journal(), max(until, monotonic() + 1.0))
    unflushed = _behind(parts, actors)
    await _try(home, parts.close_store(), max(until, monotonic() + 1.0))
    report = ShutdownReport(unflushed, unfinished, len(shared.outbox), monotonic() - start)
    if not report.clean:
        logger.error(
            "closed with %d sessions not flushed, %d unfinished, %d with replies undelivered: %s",
            len(unflushed), unfinished, report.undelivered, ", ".join(map(repr, unflushed)) or "-",
        )  # fmt: skip
    return report


async def recover_or_end(parts: Parts) -> None:
    """Have started parts recover what the journal has. If that fails, or is cancelled, end them."""
    try:
        await parts.recover()
    except BaseException:
        try:
            await shut(parts, 0.0)
        finally:
            parts.end()
        raise


def shut_without_loop(parts: Parts, seconds: float) -> ShutdownReport:
    """Flush what is committed. The loop has gone, and with it all who could take a turn."""
    start = monotonic()
    until = start + seconds
    parts.table.close_intake()
    actors = list(parts.table.resident())
    for future in (
        lambda: parts.shared.flusher.flush(actors),
        parts.close_journal,
        parts.close_store,
    ):
        try:
            future().result(max(until - monotonic(), 0.0))
        except (TimeoutError, ActorbotError) as error:
            logger.error("closing without an event loop: %s", error)
    return ShutdownReport(_behind(parts, actors), 0, len(parts.shared.outbox), monotonic() - start)


def _behind(parts: Parts, actors: Iterable[SessionActor]) -> tuple[str, ...]:
    behind = dict.fromkeys(actor.session_id for actor in actors if actor.behind())
    return tuple(behind | dict.fromkeys(parts.only_in_journal()))


async def _settle(parts: Parts, actors: Iterable[SessionActor], until: float) -> None:
    """Take each session out of memory when its accepted events have had their turns.

    A session whose turns do not end in time stays.
    """
    for actor in actors:
        # A turn may be taken without a handler that runs: a told event is on its way to it, or the
        # session is being read.
        while not actor.closed:
            if not actor.enter() and not await _wait_for_turn(parts.home, actor, until):
                break
            if not parts.table.retire(actor):
                actor.leave()


async def _wait_for_turn(home: Home, actor: SessionActor, until: float) -> bool:
    left = until - monotonic()
    waiter = home.waiter(actor, max(left, 0.0))
    try:
        if left <= 0 or not actor.join(waiter, limit=inf):
            return False
        if isinstance(home, LoopHome):
            async with asyncio.timeout(left):
                await waiter
        else:
            await waiter
    except (ActorbotError, TimeoutError):
        return False
    return True


async def _flush_until(parts: Parts, actors: list[SessionActor], until: float) -> None:
    """Flush again and again, until the store has everything or the time is up."""
    while True:
        await _try(parts.home, parts.shared.flusher.flush(actors), until)
        left = until - monotonic()
        if left <= 0 or not any(actor.behind() for actor in actors):
            return
        await _try(parts.home, new_future(), until - max(0.0, left - FLUSH_AGAIN))


async def _try(home: Home, future: Future[Any], until: float) -> None:
    try:
        await home.wait(future, max(until - monotonic(), 0.0))
    except (TimeoutError, ActorbotError) as error:
        logger.debug("while closing: %r", error)
