"""Reads the log, and puts each event into the lane of its session."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final

from actorbot._manager.embedding import SessionManager
from actorbot._state.values import UndecodableError
from actorbot.cluster._handling import Handling
from actorbot.cluster._held import Slot, Work
from actorbot.cluster._holding import Holding
from actorbot.cluster._lane import Lane
from actorbot.cluster._log import Entry, Log
from actorbot.cluster._packing import Request, pack_error, pack_result, unpack_request
from actorbot.errors import ActorbotError, ConflictError, ManagerClosedError, OwnershipLostError

__all__ = ["Intake"]

logger = logging.getLogger("actorbot")

AGAIN: Final = 0.1
"""Seconds until the log is read again, if it did not answer."""


NOTHING: Final = Request("flush all", "", b"", "", "", 0)


class Intake:
    """The events that one shard has in hand. On its loop."""

    def __init__(
        self,
        log: Log,
        member: str,
        holding: Holding,
        handling: Handling,
        max_in_hand: int,
        look: Callable[[], None],
    ) -> None:
        """*look* is called when something has changed among the members."""
        self._log = log
        self._member = member
        self._holding = holding
        self._handling = handling
        self._room = max_in_hand
        self._look = look
        self._more_room = asyncio.Event()
        self._asides: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Read for ever."""
        while True:
            while self._room <= 0:
                self._more_room.clear()
                await self._more_room.wait()
            self._handling.settling.gone.clear()
            try:
                reading = await self._log.read(self._member, self._room)
            except Exception as error:
                trace = None if isinstance(error, ActorbotError) else error
                logger.debug("the log cannot be read, which is tried again: %s", error, exc_info=trace)
                await asyncio.sleep(AGAIN)
                continue
            for entry in reading.entries:
                self._take(entry)
            if reading.news:
                self._look()

    def settled(self, work: Work) -> None:
        """Make room: this event is acknowledged, or let go of."""
        if work.counts:
            work.counts = False
            self._room += 1
            self._more_room.set()

    def _take(self, entry: Entry) -> None:
        slot = self._holding.slots.get(entry.slot)
        if slot is None or not slot.is_open() or entry.id in slot.hand:
            return  # the log keeps it for its owner; or it was read before
        if (entry.slot, entry.id) in self._handling.settling.gone:
            return  # it was read again after a connection was lost, and has its answer meanwhile
        try:
            request = unpack_request(entry.payload)
        except UndecodableError as error:
            logger.error("entry %s of slot %d is taken out of the log: %s", entry.id, entry.slot, error)
            request = NOTHING
        work = Work(slot, entry.id, request)
        work.silent = entry.id in slot.acknowledged
        slot.acknowledged.discard(entry.id)
        slot.hand[entry.id] = work
        self._room -= 1
        if request is NOTHING:
            self._handling.settling.finish(work)
            return
        lane: Lane | None = slot.lanes.get(request.session_id)
        if request.kind == "flush all" or (request.kind == "peek" and not (lane and lane.has_reruns())):
            self._do_aside(work)
        else:
            if lane is None:
                lane = slot.lanes[request.session_id] = Lane(request.session_id, slot, self._handling)
            lane.put(work)

    def _do_aside(self, work: Work) -> None:
        """Do what needs no turn, while the session's events go on."""
        task = asyncio.get_running_loop().create_task(self._answer(work))
        self._asides.add(task)
        task.add_done_callback(self._asides.discard)

    async def _answer(self, work: Work) -> None:
        manager: SessionManager = self._handling.manager
        work.slot.begin()
        try:
            if work.request.kind == "peek":
                outcome = pack_result(await manager.peek(work.request.session_id))
            else:
                await self._flush(work.slot)
                outcome = pack_result(None)
        except (ManagerClosedError, OwnershipLostError):
            work.slot.drop(work)
            return
        except ActorbotError as error:
            outcome = pack_error(error)
        finally:
            work.slot.end()
        self._handling.settling.finish(work, outcome)

    async def _flush(self, slot: Slot) -> None:
        """Flush a slot's sessions, after all has run again that was acknowledged and not stored."""
        while True:
            await slot.until(lambda slot: not any(lane.has_reruns() for lane in slot.lanes.values()))
            try:
                return await self._handling.manager.flush(self._holding.sessions_of([slot]))
            except ConflictError:
                if not self._handling.keeps:
                    raise
            await asyncio.sleep(AGAIN)  # what it has taken is run again first
