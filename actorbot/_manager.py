"""`SessionManager`: what a bot embeds. Every verb stands here once, as a coroutine, and serves both homes."""

from __future__ import annotations

import asyncio
import atexit
import itertools
import logging
import os
import threading
import unicodedata
import weakref
from asyncio import current_task
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, contextmanager
from contextvars import Context as ContextVars
from contextvars import copy_context
from math import inf
from threading import get_ident
from types import TracebackType
from typing import Any, Final, Self

from actorbot._clock import Clock, SystemClock
from actorbot._codec import UndecodableError, decode_state
from actorbot._context import Context, chain, current
from actorbot._door import Door
from actorbot._flusher import Flusher
from actorbot._home import Home, LoopHome, ThreadHome, is_plain, new_future, run_inline
from actorbot._hooks import Hook, Hooks
from actorbot._messages import Handle
from actorbot._options import (
    Options,
    check_clock,
    check_count,
    check_functions,
    check_policy,
    check_seconds,
    check_store,
)
from actorbot._outbox import Outbox
from actorbot._policy import FlushPolicy
from actorbot._receipt import Receipt
from actorbot._record import TOMBSTONE_AGE
from actorbot._registry import Registry
from actorbot._reports import Health, SessionInfo, ShutdownReport, Stats
from actorbot._session import SessionShape
from actorbot._session_actor import SessionActor
from actorbot._store_calls import Loader, StoreThread
from actorbot._turns import Turns
from actorbot.errors import (
    ActorbotError,
    ConfigError,
    CorruptSessionError,
    DuplicateEventError,
    InvalidSessionIdError,
    ManagerClosedError,
    OutcomeUnknownError,
)
from actorbot.stores.base import RecordStore
from actorbot.stores.driver import DriverStore

__all__ = ["SessionManager"]

logger = logging.getLogger("actorbot")

MAX_ID_BYTES: Final = 512
FLUSH_AGAIN: Final = 0.1  # seconds before a close tries again what could not be flushed
_numbers = itertools.count(1)


