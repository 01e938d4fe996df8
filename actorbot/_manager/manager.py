"""`SessionManager`: its options, its life, and each verb for both homes (done in `verbs`)."""

from __future__ import annotations

import itertools
from asyncio import current_task
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from threading import get_ident
from typing import Any, Self

from actorbot._checks import check_timeout
from actorbot._manager.access import Life
from actorbot._manager.closing import Close, CloseTime, recover_or_end, shut, shut_without_loop
from actorbot._manager.exits import forget, remember
from actorbot._manager.losing import lose
from actorbot._manager.many import Many
from actorbot._manager.options import Options
from actorbot._manager.parts import Parts
from actorbot._manager.receipt import Receipt
from actorbot._manager.verbs import OnDuplicate, Verbs
from actorbot._policy import FlushPolicy
from actorbot._reports import ShutdownReport
from actorbot._runtime.clock import Clock
from actorbot._runtime.current import current
from actorbot._runtime.home import Home
from actorbot._runtime.loop_home import LoopHome
from actorbot._runtime.thread_home import ThreadHome, run_inline
from actorbot._turns.context import Context, raise_for
from actorbot._turns.hooks import Hook
from actorbot._turns.lend import Loan, take_back, undo
from actorbot.errors import ManagerClosedError, OwnershipLostError

__all__ = ["SessionManager"]

_numbers = itertools.count(1)


