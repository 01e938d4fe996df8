"""SIGINT and SIGTERM while a bot runs."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextvars import Context as ContextVars
from queue import Empty, SimpleQueue
from time import monotonic
from types import FrameType
from typing import Any, Final, Self

__all__ = ["HURRY", "Signals"]

logger = logging.getLogger("actorbot")

NUMBERS: Final = (signal.SIGINT, signal.SIGTERM)
HURRY: Final = 1.0  # seconds that a bot has after the second signal
# Seconds within which a signal that comes again is the same one: Ctrl-C goes to all processes of a
# terminal, and one of them may pass it on.
AGAIN: Final = 0.1
AT_ONCE: Final = 0.2  # seconds for a last flush without the loop
BLOCKED: Final = 2.0  # seconds without an answer after which a loop that should have ended is taken for blocked


class Signals:
    """Tells a loop of the first signal and of the second.

    At the third, or if the loop is blocked when the bot should have ended, another thread calls
    `give_up` with some seconds, and ends the process. Signals come to the main thread: elsewhere
    this does nothing. At the end, whoever heard of the signals before hears of them again.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        seconds: float,
        first: Callable[[], None],
        second: Callable[[], None],
        give_up: Callable[[float], None],
    ) -> None:
        self._loop = loop
        self._told = (first, second)
        self._patience = (seconds, HURRY)
        self._give_up = give_up
        self._count, self._last = 0, 0.0
        self._before: dict[int, Any] = {}
        # The time by which the loop must have ended, or None at its end. A SimpleQueue: other locks
        # may be held by the very code that a signal interrupts.
        self._ends: SimpleQueue[float | None] = SimpleQueue()

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            threading.Thread(target=self._watch, name="actorbot-signals", daemon=True).start()
            self._before = {number: signal.signal(number, self._note) for number in NUMBERS}
        else:
            logger.info("run() is not in the main thread: no signal ends the bot")
        return self

    def __exit__(self, *_: object) -> None:
        for number, before in self._before.items():
            signal.signal(number, signal.SIG_DFL if before is None else before)
        self._ends.put(None)

    def _note(self, number: int, frame: FrameType | None) -> None:
        now = monotonic()
        if now < self._last + AGAIN:
            return
        count, self._last = self._count, now
        self._count += 1
        if count > len(self._told):
            os._exit(1)
        if count == len(self._told):
            self._ends.put(0.0)
            return
        self._ends.put(now + self._patience[count])
        if not self._loop.is_closed():
            # Not with the variables of the code that was interrupted: that may be a handler.
            self._loop.call_soon_threadsafe(self._told[count], context=ContextVars())

    def _watch(self) -> None:
        """End the process if its loop is blocked, where a handler forgot to await something."""
        ends: float | None = None
        while True:
            try:
                sooner = self._ends.get(timeout=None if ends is None else max(0.0, ends - monotonic()))
            except Empty:
                if self._count > len(self._told) or not self._answers():
                    break
                ends = monotonic() + BLOCKED  # the loop is late and alive: all that it does now is bounded
                continue
            if sooner is None:
                return
            ends = sooner if ends is None else min(ends, sooner)
        if self._count > len(self._told):
            logger.error("told to end for the third time: the bot ends at once")
        else:
            where = traceback.format_stack(sys._current_frames()[threading.main_thread().ident or 0])
            logger.error("the event loop is blocked, and the bot ends without it. It is here:\n%s", "".join(where))
        self._give_up(AT_ONCE)
        os._exit(1)

    def _answers(self) -> bool:
        """Tell whether the loop still runs what it is given, or has been closed."""
        answered = threading.Event()
        try:
            self._loop.call_soon_threadsafe(answered.set)
        except RuntimeError:
            return True
        return answered.wait(BLOCKED)
