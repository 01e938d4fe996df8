"""Which sessions are in memory: how they come, how long they stay, how they leave. The life cycle of an entry stands here alone.

absent ──enter──► resident, its first turn held ──load──► resident ──passivate (idle, clean, nobody in line)──► absent
                                    └─load failed─► absent; everybody in its line is told, a broken record is backed off
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from actorbot._journal.entry import Entry
from actorbot._residents.backoff import BrokenRecords
from actorbot._residents.idle import IdleBuckets
from actorbot._residents.loader import Loader
from actorbot._runtime.actor import Envelope, ServiceActor
from actorbot._runtime.home import new_future
from actorbot._state.committed import ENDS, STATE
from actorbot._state.record import Record
from actorbot._turns.deadlock import begin_to_wait, end_to_wait
from actorbot._turns.session_actor import SessionActor
from actorbot._turns.shared import TurnShared
from actorbot._turns.told import Handle
from actorbot.errors import (
    ActorbotError,
    ConflictError,
    CorruptSessionError,
    ManagerClosedError,
    OverloadedError,
    StoreUnavailableError,
    TurnTimeoutError,
)

__all__ = ["Registry"]

logger = logging.getLogger("actorbot")

REPLAYED: Final = 500  # sessions of the journal that come to memory at a time
CHUNK: Final = 500  # sessions that a sweep looks at before it lets other threads run


@dataclass(frozen=True, slots=True)
class Sweep:
    """To the registry: passivate what is idle, expire what has ended."""

    done: Future[None]


class Registry(ServiceActor):
    """The entries, by session id; supervises and sweeps on its own thread. Methods may be called from any thread."""

    def __init__(self, shared: TurnShared, loader: Loader, *, max_resident: int, idle_timeout: float) -> None:
        super().__init__()
        self.actors: dict[str, SessionActor] = {}
        self.shared = shared
        self._loader = loader
        self._max_resident = max_resident
        self._idle_timeout = idle_timeout
        self._first_look = min(idle_timeout, shared.expires_in)  # seconds after its last event that a session may leave
        self._lock = threading.Lock()  # guards that an entry and its actor's `closed` change together
        self.watch = IdleBuckets(self._first_look)
        self._broken = BrokenRecords()
        self._unreadable: tuple[str, int] | None = None  # and how many writes were confirmed then
        self._clearing: Future[None] | None = None  # a flush of sessions that are to leave to make room
        self._cleared: deque[SessionActor] = deque()  # what it was about; they may have been busy since
        self.closing = False
        self._replaying = False
        self.activations = self.passivations = 0

    # --- taking a turn ------------------------------------------------------------------------------------------------

    async def wait_for_turn(self, session_id: str, timeout: float | None = None) -> SessionActor:
        """Wait for the turn of *session_id*, making its entry if there is none; the caller must leave it.

        Raises: OverloadedError, DeadlockError, TurnTimeoutError.
        """
        while True:
            actor = self.actors.get(session_id)
            if actor is None:
                actor = await self._make_actor(session_id)
                if actor is not None:
                    return actor
                continue
            if actor.enter():
                return actor
            if await self._wait_in_line(actor, timeout):
                return actor
            with self._lock:  # who closes an entry holds it until the entry is gone
                continue

    async def _wait_in_line(self, actor: SessionActor, timeout: float | None) -> bool:
        mine = begin_to_wait(actor)
        try:
            waiter = self.shared.home.waiter(actor, timeout)
            if not actor.join(waiter, self.shared.max_mailbox):
                return False
            await waiter
            return True
        finally:
            if mine:
                end_to_wait(mine, actor)

    async def _make_actor(self, session_id: str) -> SessionActor | None:
        """Make the entry, its turn held by the caller; `None` if somebody else was faster."""
        while len(self.actors) >= self._max_resident:
            await self._make_room()
        return self._add_actor(session_id)

    def _add_actor(self, session_id: str) -> SessionActor | None:
        now = self.shared.clock.monotonic()
        self._broken.check(session_id, now)
        actor = SessionActor(session_id, self.shared, now)
        if self.actors.setdefault(session_id, actor) is not actor:
            return None
        # Looked at after the entry was made: who closes does it the other way round, and one of the two sees the other.
        if self.closing:
            error = ManagerClosedError("the manager is closing")
            self.discard(actor)
            self.dismiss(actor, error)
            raise error
        self.activations += 1
        self.watch.add(actor, now + self._first_look)
        return actor

    def put_in_line(self, session_id: str, message: Handle) -> SessionActor:
        """Put an event in line for which nobody waits. Raises: OverloadedError, CorruptSessionError while backed off."""
        envelope = Envelope(message)
        while True:
            actor = self.actors.get(session_id)
            if actor is None:
                if len(self.actors) >= self._max_resident and not self._passivate_some(64):
                    self._begin_clearing()  # for whoever comes next
                    raise self._no_room()
                actor = self._add_actor(session_id)
                if actor is not None:
                    actor.join(envelope, self.shared.max_mailbox)
                    actor.leave()
                    return actor
            elif actor.join(envelope, self.shared.max_mailbox):
                return actor
            with self._lock:  # who closes an entry holds it until the entry is gone
                continue

    # --- reading ------------------------------------------------------------------------------------------------------

    async def read(self, session_id: str) -> Record | None:
        """Read the record of *session_id* from the journal or the store. Raises: StoreUnavailableError, CorruptSessionError."""
        entry = await self._read_entry(session_id)
        return entry.record if entry is not None else await self._read_store(session_id)

    async def _read_entry(self, session_id: str) -> Entry | None:
        journal = self.shared.journal
        if journal is None or not journal.holds(session_id):
            return None
        return await self.shared.home.wait(journal.read(session_id))  # type: ignore[no-any-return]

    async def _read_store(self, session_id: str) -> Record | None:
        try:
            record = await self._loader.read(session_id)
        except ActorbotError as error:
            down = isinstance(error, StoreUnavailableError)
            self._unreadable = (str(error), self.shared.flusher.writes) if down else None
            raise
        self._unreadable = None
        return record

    def unreadable(self) -> str | None:
        """Say why the last read failed, unless the store has answered since."""
        unreadable = self._unreadable
        return None if unreadable is None or self.shared.flusher.writes != unreadable[1] else unreadable[0]

    async def load(self, actor: SessionActor) -> None:
        """Read the record of *actor*, whose turn the caller holds; if that fails, everybody in its line gets the error."""
        try:
            entry = await self._read_entry(actor.session_id)
            record = None if entry is not None else await self._read_store(actor.session_id)
        except (asyncio.CancelledError, TurnTimeoutError):
            raise  # only this caller has gone: the next in line reads for itself
        except ActorbotError as error:
            self._load_failed(actor, error)
            raise
        self._broken.forget(actor.session_id)
        if entry is None:
            actor.adopt(record)
        else:
            actor.adopt_entry(entry)

    def _load_failed(self, actor: SessionActor, error: ActorbotError) -> None:
        if isinstance(error, CorruptSessionError):
            pause = self._broken.note(actor.session_id, error, self.shared.clock.monotonic())
            logger.error("a session cannot be read and is left alone for %g s: %s", pause, error)
        self.discard(actor)
        self.dismiss(actor, error)

    def discard(self, actor: SessionActor) -> None:
        """Take *actor*, whose turn the caller holds, out of memory; nothing is flushed. Its turn is never free again."""
        with self._lock:
            actor.closed = True
            if self.actors.get(actor.session_id) is actor:
                del self.actors[actor.session_id]

    def dismiss(self, actor: SessionActor, error: ActorbotError) -> None:
        """Tell everybody in line that their turn will not come."""
        for item in actor.drain():
            if isinstance(item, Envelope):
                item.message.outcome.set_exception(error)
            else:
                item.fail(error)

    def backed_off(self) -> int:
        """Count the sessions that are left alone because their record cannot be read."""
        return self._broken.count(self.shared.clock.monotonic())

    def forgive(self, session_id: str) -> None:
        """Forget that the record of *session_id* could not be read."""
        self._broken.forget(session_id)

    # --- leaving memory -----------------------------------------------------------------------------------------------

    def passivate(self, actor: SessionActor) -> bool:
        """Let *actor* leave memory if it is idle, clean and nobody is in line; never waits and never parks an event.

        While the store is down it need not be clean if the journal has what the store has not.
        """
        shared = self.shared
        with self._lock:
            if not actor.enter():
                return False
            clean = not actor.behind() and not actor.dirty
            spills = shared.journal is not None and shared.flusher.outage_since is not None
            if (clean or spills) and actor.close_if_nobody_waits():
                del self.actors[actor.session_id]
                self.passivations += 1
                if not clean:
                    shared.flusher.spill(actor)
                return True
        actor.leave()
        return False

    async def replay(self) -> None:
        """Bring to the store what only the journal has, of sessions that are not in memory, until there is no such session.

        Begun at the start and after an outage; one at a time does it. In an outage it ends.
        """
        journal = self.shared.journal
        if journal is None or self._replaying:
            return
        self._replaying = True
        try:
            ids = [session_id for session_id in journal.ids() if session_id not in self.actors]
            whole = True
            for at in range(0, len(ids), REPLAYED):
                if self.closing:
                    return
                try:
                    await self._bring(ids[at : at + REPLAYED])
                except ConflictError:
                    pass  # told, and set aside
                except ActorbotError as error:
                    logger.warning("what the journal holds could not be brought to the store yet: %s", error)
                    whole = False
                if self.shared.flusher.outage_since is not None:
                    return
        finally:
            self._replaying = False
        if not whole:
            clock, home = self.shared.clock, self.shared.home
            clock.call_at(clock.monotonic() + self.shared.policy.retry.cap, lambda: home.spawn(self.replay))

    async def flush_absent(self, session_ids: Sequence[str]) -> None:
        """Bring to the store what only the journal had of these. Raises: the error of one that could not be brought there."""
        journal = self.shared.journal
        if journal is None or not journal.yields:
            return
        came = list(filter(None, map(self._find_read, session_ids)))  # and have perhaps been used since
        if came:
            await self.shared.home.wait(self.shared.flusher.flush(came))
        ids = [each for each in session_ids if journal.holds(each) and self._find_read(each) is None]
        while ids:
            # In an outage one, to see whether it is over: more would only take the room of those that have something to do.
            at_once = REPLAYED if self.shared.flusher.outage_since is None else 1
            await self._bring(ids[:at_once])
            ids = ids[at_once:]

    def _find_read(self, session_id: str) -> SessionActor | None:
        actor = self.actors.get(session_id)
        return None if actor is None or actor.committed is None else actor

    async def _bring(self, ids: Sequence[str]) -> None:
        """Activate these, flush them, and let them go. Raises: the error of one for which that did not do, after trying all."""
        actors: list[SessionActor] = []
        failure: ActorbotError | None = None
        for session_id in ids:
            try:
                actors.append(await self._activate(session_id))
            except ActorbotError as error:
                failure = error
        try:
            await self.shared.home.wait(self.shared.flusher.flush(actors))
        except ActorbotError as error:
            if failure is None or not isinstance(error, ConflictError):  # a conflict is settled
                failure = error
        finally:
            for actor in actors:
                self.passivate(actor)
        if failure is not None:
            raise failure

    async def _activate(self, session_id: str) -> SessionActor:
        actor = await self.wait_for_turn(session_id)
        try:
            if actor.committed is None:
                await self.load(actor)
        finally:
            actor.leave()
        return actor

    def on_receive(self, message: Any) -> None:
        try:
            if isinstance(message, Sweep):
                self._sweep()
                message.done.set_result(None)
        except Exception as error:  # pykka would end the actor, and nothing would leave memory any more
            logger.exception("the registry met an error of its own")
            message.done.set_exception(error)

    def sweep_later(self) -> None:
        """Sweep from now on, every sixteenth of the time after which a session may have to leave."""
        if self.closing:
            return
        clock = self.shared.clock

        def sweep() -> Future[None] | None:
            done = new_future()
            if not self.notify(Sweep(done)):
                return None
            self.sweep_later()
            return done

        # Under a virtual clock that takes long strides, sweeping in steps of the quantum would be all it does.
        clock.call_at(clock.monotonic() + max(self.watch.quantum, 0.005), sweep)

    def _sweep(self) -> None:
        now = self.shared.clock.monotonic()
        wall = self.shared.clock.wall()
        unflushed: list[SessionActor] = []
        for seen, actor in enumerate(self.watch.take_due(now), 1):
            if self._look_at(actor, now, wall):
                unflushed.append(actor)
                if len(unflushed) == self.shared.policy.batch_size:
                    self._flush_out(unflushed)
                    unflushed = []
            if seen % CHUNK == 0:
                time.sleep(0)  # lets a thread that waits for the interpreter have it; `Event().wait(0)` does not
        if unflushed:
            self._flush_out(unflushed)

    def _look_at(self, actor: SessionActor, now: float, wall: float) -> bool:
        """Let *actor* leave memory if its time has come, or watch it; `True` if it must be flushed first, and is not watched."""
        if self.actors.get(actor.session_id) is not actor:
            return False
        due = actor.touched + self._idle_timeout
        committed = actor.committed
        if committed is not None and committed[STATE] is not None:
            ends_in = committed[ENDS] - wall
            if ends_in <= 0 and self._expire(actor):
                return False
            due = min(due, now + max(ends_in, 0.0))
        if due > now:
            self.watch.add(actor, due)
        elif not self.passivate(actor):
            if actor.behind():
                return True
            self.watch.add(actor, now)
        return False

    def _flush_out(self, actors: list[SessionActor]) -> None:
        """Let *actors* leave when their flush is confirmed, unless an event comes meanwhile; until then no sweep need look at them."""
        self.shared.flusher.flush(actors).add_done_callback(lambda done: self._look_again(actors, done))

    def _look_again(self, actors: list[SessionActor], flushed: Future[None]) -> None:
        now, wall = self.shared.clock.monotonic(), self.shared.clock.wall()
        unflushed = [actor for actor in actors if self._look_at(actor, now, wall)]
        if unflushed and flushed.exception() is None:
            self._flush_out(unflushed)
            return
        for actor in unflushed:
            self.watch.add(actor, now)  # the store does not take it now: the next sweep asks again

    def _expire(self, actor: SessionActor) -> bool:
        with self._lock:
            if not actor.enter():
                return False
            committed = actor.committed
            ended = (
                committed is not None
                and committed[STATE] is not None
                and self.shared.clock.wall() >= committed[ENDS]
                and not actor.dirty
                and not actor.behind()  # an older write of it may be on its way: the next turn ends it in its place
            )
            if ended and actor.close_if_nobody_waits():
                del self.actors[actor.session_id]
                self.passivations += 1
                assert committed is not None
                assert committed[STATE] is not None
                self.shared.on_expire(actor.session_id, committed[STATE], committed[ENDS])
                return True
        actor.leave()
        return False

    async def _make_room(self) -> None:
        """Let a session leave, after a flush if that is needed; one flush serves all who wait. Raises: OverloadedError."""
        shared = self.shared
        until = shared.clock.monotonic() + shared.policy.store_deadline
        while not self._passivate_some(64):
            clearing = self._begin_clearing()
            if clearing is None:
                if self._passivate_some(shared.policy.batch_size):
                    return  # the flusher has come between the two looks
                raise self._no_room()
            try:
                await shared.home.wait(clearing, max(0.0, until - shared.clock.monotonic()))
            except (TimeoutError, ActorbotError):
                if not self._passivate_some(64):
                    raise self._no_room() from None
                return

    def _passivate_some(self, most: int) -> bool:
        """Try the sessions that were flushed for this, and those that have been watched longest; `True` if one left.

        Those that are gone already are let go of.
        """
        while self._cleared:
            actor = self._cleared.popleft()
            if self.actors.get(actor.session_id) is actor and self.passivate(actor):
                return True
        for _ in range(most):
            first = self.watch.take_first()
            if first is None:
                return False
            if self.actors.get(first.session_id) is not first:
                continue
            if self.passivate(first):
                return True
            self.watch.add(first, self.shared.clock.monotonic() + self._first_look)
        return False

    def _begin_clearing(self) -> Future[None] | None:
        """Flush some of the sessions that have been watched longest, unless that is under way, so that they may leave.

        `None` if none of them has anything to flush: they are busy.
        """
        if self._clearing is not None and not self._clearing.done():
            return self._clearing
        seen: dict[SessionActor, None] = {}  # in order
        for _ in range(self.shared.policy.batch_size):
            actor = self.watch.take_first()
            if actor is None:
                break
            if self.actors.get(actor.session_id) is actor:
                self.watch.add(actor, self.shared.clock.monotonic() + self._first_look)
                if actor in seen:
                    break
                seen[actor] = None
        actors = [actor for actor in seen if actor.behind()]
        if not actors:
            return None
        self._clearing = self.shared.flusher.flush(actors)
        self._clearing.add_done_callback(lambda _: self._cleared.extend(actors))
        return self._clearing

    def _no_room(self) -> OverloadedError:
        return OverloadedError(f"{self._max_resident} sessions are resident (max_resident) and none can leave")

    # --- looking ------------------------------------------------------------------------------------------------------

    def resident(self) -> Iterator[SessionActor]:
        """Iterate over a copy of the entries."""
        return iter(list(self.actors.values()))

    def close_intake(self) -> None:
        """Make no entry any more, and stop sweeping."""
        self.closing = True

    def retire(self, actor: SessionActor) -> bool:
        """Take *actor*, whose turn the caller holds, out of memory for good, flushed or not, unless somebody is in line."""
        with self._lock:
            if not actor.close_if_nobody_waits():
                return False
            self.actors.pop(actor.session_id, None)
            return True

    def dismiss_all(self) -> int:
        """Give no turn any more, and fail everybody who waits for one; return how many sessions had one under way."""
        busy = 0
        for actor in self.resident():
            busy += actor.turn.locked()
            self.discard(actor)
            self.dismiss(actor, ManagerClosedError("the manager was closed before the event had its turn"))
        return busy
