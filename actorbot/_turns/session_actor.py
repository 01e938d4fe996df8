"""One session: its turns, and between them its committed bytes."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextvars import Context as ContextVars
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from actorbot._event import DUPLICATE
from actorbot._flushing.waiters import Goal
from actorbot._flushing.write import Flushable
from actorbot._journal.ahead import Ahead
from actorbot._journal.entry import Entry
from actorbot._journal.journal import Journal
from actorbot._runtime.current import current
from actorbot._runtime.home import Promise
from actorbot._state.codec import decode_state, encode_plain, encode_state, is_nobody_elses
from actorbot._state.committed import ENDS, EVENT_IDS, SEEN, STATE, VERSION, Committed, Lineage
from actorbot._state.record import RING_BYTES, TOMBSTONE_AGE, Record, has_id
from actorbot._state.values import UndecodableError
from actorbot._turns.context import Context, innermost
from actorbot._turns.shared import TurnShared
from actorbot.errors import (
    ActorbotError,
    ConflictError,
    CorruptSessionError,
    HandlerExitError,
    HandlerTimeoutError,
    OutcomeUnknownError,
    OverloadedError,
    StoreUnavailableError,
)

__all__ = ["Handle", "SessionActor"]

EVENT_ID_BYTES: Final = 64 * 8  # bytes of event-id digests that a session remembers
BUSY: Final = 12  # turns that the store does not have, from which on a session's values stay decoded until it has
RERUNS: Final = 3  # times that write-through runs a handler again after a conflict with another process


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """To a session actor: handle an event whose sender does not stand in line for it."""

    event: Any
    event_id: str | None
    outcome: Future[Any]
    variables: ContextVars


class SessionActor(Flushable):
    """A session in memory. Its methods are called by who holds its turn, unless said otherwise."""

    __slots__ = ("shared", "touched", "trusted")

    def __init__(self, session_id: str, shared: TurnShared, now: float) -> None:
        super().__init__(session_id)
        self.shared = shared
        self.trusted = False  # whether the committed bytes have been decoded, or were encoded, here
        self.touched = now  # monotonic seconds of the last event

    def __repr__(self) -> str:
        return f"<SessionActor {self.session_id!r}>"

    def schedule(self) -> None:
        self.shared.home.post(self.run_batch)

    # --- a turn -------------------------------------------------------------------------------------------------------

    def adopt(self, record: Record | None) -> None:
        """Take what the store holds."""
        self.trusted = False
        if record is None:
            self.flushed, self.write_ids, self.committed = 0, b"", (0, None, b"", 0.0, 0.0)
        else:
            self.flushed, self.write_ids = record.version, record.write_ids
            self.committed = (
                record.version,
                record.state,
                record.event_ids,
                record.last_activity,
                record.expires_at,
            )

    def adopt_entry(self, entry: Entry) -> None:
        """Take what the journal holds; whether the store has it, or what else, shows when it is flushed."""
        self.adopt(entry.record)
        self.flushed = entry.record.version - 1
        self.lineages = entry.lineages
        self.shared.dirty.mark(self)

    async def take_turn(self, event: Any, event_id: str | None, durable: bool, task: asyncio.Task[Any] | None) -> Any:
        """Run the handler on one event and return what it returns, or `DUPLICATE`. The turn is left at the end.

        *task* is what runs this, to be cancelled when the handler's time is up; `None` in a threaded home.
        """
        shared = self.shared
        context: Context | None = None
        reruns = 0
        try:
            while True:
                committed = self.committed
                if committed is None or shared.dirty.pressed or committed[VERSION] - self.flushed >= shared.many_events:
                    await self.make_ready()
                context = self.begin_turn(event, event_id, task)
                if context is None:
                    if durable and shared.journal is None:  # it may be counted in memory alone
                        await shared.home.wait(shared.flusher.flush([self]))
                    return DUPLICATE
                if shared.on_start is not None and context.is_new:
                    await shared.on_start(context)
                value = shared.handle_here(context) if shared.handle_here is not None else await shared.handle(context)
                try:
                    done = self.commit(context, durable)
                    if done is not None:
                        await (shared.home.wait(done) if isinstance(done, Future) else done)
                except ConflictError:
                    reruns += 1
                    if not shared.writes_through or reruns > RERUNS:
                        raise
                    self.roll_back(context)
                    await self.look_back(RING_BYTES if event_id is None else EVENT_ID_BYTES)
                else:
                    return value
        except BaseException as error:
            raised = await self.fail_turn(context, error)
            if raised is error:
                raise
            raise raised from error
        finally:
            if context is None or not context._passed_on:
                self.leave()

    async def fail_turn(self, context: Context | None, error: BaseException) -> BaseException:
        """Roll a turn back, pass it on and report it; return what its caller gets."""
        self.shared.failed += 1
        if context is None:
            return error
        raised = self._translate(error, context)
        self.roll_back(context)
        try:
            await self.look_back(RING_BYTES)
        except OutcomeUnknownError as unknown:
            raised = unknown
        if not context._passed_on:
            context._passed_on = True
            self.leave()
        if not isinstance(raised, asyncio.CancelledError | GeneratorExit):
            await self.shared.on_error(context, raised)
        return raised

    async def look_back(self, ids: int) -> None:
        """See after a conflict whether the write that met it can have been done by a try that had no answer.

        *ids* is how many bytes of ids a record keeps to tell. Raises: OutcomeUnknownError if others have written more often since.
        """
        version, self.unanswered = self.unanswered, 0
        if not version:
            return
        name = self.shared.store
        try:
            await self.shared.load(self)
        except StoreUnavailableError as error:
            raise OutcomeUnknownError(name, f"a try had no answer: {error}", session_id=self.session_id) from error
        if (self.flushed - version) * 8 >= ids:
            raise OutcomeUnknownError(
                name, "a try had no answer, and many others have written since", session_id=self.session_id
            )

    async def make_ready(self) -> None:
        """Wait until the session is read and there is room for what its turn will change."""
        shared = self.shared
        if shared.dirty.full:
            await self._wait_for_room()
        elif shared.dirty.late:
            shared.home.give_way()
        behind = self.behind()
        if behind >= shared.policy.max_events and shared.flusher.outage_since is None:
            await shared.home.wait(shared.flusher.relieve(self))
        elif behind == shared.many_events:
            shared.dirty.hurry(self)  # half-way there: with luck its turn never waits
        if self.committed is None:  # last, since what was waited for may have been a conflict
            await shared.load(self)

    async def _wait_for_room(self) -> None:
        policy = self.shared.policy
        if policy.when_full == "wait":
            try:
                await self.shared.home.wait(self.shared.dirty.room(), policy.store_deadline)
            except TimeoutError:
                pass  # what is said below
            else:
                return
        raise OverloadedError(
            f"{policy.max_dirty_bytes} bytes wait to be flushed (max_dirty_bytes)", retry_after=policy.max_delay
        )

    def begin_turn(self, event: Any, event_id: str | None, task: asyncio.Task[Any] | None) -> Context | None:
        """Begin a turn on the committed state; `None` if the session has counted *event_id*."""
        shared = self.shared
        wall = shared.wall()
        committed = self.committed
        if committed is None:  # the flusher has met a conflict since `make_ready`
            raise ConflictError(shared.store, "written by someone else; try again", session_id=self.session_id)
        state = committed[STATE]
        if state is not None and wall >= (end := committed[ENDS]):
            # What the session was ends as a whole. Nothing is called before that stands, as in `commit`.
            self.committed = committed = (committed[VERSION], None, b"", *committed[SEEN:])
            shared.on_expire(self.session_id, state, end)
            state = None
        digest = None
        if event_id is not None:
            digest = blake2b(str(event_id).encode("utf-8", "surrogatepass"), digest_size=8).digest()
            if has_id(committed[EVENT_IDS], digest):
                shared.duplicates += 1
                return None
        try:
            decoded = self.decoded
            if decoded is not None:
                self.decoded = None  # it is this turn's now: if that fails, the bytes are what counts
            if decoded is not None and decoded[0] is state:
                session: Any = decoded[1]
            else:
                session = {} if state is None else decode_state(state, self.trusted)
            if shared.shape is not None:
                session = shared.shape.load(session)
        except UndecodableError as error:
            raise CorruptSessionError(shared.store, self.session_id, str(error)) from error
        self.trusted = True
        parent = innermost()
        # Past those that are over; one that was taken from code which still runs stays in the chain, to tell it so.
        while parent is not None and parent._session is None and (parent._revoked is None or parent._rolled_back):
            parent = parent._parent
        context = Context(self, session, event, committed, parent, task)
        if digest is not None:
            context._event_id = digest
        current.set(context)
        self.touched = now = shared.monotonic()
        shared.running[context] = deadline = now + shared.handler_timeout
        if not shared.ticking:
            shared.start_ticking(deadline)
        return context

    def commit(self, context: Context, durable: bool = False) -> Promise | None:
        """End the turn well: its changes become the session's. Returns a future if the acknowledgement must wait for the store.

        With write-through the turn then belongs to the write, and is left when that has ended (`context._passed_on`).
        """
        shared = self.shared
        wall = shared.wall()
        session, plain = context._session, None
        if session is None:  # a borrowed turn whose time was up
            raise context._revoked or self.overdue()
        if context._ends_session:
            encoded, ends = None, wall + TOMBSTONE_AGE
        else:
            if shared.shape is None:
                plain = encode_plain(session, shared.max_session_bytes)
                encoded = encode_state(session, shared.max_session_bytes) if plain is None else plain
            else:
                encoded = encode_state(shared.shape.dump(session), shared.max_session_bytes)
            ends = wall + shared.expires_in
        base = context._before
        event_ids = (
            base[EVENT_IDS] if context._event_id is None else (base[EVENT_IDS] + context._event_id)[-EVENT_ID_BYTES:]
        )
        committed = (base[VERSION] + 1, encoded, event_ids, wall, ends)
        if shared.running.pop(context, None) is None:
            raise context._revoked or self.overdue()
        context._session = context._task = None
        if (
            committed[VERSION] - self.flushed > BUSY
            and plain is not None
            and is_nobody_elses(session)
            and shared.flusher.outage_since is None  # or what is decoded would pile up
        ):
            self.decoded = plain, session
        # The flusher takes the state away when it meets a conflict. From here to where the new one stands nothing is called, so that
        # no other thread comes between.
        if self.committed is not base:
            raise ConflictError(
                shared.store, "written by another process since it was read", session_id=self.session_id
            )
        if shared.writes_through:
            context._passed_on = True
            return self._write_through(context, committed)
        if shared.journal is not None:
            context._passed_on = True
            return self._write_ahead(context, committed, shared.journal)
        shared.handled += 1  # first: it is at risk from here on
        self.committed = committed
        self.trusted = True
        if not self.dirty or (encoded is not None and len(encoded) > self.charged):
            shared.dirty.mark(self)
        if durable:
            done = shared.flusher.reach([Goal(self, committed[VERSION], len(self.losses))])
            self.send(context, done)
            return done
        if context._replies is not None:
            self.send(context)
        return None

    def send(self, context: Context, gate: Future[Any] | None = None) -> None:
        """Let the replies of an acknowledged turn go."""
        if context._replies is not None:
            self.shared.outbox.put(context, context._replies, gate)

    def _write_through(self, context: Context, committed: Committed) -> Promise:
        acknowledged = self.shared.home.promise()
        written = self.shared.flusher.write(self, committed)

        def settle(written: Future[None]) -> None:
            # At home, whatever has become of the caller: a commit is never interrupted.
            error = written.exception()
            if error is None:
                self.committed = committed
                self.shared.handled += 1
                self.send(context)
            elif isinstance(error, OutcomeUnknownError | ConflictError):
                self.committed = None  # read again before the next turn
            if isinstance(error, ConflictError) and not context._rolled_back:
                context._passed_on = False  # the caller has the turn back and runs the handler again
            else:
                self.unanswered = 0
                self.leave()
            _answer(acknowledged, error)

        written.add_done_callback(lambda written: self.shared.home.post(settle, written))
        return acknowledged

    def _write_ahead(self, context: Context, committed: Committed, journal: Journal) -> Promise:
        acknowledged = self.shared.home.promise()
        lineages = (Lineage(journal.lineage, committed[VERSION]), *self.lineages)
        journal.put(_TurnAhead(self, context, committed, lineages, acknowledged))
        return acknowledged

    def roll_back(self, context: Context) -> None:
        """End the turn badly: nothing of it stays."""
        self.shared.running.pop(context, None)
        context._session = context._task = None
        context._rolled_back = True

    def _translate(self, error: BaseException, context: Context) -> BaseException:
        if context._revoked is not None:
            if context._task is not None:
                context._task.uncancel()  # also if the handler has swallowed it: the task belongs to the caller
            return context._revoked
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return HandlerExitError(self.session_id, f"the handler raised {error!r}; the bot goes on")
        return error

    def overdue(self) -> HandlerTimeoutError:
        """Make the error of a turn whose time is up."""
        seconds = self.shared.handler_timeout
        return HandlerTimeoutError(
            self.session_id, f"it ran longer than {seconds:g} s (handler_timeout); its changes were discarded"
        )

    # --- what is told -------------------------------------------------------------------------------------------------

    def on_receive(self, message: Any) -> None:
        """Start the turn of a told event; pykka's loop calls this while the turn is held."""
        assert isinstance(message, Handle)
        self.shared.home.spawn(lambda: self._take_told_turn(message), message.variables)

    async def _take_told_turn(self, message: Handle) -> None:
        current.set(None)  # nobody's turn waits for this one
        try:
            value = await self.take_turn(message.event, message.event_id, False, self.shared.home.current_task())
        except BaseException as error:
            message.outcome.set_exception(error)
        else:
            message.outcome.set_result(value)


