"""Calling the methods of a driver, which may be `def` or `async def`."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from inspect import isawaitable
from typing import Any, Final

__all__ = ["Calls", "Runner"]

AT_ONCE: Final = 32  # calls of an `async def` driver that run at the same time

Runner = Callable[[Callable[[], Awaitable[Any]]], Any]
"""Takes what makes a coroutine to the loop where it belongs, and blocks until it is done."""


class Calls:
    """Calls methods of a driver. *deadline* is how long, in seconds, a caller waits for a call."""

    def __init__(self, run: Runner, deadline: float | None) -> None:
        self.run = run
        # An awaitable that hangs is cancelled a little earlier: so those beside it get their
        # answers.
        self._patience = None if deadline is None else 0.9 * deadline

    def one(self, method: Callable[..., Any], *args: Any) -> Any:
        """Return what *method* returns, awaited if it is awaitable. Raises: what it raises."""
        answer = method(*args)
        if not isawaitable(answer):
            return answer

        async def finish() -> Any:
            return await answer

        return self.run(finish)

    def each(self, calls: Sequence[tuple[Any, ...]]) -> tuple[list[Any], int]:
        """Make *calls*, each a method with its arguments. If one raises, the error is its answer.

        Answers that turn out to be awaitable are awaited side by side. Also returns how many such
        calls to make at once the next time.
        """
        answers: list[Any] = []
        for method, *args in calls:
            try:
                answers.append(method(*args))
            except BaseException as error:
                answers.append(error)
        awaitable = sum(map(isawaitable, answers))
        at_once = AT_ONCE if awaitable == len(answers) else 1
        if not awaitable:
            return answers, at_once
        return list(self.run(lambda: _gather(answers, self._patience))), at_once


async def _gather(answers: list[Any], patience: float | None) -> list[Any]:
    limit = asyncio.Semaphore(AT_ONCE)

    async def finish(answer: Any) -> Any:
        if not isawaitable(answer):
            return answer
        async with limit:
            try:
                async with asyncio.timeout(patience) as time:
                    return await answer
            except (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt) as error:
                return TimeoutError("cancelled, since it took too long (store_deadline)") if time.expired() else error

    return await asyncio.gather(*map(finish, answers))
