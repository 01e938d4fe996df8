"""`SessionActor`: one session, its turns, and between them its committed bytes."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any, Final, NoReturn

from actorbot._event import DUPLICATE
from actorbot._flushing.waiters import Goal
from actorbot._flushing.write import Flushable
from actorbot._journal.entry import Entry
from actorbot._runtime.current import current
from actorbot._runtime.home import Promise
from actorbot._state.codec import decode_state, encode_plain, encode_state, is_nobody_elses
from actorbot._state.committed import ENDS, EVENT_IDS, NOTHING, SEEN, STATE, VERSION, Committed, digest_of
from actorbot._state.record import RING_BYTES, TOMBSTONE_AGE, Record, has_id, is_of_another_release
from actorbot._state.refusal import name_session
from actorbot._state.values import UndecodableError
from actorbot._turns.cancelled import deliver_again, is_cancelled, is_swallowed, swallowed
from actorbot._turns.context import Context, find_parent, never_begun, raise_for
from actorbot._turns.depth import check_depth
from actorbot._turns.ready import make_ready
from actorbot._turns.shared import TurnShared
from actorbot._turns.terms import Durable, Terms, way_of
from actorbot._turns.told import Handle
from actorbot.errors import (
    ActorbotError,
    ConflictError,
    CorruptSessionError,
    HandlerExitError,
    NotEncodableError,
    OutcomeUnknownError,
    SessionTooLargeError,
    StoreUnavailableError,
)

__all__ = ["SessionActor"]

EVENT_ID_BYTES: Final = 64 * 8  # of event-id digests that a session remembers
BUSY: Final = 12  # with more unflushed turns than this, a session's values stay decoded
RERUNS: Final = 3  # times that write-through runs a handler again, after conflicts with others


class SessionActor(Flushable):
    """A session in memory. Whoever has its turn calls its methods, unless one says otherwise."""

    __slots__ = ("shared", "touched", "trusted")

    def __init__(self, session_id: str, shared: TurnShared, now: float) -> None:
        super().__init__(session_id)
        self.shared = shared
        self.trusted = False  # whether the committed bytes were decoded or encoded here before
        self.touched = now  # monotonic seconds of the last event

    def __repr__(self) -> str:
        return f"<SessionActor {self.session_id!r}>"

    def schedule(self) -> None:
        self.shared.home.post(self.run_batch)

    # --- a turn ----------------------------------------------------------------------------------

    def adopt(self, record: Record | None) -> None:
        """Take what the store holds; but not what is older than the state before a doubt."""
        self.trusted = False
        if self.doubted is not None and self.keep_doubted(record):
            return
        if record is None:
            self.flushed, self.write_ids, self.committed = 0, b"", NOTHING
        else:
            self.flushed, self.write_ids, self.committed = record.version, record.write_ids, record.committed
        if (journal := self.shared.journal) is not None and journal.floor > self.flushed:
            self.flushed, self.committed = journal.floor, (journal.floor, *self.committed[1:])

    def doubt(self) -> None:
        """Have the session read before its next turn: nobody knows whether a write was done."""
        self.doubted, self.committed = self.committed, None

    def keep_doubted(self, record: Record | ActorbotError | None) -> bool:
        """End the doubt; tell whether the state before it stays and is to be written."""
        self.committed, self.doubted = self.outdates(record), None
        return self.committed is not None

    def outdates(self, record: Record | ActorbotError | None) -> Committed | None:
        """Return the state before a doubt if what is stored is older or damaged. Any thread."""
        if isinstance(record, Record):
            return self.doubted if self.shared.flusher.set_backs.is_older(record, self) else None
        return None if is_of_another_release(record) else self.doubted

    def adopt_entry(self, entry: Entry) -> None:
        """Take what the journal holds. What the store has shows when the session is flushed."""
        self.adopt(entry.record)
        self.flushed, self.committed = entry.record.version - 1, entry.record.committed
        self.lineages = entry.lineages
        self.shared.dirty.mark(self)

    async def take_turn(
        self, event: Any, event_id: str | None, durable: Durable, task: asyncio.Task[Any] | None
    ) -> Any:
        """Run the handler on one event; return what it returns, or `DUPLICATE`. Leave the mailbox.

        *task* runs this, and is cancelled when the handler's time is up; `None` in a threaded home.
        """
        shared = self.shared
        context: Context | None = None
        reruns = 0
        try:
            while True:
                committed = self.committed
                if committed is None or shared.dirty.pressed or committed[VERSION] - self.flushed >= shared.many_events:
                    await make_ready(self, shared, durable)
                context = self.begin_turn(event, event_id, task)
                if context is None:
                    if durable and shared.journal is None:  # the store may not have it yet
                        await shared.home.wait(shared.flusher.flush([self]))
                    await shared.confirm()
                    return DUPLICATE
                if shared.on_start is not None and context.is_new:
                    await shared.on_start(context)
                value = shared.handle_here(context) if shared.handle_here is not None else await shared.handle(context)
                try:
                    if shared.acknowledge is not None and shared.in_doubt():
                        await shared.confirm()  # or else the store would refuse the write
                    done = self.commit(context, durable)
                    if done is not None:
                        await (shared.home.wait(done) if isinstance(done, Future) else done)
                    # Last, since the process may have been frozen at any moment before.
                    if (keeper := shared.keeper) is not None and keeper.now() >= keeper.until:
                        await keeper.confirm(shared.home)
                except ConflictError:
                    if (reruns := reruns + 1) > RERUNS or not (
                        shared.writes_through or shared.is_unclaimed(self.write_ids)
                    ):
                        raise
                    self.roll_back(context)
                    await self.look_back(RING_BYTES if event_id is None else EVENT_ID_BYTES)
                else:
                    return value
        except BaseException as error:
            context = context or never_begun(self, event, error)  # the turn is left once
            if context is not None and isinstance(durable, Terms):
                context._terms = durable  # `on_error` may reply
            await self.fail_turn(context, error)
        finally:
            if context is None or not context._passed_on:
                self.leave()

    async def fail_turn(self, context: Context | None, error: BaseException) -> NoReturn:
        """Roll the turn back, if it has begun, and raise what its caller gets."""
        try:
            if context is None:
                self.shared.failed += 1
                raise error
            raise_for(error, await self.undo_turn(context, error))
        finally:
            del error  # it holds this frame by its traceback: only the collector would free both

    async def undo_turn(self, context: Context, error: BaseException) -> BaseException:
        """Roll the turn back, leave the mailbox, call `on_error`; return what the caller gets."""
        self.shared.failed += 1
        task, raised = context._task, self._translate(error, context)
        self.roll_back(context)
        try:
            await self.look_back(RING_BYTES)
        except OutcomeUnknownError as unknown:
            raised = unknown
        finally:
            if not context._passed_on:
                context._passed_on = True
                self.leave()
        if not isinstance(raised, asyncio.CancelledError | GeneratorExit):
            await self.shared.on_error(context, raised)
            if is_cancelled(context, task):
                raised = swallowed()
        return await deliver_again() if is_swallowed(raised) else raised

    async def look_back(self, ids: int) -> None:
        """After a conflict, find out whether an earlier try of the write, unanswered, was done.

        If it was, the record has its id: a record keeps *ids* bytes of ids, 8 for each write.
        Raises: OutcomeUnknownError if others have written so often since that the id may be gone.
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

    def begin_turn(self, event: Any, event_id: str | None, task: asyncio.Task[Any] | None) -> Context | None:
        """Begin a turn on the committed state; `None` if *event_id* has been handled before."""
        shared = self.shared
        wall = shared.wall()
        last: Any = current.get()  # usually over, and inside of no other: seen without a call
        parent = None if last is None or last._session is last._parent is last._revoked is None else find_parent()
        if parent is not None:
            check_depth(self.session_id)
        committed = self.committed
        if committed is None:  # the flusher has met a conflict since `make_ready`
            raise self._conflict("written by another process; try again")
        state = committed[STATE]
        if state is not None and wall >= (end := committed[ENDS]):
            # The session has expired as a whole. As in `commit`: until `self.committed` is set,
            # nothing is called.
            self.committed = committed = (committed[VERSION], None, b"", committed[SEEN], end)
            shared.answers.forget(self.session_id)
            shared.on_expire(self.session_id, state, end)
            state = None
        digest = None if event_id is None else digest_of(event_id)
        if digest is not None and has_id(committed[EVENT_IDS], digest):
            shared.duplicates += 1
            return None
        try:
            decoded = self.decoded
            if decoded is not None:
                self.decoded = None  # this turn's now: if it fails, the bytes are what counts
            if decoded is not None and decoded[0] is state:
                session: Any = decoded[1]
            else:
                session = {} if state is None else decode_state(state, self.trusted)
            if shared.shape is not None:
                session = shared.shape.load(session)
        except UndecodableError as error:
            raise CorruptSessionError(shared.store, self.session_id, str(error)) from error.__cause__ or error
        self.trusted = True
        context = Context(self, session, event, committed, parent, task)
        context._event_id = digest
        current.set(context)
        self.touched = now = shared.monotonic()
        running = shared.running
        running.deadlines[context] = deadline = now + running.handler_timeout
        if not running.ticking:
            running.start_ticking(deadline)
        return context

    def commit(self, context: Context, durable: Durable = False) -> Promise | None:
        """Make the changes of the turn the session's. Return a future if the answer has to wait.

        With write-through or a journal, the write leaves the mailbox when it has ended.
        """
        shared = self.shared
        wall = shared.wall()
        if (session := context._session) is None:  # a lent turn whose time was up
            raise context._revoked or self.abandoned or shared.running.timeout_error(self.session_id)
        usual = shared.shape is None and not context._ends_session
        plain = encode_plain(session, shared.max_session_bytes) if usual else None
        encoded = self.encode(context, session) if plain is None else plain
        ends = wall + (TOMBSTONE_AGE if encoded is None else shared.expires_in)
        before = context._before
        version, event_ids = before[VERSION] + 1, before[EVENT_IDS]
        if context._event_id is not None:
            event_ids = (event_ids + context._event_id)[-EVENT_ID_BYTES:]
        committed = (version, encoded, event_ids, wall, ends)
        if (task := context._task) is not None and task.cancelling() > context._cancels:
            raise swallowed()
        if shared.running.deadlines.pop(context, None) is None:
            raise context._revoked or self.abandoned or shared.running.timeout_error(self.session_id)
        context._session = context._task = None
        if context._replies is not None:
            shared.outbox.reserve(context, durable)
        if (
            version - self.flushed > BUSY
            and plain is not None
            and is_nobody_elses(session)
            and shared.flusher.retries.outage_since is None  # in an outage, too many would stay decoded
        ):
            self.decoded = plain, session
        # The flusher sets `committed` to None when it meets a conflict. CPython changes threads
        # only at calls and at the ends of loops: nothing is called until the new state is set.
        if self.committed is not before:
            raise self._conflict("written by another process since it was read")
        acknowledge = way_of(durable, shared.acknowledge) if durable else shared.acknowledge
        if acknowledge is not None:
            context._passed_on = True
            if (promise := acknowledge(self, context, committed)) is not None:
                return promise
            context._passed_on = False
        shared.handled += 1  # first: from here on the event is at risk
        self.committed = committed
        self.trusted = True
        if not self.dirty or (encoded is not None and len(encoded) > self.charged):
            shared.dirty.mark(self)
        done = shared.flusher.reach([Goal(self, version, len(self.losses))]) if durable else None
        if context._replies is not None:
            self.send(context, done)
        return done

    def _conflict(self, reason: str) -> ActorbotError:
        """Make the error of a turn that cannot be committed any more, or not begin."""
        return self.abandoned or ConflictError(self.shared.store, reason, session_id=self.session_id)

    def encode(self, context: Context, session: Any) -> bytes | None:
        """Encode the values that the turn leaves; `None` if it ends the session."""
        if context._ends_session:
            self.shared.answers.forget(self.session_id)
            return None
        shape, most = self.shared.shape, self.shared.max_session_bytes
        try:
            return encode_state(session, most) if shape is None else shape.encode(session, most)
        except (NotEncodableError, SessionTooLargeError) as error:
            name_session(error, self.session_id)
            raise

    def send(self, context: Context, gate: Future[Any] | None = None) -> None:
        """Hand the replies of a committed turn to the outbox. They wait for *gate* to succeed."""
        if context._replies is not None:
            self.shared.outbox.put(context, gate)

    def regain_turn(self, context: Context) -> bool:
        """Give a turn whose write met a conflict back to the code that runs it, for another run.

        `False` if that code has gone: the turn was rolled back.
        """
        if context._rolled_back:
            return False
        context._passed_on = False
        return True

    def roll_back(self, context: Context) -> None:
        """End the turn so that nothing of it stays."""
        self.shared.running.deadlines.pop(context, None)
        context._session = context._task = None
        context._rolled_back = True
        if context._reserved:
            self.shared.outbox.release(context)

    def _translate(self, error: BaseException, context: Context) -> BaseException:
        task = context._task
        if task is not None and context._interrupted:
            task.uncancel()  # ours, also if the handler caught it: the task is the caller's
        if is_cancelled(context, task):
            return error if isinstance(error, asyncio.CancelledError | GeneratorExit) else swallowed()
        if context._revoked is not None:
            return context._revoked
        if isinstance(error, SystemExit | KeyboardInterrupt):
            return HandlerExitError(self.session_id, f"the handler raised {error!r}; the bot goes on")
        return error

    def on_receive(self, message: Any) -> None:
        """Start the turn of a told event. Called by pykka's loop, which has the turn."""
        assert isinstance(message, Handle)
        self.shared.home.spawn(lambda: message.run(self), message.variables)