class _TurnAhead(Ahead):
    """A turn that the journal is to commit; it ends when that is done, whatever has become of the caller."""

    __slots__ = ("_acknowledged", "_actor", "_context")

    def __init__(
        self,
        actor: SessionActor,
        context: Context,
        committed: Committed,
        lineages: tuple[Lineage, ...],
        acknowledged: Promise,
    ) -> None:
        self.session_id = actor.session_id  # no `super().__init__`, which would be a call more for each event
        self.committed = committed
        self.write_ids = actor.write_ids
        self.lineages = lineages
        self._actor = actor
        self._context = context
        self._acknowledged = acknowledged

    def settle(self, error: ActorbotError | None) -> None:
        actor, committed = self._actor, self.committed
        if error is None:
            actor.committed = committed
            actor.trusted = True
            actor.shared.handled += 1
            if not actor.dirty or (committed[STATE] is not None and len(committed[STATE]) > actor.charged):
                actor.shared.dirty.mark(actor)
            actor.send(self._context)
        actor.leave()
        _answer(self._acknowledged, error)


def _answer(acknowledged: Promise, error: BaseException | None) -> None:
    if acknowledged.done():
        return  # whoever waited was cancelled
    if error is None:
        acknowledged.set_result(None)
    else:
        acknowledged.set_exception(error)
