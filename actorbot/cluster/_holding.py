"""The slots that a shard has: how they come, how they are lost, and which sessions are theirs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress

from actorbot._manager.embedding import SessionManager, is_open, resident_ids
from actorbot.cluster._held import Slot, Work
from actorbot.cluster._log import Grant, Terms
from actorbot.cluster._slots import slot_of
from actorbot.errors import ActorbotError

__all__ = ["Holding"]

logger = logging.getLogger("actorbot")


class Holding:
    """The slots of one shard. On its loop, but for `slot_of`."""

    def __init__(self, manager: SessionManager, terms: Terms) -> None:
        self._manager = manager
        self._terms = terms
        self._flushing: set[asyncio.Task[None]] = set()
        self.slots: dict[int, Slot] = {}
        self.fenced = 0
        """Slots that were taken over."""
        self.on_drop: Callable[[Work], None] = lambda _: None
        """Told of each event that is let go of. Set before the first slot comes."""

    def gain(self, grant: Grant) -> None:
        """Have one more slot."""
        self.slots[grant.slot] = Slot(grant, self.on_drop)

    def lose(self, numbers: Iterable[int]) -> None:
        """Let go of slots that another shard has: nothing of them is written or answered."""
        slots = [slot for number in numbers if (slot := self.slots.pop(number, None)) is not None]
        if not slots:
            return
        self.fenced += len(slots)
        logger.warning("%d slots of this shard were taken over: it had not renewed its lease in time", len(slots))
        sessions = [*self.sessions_of(slots), *(session_id for slot in slots for session_id in slot.lanes)]
        for slot in slots:
            slot.lose()
        if sessions and is_open(self._manager):
            self._manager.abandon(sessions)

    def slot_of(self, session_id: str) -> int:
        """Return the number of a session's slot. Any thread."""
        return slot_of(session_id, self._terms.slots)

    def sessions_of(self, slots: Iterable[Slot]) -> list[str]:
        """List the sessions in memory that belong to *slots*."""
        numbers = {slot.number for slot in slots}
        if not numbers or not is_open(self._manager):
            return []
        return [session_id for session_id in resident_ids(self._manager) if self.slot_of(session_id) in numbers]

    def check_room(self, slot: Slot) -> None:
        """Have a slot flushed before its log is full of what is only not flushed."""
        if slot.unflushed % max(1, self._terms.max_waiting // 4) == 0:
            sessions = [session_id for session_id, lane in slot.lanes.items() if lane.unflushed]
            task = asyncio.get_running_loop().create_task(self._flush(sessions))
            self._flushing.add(task)
            task.add_done_callback(self._flushing.discard)

    async def _flush(self, sessions: list[str]) -> None:
        with suppress(ActorbotError):  # whoever waits for these learns of it
            await self._manager.flush(sessions)
