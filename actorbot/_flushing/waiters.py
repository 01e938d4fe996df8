"""Who waits for a version of a session to be in the store."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from math import inf
from typing import Final, NamedTuple

from actorbot._flushing.write import Flushable
from actorbot.errors import ConflictError, ManagerClosedError

__all__ = ["ALL", "ANY_NEWS", "Goal", "Waiters", "tell_first_error", "tell_news"]

Tell = Callable[["BaseException | None"], None]
"""Tells that what was waited for is done, or why it will not be."""

ALL: Final = inf
"""What the store has of a session when nothing is left to write."""

ANY_NEWS: Final = 0
"""The version of those who wait for any news of a session: every store has it."""


class Goal(NamedTuple):
    """What somebody wants to be in the store."""

    session: Flushable
    version: int
    losses: int
    """How many `losses` the session had when it had that version."""

    def is_lost(self) -> bool:
        """Tell whether a conflict has taken the version. Any thread."""
        session, version, losses = self
        if len(session.losses) > losses:
            return version > session.losses[losses]
        return session.committed is None and version > session.flushed


class Waiters:
    """Those who wait, by session. Touched on the flusher's thread only."""

    def __init__(self) -> None:
        self._waiting: dict[Flushable, list[tuple[int, Tell]]] = {}

    def __contains__(self, session: Flushable) -> bool:
        return session in self._waiting

    def add(self, session: Flushable, version: int, tell: Tell) -> None:
        """Have *tell* called when the store has *version*, or when it will not have it."""
        self._waiting.setdefault(session, []).append((version, tell))

    def reached(self, session: Flushable, reached: float | BaseException) -> None:
        """Tell who waits for *session* which version the store has, or why it will not have one."""
        waiting = self._waiting.pop(session, None)
        if waiting is None:
            return
        rest = []
        for version, tell in waiting:
            if isinstance(reached, BaseException):
                tell(reached)
            elif version <= reached:
                tell(None)
            else:
                rest.append((version, tell))
        if rest:
            self._waiting[session] = rest

    def reached_everywhere(self, reached: float | BaseException) -> None:
        """Do as `reached` for every session."""
        for session in list(self._waiting):
            self.reached(session, reached)


def tell_news(done: Future[None]) -> Tell:
    """Make a Tell that ends *done* at any news; it fails *done* only if no more news will come."""

    def tell(error: BaseException | None) -> None:
        if isinstance(error, ManagerClosedError):
            done.set_exception(error)
        else:
            done.set_result(None)

    return tell


def tell_first_error(number: int, done: Future[None]) -> Tell:
    """Make a Tell that ends *done* when it was called *number* times, with the first error, if any.

    A conflict counts less than any other error. A conflict is settled: whoever is told of it alone
    may take all else for stored.
    """
    failure: BaseException | None = None

    def tell(error: BaseException | None) -> None:
        nonlocal number, failure
        number -= 1
        if failure is None or (error is not None and isinstance(failure, ConflictError)):
            failure = error
        if number > 0:
            return
        if failure is None:
            done.set_result(None)
        else:
            done.set_exception(failure)

    return tell
