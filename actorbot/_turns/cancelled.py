"""A turn that somebody cancelled while it ran, and what its caller gets.

`Task.cancelling` counts who has cancelled a task and has not taken it back (`Task.uncancel`), as
`asyncio.timeout` does when it ends. So whatever a handler does with the CancelledError, its event
was cancelled if the count is higher at the turn's end than at its beginning.
"""

from __future__ import annotations

import asyncio

from actorbot._turns.context import Context

__all__ = ["deliver_again", "is_cancelled", "is_swallowed", "swallowed"]

_REASON = ("the event was cancelled while it was handled; the turn was rolled back",)


def is_cancelled(context: Context, task: asyncio.Task[object] | None) -> bool:
    """Tell whether the *task* that runs the turn was cancelled since it began, and not by us."""
    return task is not None and task.cancelling() > context._cancels


def swallowed() -> asyncio.CancelledError:
    """Make the error for a caller whose handler has caught the one that was meant for him."""
    return asyncio.CancelledError(*_REASON)


def is_swallowed(error: BaseException) -> bool:
    return error.args == _REASON


async def deliver_again() -> asyncio.CancelledError:
    """Return the error for such a caller: his own, if whoever cancels him does it again at once.

    A scope of anyio cancels in each round of the loop, and knows its errors by their text.
    """
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError as again:
        return again
    return swallowed()
