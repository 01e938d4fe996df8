"""A place that several processes reach, in one: a store object of each takes it for its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Sequence
from math import inf
from typing import Any

from actorbot import MemorySessionStore
from actorbot._ownership.lease import Holder, Lease, Mode
from actorbot.errors import ActorbotError
from actorbot.stores.base import LeaseFound, Record, Write
from actorbot.testing import FaultyStore, ManualClock
from tests.unit.ownership.owners import LEASE, process
from tests.waiting import HANGS, until

STRANGER = "process 4711 on db-2 (bot.py)"


class SharedClock(ManualClock):
    """A clock that the first manager to close does not stop."""

    def close(self) -> None:
        pass


class Place(MemorySessionStore):
    """A server. Its clock is *clock*, and *skew* seconds."""

    keeps_lease = True
    outlives_process = True

    def __init__(self) -> None:
        super().__init__()
        self.clock = SharedClock()
        self.skew = 0.0
        self.up: float | None = inf
        self.text: str | None = None
        self.looks = 0
        self._lease_lock = threading.Lock()  # guards `text`

    @property
    def lease(self) -> Lease:
        return Lease.parse(self.text, "the place")

    @property
    def holder(self) -> Holder | None:
        """Who has it, if one has."""
        return next(iter(self.lease.holders.values()), None)

    def now(self) -> float:
        return self.clock.wall() + self.skew

    def read_lease(self) -> LeaseFound:
        self.looks += 1
        return LeaseFound(self.text, self.now(), self.up)

    def swap_lease(self, old: str | None, new: str) -> bool:
        with self._lease_lock:
            if self.text != old:
                return False
            self.text = new
            return True

    async def watched(self, seconds: float, starting: asyncio.Task[Any]) -> None:
        """Let *seconds* pass, in steps that *starting* sees as it waits for the lease."""
        end = self.clock.monotonic() + seconds
        while (left := end - self.clock.monotonic()) > 0:
            await self.clock.advance(min(left, 1.0))
            enough = self.looks + 2  # the first may have begun before
            await until(lambda: starting.done() or self.looks >= enough)  # noqa: B023

    def take_over(self, mode: Mode = "exclusive") -> None:
        """Take it, as a process of another machine does after all owners were frozen."""
        with self._lease_lock:
            lease, now = self.lease, self.now()
            stranger = Holder(process(host="db-2"), mode, LEASE, lease.epoch + 1, now, now + LEASE, True)
            self.text = Lease(lease.epoch + 1, {"stranger": stranger}, {**lease.away, **lease.holders}).to_text()


class Gate:
    """Where a call stands still."""

    def __init__(self) -> None:
        self.reached = threading.Event()
        self._open = threading.Event()

    def stand(self) -> None:
        self.reached.set()
        self._open.wait(HANGS)

    def open(self) -> None:
        self._open.set()


class Reached(FaultyStore):
    """The place as one process reaches it, or does not."""

    def __init__(self, place: Place) -> None:
        super().__init__(place)
        self._gates: dict[str, Gate] = {}

    def pause(self, call: str) -> Gate:
        """Let the next *call* stand still: before it is made, or, with a "-" before it, after."""
        gate = self._gates[call] = Gate()
        return gate

    def _pass(self, call: str) -> None:
        if (gate := self._gates.pop(call, None)) is not None:
            gate.stand()

    def read_lease(self) -> LeaseFound:
        self._pass("read")
        found = super().read_lease()
        self._pass("-read")
        return found

    def swap_lease(self, old: str | None, new: str) -> bool:
        self._pass("swap")
        swapped = super().swap_lease(old, new)
        self._pass("-swap")
        return swapped

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        self._pass("read sessions")
        return super().read_many(session_ids)

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        self._pass("write")
        outcome = super().write_many(writes)
        self._pass("-write")
        return outcome
