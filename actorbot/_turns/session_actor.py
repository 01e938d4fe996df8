"""One session: its turns, and between them its committed bytes."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from contextvars import Context as ContextVars
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any, Final

from actorbot._event import DUPLICATE
from actorbot._journal.entry import Entry
from actorbot._journal.journal import Journal
from actorbot._runtime.current import current
from actorbot._runtime.home import Promise
from actorbot._runtime.mailbox import Mailbox
from actorbot._state.codec import decode_state, encode_plain, encode_state, is_nobody_elses
from actorbot._state.committed import Committed, Lineage
from actorbot._state.record import RING_BYTES, TOMBSTONE_AGE, Record, has_id
from actorbot._state.values import UndecodableError
from actorbot._turns.context import Context, innermost
from actorbot._turns.shared import Turns
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

EVENT_IDS: Final = 64 * 8  # bytes of event-id digests that a session remembers
BUSY: Final = 12  # turns that the store does not have, from which on a session's values stay decoded until it has
RERUNS: Final = 3  # times that write-through runs a handler again after a conflict with another process


@dataclass(frozen=True, slots=True, eq=False)
class Handle:
    """To a session actor: handle an event whose sender does not stand in line for it."""

    event: Any
    event_id: str | None
    outcome: Future[Any]
    variables: ContextVars


class SessionActor(Mailbox):
    """A session in memory. Its methods are called by who holds its turn, unless said otherwise."""

    __slots__ = (
        "charged",
        "committed",
        "decoded",
        "dirty",
        "flushed",
        "session_id",
        "touched",
        "trusted",
        "turns",
        "write_ids",
    )

    # No slots: hardly any session ever has one, and then it takes a dict.
    losses: tuple[int, ...] = ()
    lineages: tuple[Lineage, ...] = ()
    unanswered = 0
    spilled = False

    def __init__(self, session_id: str, turns: Turns, now: float) -> None:
        super().__init__()
        self.session_id = session_id
        self.turns = turns
        self.committed: Committed | None = None  # None: not read yet, or to be read again
        # Committed bytes and what they hold, if the session is busy and nobody else has a part of that: the next turn's to change.
        self.decoded: tuple[bytes, dict[str, Any]] | None = None
        self.flushed = 0
        self.write_ids = b""
        self.dirty = False
        self.charged = 0
        self.trusted = False  # whether the committed bytes have been decoded, or were encoded, here
        self.touched = now  # monotonic seconds of the last event

    def __repr__(self) -> str:
        return f"<SessionActor {self.session_id!r}>"

    def schedule(self) -> None:
        self.turns.home.post(self.run_batch)

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
        self.turns.flusher.mark(self)

    async def take_turn(self, event: Any, event_id: str | None, durable: bool, task: asyncio.Task[Any] | None) -> Any:
        """Run the handler on one event and return what it returns, or `DUPLICATE`. The turn is left at the end.

        *task* is what runs this, to be cancelled when the handler's time is up; `None` in a threaded home.
        """
        turns = self.turns
        context: Context | None = None
        reruns = 0
        try:
            while True:
                committed = self.committed
                if committed is None or turns.flusher.pressed or committed[0] - self.flushed >= turns.many_events:
                    await self.make_ready()
                context = self.open(event, event_id, task)
                if context is None:
                    if durable and turns.journal is None:  # it may be counted in memory alone
                        await turns.home.wait(turns.flusher.flush([self]))
                    return DUPLICATE
                if turns.on_start is not None and context.is_new:
                    await turns.on_start(context)
                value = turns.handle_here(context) if turns.handle_here is not None else await turns.handle(context)
                try:
                    done = self.commit(context, durable)
                    if done is not None:
                        await (turns.home.wait(done) if isinstance(done, Future) else done)
                except ConflictError:
                    reruns += 1
                    if not turns.writes_through or reruns > RERUNS:
                        raise
                    self.close(context)
                    await self.look_back(RING_BYTES if event_id is None else EVENT_IDS)
                else:
                    return value
        except BaseException as error:
            raised = await self.fail(context, error)
            if raised is error:
                raise
            raise raised from error
        finally:
            if context is None or not context._left:
                self.leave()

    async def fail(self, context: Context | None, error: BaseException) -> BaseException:
        """Roll a turn back, pass it on and report it; return what its caller gets."""
        self.turns.failed += 1
        if context is None:
            return error
        raised = self._translate(error, context)
        self.close(context)
        try:
            await self.look_back(RING_BYTES)
        except OutcomeUnknownError as unknown:
            raised = unknown
        if not context._left:
            context._left = True
            self.leave()
        if not isinstance(raised, asyncio.CancelledError | GeneratorExit):
            await self.turns.on_error(context, raised)
        return raised

    async def look_back(self, ids: int) -> None:
        """See after a conflict whether the write that met it can have been done by a try that had no answer.

        *ids* is how many bytes of ids a record keeps to tell. Raises: OutcomeUnknownError if others have written more often since.
        """
        version, self.unanswered = self.unanswered, 0
        if not version:
            return
        name = self.turns.store
        try:
            await self.turns.load(self)
        except StoreUnavailableError as error:
            raise OutcomeUnknownError(name, f"a try had no answer: {error}", session_id=self.session_id) from error
        if (self.flushed - version) * 8 >= ids:
            raise OutcomeUnknownError(
                name, "a try had no answer, and many others have written since", session_id=self.session_id
            )

    async def make_ready(self) -> None:
        """Wait until the session is read and there is room for what its turn will change."""
        turns = self.turns
        flusher = turns.flusher
        if flusher.full:
            await self._wait_for_room()
        elif flusher.late:
            turns.home.give_way()
        behind = self.behind()
        if behind >= turns.policy.max_events and flusher.outage_since is None:
            await turns.home.wait(flusher.relieve(self))
        elif behind == turns.many_events:
            flusher.hurry(self)  # half-way there: with luck its turn never waits
        if self.committed is None:  # last, since what was waited for may have been a conflict
            await turns.load(self)

    def behind(self) -> int:
        """Return how many turns the store does not have yet. Any thread."""
        committed = self.committed
        return 0 if committed is None else committed[0] - self.flushed

    async def _wait_for_room(self) -> None:
        policy, flusher = self.turns.policy, self.turns.flusher
        if policy.when_full == "wait":
            try:
                await self.turns.home.wait(flusher.room(), policy.store_deadline)
            except TimeoutError:
                pass  # what is said below
            else:
                return
        raise OverloadedError(
            f"{policy.max_dirty_bytes} bytes wait to be flushed (max_dirty_bytes)", retry_after=policy.max_delay
        )

    def open(self, event: Any, event_id: str | None, task: asyncio.Task[Any] | None) -> Context | None:
        """Begin a turn on the committed state; `None` if the session has counted *event_id*."""
        turns = self.turns
        wall = turns.wall()
        committed = self.committed
        if committed is None:  # the flusher has met a conflict since `make_ready`
            raise ConflictError(turns.store, "written by someone else; try again", session_id=self.session_id)
        state = committed[1]
        if state is not None and wall >= (end := committed[4]):
            # What the session was ends as a whole. Nothing is called before that stands, as in `commit`.
            self.committed = committed = (committed[0], None, b"", *committed[3:])
            turns.on_expire(self.session_id, state, end)
            state = None
        digest = None
        if event_id is not None:
            digest = blake2b(str(event_id).encode("utf-8", "surrogatepass"), digest_size=8).digest()
            if has_id(committed[2], digest):
                turns.duplicates += 1
                return None
        try:
            decoded = self.decoded
            if decoded is not None:
                self.decoded = None  # it is this turn's now: if that fails, the bytes are what counts
            if decoded is not None and decoded[0] is state:
                session: Any = decoded[1]
            else:
                session = {} if state is None else decode_state(state, self.trusted)
            if turns.shape is not None:
                session = turns.shape.load(session)
        except UndecodableError as error:
            raise CorruptSessionError(turns.store, self.session_id, str(error)) from error
        self.trusted = True
        parent = innermost()
        # Past those that are over; one that was taken from code which still runs stays in the chain, to tell it so.
        while parent is not None and parent._session is None and (parent._revoked is None or parent._abandoned):
            parent = parent._parent
        context = Context(self, session, event, committed, parent, task)
        if digest is not None:
            context._event_id = digest
        current.set(context)
        self.touched = now = turns.monotonic()
        turns.running[context] = deadline = now + turns.handler_timeout
        if not turns.ticking:
            turns.start_ticking(deadline)
        return context

    def commit(self, context: Context, durable: bool = False) -> Promise | None:
        """End the turn well: its changes become the session's. Returns a future if the acknowledgement must wait for the store.

        With write-through the turn then belongs to the write, and is left when that has ended (`context._left`).
        """
        turns = self.turns
        wall = turns.wall()
        session, plain = context._session, None
        if session is None:  # a borrowed turn whose time was up
            raise context._revoked or self.overdue()
        if context._destroyed:
            encoded, ends = None, wall + TOMBSTONE_AGE
        else:
            if turns.shape is None:
                plain = encode_plain(session, turns.max_session_bytes)
                encoded = encode_state(session, turns.max_session_bytes) if plain is None else plain
            else:
                encoded = encode_state(turns.shape.dump(session), turns.max_session_bytes)
            ends = wall + turns.expires_in
        base = context._base
        event_ids = base[2] if context._event_id is None else (base[2] + context._event_id)[-EVENT_IDS:]
        committed = (base[0] + 1, encoded, event_ids, wall, ends)
        if turns.running.pop(context, None) is None:
            raise context._revoked or self.overdue()
        context._session = context._task = None
        if (
            committed[0] - self.flushed > BUSY
            and plain is not None
            and is_nobody_elses(session)
            and turns.flusher.outage_since is None  # or what is decoded would pile up
        ):
            self.decoded = plain, session
        # The flusher takes the state away when it meets a conflict. From here to where the new one stands nothing is called, so that
        # no other thread comes between.
        if self.committed is not base:
            raise ConflictError(turns.store, "written by another process since it was read", session_id=self.session_id)
        if turns.writes_through:
            context._left = True
            return self._write_through(context, committed)
        if turns.journal is not None:
            context._left = True
            return self._write_ahead(context, committed, turns.journal)
        turns.handled += 1  # first: it is at risk from here on
        self.committed = committed
        self.trusted = True
        if not self.dirty or (encoded is not None and len(encoded) > self.charged):
            turns.flusher.mark(self)
        if durable:
            done = turns.flusher.reach([(self, committed[0], len(self.losses))])
            self.send(context, done)
            return done
        if context._replies is not None:
            self.send(context)
        return None

    def send(self, context: Context, gate: Future[Any] | None = None) -> None:
        """Let the replies of an acknowledged turn go."""
        if context._replies is not None:
            self.turns.outbox.put(context, context._replies, gate)

    def _write_through(self, context: Context, committed: Committed) -> Promise:
        acknowledged = self.turns.home.promise()
        written = self.turns.flusher.write(self, committed)

        def settle(written: Future[None]) -> None:
            # At home, whatever has become of the caller: a commit is never interrupted.
            error = written.exception()
            if error is None:
                self.committed = committed
                self.turns.handled += 1
                self.send(context)
            elif isinstance(error, OutcomeUnknownError | ConflictError):
                self.committed = None  # read again before the next turn
            if isinstance(error, ConflictError) and not context._abandoned:
                context._left = False  # the caller has the turn back and runs the handler again
            else:
                self.unanswered = 0
                self.leave()
            _answer(acknowledged, error)

        written.add_done_callback(lambda written: self.turns.home.post(settle, written))
        return acknowledged

    def _write_ahead(self, context: Context, committed: Committed, journal: Journal) -> Promise:
        acknowledged = self.turns.home.promise()
        lineages = ((journal.lineage, committed[0]), *self.lineages)
        ahead = _Ahead(self, context, committed, acknowledged)
        journal.put(self.session_id, committed, self.write_ids, lineages, ahead)
        return acknowledged

    def close(self, context: Context) -> None:
        """End the turn badly: nothing of it stays."""
        self.turns.running.pop(context, None)
        context._session = context._task = None
        context._abandoned = True

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
        seconds = self.turns.handler_timeout
        return HandlerTimeoutError(
            self.session_id, f"it ran longer than {seconds:g} s (handler_timeout); its changes were discarded"
        )

    # --- what is told -------------------------------------------------------------------------------------------------

    def on_receive(self, message: Any) -> None:
        """Start the turn of a told event; pykka's loop calls this while the turn is held."""
        assert isinstance(message, Handle)
        self.turns.home.spawn(lambda: self._take_told_turn(message), message.variables)

    async def _take_told_turn(self, message: Handle) -> None:
        current.set(None)  # nobody's turn waits for this one
        try:
            value = await self.take_turn(message.event, message.event_id, False, self.turns.home.current_task())
        except BaseException as error:
            message.outcome.set_exception(error)
        else:
            message.outcome.set_result(value)


class _Ahead:
    """Ends a turn that the journal is to commit, when it is told what became of that: at home, whatever has become of the caller.

    Not a function, whose closure would be six objects of every event in flight for the garbage collector to walk over.
    """

    __slots__ = ("_acknowledged", "_actor", "_committed", "_context")

    def __init__(self, actor: SessionActor, context: Context, committed: Committed, acknowledged: Promise) -> None:
        self._actor = actor
        self._context = context
        self._committed = committed
        self._acknowledged = acknowledged

    def __call__(self, error: ActorbotError | None) -> None:
        actor, committed = self._actor, self._committed
        if error is None:
            actor.committed = committed
            actor.trusted = True
            actor.turns.handled += 1
            if not actor.dirty or (committed[1] is not None and len(committed[1]) > actor.charged):
                actor.turns.flusher.mark(actor)
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
