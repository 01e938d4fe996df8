"""Which turn waits for which session, so that a deadlock is refused at once."""

from __future__ import annotations

from actorbot._turns.context import Context, chain
from actorbot._turns.session_actor import SessionActor
from actorbot.errors import DeadlockError

__all__ = ["begin_to_wait", "end_to_wait"]


def begin_to_wait(actor: SessionActor) -> list[Context]:
    """Note that the turns which the running code is part of wait for a turn of *actor*.

    Return these turns, for `end_to_wait`. Raises: DeadlockError.
    """
    mine = list(chain())
    if mine:
        for context in mine:
            context._waits_for += (actor,)
        try:
            _refuse_circle(actor, {context._actor for context in mine})
        except DeadlockError:
            end_to_wait(mine, actor)
            raise
    return mine


def end_to_wait(mine: list[Context], actor: SessionActor) -> None:
    """Remove one note that `begin_to_wait` has made in each of these turns.

    Only one: a turn may wait for the same session in several tasks.
    """
    for context in mine:
        rest = list(context._waits_for)
        if actor in rest:
            rest.remove(actor)
        context._waits_for = tuple(rest)


def _refuse_circle(target: SessionActor, mine: set[SessionActor]) -> None:
    """Raises: DeadlockError if the wait for *target* cannot end before a turn of *mine* ends."""
    waits_for = {
        context._actor: context._waits_for for context in list(target.shared.running.deadlines) if context._waits_for
    }
    seen: set[SessionActor] = set()
    ahead = [target]
    while ahead:
        actor = ahead.pop()
        if actor in mine:
            raise DeadlockError(
                target.session_id,
                "its turn cannot come before the turn that asks for it has ended;"
                " dispatch after the handler, or use submit()",
            )
        if actor not in seen:
            seen.add(actor)
            ahead.extend(waits_for.get(actor, ()))
