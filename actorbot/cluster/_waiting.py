"""`Waiting`: who waits for answers, and until when. One timer for all; at home."""

from __future__ import annotations

import asyncio
from typing import Final
from weakref import WeakValueDictionary

from actorbot.cluster._asked import Asked, Stage
from actorbot.errors import OutcomeUnknownError, StoreUnavailableError, TurnTimeoutError

__all__ = ["Waiting"]

GRAIN: Final = 0.05  # seconds between two looks for requests whose time is up
NEVER: Final = float("inf")


class Waiting:
    """The requests of a caller that are not answered."""

    def __init__(self, store: str) -> None:
        self.accepted = self.timed_out = 0
        self._store = store
        self._loop = asyncio.get_running_loop()
        self._pending: dict[int, Asked] = {}
        # Of events that were submitted and accepted. They are here as long as their receipts.
        self.receipts: WeakValueDictionary[int, Asked] = WeakValueDictionary()
        self._look_at = NEVER
        self._look: asyncio.TimerHandle | None = None  # comes at `_look_at`

    def __len__(self) -> int:
        """Count them, but for receipts."""
        return len(self._pending)

    def add(self, asked: Asked) -> None:
        """Begin to wait."""
        asked.since = self._loop.time()
        asked.deadline = asked.since + asked.timeout
        self._pending[asked.number] = asked
        if asked.deadline < self._look_at:
            self._look_in(asked.timeout, asked.since)

    def accept(self, asked: Asked) -> None:
        """Note that the log has it. Who has submitted it need not wait."""
        self.accepted += asked.accept()
        if asked.accepted is not None and self._pending.pop(asked.number, None) is not None:
            self.receipts[asked.number] = asked

    def answer(self, number: int, outcome: bytes) -> bool:
        """End a request; tell whether anybody has waited."""
        asked = self._pending.pop(number, None) or self.receipts.get(number)
        if asked is None or asked.outcome.done():  # it came twice, perhaps
            return False
        self.accepted += asked.accept()
        asked.outcome.set_result(outcome)
        return True

    def forget(self, asked: Asked) -> None:
        """Wait no longer."""
        self._pending.pop(asked.number, None)

    def close(self) -> list[Asked]:
        """Wait for nothing any more; return what was waited for."""
        if self._look is not None:
            self._look.cancel()
        left = [*self._pending.values(), *self.receipts.values()]
        self._pending.clear()
        return left

    def _look_in(self, seconds: float, now: float) -> None:
        if self._look is not None:
            self._look.cancel()
        self._look_at = now + seconds
        self._look = self._loop.call_at(self._look_at, self._end_late)

    def _end_late(self) -> None:
        now = self._loop.time()
        for asked in [each for each in self._pending.values() if each.deadline <= now]:
            self.timed_out += 1
            self.forget(asked)
            asked.fail(self._too_late(asked))
        following = min((each.deadline for each in self._pending.values()), default=NEVER)
        self._look_at, self._look = NEVER, None
        if following < NEVER:
            self._look_in(max(following - now, GRAIN), now)

    def _too_late(self, asked: Asked) -> Exception:
        text = f"no answer within {asked.timeout:g} s; {asked.stage.value}"
        if asked.accepted is not None:
            text = f"session {asked.session_id!r}: not accepted within {asked.timeout:g} s; {asked.stage.value}"
            return (StoreUnavailableError if asked.stage is Stage.UNSENT else OutcomeUnknownError)(self._store, text)
        if not asked.session_id:
            return StoreUnavailableError(self._store, f"slot {asked.slot}: {text}; does a shard own the slot?")
        return TurnTimeoutError(asked.session_id, text)
