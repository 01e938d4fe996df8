"""`Parts`: what a started manager consists of, made here and handed to each other."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from actorbot._flushing.flusher import Flusher
from actorbot._journal.file import JournalFile
from actorbot._journal.journal import Journal
from actorbot._manager.options import Options
from actorbot._ownership.clock import real_clock
from actorbot._ownership.keeper import Keeper
from actorbot._residents.activation import Activation
from actorbot._residents.anew import WriteAnew
from actorbot._residents.backoff import BrokenRecords
from actorbot._residents.idle import IdleBuckets
from actorbot._residents.loader import Loader
from actorbot._residents.replay import Replay
from actorbot._residents.room import Room
from actorbot._residents.sweeper import Sweeper
from actorbot._residents.table import Table
from actorbot._runtime.deadline_thread import DeadlineThread
from actorbot._runtime.home import Home, Promise, is_async, is_plain, new_future
from actorbot._runtime.once import Once
from actorbot._runtime.thread_home import ThreadHome
from actorbot._turns.acknowledge import claim_first, write_ahead, write_through
from actorbot._turns.answers import Answers
from actorbot._turns.context import Context
from actorbot._turns.hooks import Hook, Hooks
from actorbot._turns.outbox import Outbox, ask_again
from actorbot._turns.overdue import RunningTurns
from actorbot._turns.reply_room import ReplyRoom
from actorbot._turns.shared import TurnShared
from actorbot.errors import ActorbotError, ConfigError, OwnershipLostError
from actorbot.stores._users import close_after_last, open_for
from actorbot.stores.base import RecordStore
from actorbot.stores.driver import DriverStore

__all__ = ["Parts"]

logger = logging.getLogger("actorbot")

MOMENT = 1.0  # seconds that a start that fails gives its lease to be given back
READ_AT_ONCE = 500  # records that one call to the store asks for


class Parts:
    """The parts of one manager. How they end stands in `closing`."""

    shared: TurnShared
    table: Table
    loader: Loader
    broken: BrokenRecords
    activation: Activation
    replay: Replay
    sweeper: Sweeper

    def __init__(
        self,
        options: Options,
        home: Home,
        on_wait: Callable[[str, bool], None],
        on_lost: Callable[[OwnershipLostError], None],
    ) -> None:
        self._options = options
        self._on_wait = on_wait
        self.clock = clock = options.clock
        self.home = home
        given, deadline = options.store, options.policy.store_deadline
        self.store: RecordStore = given
        if not isinstance(given, RecordStore):
            self.store = DriverStore(given, home.run_awaitable, deadline)
        name = self.store.name
        # Taken by a store that has opened, and by a start that fails: the second of them closes it.
        self._opening = Once()
        self.losing = Once()  # taken when the store has been lost
        self.writer = self._reader = DeadlineThread("actorbot-store", name, clock, deadline)
        if not isinstance(self.store, DriverStore):  # whose calls all share one thread
            self._reader = DeadlineThread("actorbot-reads", name, clock, deadline)
        self.keeper: Keeper | None = None
        self._real_clock = clock
        if options.ownership is not None:
            self._real_clock = real_clock(clock)
            self.keeper = Keeper(self.store, given, options.ownership, self._real_clock, deadline, on_lost)
        self.hooks = Hooks(home, self._functions(), limit=options.handler_timeout, most_told=options.max_resident)

    def _functions(self) -> Mapping[str, Hook | None]:
        """Return the author's functions; `deliver` looks once more if it runs in another thread."""
        functions, keeper = self._options.functions, self.keeper
        deliver = functions["deliver"]
        if deliver is None or keeper is None or is_async(deliver) != isinstance(self.home, ThreadHome):
            return functions
        return {**functions, "deliver": ask_again(deliver, keeper)}

    async def start(self) -> None:
        """Open the store, then make and start what needs it. Raises: store errors."""
        options = self._options
        journal = self.journal = self._make_journal()
        try:
            if journal is not None:
                await self.home.wait(journal.open())
            await self.home.wait(self.writer.call(self._open_store))
            await self._own()
        except BaseException:
            if self.keeper is not None:
                with suppress(ActorbotError, TimeoutError):
                    await self.home.wait(self.keeper.release(), MOMENT)
            if not self._opening.take():
                self.close_store()
            if journal is not None:
                await self.home.wait(journal.close())
            self.writer.close()
            self._release()
            raise
        flusher = self._flusher = Flusher(
            self.store,
            self.writer,
            options.policy,
            self.clock,
            journal=journal,
            on_conflict=self.hooks.report_conflict,
            on_answer=None if journal is None else self._replay,
            check=(lambda: None) if self.keeper is None else self.keeper.check_before_writing,
            max_session_bytes=options.max_session_bytes,
        )
        self.shared = self._make_shared(flusher, journal)
        self._make_residents()
        for actor in (flusher, self.sweeper):
            actor.begin()

    async def _own(self) -> None:
        """Take the store's lease, if it keeps one. Raises: StoreLockedError; store errors."""
        if self.keeper is not None:
            await self.keeper.acquire(self.home, self._options.takeover_timeout, self._on_wait)
        elif self.store.keeps_lease:
            logger.warning(
                "%s: no lease is taken (ownership='none'): nothing keeps another process from the same sessions",
                self.store.name,
            )

    def _make_residents(self) -> None:
        options, shared = self._options, self.shared
        table = self.table = Table(shared)
        idle = IdleBuckets(min(options.idle_timeout, shared.expires_in))
        room = Room(shared, table, idle, options.max_resident)
        self.loader = Loader(shared, self.store, self._reader, READ_AT_ONCE)
        self.broken = BrokenRecords()
        self.activation = Activation(shared, table, room, idle, self.loader, self.broken)
        shared.load = self.activation.load
        shared.flusher.set_backs.on_news = WriteAnew(shared, table).begin
        self.replay = Replay(shared, table, self.activation)
        self.sweeper = Sweeper(shared, table, idle, options.idle_timeout, self.store, self.writer)

    def _make_journal(self) -> Journal | None:
        policy = self._options.policy
        if policy.mode != "journaled":
            return None
        return Journal(
            JournalFile(policy.path, policy.sync),
            self.clock,
            policy.store_deadline,
            self.home.post,
            self._note_journal,
            keeps=not self.store.outlives_process,
        )

    def _note_journal(self, size: int) -> None:
        self._flusher.dirty.note_journal(size)

    def _replay(self) -> None:
        self.home.spawn(self.replay.run)

    async def recover(self) -> None:
        """Bring to the store what the journal, if there is one, has of an earlier process.

        The start waits for that only as long as for one call to the store.
        """
        journal = self.journal
        if journal is None:
            return
        for entry in await self.home.wait(journal.conflicts()):
            self.hooks.keep(entry.record.session_id, entry.record.committed)
        if self.store.outlives_process:
            self.shared.dirty.note_journal(journal.size)
        found = len(journal.ids())
        if found:
            logger.info("the journal has %d sessions that the store may not have yet", found)
            recovered = new_future()

            async def recover() -> None:
                try:
                    await self.replay.run()
                finally:
                    recovered.set_result(None)

            self.home.spawn(recover)
            try:
                await self.home.wait(recovered, self._options.policy.store_deadline)
            except TimeoutError:
                logger.info("the rest of the journal goes to the store while the bot runs")

    def _make_shared(self, flusher: Flusher, journal: Journal | None) -> TurnShared:
        home, hooks, options = self.home, self.hooks, self._options
        handler = options.functions["handler"]
        handle_here = None
        if isinstance(home, ThreadHome) and handler is not None and is_plain(handler):
            handle_here = home.in_place(handler)
        acknowledge: Callable[..., Promise | None] | None = None if journal is None else write_ahead
        if options.policy.mode == "write-through":
            acknowledge = write_through
        elif self.keeper is not None and self.keeper.claims:
            acknowledge = claim_first
        room = ReplyRoom(options.max_replies, options.policy.max_dirty_bytes)
        return TurnShared(
            home=home,
            clock=options.clock,
            policy=options.policy,
            store=self.store.name,
            expires_in=self.store.expires_in,
            shape=options.shape,
            max_session_bytes=options.max_session_bytes,
            max_mailbox=options.max_mailbox,
            dirty=flusher.dirty,
            flusher=flusher,
            journal=journal,
            keeper=self.keeper,
            outbox=Outbox(home, hooks.bound("deliver"), hooks.report_undelivered, room, self.keeper),
            answers=Answers(home, options.max_session_bytes, options.policy.store_deadline),
            handle=hooks.bound("handler") or _no_handler,
            handle_here=handle_here,
            on_start=hooks.bound("on_session_start"),
            on_error=hooks.report_error,
            on_expire=hooks.report_expired,
            running=RunningTurns(home, options.clock, options.handler_timeout),
            acknowledge=acknowledge,
        )

    def _open_store(self) -> None:
        open_for(self, self._options.store, self.store.init)
        if not self._opening.take():  # the start was cancelled meanwhile
            close_after_last(self, self._options.store, self.store.close)

    def is_lost(self) -> OwnershipLostError | None:
        """Tell how the store was lost; `None` if it was not. Any thread."""
        return None if self.keeper is None else self.keeper.lost

    def release_lease(self, *, flushed: bool) -> Future[Any]:
        """Let the next owner begin. If not all is *flushed*, it has to find out by itself."""
        if self.keeper is not None:
            return self.keeper.release(give_back=flushed)
        return _done()

    def close_store(self) -> Future[Any]:
        """Close the store, unless another manager uses the same object."""
        return self.writer.call(lambda: close_after_last(self, self._options.store, self.store.close))

    def close_journal(self) -> Future[None]:
        """Have the journal commit what it was given, and close its file."""
        if self.journal is not None:
            return self.journal.close()
        return _done()

    def only_in_journal(self) -> list[str]:
        """List the sessions of which the closed journal has more than the store."""
        return [] if self.journal is None or not self.store.outlives_process else self.journal.ids()

    def end(self) -> None:
        """End every thread: the last step of a close."""
        for actor in (self.shared.flusher, self.sweeper):
            actor.end()
        self.shared.outbox.release_waiters()
        self._release()

    def _release(self) -> None:
        if self._reader is not self.writer:  # the writer ends with the flusher
            self._reader.close()
        if self._real_clock is not self.clock:
            self._real_clock.close()
        self.home.close()
        if self._options.own_clock:
            self.clock.close()


def _done() -> Future[None]:
    done = new_future()
    done.set_result(None)
    return done


async def _no_handler(_: Context) -> Any:
    raise ConfigError("handler", None, "a function of (context): dispatch and submit need one; turn() does not")
