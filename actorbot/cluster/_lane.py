"""`Lane`: the events of one session that a shard has in hand, one at a time and in order.

An event that was acknowledged stays in the log until the store has what it changed, if the shard
keeps it that long. If a conflict takes that first, it is run again, in order and before any other,
and nobody hears of it.
"""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from concurrent.futures import Future
from typing import Any, Final

from actorbot._event import DUPLICATE
from actorbot._manager.embedding import (
    Goal,
    at_home,
    bury,
    committed,
    dispatch_with,
    flushed,
    has_forgotten,
    is_flushed,
    is_open,
)
from actorbot._state.values import UndecodableError
from actorbot.cluster._handling import Handling
from actorbot.cluster._held import Slot, Work
from actorbot.cluster._packing import pack_error, pack_result, unpack_value
from actorbot.errors import (
    ActorbotError,
    ConflictError,
    ManagerClosedError,
    NotEncodableError,
    OverloadedError,
    OwnershipLostError,
    SessionTooLargeError,
    StoreUnavailableError,
)

__all__ = ["MOST_IN_LOG", "Lane"]

logger = logging.getLogger("actorbot")

MOST_IN_LOG: Final = 48
"""Events of one session that were handled and are still in the log.

A record keeps the ids of its last 64 events: older ones, run again, would count twice.
"""
TRIES: Final = 20  # of an event that meets conflicts
FIRST_PAUSE, LONGEST_PAUSE = 0.02, 1.0  # seconds between tries


