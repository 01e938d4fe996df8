"""What a turn waits for before it begins: the session's state, and room for what it will change."""

from __future__ import annotations

from actorbot._flushing.write import Flushable
from actorbot._turns.shared import TurnShared
from actorbot._turns.terms import Durable, Terms
from actorbot.errors import ConflictError, OverloadedError

__all__ = ["make_ready"]


async def make_ready(session: Flushable, shared: TurnShared, terms: Durable) -> None:
    """Wait until *session* is read, and until there is room. Whoever has its turn calls this.

    Raises: OverloadedError; what a failed read raises; ConflictError if *terms* say so.
    """
    if shared.dirty.full:
        await _wait_for_room(shared)
    elif shared.dirty.late:
        shared.home.give_way()
    behind = session.behind()
    if behind >= shared.policy.max_events and shared.flusher.retries.outage_since is None:
        await shared.home.wait(shared.flusher.relieve(session))
    elif behind == shared.many_events:
        shared.dirty.hurry(session)  # half-way to the bound: with luck no turn ever waits
    if session.committed is None:  # last: a conflict may have come while this waited
        if isinstance(terms, Terms) and terms.losses is not None and len(session.losses) > terms.losses:
            raise ConflictError(shared.store, "events before this one were lost", session_id=session.session_id)
        await shared.load(session)


async def _wait_for_room(shared: TurnShared) -> None:
    policy = shared.policy
    if policy.when_full == "wait":
        try:
            await shared.home.wait(shared.dirty.room(), policy.store_deadline)
        except TimeoutError:
            pass  # the error below says so
        else:
            return
    raise OverloadedError(
        f"{policy.max_dirty_bytes} bytes wait to be flushed (max_dirty_bytes)", retry_after=policy.max_delay
    )
