"""`Terms`: what is different about one event, for those who run a manager for others.

It stands in the place of an event's `durable`, so that a usual event has nothing to carry.
"""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

from actorbot._runtime.home import new_future

__all__ = ["Durable", "Terms"]


class Terms:
    """Whether an event's gated replies are sent at all, and what they wait for. Any thread."""

    __slots__ = ("confirmed", "durable", "silent")

    def __init__(self, *, durable: bool, silent: bool, confirmation: Future[Any] | None) -> None:
        self.durable = durable
        self.silent = silent
        """Whether the event changes its session, and sends no reply."""
        self.confirmed: Future[bool] | None = None
        """Ends when *confirmation* does: with whether that has succeeded. `None`: there is none."""
        if confirmation is not None:
            self.confirmed = confirmed = new_future()
            confirmation.add_done_callback(lambda done: confirmed.set_result(_has_succeeded(done)))

    def __bool__(self) -> bool:
        return self.durable


Durable = bool | Terms
"""What an event is dispatched with."""


def _has_succeeded(done: Future[Any]) -> bool:
    return not done.cancelled() and done.exception() is None
