"""`Verbs`: what each verb of a manager does, once for both homes."""

from __future__ import annotations

from collections.abc import Iterable
from concurrent.futures import Future
from contextvars import copy_context
from typing import Any, Literal

from actorbot._checks import check_word
from actorbot._event import DUPLICATE
from actorbot._manager.releasing import Release
from actorbot._reports import ShutdownReport
from actorbot._residents.abandon import Abandonment
from actorbot._residents.activation import Activation
from actorbot._residents.backoff import BrokenRecords
from actorbot._residents.loader import Loader
from actorbot._residents.replay import Replay
from actorbot._residents.table import Table
from actorbot._runtime.home import new_future
from actorbot._state.codec import decode_state
from actorbot._state.committed import ENDS, STATE
from actorbot._state.session_id import check_session_id, check_session_ids
from actorbot._state.values import UndecodableError
from actorbot._turns.context import Context
from actorbot._turns.destroy import Destroy
from actorbot._turns.lend import lend
from actorbot._turns.session_actor import SessionActor
from actorbot._turns.shared import TurnShared
from actorbot._turns.terms import Durable
from actorbot._turns.told import Handle
from actorbot.errors import CorruptSessionError, OwnershipLostError

__all__ = ["OnDuplicate", "Verbs"]

OnDuplicate = Literal["duplicate", "result"]
ON_DUPLICATE = ("duplicate", "result")


class Verbs:
    """`SessionManager` documents them, and `Access` has checked each call. At home."""

    def __init__(
        self,
        shared: TurnShared,
        table: Table,
        activation: Activation,
        loader: Loader,
        broken: BrokenRecords,
        replay: Replay,
    ) -> None:
        self._shared = shared
        self._home = shared.home
        self._table = table
        self._activation = activation
        self._loader = loader
        self._broken = broken
        self._replay = replay

    async def dispatch(
        self,
        session_id: str,
        event: Any,
        event_id: str | None,
        durable: Durable,
        timeout: float | None,
        on_duplicate: OnDuplicate,
    ) -> Any:
        session_id = check_session_id(session_id)
        check_word("on_duplicate", on_duplicate, ON_DUPLICATE)
        if on_duplicate == "duplicate" or event_id is None:
            return await self._handle(session_id, event, event_id, durable, timeout)
        with self._shared.answers.run(session_id, event_id) as run:
            value = await self._handle(session_id, event, event_id, durable, timeout)
            if value is not DUPLICATE:
                run.keep(value)
                return value
        answer = await run.first()
        await self._shared.confirm()  # it may have waited for the first time to end
        return answer

    async def _handle(
        self, session_id: str, event: Any, event_id: str | None, durable: Durable, timeout: float | None
    ) -> Any:
        actor = await self._activation.wait_for_turn(session_id, timeout)
        return await actor.take_turn(event, event_id, durable, self._home.current_task())

    def accept(self, session_id: str, event: Any, event_id: str | None) -> tuple[SessionActor, Future[Any]]:
        """Accept *event*; the future gets what its handler returns or raises. Any thread."""
        session_id = check_session_id(session_id)
        outcome = new_future()
        return self._activation.put_in_line(session_id, Handle(event, event_id, outcome, copy_context())), outcome

    async def borrow(self, session_id: str, event_id: str | None, timeout: float | None) -> Context:
        session_id = check_session_id(session_id)
        return await lend(await self._activation.wait_for_turn(session_id, timeout), event_id)

    async def flush(self, session_ids: str | Iterable[str] | None) -> None:
        if session_ids is None:
            ids, found = None, list(self._table.resident())
        elif ids := check_session_ids(session_ids):
            found = [actor for each in ids if (actor := self._table.actors.get(each)) is not None]
        else:
            return
        actors = [actor for actor in found if actor.committed is not None]
        # Listed before the wait: meanwhile any of them may come into memory.
        absent = self._only_in_journal(ids, actors)
        await self._home.wait(self._shared.flusher.flush(actors))
        await self._replay.flush_absent(absent)
        await self._shared.confirm()  # also of one that was called just before the store was lost

    def _only_in_journal(self, ids: list[str] | None, actors: list[SessionActor]) -> list[str]:
        """List the ids, of these or of all, that the journal may have and none of *actors* has."""
        journal = self._shared.journal
        if journal is None:
            return []
        resident = {actor.session_id for actor in actors}
        return [each for each in (journal.ids() if ids is None else ids) if each not in resident]

    async def release(self, session_ids: str | Iterable[str], seconds: float) -> ShutdownReport:
        ids = check_session_ids(session_ids)
        report = await Release(self._shared, self._table, self._activation, seconds).run(ids)
        await self._shared.confirm()  # what was lost with the store is not in the report
        return report

    def abandon(self, session_ids: str | Iterable[str]) -> None:
        """Abandon these sessions. Any thread."""
        ids = check_session_ids(session_ids)
        only = ids[0] if len(ids) == 1 else None
        reason = "the session was abandoned: what was not flushed went to on_conflict; send the event again"
        Abandonment(self._shared, self._table).begin(
            ids, OwnershipLostError(self._shared.store, reason, session_id=only)
        )

    async def peek(self, session_id: str) -> dict[str, Any] | None:
        session_id = check_session_id(session_id)
        actor = self._table.actors.get(session_id)
        record = None
        committed = None if actor is None else actor.committed
        if committed is None:
            record = await self._loader.read(session_id)
            committed = None if actor is None else actor.outdates(record)
        if committed is not None:
            state, ended = committed[STATE], self._shared.clock.wall() >= committed[ENDS]
        else:
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
        await self._home.wait(Destroy(actor).begin())
        await self._shared.confirm()

    async def _enter_to_destroy(self, session_id: str) -> SessionActor:
        """Take the turn, even if the record is broken: to destroy the session is the cure."""
        while True:
            self._broken.forget(session_id)
            try:
                return await self._activation.wait_for_turn(session_id)
            except CorruptSessionError:
                continue  # somebody before us in line tried to read it