class SessionManager(Many):
    """Keeps the sessions of a bot's users, each in an actor of its own: one event at a time.

    A session is in memory while its user is there. `store` is a store of actorbot's, or any object
    with `init`, `read`, `write` and `destroy`. `handler(context)` handles dispatched events, and
    `deliver(session_id, message)` sends replies. Each may be `def` or `async def`, like every
    `on_…` hook, and each has `handler_timeout` seconds.

    Started by `async with` or `start()`, the manager is at home on the running event loop: there it
    runs `async def` code, and `def` code on a pool of threads. Started by `with` or `start_sync()`,
    it is at home on threads: `def` handlers run in the thread that calls `dispatch_sync`, and
    `async def` ones on a private loop. The `_sync` verbs work in both, on any thread but a loop's.
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
        max_replies: int = 1_000,
        max_session_bytes: int = 262_144,
        close_timeout: float = 10.0,
        ownership: str | None = None,
        takeover_timeout: float = 15.0,
        on_error: Hook | None = None,
        on_session_start: Hook | None = None,
        on_session_expire: Hook | None = None,
        on_dead_letter: Hook | None = None,
        on_conflict: Hook | None = None,
        session_type: type = dict,
        clock: Clock | None = None,
    ) -> None:
        super().__init__()
        self._options = Options.checked(
            store=store, flush=flush, session_type=session_type, clock=clock, idle_timeout=idle_timeout,
            handler_timeout=handler_timeout, close_timeout=close_timeout, ownership=ownership,
            takeover_timeout=takeover_timeout, max_resident=max_resident,
            max_mailbox=max_mailbox, max_replies=max_replies, max_session_bytes=max_session_bytes, handler=handler,
            deliver=deliver, on_error=on_error, on_session_start=on_session_start, on_conflict=on_conflict,
            on_session_expire=on_session_expire, on_dead_letter=on_dead_letter,
        )  # fmt: skip
        self._closing = Close()
        self._report: ShutdownReport | None = None

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Open the store, and be at home on the running loop. Raises: store errors, ConfigError."""
        self._begin(on_loop=True)
        await self._open(LoopHome(f"{next(_numbers)}", self._options.clock, self._options.handler_timeout))
        return self

    def start_sync(self) -> Self:
        """Open the store, and be at home on threads. Raises: as `start`."""
        self._begin(on_loop=False)
        run_inline(self._open(ThreadHome(f"{next(_numbers)}", self._options.clock, self._options.handler_timeout)))
        return self

    async def close(self, timeout: float | None = None) -> ShutdownReport:
        """Stop intake, finish accepted events, flush, and close the store if nobody else uses it.

        All this takes *timeout* seconds, or else `close_timeout`. There is one close: a later call
        returns its report, and one with less time hurries it. It goes on if its caller is
        cancelled, and does not wait for a handler or hook that calls it.
        """
        seconds = self._options.close_timeout if timeout is None else check_timeout(timeout)
        if (report := self._last_report()) is not None:
            return report
        self._check_here(closing=True)
        return await self._close(seconds)

    def close_sync(self, timeout: float | None = None) -> ShutdownReport:
        """The same as `close`, for threads."""
        seconds = self._options.close_timeout if timeout is None else check_timeout(timeout)
        if (report := self._last_report()) is not None:
            return report
        if self._life in (Life.OPEN, Life.LOST) and self._loop is not None and self._loop.is_closed():
            return self._close_without_loop(seconds)
        try:
            self._check_away(closing=True)
            return self._closing.wait_in_thread(self, seconds)
        except ManagerClosedError:
            if self._report is None:
                raise
            return self._report  # of another thread's close, which has ended since the look above

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        if self._life is not Life.FORKED:
            await self.close()

    def __enter__(self) -> Self:
        return self.start_sync()

    def __exit__(self, *_: object) -> None:
        if self._life is not Life.FORKED:  # a forked child has nothing to close
            self.close_sync()

    def _close_at_exit(self) -> None:
        if self._loop is None or self._loop.is_running():
            self.close_sync()
        else:
            self._close_without_loop(self._options.close_timeout)

    async def _open(self, home: Home) -> None:
        self._home, self._loop = home, home.loop if isinstance(home, LoopHome) else None
        parts = self._parts = Parts(self._options, home, self._wait_for, self._lose)
        try:
            await parts.start()
            self._shared, self._actors = parts.shared, parts.table.actors
            await recover_or_end(parts, self._end_if_lost)
        except BaseException:
            self._live(Life.CLOSED)
            raise
        self._verbs = Verbs(parts.shared, parts.table, parts.activation, parts.loader, parts.broken, parts.replay)
        remember(self)
        self._live(Life.OPEN)
        if isinstance(home, LoopHome):
            self._here = home.thread_id or 0
        elif isinstance(home, ThreadHome) and parts.shared.handle_here is not None:
            self._inline = home
        self._end_if_lost()  # just now

    def _lose(self, error: OwnershipLostError) -> None:
        """Acknowledge nothing more: another process has taken over the store. Any thread."""
        self._lost = error
        if self._shared is not None:
            self._shared.flusher.stop()  # now, though the loop may be busy
        with suppress(RuntimeError):  # the loop has been closed, without the manager
            self._home.post(self._end_if_lost)

    def _end_if_lost(self) -> None:
        if self._lost is not None and self._life is Life.OPEN:
            self._live(Life.LOST)
        if self._lost is not None and self._shared is not None:
            lose(self._parts, self._lost, self._on_lost)

    def _last_report(self) -> ShutdownReport | None:
        """Return the report of a close that has ended; a close of a new manager ends here."""
        if self._life is Life.NEW:
            self._live(Life.CLOSED)
            self._report = ShutdownReport((), 0, 0, 0.0)
        return self._report

    async def _close(self, seconds: float) -> ShutdownReport:
        return await self._closing.wait(self._home, seconds, self._end)

    async def _end(self, time: CloseTime) -> ShutdownReport:
        self._live(Life.CLOSING)
        return self._finish(await shut(self._parts, time, self._closing.asking))

    def _close_without_loop(self, seconds: float) -> ShutdownReport:
        self._live(Life.CLOSED)
        return self._finish(shut_without_loop(self._parts, seconds))

    def _finish(self, report: ShutdownReport) -> ShutdownReport:
        if self._report is None:  # or else a loop that was blocked, and not waited for, is back
            self._report = report
            self._live(Life.CLOSED)
            forget(self)
            self._parts.end()
        return self._report

    # --- verbs -----------------------------------------------------------------------------------

    async def dispatch(
        self,
        session_id: str,
        event: Any,
        *,
        event_id: str | None = None,
        durable: bool = False,
        on_duplicate: OnDuplicate = "duplicate",
    ) -> Any:
        """Handle *event* in its session's turn; return what the handler returns.

        Returns `DUPLICATE` for an *event_id* that was handled before; with `on_duplicate="result"`
        a copy of what its handler has returned then, if that is remembered. Event ids are compared
        by their text: 7 and "7" are the same. Raises what the handler raises; OverloadedError,
        DeadlockError, HandlerTimeoutError, store errors. To cancel it rolls the turn back.
        """
        # The usual case: called on the home loop, for a session that is in memory and idle. If a
        # second loop runs in this thread, `self._loop` has no current task. (`get_running_loop`
        # would tell too, but it asks for the process id, which takes longer.)
        if (
            get_ident() == self._here
            and (task := current_task(self._loop)) is not None
            and type(session_id) is str
            and on_duplicate == "duplicate"
        ):
            actor = self._actors.get(session_id)
            if actor is not None and not actor.line and actor.turn.acquire(False):
                return await actor.take_turn(event, event_id, durable, task)
        self._check_here()
        return await self._verbs.dispatch(session_id, event, event_id, durable, None, on_duplicate)

    def dispatch_sync(
        self,
        session_id: str,
        event: Any,
        *,
        event_id: str | None = None,
        durable: bool = False,
        on_duplicate: OnDuplicate = "duplicate",
        timeout: float | None = None,
    ) -> Any:
        """The same as `dispatch`, for threads.

        It takes at most *timeout* seconds. But a `def` handler of a threaded manager runs in the
        calling thread: nothing can stop it, and it is `handler_timeout` that ends its turn.
        """
        threads = self._inline if on_duplicate == "duplicate" else None
        if threads is not None and type(session_id) is str and (timeout is None or check_timeout(timeout) >= 0.0):
            actor = self._actors.get(session_id)
            if actor is not None and not actor.line and actor.turn.acquire(False):
                turn = actor.take_turn(event, event_id, durable, None)
                return run_inline(turn) if timeout is None else threads.run(turn, session_id, timeout)
        self._check_away()
        verb = self._verbs.dispatch
        return self._run_turn(verb, session_id, event, event_id, durable, timeout, on_duplicate, timeout=timeout)

    async def submit(self, session_id: str, event: Any, *, event_id: str | None = None) -> Receipt:
        """Accept *event* and return; it is handled later, in its turn. Raises: OverloadedError."""
        self._check_here()
        return self._accept(session_id, event, event_id)

    def submit_sync(self, session_id: str, event: Any, *, event_id: str | None = None) -> Receipt:
        """The same as `submit`, for threads."""
        self._check_away()
        return self._accept(session_id, event, event_id)

    def _accept(self, session_id: str, event: Any, event_id: str | None) -> Receipt:
        actor, outcome = self._verbs.accept(session_id, event, event_id)
        return Receipt(self, self._parts.hooks, actor, event, outcome)

    @asynccontextmanager
    async def turn(self, session_id: str, *, event_id: str | None = None) -> AsyncIterator[Context]:
        """Borrow the session's turn. What the block changes is committed at its end.

        If the block raises, it is rolled back. Raises: DuplicateEventError at the entry,
        ConflictError at the exit.
        """
        self._check_here()
        context = await self._verbs.borrow(session_id, event_id, None)
        try:
            yield context
        except BaseException as error:
            raise_for(error, await undo(context, error))
        await take_back(context)

    @contextmanager
    def turn_sync(
        self, session_id: str, *, event_id: str | None = None, timeout: float | None = None
    ) -> Iterator[Context]:
        """The same as `turn`, for threads."""
        self._check_away()
        with Loan(self._verbs.borrow) as loan:
            context = self._run_sync(loan.begin, session_id, event_id, timeout, timeout=timeout)
        current.set(context)
        try:
            yield context
        except BaseException as error:
            self._check_away(closing=True)
            raise_for(error, self._run_sync(undo, context, error))
        self._check_away(closing=True)  # it was lent before a close that may have begun
        self._run_turn(take_back, context)

    async def peek(self, session_id: str) -> dict[str, Any] | None:
        """Return a copy of the session's values, or `None`.

        It takes no turn, does not bring the session into memory, and does not move its expiry.
        """
        self._check_here()
        return await self._verbs.peek(session_id)

    def peek_sync(self, session_id: str) -> dict[str, Any] | None:
        """The same as `peek`, for threads."""
        self._check_away()
        return self._run_sync(self._verbs.peek, session_id)  # type: ignore[no-any-return]

    async def destroy(self, session_id: str) -> None:
        """Remove the session for every reader. No older write brings it back.

        Raises: StoreUnavailableError, OutcomeUnknownError.
        """
        self._check_here()
        await self._verbs.destroy(session_id)

    def destroy_sync(self, session_id: str) -> None:
        """The same as `destroy`, for threads."""
        self._check_away()
        self._run_sync(self._verbs.destroy, session_id)
