"""How a manager ends: accepted events, then the flush, the replies and the hooks, then the store, all before one deadline.

In real time, also under a virtual clock: a close must end.
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

__all__ = ["Close", "shut", "shut_without_loop"]

logger = logging.getLogger("actorbot")

FLUSH_AGAIN: Final = 0.1  # seconds before a close tries again what could not be flushed


class Close:
    """The one close of a manager: whoever asks for it, also meanwhile, waits for its end. It goes on if a caller is cancelled."""

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _ended
        self._ended: Future[ShutdownReport] | None = None
        self._task: asyncio.Task[None] | None = None  # a loop does not keep its tasks alive

    async def wait(self, home: Home, shut: Callable[[], Coroutine[Any, Any, ShutdownReport]]) -> ShutdownReport:
        """Begin with *shut*, unless it has begun; return its report when it has ended."""
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
        # A thread of its own, since user code may hold all those of the pool.
        thread = threading.Thread(target=run_inline, args=(closing,), name="actorbot-close", daemon=True)
        try:
            thread.start()
        except RuntimeError:
            run_inline(closing)  # Python 3.12 and later start no thread any more when the program ends

    async def _run(
        self, ended: Future[ShutdownReport], shut: Callable[[], Coroutine[Any, Any, ShutdownReport]]
    ) -> None:
        try:
            report = await shut()
        except BaseException as error:  # cancelled with its loop, say: it may be made again
            self._ended = None
            ended.set_exception(ManagerClosedError(f"the close broke off ({error!r}); close again"))
            raise
        ended.set_result(report)


async def shut(parts: Parts, seconds: float) -> ShutdownReport:
    """Bring everything to its end in about *seconds*; what is left then is to let go of the threads."""
    start = monotonic()
    until = start + seconds
    home, shared, table = parts.home, parts.shared, parts.table
    table.close_intake()
    actors = list(table.resident())
    shared.flusher.flush(actors)  # while handlers run: they may take all the time there is
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
    await _try(home, parts.writer.call(parts.store.close), max(until, monotonic() + 1.0))
    report = ShutdownReport(unflushed, unfinished, len(shared.outbox), monotonic() - start)
    if not report.clean:
        logger.error(
            "closed with %d sessions not flushed, %d unfinished, %d with replies undelivered: %s",
            len(unflushed), unfinished, report.undelivered, ", ".join(map(repr, unflushed)) or "-",
        )  # fmt: skip
    return report


def shut_without_loop(parts: Parts, seconds: float) -> ShutdownReport:
    """Flush what is committed: with its loop, whoever could take a turn has gone."""
    start = monotonic()
    until = start + seconds
    parts.table.close_intake()
    actors = list(parts.table.resident())
    for future in (
        lambda: parts.shared.flusher.flush(actors),
        parts.close_journal,
        lambda: parts.writer.call(parts.store.close),
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
    """Take each session out of memory when every accepted event has had its turn; those that do not come to that stay."""
    for actor in actors:
        # A held turn may have no handler yet: a told event is on its way to it, or the session is being read.
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
    """Flush until the store has everything, or the time is up."""
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
