"""Finding the turn that a bot library's code runs in, where that library hands nothing of ours through."""

from __future__ import annotations

from actorbot._context import Context, chain
from actorbot._manager import SessionManager

__all__ = ["held"]


def held(manager: SessionManager, session_id: str) -> Context | None:
    """Return the open turn of the session that the running code is part of, a task spawned inside it included; else `None`.

    Asking for a second turn of the session there would be refused (DeadlockError): what a library stores while its handler runs goes
    into the turn that is held.
    """
    for context in chain():
        if context._actor.turns is manager._engine.turns and context.session_id == session_id:
            return context
    return None
