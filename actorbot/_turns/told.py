"""`Handle`: an event that its sender does not wait for."""

from __future__ import annotations

from concurrent.futures import Future
from contextvars import Context as ContextVars
from dataclasses import dataclass
from typing import Any

from actorbot._runtime.current import current

__all__ = ["Handle"]


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """Tells a session actor to handle an event. Its sender does not wait in line for the turn."""

    event: Any
    event_id: str | None
    outcome: Future[Any]
    variables: ContextVars
    """Those of the sender; the turn runs with them."""

    async def run(self, actor: Any) -> None:
        """Run a turn of *actor* on the event; `outcome` gets the result."""
        current.set(None)  # nobody's turn waits for this one
        try:
            value = await actor.take_turn(self.event, self.event_id, False, actor.shared.home.current_task())
        except BaseException as error:
            self.outcome.set_exception(error)
        else:
            self.outcome.set_result(value)
