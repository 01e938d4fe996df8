"""Gives slots back in good order: finished, flushed, and out of memory."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from contextlib import suppress
from typing import Final

from actorbot._manager.embedding import SessionManager
from actorbot.cluster._held import Slot
from actorbot.cluster._holding import Holding
from actorbot.cluster._membership import Membership
from actorbot.errors import ActorbotError, StoreUnavailableError

__all__ = ["HandOver"]

logger = logging.getLogger("actorbot")

AT_ONCE: Final = 5.0
"""Seconds that one try to flush a slot's sessions takes; then it is tried again."""
AGAIN: Final = 0.1  # seconds until the log is told again


class HandOver:
    """Gives back slots of one shard. On its loop."""

    def __init__(
        self,
        manager: SessionManager,
        membership: Membership,
        holding: Holding,
    ) -> None:
        self._manager = manager
        self._membership = membership
        self._holding = holding
        self._ready: list[Slot] = []
        self._tasks: set[asyncio.Task[None]] = set()
        self._telling: asyncio.Task[None] | None = None

    def begin(self, count: int) -> None:
        """Begin to give back *count* slots, those with the least to do."""
        slots = sorted(
            (slot for slot in self._holding.slots.values() if not slot.closing),
            key=lambda slot: (len(slot.hand), -slot.number),
        )[:count]
        for slot in slots:
            slot.closing = True
        sessions = {slot.number: list[str](slot.lanes) for slot in slots}
        for session_id in self._holding.sessions_of(slots):
            sessions[self._holding.slot_of(session_id)].append(session_id)
        for slot in slots:
            for lane in list(slot.lanes.values()):
                lane.drop_waiting()  # the next owner begins them
            task = asyncio.get_running_loop().create_task(self._give(slot, sessions[slot.number]))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def ended(self, seconds: float) -> None:
        """Wait until all that were begun are given back, for *seconds* at most."""
        if self._tasks:
            await asyncio.wait(set(self._tasks), timeout=seconds)

    async def end(self) -> None:
        """Stop: what was not given back by now stays this shard's until its lease runs out."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def give_rest(self, unflushed: Iterable[str]) -> None:
        """Give back what was not finished in time. The manager is closed: nothing is written now.

        What was rolled back is still in the log. Slots with *unflushed* sessions are kept until the
        lease runs out: their next owner has to claim them.
        """
        kept = {self._holding.slot_of(session_id) for session_id in unflushed}
        slots = [slot for slot in self._holding.slots.values() if slot.number not in kept]
        with suppress(StoreUnavailableError):
            await self._membership.release(slots)

    async def _give(self, slot: Slot, sessions: list[str]) -> None:
        await slot.until(lambda slot: not slot.running)
        while sessions and not slot.lost:
            try:
                if (await self._manager.release(sessions, timeout=AT_ONCE)).clean:
                    break
            except ActorbotError as error:
                logger.debug("slot %d cannot be given back yet: %s", slot.number, error)
                await asyncio.sleep(AGAIN)
        await slot.until(lambda slot: not slot.hand)
        while not slot.lost and self._holding.slots.get(slot.number) is slot:
            if slot not in self._ready:
                self._ready.append(slot)
            if self._telling is None:
                self._telling = asyncio.get_running_loop().create_task(self._tell())
            await asyncio.shield(self._telling)

    async def _tell(self) -> None:
        """Tell the log of all that are ready, in one go."""
        try:
            slots, self._ready = self._ready, []
            await self._membership.release(slots)
        except StoreUnavailableError as error:
            logger.debug("slots cannot be given back yet: %s", error)
            await asyncio.sleep(AGAIN)
        finally:
            self._telling = None
