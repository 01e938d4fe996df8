"""A shard's lease: it renews that, learns which slots are its own, and waits when it is in doubt.

The lease is counted from before the log was asked, on the monotonic clock of this machine. Past
that no event is begun, until the log has said whose the slots are.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import fields
from math import inf
from time import monotonic
from typing import Final

from actorbot._runtime.process import Process, is_gone
from actorbot.cluster._held import Slot
from actorbot.cluster._holding import Holding
from actorbot.cluster._log import Log, MemberState
from actorbot.errors import ActorbotError, ManagerClosedError, StoreUnavailableError

__all__ = ["Membership"]

logger = logging.getLogger("actorbot")

RENEWED: Final = 1 / 3
"""The part of a lease after which it is renewed."""
AGAIN: Final = 0.1
"""Seconds until that is tried again, if the log did not answer."""
SOON: Final = 0.01
"""Seconds after which another member's lease has surely run out."""


class Membership:
    """One shard among the members of its cluster. On its loop."""

    def __init__(
        self,
        log: Log,
        member: str,
        lease: float,
        holding: Holding,
        *,
        info: Callable[[], str],
        on_excess: Callable[[int], None],
        on_drain: Callable[[], None],
    ) -> None:
        """*on_excess* is told how many slots are to be given back."""
        self._log = log
        self._member = member
        self._lease = lease
        self._holding = holding
        self._info = info
        self._on_excess = on_excess
        self._on_drain = on_drain
        self._renewing = asyncio.Lock()  # held while the log is asked who owns what
        self._look = asyncio.Event()
        self._renewed = asyncio.Event()
        self._ended = False
        self._counted = self._told = 0  # slots, after the last renewal, and in the log
        self._next = 0.0  # seconds until the lease is renewed again
        self.leaving = False
        self.until = -inf
        """The monotonic second until which this shard owns its slots."""
        self.trouble: str | None = None
        """Why the lease could not be renewed the last time."""

    def look(self) -> None:
        """Renew the lease now: something has changed."""
        self._look.set()

    async def run(self) -> None:
        """Renew the lease for ever."""
        while True:
            with suppress(TimeoutError):
                async with asyncio.timeout(self._next):
                    await self._look.wait()
            self._look.clear()
            try:
                await self.renew()
            except Exception as error:  # whatever it is, this shard must not stop to look
                if self.trouble is None:
                    logger.warning(
                        "the lease of this shard cannot be renewed, which is tried again: %s",
                        error,
                        exc_info=None if isinstance(error, ActorbotError) else error,
                    )
                self.trouble, self._next = str(error), AGAIN

    async def renew(self) -> None:
        """Renew the lease, and take or give back slots. Raises: StoreUnavailableError."""
        async with self._renewing:
            gone = [each.id for each in await self._log.members() if _has_ended(each)]
            asked = monotonic()
            standing = await self._log.lease(
                self._member,
                self._lease,
                _epochs(self._holding.slots.values()),
                self._info(),
                leaving=self.leaving,
                gone=gone,
            )
            if self.trouble is not None:
                logger.info("the lease of this shard is renewed again")
            self.trouble, self.until = None, asked + self._lease
            self._holding.lose(standing.lost)
            for grant in standing.granted:
                self._holding.gain(grant)
        self._tell_count()
        self._next = min(RENEWED * self._lease, max(SOON, standing.look_again + SOON))
        self._renewed.set()
        self._renewed.clear()
        if standing.drain and not self.leaving:
            self._on_drain()
        self._give_back(standing.quota)

    def _tell_count(self) -> None:
        """Log how many slots this shard has, once that has come to rest."""
        count = len(self._holding.slots)
        if count != self._told and count == self._counted:
            self._told = count
            logger.info("%s has %d slots", self._member, count)
        self._counted = count

    def _give_back(self, quota: int) -> None:
        """Begin to give back what is above *quota*."""
        kept = sum(not slot.closing for slot in self._holding.slots.values())
        if kept > quota:
            self._on_excess(kept - quota)

    async def release(self, slots: list[Slot]) -> None:
        """Give *slots* back, in good order. Raises: StoreUnavailableError."""
        async with self._renewing:
            slots = [slot for slot in slots if self._holding.slots.get(slot.number) is slot]
            if slots:
                await self._log.release(self._member, _epochs(slots))
                for slot in slots:
                    self._holding.slots.pop(slot.number, None)  # it may have been lost meanwhile

    async def leave(self) -> None:
        """Be no member any more. If the log does not hear of it, the lease runs out."""
        with suppress(StoreUnavailableError):
            await self._log.release(self._member, {}, leave=True)

    def may_begin(self) -> asyncio.Future[None] | None:
        """Return what to wait for before an event is begun; `None` if nothing."""
        if monotonic() < self.until:
            return None
        return asyncio.ensure_future(self._until_renewed())

    async def _until_renewed(self) -> None:
        while monotonic() >= self.until:
            if self._ended:
                raise ManagerClosedError("the shard was closed before its lease was renewed")
            self.look()
            await self._renewed.wait()

    def end(self) -> None:
        """Wait for no renewal any more."""
        self._ended = True
        self._renewed.set()


def _has_ended(member: MemberState) -> bool:
    """Tell whether a member's process is known to have ended: it ran on this machine."""
    try:
        told = json.loads(member.info)
        return is_gone(Process.from_fields({each.name: told[each.name] for each in fields(Process)}))
    except (KeyError, TypeError, ValueError):
        return False  # of another release


def _epochs(slots: Iterable[Slot]) -> dict[int, int]:
    return {slot.number: slot.epoch for slot in slots}
