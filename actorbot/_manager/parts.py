"""What a started manager consists of: the store and its threads, the flusher, the outbox, the turns, the registry."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from concurrent.futures import Future
from typing import Any

from actorbot._flushing.flusher import Flusher
from actorbot._journal.file import JournalFile
from actorbot._journal.journal import Journal
from actorbot._manager.options import Options
from actorbot._reports import Health, SessionInfo, Stats
from actorbot._residents.loader import Loader
from actorbot._residents.registry import Registry
from actorbot._runtime.deadline_thread import DeadlineThread
from actorbot._runtime.home import Home, is_plain, new_future
from actorbot._runtime.thread_home import ThreadHome
from actorbot._turns.context import Context
from actorbot._turns.hooks import Hooks
from actorbot._turns.outbox import Outbox
from actorbot._turns.shared import TurnShared
from actorbot.errors import ConfigError
from actorbot.stores.base import RecordStore
from actorbot.stores.driver import DriverStore

__all__ = ["Parts"]

logger = logging.getLogger("actorbot")

READ_AT_ONCE = 500  # records that are asked for in one call


class Parts:
    """The parts of one manager, at their home; `_closing` tells how they end."""

    shared: TurnShared
    loader: Loader
    registry: Registry

    def __init__(self, options: Options, home: Home) -> None:
        self._options = options
        self._clock = clock = options.clock
        self.home = home
        self.hooks = Hooks(home, options.functions, limit=options.handler_timeout, most_told=options.max_resident)
        given, deadline = options.store, options.policy.store_deadline
        self.store: RecordStore = given
        if not isinstance(given, RecordStore):
            self.store = DriverStore(given, home.run_awaitable, deadline)
        name = self.store.name
        self.writer = self._reader = DeadlineThread("actorbot-store", name, clock, deadline)
        if not isinstance(self.store, DriverStore):  # which has one thread for all
            self._reader = DeadlineThread("actorbot-reads", name, clock, deadline)

    async def start(self) -> None:
        """Open the store, and make and start what needs it open. Raises: store errors."""
        options = self._options
        journal = self._journal = self._make_journal()
        try:
            if journal is not None:
                await self.home.wait(journal.open())
            await self.home.wait(self.writer.call(self.store.init))
        except BaseException:
            if journal is not None:
                await self.home.wait(journal.close())
            self.writer.close()
            self._release()
            raise
        flusher = self._flusher = Flusher(
            self.store,
            self.writer,
            options.policy,
            self._clock,
            journal=journal,
            on_conflict=self.hooks.report_conflict,
            on_answer=None if journal is None else self._replay,
        )
        self.shared = self._make_shared(flusher, journal)
        self.loader = Loader(self.store, self._reader, self.home, READ_AT_ONCE)
        self.registry = Registry(
            self.shared, self.loader, max_resident=options.max_resident, idle_timeout=options.idle_timeout
        )
        for actor in (flusher, self.registry):
            actor.begin()
        self.registry.sweep_later()
        self._sweep_store_later()
        if journal is not None:
            await self._recover(journal, flusher)

    def _make_journal(self) -> Journal | None:
        policy = self._options.policy
        if policy.mode != "journaled":
            return None
        return Journal(
            JournalFile(policy.path, policy.sync),
            self._clock,
            policy.store_deadline,
            self.home.post,
            self._note_journal,
            keeps=not self.store.outlives_process,
        )

    def _note_journal(self, size: int) -> None:
        self._flusher.dirty.note_journal(size)

    def _replay(self) -> None:
        self.home.spawn(self.registry.replay)

    async def _recover(self, journal: Journal, flusher: Flusher) -> None:
        """Bring what the journal has from an earlier process to the store, and wait for that as long as for one of the store's calls."""
        for entry in await self.home.wait(journal.conflicts()):
            self.hooks.keep(entry.record.session_id, entry.committed)
        if self.store.outlives_process:
            flusher.dirty.note_journal(journal.size)
        found = len(journal.ids())
        if found:
            logger.info("%d sessions in the journal are newer than the store, or may be", found)
            recovered = new_future()

            async def recover() -> None:
                try:
                    await self.registry.replay()
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
        plain = isinstance(home, ThreadHome) and handler is not None and is_plain(handler)
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
            outbox=Outbox(home, hooks.bound("deliver"), hooks.report_undelivered),
            handle=hooks.bound("handler") or _no_handler,
            handle_here=handler if plain else None,
            on_start=hooks.bound("on_session_start"),
            on_error=hooks.report_error,
            on_expire=hooks.report_expired,
            handler_timeout=options.handler_timeout,
        )

    def close_journal(self) -> Future[None]:
        """Have the journal commit what it was told, and let go of its file."""
        if self._journal is not None:
            return self._journal.close()
        closed = new_future()
        closed.set_result(None)
        return closed

    def only_in_journal(self) -> list[str]:
        """List the sessions of which the store does not have what the journal, closed, has."""
        return [] if self._journal is None or not self.store.outlives_process else self._journal.ids()

    def end(self) -> None:
        """Let go of every thread; the last step of a close."""
        for actor in (self.shared.flusher, self.registry):
            actor.end()
        self._release()

    def _release(self) -> None:
        if self._reader is not self.writer:  # which ends with the flusher
            self._reader.close()
        self.home.close()
        if self._options.own_clock:
            self._clock.close()

    # --- how it is doing ----------------------------------------------------------------------------------------------

    def stats(self) -> Stats:
        """Count. Any thread."""
        shared, registry = self.shared, self.registry
        dirty, flusher = shared.dirty, shared.flusher
        return Stats(
            handled=shared.handled,
            failed=shared.failed,
            duplicates=shared.duplicates,
            activations=registry.activations,
            passivations=registry.passivations,
            resident=len(registry.actors),
            running=len(shared.running),
            dirty_bytes=dirty.bytes,
            oldest_dirty=dirty.oldest(),
            events_at_risk=0 if self._journal is not None else shared.at_risk(),
            bytes_at_risk=0 if self._journal is not None else dirty.bytes,
            journal_bytes=dirty.journal_bytes,
            store_reads=self.loader.reads,
            store_writes=flusher.writes,
            store_retries=flusher.retries,
            conflicts=flusher.conflicts,
            backed_off=registry.backed_off(),
            dead_letters=self.hooks.dead_letters,
            replies_waiting=len(shared.outbox),
        )

    def health(self) -> Health:
        """Say whether the parts do their work. Any thread."""
        dirty, flusher = self.shared.dirty, self.shared.flusher
        if not (flusher.is_running() and self.registry.is_running()):
            return Health("failing", "an actor of the manager has ended; restart the process")
        if self._journal is not None and self._journal.broken is not None:
            return Health("failing", f"journal: {self._journal.broken}; no event is acknowledged")
        if dirty.full:
            return Health("degraded", f"{dirty.bytes} bytes wait to be flushed (max_dirty_bytes)")
        if flusher.outage_since is not None:
            seconds = self._clock.monotonic() - flusher.outage_since
            return Health("degraded", f"{self.store.name} has not taken writes for {seconds:.1f} s")
        if (reason := self.registry.unreadable()) is not None:
            return Health("degraded", f"the last read failed: {reason}")
        if flusher.refusing:
            return Health("degraded", f"{self.store.name} does not take the writes of some sessions")
        return Health("ready", "")

    def sessions(self) -> Iterator[tuple[str, SessionInfo]]:
        """Iterate over the sessions in memory. Any thread."""
        now = self._clock.monotonic()
        for actor in self.registry.resident():
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

    # --- what has expired in the store --------------------------------------------------------------------------------

    def _sweep_store_later(self) -> None:
        """Have the store drop what has expired in it, again and again."""
        seconds = min(600.0, max(1.0, self.store.expires_in / 10))

        def sweep() -> Future[None] | None:
            if self.registry.closing:
                return None
            done = new_future()
            call = self.writer.call(lambda: list(self.store.sweep(self._clock.wall())), deadline=600.0)
            call.add_done_callback(lambda outcome: self._swept(outcome, done))
            return done

        self._clock.call_at(self._clock.monotonic() + seconds, sweep)

    def _swept(self, outcome: Future[Any], done: Future[None]) -> None:
        try:
            if (error := outcome.exception()) is not None:
                logger.warning("sweeping expired records failed: %s", error)
            else:
                for record in outcome.result():
                    if record.session_id not in self.registry.actors:
                        self.hooks.report_expired(record.session_id, record.state, record.expires_at)
            self._sweep_store_later()
        finally:
            done.set_result(None)


async def _no_handler(_: Context) -> Any:
    raise ConfigError("handler", None, "a function of (context): dispatch and submit need one; turn() does not")
