"""How a manager ends: first accepted events, then the flush, the replies, the hooks and the store.

All of it has one deadline, in real time: a close must end, also under a virtual clock.
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine, Iterable, Set
from concurrent.futures import Future
from contextvars import Context as ContextVars
from copy import copy
from functools import partial
from time import monotonic
from typing import Any, Final

from actorbot._manager.access import Access
from actorbot._manager.parts import Parts
from actorbot._manager.releasing import wait_for_turn
from actorbot._reports import ShutdownReport
from actorbot._runtime.current import Errand, errand
from actorbot._runtime.home import Home, new_future
from actorbot._runtime.loop_home import LoopHome
from actorbot._runtime.thread_home import ThreadHome, run_inline
from actorbot._turns.context import chain, shield
from actorbot._turns.session_actor import SessionActor
from actorbot.errors import ActorbotError, ManagerClosedError, TurnTimeoutError

__all__ = ["Close", "CloseTime", "recover_or_end", "shut", "shut_without_loop"]

logger = logging.getLogger("actorbot")

FLUSH_AGAIN: Final = 0.1  # seconds until a close tries again what could not be flushed
LOOK_AGAIN: Final = 0.05  # seconds until a close that waits looks whether it is to hurry
HANDLERS: Final = 0.9  # the part of the time of a close that its handlers may take
FLUSHING: Final = 0.95  # the part after which nothing is tried again: journal and store are closed
LAST: Final = 0.1  # seconds beyond the time of a close, for a store that does not answer
MOMENT: Final = 0.2  # seconds beyond it, until a close on another thread's loop counts as blocked


class CloseTime:
    """How long a close may take, in real seconds. A later call may cut it short."""

    def __init__(self, seconds: float, *, last: float = LAST) -> None:
        self.start = monotonic()
        self.last = last
        self._until = self.start + seconds

    def shorten(self, seconds: float) -> None:
        """Let it end in at most *seconds* from now."""
        self._until = min(self._until, monotonic() + seconds)

    def left(self, part: float = 1.0, more: float = 0.0) -> float:
        """Return the seconds until this *part* of it is over and *more* seconds; 0.0 after that."""
        return max(0.0, self.start + part * (self._until - self.start) + more - monotonic())


class Close:
    """The one close of a manager. All who ask for it wait for the same end.

    It goes on if a caller is cancelled.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _ended and _time
        self._ended: Future[ShutdownReport] | None = None
        self._time: CloseTime | None = None
        self._task: asyncio.Task[None] | None = None  # kept here: a loop keeps no task alive
        # What waits for this close: turns, hooks and deliveries whose code has called it. The close
        # does not wait for them.
        self.asking: set[object] = set()

    async def wait(
        self, home: Home, seconds: float, shut: Callable[[CloseTime], Coroutine[Any, Any, ShutdownReport]]
    ) -> ShutdownReport:
        """Begin it with *shut*, if nobody has yet, or hurry it. Return the report at its end."""
        self._ask(home, home.current_task())
        shield()
        home.spare()
        with self._lock:
            ended, time = self._ended, self._time
            if ended is None or time is None:
                begun, ended, time = False, new_future(), CloseTime(seconds)
                self._ended, self._time = ended, time
            else:
                begun = True
                time.shorten(seconds)
        if not begun:
            self._begin(home, self._run(ended, partial(shut, time)))
        return await home.wait(ended)  # type: ignore[no-any-return]

    def wait_in_thread(self, access: Access, seconds: float) -> ShutdownReport:
        """The same from a thread that may block. The manager's loop may be blocked, too."""
        if isinstance(access._home, ThreadHome):
            return run_inline(access._close(seconds))
        self._ask(access._home, None)
        until = monotonic() + seconds
        for ends in (until - seconds / 2, until + MOMENT):
            patience = max(0.0, ends - monotonic())
            try:
                return access._run_sync(access._close, seconds, timeout=patience)  # type: ignore[no-any-return]
            except TurnTimeoutError:
                if self._ended is None:
                    break  # in half of its time it has not begun
        return access._close_without_loop(max(LAST, until - monotonic()))

    def _ask(self, home: Home, task: asyncio.Task[Any] | None) -> None:
        """Note what the calling code is part of, if that ends no sooner than this code.

        On a loop, *task* says so: what another task has begun may go on while this one waits.
        """
        self.asking |= {context._actor for context in chain() if task in (None, context._task)}
        doing = errand.get()
        if isinstance(doing, Errand):
            if task in (None, doing.task):
                self.asking.add(doing.what)
        elif task is None or home.has_spawned(task):
            self.asking.add(doing)

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


