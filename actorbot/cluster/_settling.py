"""Tells the log what became of events; answers and replies go out when it has agreed."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Final, NamedTuple

from actorbot.cluster._held import Work
from actorbot.cluster._log import Log, Settlement
from actorbot.cluster._packing import pack_answers
from actorbot.errors import StoreUnavailableError

__all__ = ["Settling"]

logger = logging.getLogger("actorbot")

AGAIN: Final = 0.1
"""Seconds until what the log has not answered is asked again."""


class _Item(NamedTuple):
    work: Work
    outcome: bytes | None  # None: nobody waits for it
    stays: bool  # in the log, until its session is flushed


class Settling:
    """Settles events in batches: one call is under way, and the next one takes all that came."""

    def __init__(
        self, log: Log, member: str, lose: Callable[[list[int]], None], on_settled: Callable[[Work], None]
    ) -> None:
        """*lose* is told of slots that are not ours any more."""
        self._log = log
        self._member = member
        self._lose = lose
        self._on_settled = on_settled
        self.gone: set[tuple[int, str]] = set()
        """Entries that have left the log while it is being read: the answer may still have them."""
        self._waiting: list[_Item] = []
        self._task: asyncio.Task[None] | None = None
        self._ended = False

    def acknowledge(self, work: Work, outcome: bytes) -> None:
        """Answer the event; it stays in the log until it is `finish`ed."""
        self._add(_Item(work, outcome, stays=True))

    def keep(self, work: Work) -> None:
        """Make room of an event that an earlier owner has acknowledged, and that stays, too."""
        self._on_settled(work)

    def finish(self, work: Work, outcome: bytes | None = None) -> None:
        """Answer the event, if it was not answered before, and take it out of the log."""
        self._add(_Item(work, outcome, stays=False))

    async def end(self) -> None:
        """Wait until everything is settled, or until this is cancelled, and settle nothing more."""
        try:
            if self._task is not None:
                await asyncio.wait({self._task})
        finally:
            self._ended = True

    def _add(self, item: _Item) -> None:
        self._waiting.append(item)
        if self._task is None and not self._ended:
            self._task = asyncio.get_running_loop().create_task(self._run())

    async def _run(self) -> None:
        try:
            while self._waiting and not self._ended:
                items, self._waiting = self._waiting, []
                await self._settle(items)
        except Exception:
            logger.exception("the shard met an error of its own while it settled events")
            raise
        finally:
            self._task = None

    async def _settle(self, items: list[_Item]) -> None:
        while True:
            items = [each for each in items if not each.work.slot.lost]
            if not items or self._ended:
                return
            try:
                refused = await self._log.settle(self._member, *_made_of(items))
            except StoreUnavailableError as error:
                logger.debug("events could not be settled, which is tried again: %s", error)
                await asyncio.sleep(AGAIN)
                continue
            if not refused:
                break
            self._lose(refused)
        for work, _, stays in items:
            if work.confirmation is not None and not work.confirmation.done():
                work.confirmation.set_result(None)
            if not stays:
                self.gone.add((work.slot.number, work.id))
                work.slot.let_go(work)
            self._on_settled(work)


def _made_of(items: list[_Item]) -> tuple[list[Settlement], dict[str, bytes]]:
    slots: dict[int, Settlement] = {}
    done = {item.work for item in items if not item.stays}
    answers: dict[str, list[tuple[int, bytes]]] = {}
    for work, outcome, stays in items:
        settlement = slots.get(work.slot.number)
        if settlement is None:
            settlement = slots[work.slot.number] = Settlement(work.slot.number, work.slot.epoch, [], [])
        if not stays:
            settlement.done.append(work.id)
        elif work not in done:
            settlement.acknowledged.append(work.id)
        if outcome is not None:
            answers.setdefault(work.request.caller, []).append((work.request.number, outcome))
    return list(slots.values()), {caller: pack_answers(of_it) for caller, of_it in answers.items()}