class Lane:
    """The events in hand of one session. On the shard's loop."""

    __slots__ = (
        "_broken", "_handling", "_in_log", "_news", "_now", "_task", "session_id", "slot", "unflushed", "waiting",
        "watched",
    )  # fmt: skip

    def __init__(self, session_id: str, slot: Slot, handling: Handling) -> None:
        self.session_id = session_id
        self.slot = slot
        self.waiting: deque[Work] = deque()
        self.unflushed: deque[Work] = deque()
        """Acknowledged, and not in the store yet: oldest first."""
        self.watched: Goal | None = None
        """What is waited for to come to the store."""
        self._in_log = 0  # events that were handled, and have not left the log
        self._now: Work | None = None
        self._handling = handling
        self._task: asyncio.Task[None] | None = None
        self._broken = False  # whether a conflict has taken what is unflushed
        self._news: asyncio.Future[None] | None = None

    def put(self, work: Work) -> None:
        """Put an event at the end."""
        self.waiting.append(work)
        self._go_on()

    def drop_waiting(self) -> None:
        """Let go of what was not begun; it stays in the log."""
        while self.waiting:
            self.slot.drop(self.waiting.pop())

    def drop_all(self) -> None:
        """Let go of everything: the slot has another owner."""
        self.drop_waiting()
        while self.unflushed:
            self.slot.drop(self.unflushed.pop())
        self._tell()

    def _go_on(self) -> None:
        if self._task is None and (self.waiting or self._broken):
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._has_next():
                work = self._now = self.waiting.popleft()
                self.slot.begin()
                try:
                    await self._take(work)
                finally:
                    self._now = None
                    self.slot.end()
        except Exception:
            logger.exception(
                "an event of session %r met an error of the shard's own",
                self.session_id,
                extra={"session_id": self.session_id},
            )
        finally:
            self._task = None
            self._leave()

    def _has_next(self) -> bool:
        """Put back what a conflict has taken; tell whether there is an event to handle."""
        if not self.slot.is_open():
            self.drop_waiting()
            if self._broken or self.slot.lost:
                self.drop_all()
            self._broken = False
        if self._broken:
            self._broken = False
            self._handling.reruns += len(self.unflushed)
            while self.unflushed:
                work = self.unflushed.pop()
                work.goal, work.silent = None, True
                self.note_gone(work)
                self.slot.unflushed -= 1
                self.waiting.appendleft(work)
        return bool(self.waiting)

    def has_reruns(self) -> bool:
        """Tell whether something that was acknowledged is still to be run again."""
        return self._broken or any(work.silent for work in (self._now, *self.waiting) if work is not None)

    def note_gone(self, work: Work) -> None:
        """Note that an event has left the log, or that it is as if it had not been handled."""
        if work.handled:
            work.handled = False
            self._in_log -= 1
            self._leave()

    async def _wait_for_room(self) -> None:
        while self._in_log >= MOST_IN_LOG and not self._broken:
            if self.unflushed:
                await self._flush()
            else:
                await self.slot.until(lambda _: self._in_log < MOST_IN_LOG)

    def _leave(self) -> None:
        """End, if nothing is left to do."""
        if not (self.waiting or self._in_log or self._task) and self.slot.lanes.get(self.session_id) is self:
            del self.slot.lanes[self.session_id]

    # --- one event -------------------------------------------------------------------------------

    async def _take(self, work: Work) -> None:
        """Handle an event until it has an outcome, and have it settled."""
        pause, tries = FIRST_PAUSE, 0
        while True:
            try:
                await self._wait_for_room()
                if (wait := self._handling.may_begin()) is not None:
                    await wait
                if self._broken or not self.slot.is_open():
                    self.waiting.appendleft(work)  # behind what is to be run again, or not begun at all
                    return
                outcome = await self._handle(work)
            except Exception as error:
                tries += not isinstance(error, StoreUnavailableError | OverloadedError)
                if not await self._may_try_again(work, error, tries):
                    return
            else:
                self._succeed(work, outcome)
                return
            await asyncio.sleep(pause)
            pause = min(2 * pause, LONGEST_PAUSE)

    async def _may_try_again(self, work: Work, error: Exception, tries: int) -> bool:
        """Tell whether the event is to be tried again; if not, do with it what *error* says."""
        if isinstance(error, ManagerClosedError | OwnershipLostError):
            if not (self.slot.is_open() and is_open(self._handling.manager)):
                self.slot.drop(work)  # it stays in the log: the next owner handles it
                return False
            # Of something else, which the handler has used; or of a store whose loss is told soon.
            again = tries == 1 and isinstance(error, OwnershipLostError)
        elif isinstance(error, ConflictError):
            if self.unflushed:
                self._broken = True
                self.waiting.appendleft(work)
                return False
            again = tries < TRIES
        else:
            waits = work.request.kind == "submit" or work.silent
            again = waits and isinstance(error, StoreUnavailableError | OverloadedError)
        if not again:
            await self._fail(work, error)
        return again

    async def _handle(self, work: Work) -> bytes:
        """Do what is asked; return what its caller gets. Raises: what went wrong."""
        request, manager, session_id = work.request, self._handling.manager, self.session_id
        if request.kind == "destroy":
            await manager.destroy(session_id)
            self._finish_all()  # with it, in one step: run again later, they would make it anew
        elif request.kind == "flush":
            await manager.flush(session_id)
            if request.durable and await has_forgotten(manager, session_id, request.event_id):
                text = "the shard that had acknowledged this event ended before it was flushed; send it again"
                return pack_error(ConflictError("cluster", text, session_id=session_id))
        elif request.kind == "peek":
            return pack_result(await manager.peek(session_id))
        else:
            return await self._dispatch(work)
        return pack_result(None)

    async def _dispatch(self, work: Work) -> bytes:
        request, handling, session_id = work.request, self._handling, self.session_id
        if handling.gates and work.confirmation is None and not work.silent:
            work.confirmation = Future()
        value = await dispatch_with(
            handling.manager,
            session_id,
            unpack_value(request.event),
            event_id=request.event_id,
            durable=request.durable,
            claim=self.slot.claims and session_id not in self.slot.claimed,
            on_duplicate="result" if request.result_again else "duplicate",
            confirmation=work.confirmation,
            silent=work.silent,
            after=self.unflushed[-1].goal if self.unflushed else None,
        )
        handling.handled += 1
        if value is not DUPLICATE and self.slot.claims:
            self.slot.claimed.add(session_id)
        if handling.keeps:  # also a duplicate: the first one may have failed after its commit, and is out of the log
            goal = committed(handling.manager, session_id)
            if goal is None:
                raise ConflictError("session", "written by another process", session_id=session_id)
            work.goal = None if is_flushed(goal) else goal
        try:
            return pack_result(value)
        except (NotEncodableError, SessionTooLargeError) as error:
            return pack_error(error)  # its changes stay

    def _succeed(self, work: Work, outcome: bytes) -> None:
        settling = self._handling.settling
        told = None if work.silent else outcome
        work.handled = True
        self._in_log += 1
        if work.goal is None:
            settling.finish(work, told)
            return
        self.unflushed.append(work)
        self.slot.unflushed += 1
        if told is None:
            settling.keep(work)
        else:
            settling.acknowledge(work, told)
        self._watch()
        self._handling.on_unflushed(self.slot)

    async def _fail(self, work: Work, error: Exception) -> None:
        """Have the failure settled before the next event is begun.

        Or else the next owner might run this one again, behind a later one that is in the store.
        """
        if isinstance(error, UndecodableError):
            error = ActorbotError(f"session {self.session_id!r}: the event cannot be read: {error}")
        if work.request.kind == "submit" or work.silent:
            bury(self._handling.manager, self.session_id, _event_of(work), error)
        self._handling.settling.finish(work, None if work.silent else pack_error(error))
        if work.confirmation is not None:
            work.confirmation.cancel()
        await self.slot.until(lambda slot: work.id not in slot.hand)

    # --- until the store has it ------------------------------------------------------------------

    def _watch(self) -> None:
        """Wait for the newest acknowledged event to be in the store."""
        if self.watched is not None or not self.unflushed:
            return
        goal = self.watched = self.unflushed[-1].goal
        assert goal is not None
        manager = self._handling.manager

        def tell(done: Future[None]) -> None:
            try:
                at_home(manager, self._note, done)
            except RuntimeError:
                pass  # the loop was closed

        flushed(manager, goal).add_done_callback(tell)

    def _note(self, done: Future[None]) -> None:
        """Note that what was watched is in the store, or will not be."""
        self.watched = None
        error = done.exception()
        if isinstance(error, ConflictError | OwnershipLostError):
            self._broken = bool(self.unflushed)
            self._go_on()
        elif not isinstance(error, ManagerClosedError):  # after an outage, it is waited for again
            while self.unflushed and (goal := self.unflushed[0].goal) is not None and is_flushed(goal):
                self._finish_first()
            self._watch()
        self._tell()
        self._leave()

    def _finish_first(self) -> None:
        work = self.unflushed.popleft()
        work.goal = None
        self.slot.unflushed -= 1
        self._handling.settling.finish(work)

    def _finish_all(self) -> None:
        while self.unflushed:
            self._finish_first()

    async def _flush(self) -> None:
        """Have the store catch up, so that not too many events stay in the log."""
        news = self._news = asyncio.get_running_loop().create_future()
        try:
            await self._handling.manager.flush(self.session_id)
        except (ConflictError, OwnershipLostError):
            pass  # what is watched says so, too
        except StoreUnavailableError:
            await asyncio.sleep(LONGEST_PAUSE)
            return
        if self.watched is not None:
            await news

    def _tell(self) -> None:
        if self._news is not None and not self._news.done():
            self._news.set_result(None)


def _event_of(work: Work) -> Any:
    try:
        return unpack_value(work.request.event)
    except UndecodableError:
        return work.request.event
