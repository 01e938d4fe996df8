"""`ClusterReceipt`: what `Cluster.submit` returns. It waits for the answer of an accepted event."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from typing import Any

from actorbot._checks import check_timeout
from actorbot.cluster._access import Life
from actorbot.cluster._asked import Asked
from actorbot.cluster._asking import Asking
from actorbot.errors import TurnTimeoutError

__all__ = ["ClusterReceipt"]


class ClusterReceipt:
    """Stands for an event that the log has: it is handled, whatever becomes of this process.

    Who drops the receipt does without the answer.
    """

    def __init__(self, cluster: Asking, asked: Asked, outcome: Future[bytes]) -> None:
        self._cluster = cluster
        self._asked = asked  # as long as it is here, its answer is taken
        self._outcome = outcome

    @property
    def session_id(self) -> str:
        """The session that the event belongs to."""
        return self._asked.session_id

    async def result(self, timeout: float | None = None) -> Any:
        """Wait for the handler's value, or raise what `Cluster.dispatch` would.

        Raises: TurnTimeoutError after *timeout* seconds, or else those of the cluster; the event
        goes on, and this may be called again. After a close the answer is there if it came before.
        """
        return await self._result(self._seconds(timeout))

    def result_sync(self, timeout: float | None = None) -> Any:
        """The same as `result`, for threads."""
        return self._result_sync(self._seconds(timeout))

    async def durable(self, timeout: float | None = None) -> None:
        """Wait until the store has what the event changed: its result, then a flush of its session.

        Raises: as `result` and `Cluster.flush`; ConflictError if the event was lost with its shard,
        which a shard with `keep="acknowledged"` allows.
        """
        seconds = self._seconds(timeout)
        end = time.monotonic() + seconds
        await self._result(seconds)
        self._cluster._check_here()
        left = max(0.0, end - time.monotonic())
        await self._cluster._ask("flush", self.session_id, left, event_id=self._asked.event_id, durable=True)

    def durable_sync(self, timeout: float | None = None) -> None:
        """The same as `durable`, for threads."""
        seconds = self._seconds(timeout)
        end = time.monotonic() + seconds
        self._result_sync(seconds)
        self._cluster._check_away()
        left = max(0.0, end - time.monotonic())
        self._cluster._ask_sync("flush", self.session_id, left, event_id=self._asked.event_id, durable=True)

    def _seconds(self, timeout: float | None) -> float:
        return self._asked.timeout if timeout is None else check_timeout(timeout)

    async def _result(self, seconds: float) -> Any:
        self._cluster._check_here(*self._after_close())
        if not self._outcome.done():
            loop = self._cluster._loop
            arrived = asyncio.Event()
            self._outcome.add_done_callback(lambda _: loop.call_soon_threadsafe(arrived.set))
            try:
                await asyncio.wait_for(arrived.wait(), seconds)
            except TimeoutError:
                raise self._too_late(seconds) from None
        return self._cluster._read(self._outcome.result(), self.session_id)

    def _result_sync(self, seconds: float) -> Any:
        self._cluster._check_away(*self._after_close())
        try:
            outcome = self._outcome.result(seconds)
        except TimeoutError:
            if self._outcome.done():
                raise
            raise self._too_late(seconds) from None
        return self._cluster._read(outcome, self.session_id)

    def _after_close(self) -> tuple[Life, ...]:
        return (Life.CLOSING, Life.CLOSED) if self._outcome.done() else ()

    def _too_late(self, seconds: float) -> TurnTimeoutError:
        return TurnTimeoutError(self.session_id, f"no answer within {seconds:g} s; the event was accepted, and goes on")
