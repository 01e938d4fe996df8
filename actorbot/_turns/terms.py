"""`Terms`: what is different about one event, for those who run a manager for others.

It stands in the place of an event's `durable`, so that a usual event has nothing to carry.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from actorbot._runtime.home import Promise, new_future

__all__ = ["Durable", "Terms", "way_of"]

Acknowledge = Callable[..., Promise | None]


class Terms:
    """Whether an event's gated replies are sent at all, and what they wait for. Any thread."""

    __slots__ = ("acknowledge", "confirmed", "durable", "losses", "silent")

    def __init__(
        self,
        *,
        durable: bool,
        silent: bool,
        confirmation: Future[Any] | None,
        losses: int | None = None,
        acknowledge: Acknowledge | None = None,
    ) -> None:
        self.durable = durable
        self.acknowledge = acknowledge
        """Commits the turn, instead of what the manager's policy says; `None`: as that says."""
        self.losses = losses
        """How many conflicts the session may have met: after one more, the turn does not begin."""
        self.silent = silent
        """Whether the event changes its session, and sends no reply."""
        self.confirmed: Future[bool] | None = None
        """Ends when *confirmation* does: with whether that has succeeded. `None`: there is none."""
        if confirmation is not None:
            self.confirmed = confirmed = new_future()
            confirmation.add_done_callback(lambda done: confirmed.set_result(_has_succeeded(done)))

    def __bool__(self) -> bool:
        return self.durable or self.acknowledge is not None


Durable = bool | Terms
"""What an event is dispatched with."""


def way_of(durable: Durable, usual: Acknowledge | None) -> Acknowledge | None:
    """Return how a turn is committed: in its own way, or as *usual*."""
    return durable.acknowledge or usual if isinstance(durable, Terms) else usual


def _has_succeeded(done: Future[Any]) -> bool:
    return not done.cancelled() and done.exception() is None
