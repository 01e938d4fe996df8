"""What the verbs of a manager do, once for both homes; their callers have passed its door."""

from __future__ import annotations

import os
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any

from actorbot._journal.ahead import Ahead
from actorbot._residents.registry import Registry
from actorbot._runtime.home import new_future
from actorbot._state.codec import decode_state
from actorbot._state.committed import ANYBODYS, ENDS, STATE, VERSION, Committed, Lineage
from actorbot._state.record import TOMBSTONE_AGE
from actorbot._state.session_id import check_session_id
from actorbot._state.values import UndecodableError
from actorbot._turns.context import Context
from actorbot._turns.session_actor import Handle, SessionActor
from actorbot._turns.shared import TurnShared
from actorbot.errors import (
    ActorbotError,
    ConflictError,
    CorruptSessionError,
    DuplicateEventError,
    OutcomeUnknownError,
)

__all__ = ["Verbs"]


class Verbs:
    """`SessionManager` says what each is for. At home."""

    def __init__(self, registry: Registry) -> None:
        self._registry = registry
        self._shared = registry.shared
        self._home = registry.shared.home

    async def dispatch(
        self, session_id: str, event: Any, event_id: str | None, durable: bool, timeout: float | None
    ) -> Any:
        session_id = check_session_id(session_id)
        actor = await self._registry.wait_for_turn(session_id, timeout)
        return await actor.take_turn(event, event_id, durable, self._home.current_task())

    def accept(self, session_id: str, event: Any, event_id: str | None) -> tuple[SessionActor, Future[Any]]:
        """Accept *event*; the future holds what becomes of it. Any thread."""
        session_id = check_session_id(session_id)
        outcome = new_future()
        return self._registry.put_in_line(session_id, Handle(event, event_id, outcome, copy_context())), outcome

    async def borrow(
        self, session_id: str, event_id: str | None, timeout: float | None
    ) -> tuple[SessionActor, Context]:
        session_id = check_session_id(session_id)
        actor = await self._registry.wait_for_turn(session_id, timeout)
        try:
            await actor.make_ready()
            # Without a task: a time-out takes the session from the borrower, not its task's life.
            context = actor.begin_turn(None, event_id, None)
        except BaseException:
            actor.leave()
            raise
        if context is None:
            actor.leave()
            raise DuplicateEventError(session_id, f"event id {event_id!r} was counted before")
        try:
            if context.is_new and self._shared.on_start is not None:
                await self._shared.on_start(context)
        except BaseException as error:
            raised = await actor.fail_turn(context, error)
            if raised is error:
                raise
            raise raised from error
        return actor, context

    async def give_back(self, actor: SessionActor, context: Context) -> None:
        try:
            done = actor.commit(context)
            if done is not None:
                await self._home.wait(done)
        except BaseException as error:
            raised = await actor.fail_turn(context, error)
            if raised is error:
                raise
            raise raised from error
        if not context._passed_on:
            actor.leave()

    async def flush(self, session_id: str | None) -> None:
        if session_id is None:
            wanted = self._registry.resident()
        else:
            session_id = check_session_id(session_id)
            wanted = filter(None, [self._registry.actors.get(session_id)])
        actors = [actor for actor in wanted if actor.committed is not None]
        journal, ids = self._shared.journal, {actor.session_id for actor in actors}
        held = [] if journal is None else journal.ids() if session_id is None else [session_id]
        absent = [
            each for each in held if each not in ids
        ]  # before we wait: any of them may have come when that has ended
        await self._home.wait(self._shared.flusher.flush(actors))
        await self._registry.flush_absent(absent)

    async def peek(self, session_id: str) -> dict[str, Any] | None:
        session_id = check_session_id(session_id)
        actor = self._registry.actors.get(session_id)
        committed = None if actor is None else actor.committed
        if committed is not None:
            state, ended = committed[STATE], self._shared.clock.wall() >= committed[ENDS]
        else:
            record = await self._registry.read(session_id)
            state = None if record is None else record.state
            ended = record is not None and self._shared.clock.wall() >= record.expires_at
        if state is None or ended:
            return None
        try:
            return decode_state(state)
        except UndecodableError as error:
            raise CorruptSessionError(self._shared.store, session_id, str(error)) from error

    async def destroy(self, session_id: str) -> None:
        session_id = check_session_id(session_id)
        actor = await self._enter_to_destroy(session_id)
        ending = _Ending(self._shared, actor, self._make_end(actor))
        ending.begin()
        await self._home.wait(ending.done)

    def _make_end(self, actor: SessionActor) -> Committed:
        """Make what is left of a destroyed session, which may not have been read."""
        wall = self._shared.clock.wall()
        version = actor.flushed if actor.committed is None else actor.committed[VERSION]
        journal = self._shared.journal
        if journal is not None:  # whose entry may be newer than what was read, if anything was
            version = max(version, journal.version(actor.session_id))
            if actor.committed is None:
                # Nobody knows which versions this manager has made of it. None must come twice: its write id would be the same, and
                # the new one be taken for the old one, which the store has.
                actor.flushed = version = max(version, journal.newest)
        return version + 1, None, b"", wall, wall + TOMBSTONE_AGE

    async def _enter_to_destroy(self, session_id: str) -> SessionActor:
        """Take the turn, also of a session whose record is broken: destroying it is the cure."""
        while True:
            self._registry.forgive(session_id)
            try:
                return await self._registry.wait_for_turn(session_id)
            except CorruptSessionError:
                continue  # somebody before us in the line has tried to read it


class _Ending(Ahead):
    """A destroy on its way to the journal, if there is one, and to the store; the turn is left at its end. At home.

    It goes on whatever has become of its caller.
    """

    def __init__(self, shared: TurnShared, actor: SessionActor, gone: Committed) -> None:
        # A lineage of its own: of a session that was not read nobody knows which versions this one has made before.
        super().__init__(actor.session_id, gone, actor.write_ids, (Lineage(os.urandom(8), gone[VERSION]), ANYBODYS))
        self._shared = shared
        self._actor = actor
        self._forced = actor.committed is None  # nobody knows what the store has
        self.done = new_future()

    def begin(self) -> None:
        journal = self._shared.journal
        if journal is None:
            self._write()
        else:
            journal.put(self)

    def settle(self, error: ActorbotError | None) -> None:
        if error is None:
            self._actor.lineages = self.lineages
            self._write()
        else:
            self._leave(error)

    def _write(self) -> None:
        written = self._shared.flusher.write(self._actor, self.committed, forced=self._forced)
        written.add_done_callback(lambda written: self._shared.home.post(self._note, written.exception()))

    def _note(self, error: BaseException | None) -> None:
        actor = self._actor
        actor.unanswered = 0
        if isinstance(error, ConflictError) and not self._forced:
            # Whoever has written it, it goes. Not at once by force: a write that comes late, when this process has been killed and the
            # next has gone on, must find that it does.
            self._forced = True
            self._write()
            return
        # What comes next reads the store where nobody knows what it holds now.
        if error is not None and self._shared.journal is not None:
            error = None  # the journal has it, and the store will
            actor.committed = self.committed
            self._shared.dirty.mark(actor)
        elif error is None:
            self._shared.ended += actor.committed is not None
            actor.committed = self.committed
        elif isinstance(error, OutcomeUnknownError) and not actor.behind():
            actor.committed = None
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        self._actor.leave()
        if error is None:
            self.done.set_result(None)
        else:
            self.done.set_exception(error)
