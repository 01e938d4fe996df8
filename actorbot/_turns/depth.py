"""How many turns may run inside each other: as many as the stack has room for."""

from __future__ import annotations

import sys
from typing import Final

from actorbot._turns.context import chain

__all__ = ["check_depth"]

NEEDED: Final = 120  # calls inside each other that a turn, its end and its hooks may make


def check_depth(session_id: str) -> None:
    """Raises: RecursionError if the stack has no room for one more turn inside of others.

    Raised by the stack itself, it could come at any call: in the read of a record, or where a turn
    gives its session back.
    """
    try:
        sys._getframe(sys.getrecursionlimit() // 4)
    except ValueError:
        return  # the stack is not even that deep
    try:
        _dive(NEEDED)
    except RecursionError:
        depth = sum(1 for _ in chain())
        raise RecursionError(
            f"session {session_id!r}: {depth} turns run inside each other, and the stack has no room for one more"
            f" (sys.getrecursionlimit() is {sys.getrecursionlimit()}); dispatch after the handler, or use submit()"
        ) from None


def _dive(calls: int) -> None:
    if calls:
        _dive(calls - 1)
