"""The last step of a shard's close: what it tells the log, in a time that may be shortened."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Collection
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Final

from actorbot.cluster._hand_over import HandOver
from actorbot.cluster._holding import Holding
from actorbot.cluster._membership import Membership
from actorbot.cluster._settling import Settling

__all__ = ["Leaving"]

logger = logging.getLogger("actorbot")

MOMENT: Final = 0.2  # seconds for a last word to the log, also if the time is up


class Leaving:
    """How one shard leaves. On its loop."""

    def __init__(self, settling: Settling, hand_over: HandOver, membership: Membership, holding: Holding) -> None:
        self._settling = settling
        self._hand_over = hand_over
        self._membership = membership
        self._holding = holding
        self._ends = inf
        self._limit: asyncio.Timeout | None = None

    def shorten(self, seconds: float) -> None:
        """Let the close end *seconds* from now, or earlier if that was said before."""
        self._ends = min(self._ends, monotonic() + seconds)
        if self._limit is not None:
            self._limit.reschedule(asyncio.get_running_loop().time() + MOMENT)

    def left(self) -> float:
        """Return the seconds until the close is to have ended."""
        return max(0.0, self._ends - monotonic())

    async def end(self, member: str, unflushed: Collection[str]) -> None:
        """Settle, give back what can be given back, and leave. The manager is closed."""
        rest = list(self._holding.slots.values())
        with suppress(TimeoutError):
            async with asyncio.timeout(max(MOMENT, self.left())) as self._limit:
                await self._settling.end()
                await self._hand_over.give_rest(unflushed)
                if not self._holding.slots:
                    await self._membership.leave()
        self._limit = None
        for slot in rest:
            slot.lose()  # what waits there waits for nothing any more
        if kept := len(self._holding.slots):
            why = "sessions there are not flushed" if unflushed else "the log does not answer"
            logger.warning(
                "%s keeps slots (%d), which others take when its lease has run out: %s",
                member,
                kept,
                self._membership.trouble or why,
            )
