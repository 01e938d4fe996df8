"""A turn that is lent to code outside of handlers: how it begins, is taken back, or undone."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, Self

from actorbot._runtime.once import Once
from actorbot._turns.cancelled import is_cancelled, swallowed
from actorbot._turns.context import Context, never_begun
from actorbot._turns.ready import make_ready
from actorbot._turns.session_actor import SessionActor
from actorbot.errors import DuplicateEventError

__all__ = ["Loan", "check_return", "lend", "take_back", "undo"]


async def lend(actor: SessionActor, event_id: str | None) -> Context:
    """Begin a turn of *actor*, whose mailbox the caller has entered. A failure leaves the mailbox.

    Raises: DuplicateEventError, OwnershipLostError; what `on_session_start` raises.
    """
    try:
        await make_ready(actor, actor.shared, False)
        context = actor.begin_turn(None, event_id, actor.shared.home.current_task())
    except BaseException as error:
        refused = never_begun(actor, None, error)
        if refused is not None:
            await actor.fail_turn(refused, error)
        actor.leave()
        raise
    if context is None:
        actor.leave()
        await actor.shared.confirm()
        raise DuplicateEventError(actor.session_id, f"event id {event_id!r} was handled before")
    context._may_cancel = False  # a time-out takes the session from the borrower, no more
    try:
        if context.is_new and actor.shared.on_start is not None:
            await actor.shared.on_start(context)
    except BaseException as error:
        await actor.fail_turn(context, error)
    return context


def check_return(context: Context) -> None:
    """Raises: what `take_back` would raise. From here on, a cancellation comes too late."""
    if is_cancelled(context, context._task):
        raise swallowed()
    actor: SessionActor = context._actor
    actor.encode(context, context.session)
    if context._replies is not None:
        actor.shared.outbox.reserve(context)
    context._task = None


async def take_back(context: Context) -> None:
    """Commit a lent turn and leave the mailbox. If the commit raises, the turn is rolled back."""
    actor: SessionActor = context._actor
    try:
        await actor.shared.confirm()
        done = actor.commit(context)
        if done is not None:
            await actor.shared.home.wait(done)
        await actor.shared.confirm()
    except BaseException as error:
        await actor.fail_turn(context, error)
    if not context._passed_on:
        actor.leave()


async def undo(context: Context, error: BaseException) -> BaseException:
    """Roll back a lent turn whose code raised *error*; return what the code is to raise instead."""
    actor: SessionActor = context._actor
    raised = await actor.undo_turn(context, error)
    # Here no handler asks to exit, but the program itself: it gets its own error.
    return error if isinstance(error, SystemExit | KeyboardInterrupt) else raised


class Loan:
    """Borrows a turn for another thread, which may give up when the turn comes.

    To cancel *borrow* then is not enough: it may have ended, or end before it learns of that. So
    both sides take `_first`, and the second of them undoes the turn.
    """

    def __init__(self, borrow: Callable[..., Coroutine[Any, Any, Context]]) -> None:
        self._borrow = borrow
        self._first = Once()
        self._context: Context | None = None

    async def begin(self, *args: Any) -> Context:
        """Borrow the turn. At home."""
        context = self._context = await self._borrow(*args)
        context._task = None  # it ends here: the turn is another thread's
        if not self._first.take():
            await self._undo()
        return context

    def __enter__(self) -> Self:
        """Wait for `begin` in this block, on the other thread. If the block raises, it gives up."""
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None and not self._first.take() and self._context is not None:
            self._context._actor.shared.home.spawn(self._undo)

    async def _undo(self) -> None:
        assert self._context is not None
        await undo(self._context, asyncio.CancelledError())  # which is not told to `on_error`
