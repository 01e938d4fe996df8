"""A turn whose answer waits for the store (write-through) or for the journal (write-ahead)."""

from __future__ import annotations

from concurrent.futures import Future

from actorbot._journal.ahead import Ahead
from actorbot._runtime.home import Promise
from actorbot._state.committed import STATE, VERSION, Committed, Lineage
from actorbot._turns.context import Context
from actorbot._turns.session_actor import SessionActor
from actorbot.errors import ActorbotError, ConflictError, OutcomeUnknownError

__all__ = ["claim_first", "write_ahead", "write_through"]


def claim_first(actor: SessionActor, context: Context, committed: Committed) -> Promise | None:
    """Commit as the policy says, but a session's first turn here when the store has it: its claim.

    So the record gets a write id of this owner. What an earlier owner, who was taken over and comes
    back, then writes late is a conflict of his, and not of this one.
    """
    if actor.shared.is_unclaimed(actor.write_ids):
        return write_through(actor, context, committed)
    return None if actor.shared.journal is None else write_ahead(actor, context, committed)


def write_through(actor: SessionActor, context: Context, committed: Committed) -> Promise:
    """Commit the turn when the store has it. The future ends then, or with the store's error."""
    shared = actor.shared
    acknowledged = shared.home.promise()
    written = shared.flusher.write(actor, committed)

    def settle(written: Future[None]) -> None:
        # At home. A commit is never interrupted, even if its caller has gone.
        error = written.exception()
        if error is None:
            actor.committed = committed
            shared.handled += 1
            shared.dirty.fullness.meet(actor, len(committed[STATE] or b""))
            actor.send(context)
        elif isinstance(error, OutcomeUnknownError):
            actor.doubt()
        elif isinstance(error, ConflictError):
            actor.committed = None  # to be read again before the next turn
        if not isinstance(error, ConflictError) or not actor.regain_turn(context):
            actor.unanswered = 0
            actor.leave()
        _answer(acknowledged, error)

    written.add_done_callback(lambda written: shared.home.post(settle, written))
    return acknowledged


def write_ahead(actor: SessionActor, context: Context, committed: Committed) -> Promise:
    """Commit the turn when the journal has it. The future ends then, or with its error."""
    journal = actor.shared.journal
    assert journal is not None
    acknowledged = actor.shared.home.promise()
    journal.put(_TurnAhead(actor, context, committed, journal.lineage, acknowledged))
    return acknowledged


class _TurnAhead(Ahead):
    """A turn that is committed when the journal has it, even if its caller has gone by then."""

    __slots__ = ("_acknowledged", "_actor", "_context")

    def __init__(
        self, actor: SessionActor, context: Context, committed: Committed, lineage: bytes, acknowledged: Promise
    ) -> None:
        # Without `super().__init__`, which would be one more call for each event.
        self.session_id = actor.session_id
        self.committed = committed
        self.write_ids = actor.write_ids
        self.lineages = (Lineage(lineage, committed[VERSION]), *actor.lineages)
        self._actor = actor
        self._context = context
        self._acknowledged = acknowledged

    def settle(self, error: ActorbotError | None) -> None:
        actor, committed = self._actor, self.committed
        if error is None:
            actor.committed = committed
            actor.trusted = True
            if (error := actor.abandoned) is not None:  # the journal has it: it is handed over too
                actor.shared.flusher.abandon([actor], error)
        if error is None:
            actor.shared.handled += 1
            if not actor.dirty or (committed[STATE] is not None and len(committed[STATE]) > actor.charged):
                actor.shared.dirty.mark(actor)
            actor.send(self._context)
        actor.leave()
        _answer(self._acknowledged, error)


def _answer(acknowledged: Promise, error: BaseException | None) -> None:
    if acknowledged.done():
        return  # the caller was cancelled while it waited
    if error is None:
        acknowledged.set_result(None)
    else:
        acknowledged.set_exception(error)
