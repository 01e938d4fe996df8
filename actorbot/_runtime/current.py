"""Which turn the running code is part of, or which other call of a bot author's function."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextvars import Context as ContextVars
from contextvars import ContextVar, copy_context
from typing import Any, NamedTuple, Protocol

__all__ = ["Errand", "RunningTurn", "current", "errand", "outside_of_turns"]


class RunningTurn(Protocol):
    """A turn, as far as a home knows it."""

    def _call_when_revoked(self, interrupt: Callable[[], None]) -> None:
        """Call *interrupt* when the session is taken from the turn, or at once if it has been."""


current: ContextVar[RunningTurn | None] = ContextVar("actorbot_turn", default=None)
"""The last turn that the running code, or the code that spawned it, has begun.

It is not set back when the turn ends, which would cost each event 5 % of its time. So whoever looks
here must skip turns that have ended.
"""


class Errand(NamedTuple):
    """A hook's call, which runs outside of turns, and which a close waits for."""

    what: object
    task: asyncio.Task[Any] | None
    """The task that does it; `None` in a threaded home."""


errand: ContextVar[Errand | str | None] = ContextVar("actorbot_errand", default=None)
"""The last errand that the running code, or the code that spawned it, has begun.

A text: the replies of this session, which a task of the home's own delivers. They go as often as
events come, so that what is set for them must cost nothing.
"""


def outside_of_turns() -> ContextVars:
    """Copy the variables of the running code, without the turn that it is part of."""
    variables = copy_context()
    variables.run(current.set, None)
    return variables
