"""What a shard has in its hands: slots, and their events that are not settled. On its loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

from actorbot._manager.embedding import Goal
from actorbot.cluster._log import Grant
from actorbot.cluster._packing import Request

__all__ = ["Slot", "Work"]


class Work:
    """An event that was read from the log and is not settled yet."""

    __slots__ = ("confirmation", "counts", "goal", "handled", "id", "request", "silent", "slot")

    def __init__(self, slot: Slot, entry_id: str, request: Request) -> None:
        self.slot = slot
        self.id = entry_id
        self.request = request
        self.silent = False
        """Whether it was acknowledged before: it is run again, and nobody hears of it."""
        self.confirmation: Future[Any] | None = None
        """What its replies wait for: ends when it is settled."""
        self.goal: Goal | None = None
        """What it has committed, until the store has it."""
        self.handled = False
        """Whether it was handled, and is still in the log."""
        self.counts = True
        """Whether it takes room of `max_in_hand`."""


class Slot:
    """A slot that this shard owns."""

    def __init__(self, grant: Grant, on_drop: Callable[[Work], None]) -> None:
        """*on_drop* is told of an event that is let go of."""
        self._on_drop = on_drop
        self.number = grant.slot
        self.epoch = grant.epoch
        self.claims = grant.claims
        """Whether a session's first event here is to be stored before it is acknowledged."""
        self.acknowledged = set(grant.acknowledged)
        """Entries that an earlier owner has acknowledged, until they are read."""
        self.claimed: set[str] = set()
        self.hand: dict[str, Work] = {}
        """All that was read and is not out of the log, by entry."""
        self.lanes: dict[str, Any] = {}
        """The lane of each session that has something in hand."""
        self.running = 0
        """Events that are being handled."""
        self.unflushed = 0
        """Events that are acknowledged and not in the store."""
        self.closing = False
        """Whether it is being given back: nothing of it is begun any more."""
        self.lost = False
        self._changed: asyncio.Future[None] | None = None

    def is_open(self) -> bool:
        """Tell whether events of it may be begun."""
        return not (self.lost or self.closing)

    def begin(self) -> None:
        """Note that an event is being handled."""
        self.running += 1

    def end(self) -> None:
        """Note that one is not handled any more."""
        self.running -= 1
        self.note()

    def drop(self, work: Work) -> None:
        """Let go of an event: it stays in the log, for the next owner."""
        if work.goal is not None:
            work.goal = None
            self.unflushed -= 1
        self.let_go(work)
        if work.confirmation is not None:
            work.confirmation.cancel()
        self._on_drop(work)

    def let_go(self, work: Work) -> None:
        """Have an event in hand no more."""
        self.hand.pop(work.id, None)
        if (lane := self.lanes.get(work.request.session_id)) is not None:
            lane.note_gone(work)
        self.note()

    def lose(self) -> None:
        """Let go of everything: another shard has the slot."""
        self.lost = True
        for lane in list(self.lanes.values()):
            lane.drop_all()
        for work in list(self.hand.values()):
            self.drop(work)
        self.note()

    def note(self) -> None:
        """Wake who waits for the slot to become quiet."""
        if self._changed is not None and not self._changed.done():
            self._changed.set_result(None)

    async def until(self, is_so: Callable[[Slot], bool]) -> None:
        """Wait until *is_so*, or until the slot is lost."""
        while not (self.lost or is_so(self)):
            if self._changed is None or self._changed.done():
                self._changed = asyncio.get_running_loop().create_future()
            await asyncio.wait([self._changed])  # several may wait for it