class SessionManager(Door):
    """Keeps the sessions of a bot's users: each in an actor of its own, one event at a time, in memory while the user is there.

    `store` is a store of actorbot's or any object with the seed's four methods. `handler(context)` handles dispatched events;
    `deliver(session_id, message)` sends replies; each may be `def` or `async def`, like every `on_…` hook, and
    has `handler_timeout` seconds.

    Started by `async with` (or `start()`) it is at home on the running event loop: `async def` code runs there, `def` code on a pool of
    threads. Started by `with` (or `start_sync()`) it is at home on threads: `def` handlers run in the thread that calls
    `dispatch_sync`, `async def` ones on a private loop. The `_sync` verbs work in both homes, from any thread but the home loop's.
    """

    def __init__(
        self,
        store: Any = None,
        *,
        handler: Hook | None = None,
        deliver: Hook | None = None,
        flush: FlushPolicy | None = None,
        idle_timeout: float = 900.0,
        handler_timeout: float = 300.0,
        max_resident: int = 100_000,
        max_mailbox: int = 100,
        max_session_bytes: int = 262_144,
        close_timeout: float = 10.0,
        on_error: Hook | None = None,
        on_session_start: Hook | None = None,
        on_session_expire: Hook | None = None,
        on_dead_letter: Hook | None = None,
        on_conflict: Hook | None = None,
        session_type: type = dict,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        self._options = Options(
            store=check_store(store),
            policy=check_policy(flush),
            idle_timeout=check_seconds("idle_timeout", idle_timeout, least=0.0),
            handler_timeout=check_seconds("handler_timeout", handler_timeout),
            close_timeout=check_seconds("close_timeout", close_timeout),
            max_resident=check_count("max_resident", max_resident),
            max_mailbox=check_count("max_mailbox", max_mailbox),
            max_session_bytes=check_count("max_session_bytes", max_session_bytes),
            shape=None if session_type is dict else SessionShape(session_type),
            functions=check_functions(
                handler=handler,
                deliver=deliver,
                on_error=on_error,
                on_session_start=on_session_start,
                on_session_expire=on_session_expire,
                on_dead_letter=on_dead_letter,
                on_conflict=on_conflict,
            ),
            clock=check_clock(clock),
            own_clock=clock is None,
        )
        self._inline: ThreadHome | None = None  # where turns run in the thread that calls
        self._report: ShutdownReport | None = None
        self._ending = threading.Lock()  # guards the next
        self._closing: Future[ShutdownReport] | None = None  # of the close that all who ask for one share

    # --- life ---------------------------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Open the store and come to life on the running loop. Raises: StoreUnavailableError and other store errors, ConfigError."""
        self._begin()
        await self._open(LoopHome(f"{next(_numbers)}", self._options.clock, self._options.handler_timeout))
        return self

    def start_sync(self) -> Self:
        """Open the store and come to life on threads. Raises: as `start`."""
        self._begin()
        run_inline(self._open(ThreadHome(f"{next(_numbers)}", self._options.clock, self._options.handler_timeout)))
        return self

    async def close(self, timeout: float | None = None) -> ShutdownReport:
        """Stop intake, finish accepted events, flush, and close the store, in at most *timeout* (else `close_timeout`) seconds.

        There is one close: calling it again, also meanwhile, waits for it and returns its report. It goes on if its caller is cancelled.
        """
        seconds = self._options.close_timeout if timeout is None else check_seconds("timeout", timeout, least=0.0)
        if self._report is not None:
            return self._report
        if self._state == "new":
            return self._never_opened()
        self._check_here(closing=True)
        return await self._close(seconds)

    def close_sync(self, timeout: float | None = None) -> ShutdownReport:
        """The same as `close`, for threads."""
        seconds = self._options.close_timeout if timeout is None else check_seconds("timeout", timeout, least=0.0)
        if self._report is not None:
            return self._report
        if self._state == "new":
            return self._never_opened()
        if self._state == "open" and self._loop is not None and self._loop.is_closed():
            return self._close_without_loop(seconds)
        return self._run_sync(lambda: self._close(seconds), None, closing=True)  # type: ignore[no-any-return]

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        if self._state != "forked":
            await self.close()

    def __enter__(self) -> Self:
        return self.start_sync()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._state != "forked":  # a child that leaves its parent's block has nothing to close
            self.close_sync()

    def _close_at_exit(self) -> None:
        try:
            if self._loop is None or self._loop.is_running():
                self.close_sync()
            else:
                self._close_without_loop(None)
        except ActorbotError as error:
            logger.error("at the end of the program: %s", error)

    def _close_without_loop(self, timeout: float | None) -> ShutdownReport:
        """Flush what is committed: with its loop, whoever could take a turn has gone."""
        self._state = "closed"
        start = SystemClock.monotonic()
        until = start + (self._options.close_timeout if timeout is None else timeout)
        self._registry.close_intake()
        actors = list(self._registry.resident())
        for future in (lambda: self._turns.flusher.flush(actors), lambda: self._writer.call(self._store.close)):
            try:
                future().result(max(until - SystemClock.monotonic(), 0.0))
            except (TimeoutError, ActorbotError) as error:
                logger.error("closing without an event loop: %s", error)
        unflushed = tuple(actor.session_id for actor in actors if actor.behind())
        self._report = ShutdownReport(unflushed, 0, len(self._turns.outbox), SystemClock.monotonic() - start)
        for actor in (self._turns.flusher, self._registry):
            actor.end()
        self._release()
        return self._report

    def _begin(self) -> None:
        if self._state == "forked":
            self._check_open()
        if self._state != "new":
            raise ManagerClosedError(f"the manager is {self._state}: a manager is started once; make a new one")
        self._state = "starting"

    def _never_opened(self) -> ShutdownReport:
        self._state = "closed"
        self._report = ShutdownReport((), 0, 0, 0.0)
        return self._report

    async def _open(self, home: Home) -> None:
        self._home, self._loop = home, home.loop if isinstance(home, LoopHome) else None
        given, deadline = self._options.store, self._options.policy.store_deadline
        self._store: RecordStore = (
            given if isinstance(given, RecordStore) else DriverStore(given, home.run_awaitable, deadline)
        )
        self._writer = StoreThread("actorbot-store", self._store.name, self._options.clock, deadline)
        one_thread = isinstance(self._store, DriverStore)
        self._reader = (
            self._writer
            if one_thread
            else StoreThread("actorbot-reads", self._store.name, self._options.clock, deadline)
        )
        try:
            await home.wait(self._writer.call(self._store.init))
        except BaseException:
            self._state = "closed"
            self._writer.close()
            self._release()
            raise
        self._make_actors()
        _open_managers.add(self)
        self._state = "open"
        self._here = (home.thread_id or 0) if isinstance(home, LoopHome) else 0
        self._sweep_store_later()

    def _make_actors(self) -> None:
        home, handler = self._home, self._options.functions["handler"]
        plain = isinstance(home, ThreadHome) and handler is not None and is_plain(handler)
        self._inline = home if plain and isinstance(home, ThreadHome) else None
        hooks = self._hooks = Hooks(
            home, self._options.functions, limit=self._options.handler_timeout, most_told=self._options.max_resident
        )
        flusher = Flusher(self._store, self._writer, self._options.policy, self._options.clock, hooks.tell_conflict)
        turns = self._turns = Turns(
            home=home,
            clock=self._options.clock,
            policy=self._options.policy,
            store=self._store.name,
            expires_in=self._store.expires_in,
            shape=self._options.shape,
            max_session_bytes=self._options.max_session_bytes,
            max_mailbox=self._options.max_mailbox,
            flusher=flusher,
            outbox=Outbox(home, hooks.bound("deliver"), hooks.tell_undelivered),
            handle=hooks.bound("handler") or _no_handler,
            handle_here=handler if plain else None,
            on_start=hooks.bound("on_session_start"),
            on_error=hooks.tell_error,
            on_expire=hooks.tell_expired,
            handler_timeout=self._options.handler_timeout,
        )
        self._loader = Loader(self._store, self._reader, 500)
        self._registry = Registry(
            turns, self._loader, max_resident=self._options.max_resident, idle_timeout=self._options.idle_timeout
        )
        self._entries = self._registry.entries
        for actor in (flusher, self._registry):
            actor.begin()
        self._registry.start_sweeping()

    async def _close(self, seconds: float) -> ShutdownReport:
        for context in chain():
            context._task = None  # its handler waits for the close, which ends its turn, and need not cancel it
        with self._ending:
            ended, begun = self._closing, self._closing is not None
            if ended is None:
                ended = self._closing = new_future()
        if not begun:
            closing = self._end(ended, seconds)
            if self._loop is not None:
                self._closer = self._loop.create_task(closing, context=ContextVars())
            else:  # a thread of its own, since user code may hold all those of the pool
                thread = threading.Thread(target=run_inline, args=(closing,), name="actorbot-close", daemon=True)
                try:
                    thread.start()
                except RuntimeError:
                    run_inline(closing)  # Python 3.12 and later start no thread any more when the program ends
        return await self._home.wait(ended)  # type: ignore[no-any-return]

    async def _end(self, ended: Future[ShutdownReport], seconds: float) -> None:
        try:
            self._report = await self._shut(seconds)
        except BaseException as error:  # cancelled with its loop, say: it may be made again
            self._closing = None
            ended.set_exception(ManagerClosedError(f"the close broke off ({error!r}); close again"))
            raise
        ended.set_result(self._report)

    async def _shut(self, seconds: float) -> ShutdownReport:
        self._state, self._here = "closing", 0
        clock = SystemClock.monotonic  # real time, also under a virtual clock: a close must end
        start = clock()
        until = start + seconds
        self._registry.close_intake()
        actors = list(self._registry.resident())
        self._turns.flusher.flush(actors)  # while handlers run: they may take all the time there is
        await self._settle(actors, until - seconds / 10)
        unfinished = self._registry.dismiss_all()
        self._turns.end_all()
        self._loader.close()
        await self._flush_until(actors, until)
        await self._try(self._turns.outbox.emptied(), until)
        for running in list(self._hooks.running):
            await self._try(running, until)
        self._turns.flusher.stop()
        unflushed = tuple(actor.session_id for actor in actors if actor.behind())
        await self._try(self._writer.call(self._store.close), max(until, clock() + 1.0))
        report = ShutdownReport(unflushed, unfinished, len(self._turns.outbox), clock() - start)
        if not report.clean:
            logger.error(
                "closed with %d sessions not flushed, %d unfinished, %d with replies undelivered: %s",
                len(unflushed), unfinished, report.undelivered, ", ".join(map(repr, unflushed)) or "-",
            )  # fmt: skip
        self._state = "closed"
        for actor in (self._turns.flusher, self._registry):
            actor.end()
        self._release()
        return report

    async def _settle(self, actors: list[SessionActor], until: float) -> None:
        """Take each session out of memory when every accepted event has had its turn; those that do not come to that stay."""
        for actor in actors:
            # A held turn may have no handler yet: a told event is on its way to it, or the session is being read.
            while not actor.closed:
                if not actor.enter() and not await self._wait_for_turn(actor, until):
                    break
                if not self._registry.retire(actor):
                    actor.leave()

    async def _wait_for_turn(self, actor: SessionActor, until: float) -> bool:
        left = until - SystemClock.monotonic()
        waiter = self._home.waiter(actor, max(left, 0.0))
        try:
            if left <= 0 or not actor.join(waiter, limit=inf):
                return False
            if isinstance(self._home, LoopHome):
                async with asyncio.timeout(left):
                    await waiter
            else:
                await waiter
        except (ActorbotError, TimeoutError):
            return False
        return True

    async def _flush_until(self, actors: list[SessionActor], until: float) -> None:
        """Flush until the store has everything, or the time is up."""
        while True:
            await self._try(self._turns.flusher.flush(actors), until)
            left = until - SystemClock.monotonic()
            if left <= 0 or not any(actor.behind() for actor in actors):
                return
            await self._try(new_future(), until - max(0.0, left - FLUSH_AGAIN))

    async def _try(self, future: Future[Any], until: float) -> None:
        try:
            await self._home.wait(future, max(until - SystemClock.monotonic(), 0.0))
        except (TimeoutError, ActorbotError) as error:
            logger.debug("while closing: %r", error)

    def _release(self) -> None:
        _open_managers.discard(self)
        if self._reader is not self._writer:  # which ends with the flusher
            self._reader.close()
        self._home.close()
        if self._options.own_clock:
            self._options.clock.close()

    # --- verbs --------------------------------------------------------------------------------------------------------

    async def dispatch(self, session_id: str, event: Any, *, event_id: str | None = None, durable: bool = False) -> Any:
        """Handle *event* in its session's turn and return what the handler returned, or `DUPLICATE` for an *event_id* seen before.

        Event ids are compared by their text: 7 and "7" are the same.

        Raises what the handler raised; OverloadedError, DeadlockError, HandlerTimeoutError, store errors.
        """
        # The usual case, without a detour: called where it belongs, for a session that is here and idle. Of another loop in the
        # same thread this loop knows no current task; `get_running_loop` would ask for the process id, which takes longer.
        if get_ident() == self._here and (task := current_task(self._loop)) is not None and type(session_id) is str:
            actor = self._entries.get(session_id)
            if actor is not None and not actor.line and actor.turn.acquire(False):
                return await actor.take_turn(event, event_id, durable, task)
        self._check_here()
        return await self._dispatch(session_id, event, event_id, durable, None)

    def dispatch_sync(
        self,
        session_id: str,
        event: Any,
        *,
        event_id: str | None = None,
        durable: bool = False,
        timeout: float | None = None,
    ) -> Any:
        """The same as `dispatch`, for threads.

        *timeout* bounds it. But a `def` handler of a threaded manager runs in the calling thread: it is `handler_timeout` that ends
        its turn, and nothing can end its run.
        """
        threads = self._inline
        if threads is not None and self._state == "open" and type(session_id) is str:
            actor = self._entries.get(session_id)
            if actor is not None and not actor.line and actor.turn.acquire(False):
                turn = actor.take_turn(event, event_id, durable, None)
                return run_inline(turn) if timeout is None else threads.run(turn, session_id, timeout)
        return self._run_sync(
            lambda: self._dispatch(session_id, event, event_id, durable, timeout), timeout, session_id=session_id
        )

    async def submit(self, session_id: str, event: Any, *, event_id: str | None = None) -> Receipt:
        """Accept *event* and return at once; it is handled in its turn. Raises: OverloadedError."""
        self._check_here()
        return self._submit(session_id, event, event_id)

    def submit_sync(self, session_id: str, event: Any, *, event_id: str | None = None) -> Receipt:
        """The same as `submit`, for threads."""
        self._check_away()
        return self._submit(session_id, event, event_id)

    @asynccontextmanager
    async def turn(self, session_id: str, *, event_id: str | None = None) -> AsyncIterator[Context]:
        """Borrow the session's turn: what the block changes is committed at its end, or rolled back if it raises.

        Raises: DuplicateEventError on entry, ConflictError at the exit.
        """
        self._check_here()
        actor, context = await self._borrow(session_id, event_id, None)
        try:
            yield context
        except BaseException as error:
            raised = await actor.fail(context, error)
            if raised is error or isinstance(error, SystemExit | KeyboardInterrupt):
                raise  # an exit is not a handler's here: it is the program that is told to end
            raise raised from error
        await self._give_back(actor, context)

    @contextmanager
    def turn_sync(
        self, session_id: str, *, event_id: str | None = None, timeout: float | None = None
    ) -> Iterator[Context]:
        """The same as `turn`, for threads."""
        actor, context = self._run_sync(
            lambda: self._borrow(session_id, event_id, timeout), timeout, session_id=session_id
        )
        current.set(context)
        try:
            yield context
        except BaseException as error:
            failure = error
            raised = self._run_sync(lambda: actor.fail(context, failure), None, closing=True)
            if raised is failure or isinstance(failure, SystemExit | KeyboardInterrupt):
                raise  # an exit is not a handler's here: it is the program that is told to end
            raise raised from failure
        self._run_sync(lambda: self._give_back(actor, context), None, closing=True)  # it was accepted before the close

    async def flush(self, session_id: str | None = None) -> None:
        """Return when what was committed, of one session or of all, is in the store. Raises: StoreUnavailableError."""
        self._check_here()
        await self._flush(session_id)

    def flush_sync(self, session_id: str | None = None) -> None:
        """The same as `flush`, for threads."""
        self._run_sync(lambda: self._flush(session_id), None)

    async def peek(self, session_id: str) -> dict[str, Any] | None:
        """Return a copy of the session's values, or `None`; takes no turn, activates nothing, slides no expiry."""
        self._check_here()
        return await self._peek(session_id)

    def peek_sync(self, session_id: str) -> dict[str, Any] | None:
        """The same as `peek`, for threads."""
        return self._run_sync(lambda: self._peek(session_id), None)  # type: ignore[no-any-return]

    async def destroy(self, session_id: str) -> None:
        """Remove the session for every reader; no older write brings it back. Raises: StoreUnavailableError, OutcomeUnknownError."""
        self._check_here()
        await self._destroy(session_id)

    def destroy_sync(self, session_id: str) -> None:
        """The same as `destroy`, for threads."""
        self._run_sync(lambda: self._destroy(session_id), None)

    async def delivered(self, session_id: str) -> None:
        """Return when the replies that the session has sent so far have been handed to `deliver`, or have failed."""
        self._check_here()
        await self._home.wait(self._turns.outbox.emptied(session_id))

    def stats(self) -> Stats:
        """Return counters and gauges. Any thread."""
        self._check_open()
        turns, flusher, registry = self._turns, self._turns.flusher, self._registry
        return Stats(
            handled=turns.handled,
            failed=turns.failed,
            duplicates=turns.duplicates,
            activations=registry.activations,
            passivations=registry.passivations,
            resident=len(registry.entries),
            running=len(turns.running),
            dirty_bytes=flusher.dirty_bytes,
            oldest_dirty=flusher.oldest_dirty(),
            store_reads=self._loader.reads,
            store_writes=flusher.writes,
            store_retries=flusher.retries,
            conflicts=flusher.conflicts,
            dead_letters=self._hooks.dead_letters,
            replies_waiting=len(turns.outbox),
        )

    def health(self) -> Health:
        """Say whether the manager does its work. Any thread."""
        if self._state != "open":
            return Health("failing", f"the manager is {self._state}")
        flusher = self._turns.flusher
        if not (flusher.is_running() and self._registry.is_running()):
            return Health("failing", "an actor of the manager has ended; restart the process")
        if flusher.full:
            return Health("degraded", f"{flusher.dirty_bytes} bytes wait to be flushed (max_dirty_bytes)")
        if flusher.outage_since is not None:
            seconds = self._options.clock.monotonic() - flusher.outage_since
            return Health("degraded", f"{self._store.name} has not taken writes for {seconds:.1f} s")
        if (reason := self._registry.unreadable()) is not None:
            return Health("degraded", f"the last read failed: {reason}")
        if flusher.refusing:
            return Health("degraded", f"{self._store.name} does not take the writes of some sessions")
        return Health("ready", "")

    def resident(self) -> Iterator[tuple[str, SessionInfo]]:
        """Iterate over the sessions in memory. Any thread."""
        self._check_open()
        now = self._options.clock.monotonic()
        for actor in self._registry.resident():
            version, state = (0, None) if actor.committed is None else actor.committed[:2]
            yield (
                actor.session_id,
                SessionInfo(
                    version=version,
                    flushed=actor.flushed,
                    idle=now - actor.touched,
                    waiting=len(actor.line or ()),
                    busy=actor.turn.locked(),
                    bytes=0 if state is None else len(state),
                ),
            )

    # --- the verbs, once for both homes ---------------------------------------------------------------------------------

    async def _dispatch(
        self, session_id: str, event: Any, event_id: str | None, durable: bool, timeout: float | None
    ) -> Any:
        session_id = check_session_id(session_id)
        actor = await self._registry.enter(session_id, timeout)
        return await actor.take_turn(event, event_id, durable, self._home.current_task())

    def _submit(self, session_id: str, event: Any, event_id: str | None) -> Receipt:
        session_id = check_session_id(session_id)
        outcome = new_future()
        actor = self._registry.tell(session_id, Handle(event, event_id, outcome, copy_context()))
        return Receipt(self, self._hooks, actor, event, outcome)

    async def _borrow(
        self, session_id: str, event_id: str | None, timeout: float | None
    ) -> tuple[SessionActor, Context]:
        session_id = check_session_id(session_id)
        actor = await self._registry.enter(session_id, timeout)
        try:
            await actor.make_ready()
            context = actor.open(
                None, event_id, None
            )  # a time-out takes the session from the borrower, not its task's life
        except BaseException:
            actor.leave()
            raise
        if context is None:
            actor.leave()
            raise DuplicateEventError(session_id, f"event id {event_id!r} was counted before")
        try:
            if context.is_new and self._turns.on_start is not None:
                await self._turns.on_start(context)
        except BaseException as error:
            raised = await actor.fail(context, error)
            if raised is error:
                raise
            raise raised from error
        return actor, context

    async def _give_back(self, actor: SessionActor, context: Context) -> None:
        try:
            done = actor.commit(context)
            if done is not None:
                await self._home.wait(done)
        except BaseException as error:
            raised = await actor.fail(context, error)
            if raised is error:
                raise
            raise raised from error
        if not context._left:
            actor.leave()

    async def _flush(self, session_id: str | None) -> None:
        if session_id is None:
            actors = list(self._registry.resident())
        else:
            session_id = check_session_id(session_id)
            actor = self._registry.entries.get(session_id)
            actors = [] if actor is None else [actor]
        await self._home.wait(self._turns.flusher.flush(actors))

    async def _peek(self, session_id: str) -> dict[str, Any] | None:
        session_id = check_session_id(session_id)
        actor = self._registry.entries.get(session_id)
        committed = None if actor is None else actor.committed
        if committed is not None:
            state, ended = committed[1], self._options.clock.wall() >= committed[4]
        else:
            record = await self._registry.read(session_id)
            state = None if record is None else record.state
            ended = record is not None and self._options.clock.wall() >= record.expires_at
        if state is None or ended:
            return None
        try:
            return decode_state(state)
        except UndecodableError as error:
            raise CorruptSessionError(self._store.name, session_id, str(error)) from error

    async def _destroy(self, session_id: str) -> None:
        session_id = check_session_id(session_id)
        actor = await self._enter_to_destroy(session_id)
        wall = self._options.clock.wall()
        version = actor.flushed if actor.committed is None else actor.committed[0]
        gone = (version + 1, None, b"", wall, wall + TOMBSTONE_AGE)
        written = self._turns.flusher.write(actor, gone, forced=True)

        def settle(written: Future[None]) -> None:
            # Whatever has become of the caller: what comes next reads the store where nobody knows what it holds now.
            error = written.exception()
            if error is None:
                actor.committed = gone
            elif isinstance(error, OutcomeUnknownError) and not actor.behind():
                actor.committed = None
            actor.leave()

        written.add_done_callback(lambda done: self._home.post(settle, done))
        await self._home.wait(written)

    async def _enter_to_destroy(self, session_id: str) -> SessionActor:
        """Take the turn, also of a session whose record is broken: destroying it is the cure."""
        while True:
            self._registry.forgive(session_id)
            try:
                return await self._registry.enter(session_id)
            except CorruptSessionError:
                continue  # somebody before us in the line has tried to read it

    def _sweep_store_later(self) -> None:
        seconds = min(600.0, max(1.0, self._store.expires_in / 10))

        def sweep() -> Future[None] | None:
            if self._state != "open":
                return None
            done = new_future()
            call = self._writer.call(lambda: list(self._store.sweep(self._options.clock.wall())), deadline=600.0)
            call.add_done_callback(lambda outcome: self._swept(outcome, done))
            return done

        self._options.clock.call_at(self._options.clock.monotonic() + seconds, sweep)

    def _swept(self, outcome: Future[Any], done: Future[None]) -> None:
        try:
            if (error := outcome.exception()) is not None:
                logger.warning("sweeping expired records failed: %s", error)
            else:
                for record in outcome.result():
                    if record.session_id not in self._registry.entries:
                        self._hooks.tell_expired(record.session_id, record.state, record.expires_at)
            self._sweep_store_later()
        finally:
            done.set_result(None)


async def _no_handler(_: Context) -> Any:
    raise ConfigError("handler", None, "a function of (context): dispatch and submit need one; turn() does not")


def check_session_id(session_id: str) -> str:
    """Return *session_id* as a plain `str`. Raises: InvalidSessionIdError."""
    if not isinstance(session_id, str):
        raise InvalidSessionIdError(f"expected a str, got {type(session_id).__name__}")
    session_id = str.__str__(session_id)  # of a StrEnum, say: what a record keeps is a str
    if not session_id:
        raise InvalidSessionIdError("it is empty")
    try:
        size = len(session_id.encode())
    except UnicodeEncodeError:
        raise InvalidSessionIdError("it holds a lone surrogate") from None
    if size > MAX_ID_BYTES:
        raise InvalidSessionIdError(f"it has {size} UTF-8 bytes; at most {MAX_ID_BYTES} are allowed")
    if not session_id.isprintable() and any(unicodedata.category(character) == "Cc" for character in session_id):
        raise InvalidSessionIdError("it holds a control character")
    return session_id


_open_managers: weakref.WeakSet[SessionManager] = weakref.WeakSet()


def _after_fork() -> None:
    for manager in list(_open_managers):
        manager._state, manager._here = "forked", 0
    _open_managers.clear()


os.register_at_fork(after_in_child=_after_fork)


def _at_exit() -> None:
    """Close what a program has forgotten to close. By now whoever is no daemon has ended, and our threads still run."""
    for manager in list(_open_managers):
        if manager._state == "open":
            logger.warning("the program ends with an open manager: close it, or use `with`; flushing what it has")
            manager._close_at_exit()


atexit.register(_at_exit)
