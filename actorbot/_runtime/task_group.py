"""What a failed `asyncio.TaskGroup` leaves behind on its parent, in Python 3.11 and 3.12.

A group whose task fails while it waits at its own end cancels its parent, the task that runs it. It
never takes that back: the parent is counted as cancelled for the rest of its life, though nobody
else has cancelled it. Python 3.13 takes it back (python/cpython#116720).
"""

from __future__ import annotations

import asyncio
import sys
from types import TracebackType
from typing import Any

from actorbot._runtime.current import current

__all__ = ["take_cancels_back"]

_leave = asyncio.TaskGroup.__aexit__


def take_cancels_back() -> None:
    """Have groups do as in Python 3.13, in code that runs in a turn. Nothing else changes.

    Whether a turn was cancelled is read from that count, as `asyncio.timeout` reads it.
    """
    if sys.version_info < (3, 13):
        asyncio.TaskGroup.__aexit__ = _leave_group  # type: ignore[method-assign, assignment]


def _leave_group(
    group: Any, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
) -> Any:
    leaving = _leave(group, kind, error, trace)
    return leaving if current.get() is None else _and_take_back(group, leaving)


async def _and_take_back(group: Any, leaving: Any) -> None:
    taken_back = group._parent_cancel_requested  # it is, where the group was cancelled before its end
    try:
        await leaving
    finally:
        if group._parent_cancel_requested and not taken_back:
            group._parent_task.uncancel()