async def shut(parts: Parts, time: CloseTime, asking: Set[object] = frozenset()) -> ShutdownReport:
    """End everything but the threads, in about its *time*. What is *asking* is not waited for."""
    home, shared, table, outbox = parts.home, parts.shared, parts.table, parts.shared.outbox
    table.close_intake()
    actors = list(table.resident())
    shared.flusher.flush(actors)  # while handlers run, which may take all the time
    await _settle(parts, actors, time, asking)
    unfinished = table.dismiss_all()
    shared.running.end_all()
    parts.loader.close()
    await _flush_until(parts, actors, time)
    await _wait(home, outbox.emptied(), time, enough=lambda: outbox.addressees() <= asking)
    for running in parts.hooks.running - asking:
        await _wait(home, running, time, enough=lambda: running in asking)  # noqa: B023
    shared.flusher.stop()
    await _wait(home, parts.close_journal(), time, more=time.last)
    unflushed = _behind(parts, actors)
    flushed = not unflushed and not parts.writer.is_busy()  # or a write may still come late
    await _wait(home, parts.release_lease(flushed=flushed), time, more=time.last)
    await _wait(home, parts.close_store(), time, more=time.last)
    return _logged(ShutdownReport(unflushed, unfinished, len(outbox), monotonic() - time.start))


async def recover_or_end(parts: Parts, end_if_lost: Callable[[], None]) -> None:
    """Have started parts recover what the journal has. If that fails, or is cancelled, end them.

    Also if the store was lost meanwhile.
    """
    try:
        end_if_lost()
        await parts.recover()
        if (lost := parts.is_lost()) is not None:
            raise copy(lost)
    except BaseException:
        try:
            await shut(parts, CloseTime(0.0, last=1.0))
        finally:
            parts.end()
        raise


def shut_without_loop(parts: Parts, seconds: float) -> ShutdownReport:
    """Flush what is committed. The loop has gone or is blocked, and with it all who have a turn."""
    start = monotonic()
    until = start + seconds
    parts.table.close_intake()
    unfinished = len(parts.shared.running.deadlines)
    parts.shared.running.refuse_all()
    actors = list(parts.table.resident())
    for future in (
        lambda: parts.shared.flusher.flush([] if parts.is_lost() else actors),
        parts.close_journal,
        lambda: parts.release_lease(flushed=not _behind(parts, actors) and not parts.writer.is_busy()),
        parts.close_store,
    ):
        try:
            future().result(max(until - monotonic(), 0.0))
        except (TimeoutError, ActorbotError) as error:
            logger.error("closing without an event loop: %r", error)
    return _logged(ShutdownReport(_behind(parts, actors), unfinished, len(parts.shared.outbox), monotonic() - start))


def _logged(report: ShutdownReport) -> ShutdownReport:
    if not report.clean:
        logger.error(
            "closed, and left behind: %d sessions not flushed, %d unfinished, %d with replies undelivered: %s",
            len(report.unflushed), report.unfinished, report.undelivered, ", ".join(map(repr, report.unflushed)) or "-",
            extra={"session_ids": report.unflushed},
        )  # fmt: skip
    return report


def _behind(parts: Parts, actors: Iterable[SessionActor]) -> tuple[str, ...]:
    behind = dict.fromkeys(actor.session_id for actor in actors if actor.behind())
    return tuple(behind | dict.fromkeys(parts.only_in_journal()))


async def _settle(parts: Parts, actors: Iterable[SessionActor], time: CloseTime, asking: Set[object]) -> None:
    """Take each session out of memory when its accepted events have had their turns.

    A session whose turns do not end in time stays, and one whose turn waits for this close.
    """
    for actor in actors:
        # A turn may be taken without a handler that runs: a told event is on its way to it, or the
        # session is being read.
        while not actor.closed and actor not in asking:
            left = time.left(HANDLERS)
            if not actor.enter() and not (left and await wait_for_turn(parts.home, actor, min(left, LOOK_AGAIN))):
                if time.left(HANDLERS):
                    continue
                break
            if not parts.table.retire(actor):
                actor.leave()


async def _flush_until(parts: Parts, actors: list[SessionActor], time: CloseTime) -> None:
    """Flush again and again, until the store has everything or the time is up."""
    while True:
        await _wait(parts.home, parts.shared.flusher.flush(actors), time, FLUSHING)
        if not time.left(FLUSHING) or not any(actor.behind() for actor in actors):
            return
        again = monotonic() + FLUSH_AGAIN
        await _wait(parts.home, new_future(), time, FLUSHING, enough=lambda: monotonic() > again)  # noqa: B023


async def _wait(
    home: Home,
    future: Future[Any],
    time: CloseTime,
    part: float = 1.0,
    *,
    more: float = 0.0,
    enough: Callable[[], bool] = lambda: False,
) -> None:
    """Wait for *future* until this *part* of the *time* is over and *more* seconds, or *enough*."""
    while True:
        left = time.left(part, more)
        try:
            await home.wait(future, min(left, LOOK_AGAIN))
            return
        except (TimeoutError, ActorbotError) as error:
            if future.done() or left <= LOOK_AGAIN or enough():
                logger.debug("while closing: %r", error)
                return
