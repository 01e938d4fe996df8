"""How sessions leave a manager that stays open: finished, flushed, and their replies delivered.

So another process can have them. All of it has one deadline, in real time, as a close has.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from concurrent.futures import Future
from math import inf
from time import monotonic
from typing import Any, Final

from actorbot._reports import ShutdownReport
from actorbot._residents.activation import Activation
from actorbot._residents.table import Table
from actorbot._runtime.current import errand
from actorbot._runtime.home import Home, new_future
from actorbot._runtime.loop_home import LoopHome
from actorbot._turns.context import Context
from actorbot._turns.deadlock import begin_to_wait, end_to_wait
from actorbot._turns.session_actor import SessionActor
from actorbot._turns.shared import TurnShared
from actorbot.errors import ActorbotError

__all__ = ["Release", "wait_for_turn"]

HANDLERS: Final = 0.9  # the part of the time that turns may take; the rest is for the last flush
AGAIN: Final = 0.1  # seconds until what could not be flushed, or has not left, is tried again


class Release:
    """One release. At home."""

    def __init__(self, shared: TurnShared, table: Table, activation: Activation, seconds: float) -> None:
        self._shared = shared
        self._table = table
        self._activation = activation
        self._start = monotonic()
        self._seconds = seconds
        self._not_brought: list[str] = []  # what the journal has of these could not be read

    async def run(self, session_ids: list[str]) -> ShutdownReport:
        """Release these sessions; return what was left behind. Raises: DeadlockError."""
        actors = [actor for each in session_ids if (actor := self._table.actors.get(each)) is not None]
        noted: list[tuple[list[Context], SessionActor]] = []
        try:
            noted.extend((begin_to_wait(actor), actor) for actor in actors)  # first: it may refuse
            actors += await self._bring(set(session_ids) - {actor.session_id for actor in actors})
            stayed = await self._let_leave(actors)
            await self._deliver(session_ids)
        finally:
            for mine, actor in noted:
                end_to_wait(mine, actor)
        return ShutdownReport(
            (*(actor.session_id for actor in actors if actor.behind() or actor.spilled), *self._not_brought),
            sum(actor.turn.locked() for actor in stayed),
            len(self._shared.outbox.addressees().intersection(session_ids)),
            monotonic() - self._start,
        )

    def _left(self, part: float = 1.0) -> float:
        return max(0.0, self._start + part * self._seconds - monotonic())

    async def _bring(self, session_ids: Iterable[str]) -> list[SessionActor]:
        """Bring those of these absent sessions into memory of which the journal has something."""
        journal = self._shared.journal
        brought: list[SessionActor] = []
        if journal is None or not journal.yields:
            return brought
        for session_id in filter(journal.holds, session_ids):
            try:
                actor = await self._activation.wait_for_turn(session_id, self._left())
                try:
                    if actor.committed is None:
                        await self._activation.load(actor)
                finally:
                    actor.leave()
            except ActorbotError:
                self._not_brought.append(session_id)
            else:
                brought.append(actor)
        return brought

    async def _let_leave(self, actors: list[SessionActor]) -> list[SessionActor]:
        """Flush *actors* and take them out, when their turns are over; return those that stay."""
        shared = self._shared
        stay = [actor for actor in actors if not self._leaves(actor)]
        while stay:
            await self._wait(shared.flusher.flush(stay))
            stay = [actor for actor in stay if not self._leaves(actor)]
            if not self._left(HANDLERS):
                break
            busy = next((actor for actor in stay if actor.turn.locked() or actor.line), None)
            if busy is not None:
                if await wait_for_turn(shared.home, busy, self._left(HANDLERS)):
                    busy.leave()  # all that it had accepted is over
                continue
            for actor in stay:
                if not actor.behind():  # it was marked when the store had it: let the mark go
                    shared.dirty.hurry(actor)
            if stay:
                await self._wait(new_future(), min(AGAIN, self._left(HANDLERS)))
        return stay

    def _leaves(self, actor: SessionActor) -> bool:
        gone = self._table.actors.get(actor.session_id) is not actor
        return gone or self._table.passivate(actor, may_spill=False)

    async def _deliver(self, session_ids: list[str]) -> None:
        """Wait for the replies of these sessions, but for the one that this code is delivering."""
        outbox, own = self._shared.outbox, errand.get()
        for session_id in session_ids:
            if session_id != own:
                await self._wait(outbox.emptied(session_id))
        ids = {*session_ids} - {own}
        while self._left() and outbox.addressees() & ids:  # ungated ones
            await self._wait(new_future(), min(AGAIN, self._left()))

    async def _wait(self, future: Future[Any], seconds: float | None = None) -> None:
        """Wait for *future*, however it ends, but no longer than for *seconds* or the time left."""
        try:
            await self._shared.home.wait(future, self._left() if seconds is None else seconds)
        except (TimeoutError, ActorbotError):
            return  # the report says what was left behind


async def wait_for_turn(home: Home, actor: SessionActor, seconds: float) -> bool:
    """Wait for the turn, behind all who are in line; `False` if it did not come. At home."""
    waiter = home.waiter(actor, seconds)
    try:
        if not actor.join(waiter, limit=inf):
            return False
        if isinstance(home, LoopHome):
            async with asyncio.timeout(seconds):
                await waiter
        else:
            await waiter
    except (ActorbotError, TimeoutError):
        return False
    return True
