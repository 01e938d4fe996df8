"""`Asking`: how a request is asked and its answer awaited, on the loop and in threads."""

from __future__ import annotations

import asyncio
import time
from concurrent.futures import Future
from typing import Any

from actorbot._runtime.home import new_future
from actorbot._state.values import UndecodableError
from actorbot.cluster._access import HANGS, Access, loop_ended
from actorbot.cluster._asked import Asked
from actorbot.cluster._caller import Caller
from actorbot.cluster._packing import Kind, unpack_outcome
from actorbot.errors import StoreError, TurnTimeoutError

__all__ = ["Asking"]


class Asking(Access):
    """The base of `Cluster`, for it and its receipts."""

    _caller: Caller  # from the start on

    async def _ask(
        self,
        kind: Kind,
        session_id: str,
        timeout: float,
        event: bytes = b"",
        event_id: str | None = None,
        durable: bool = False,
        again: bool = False,
        slot: int = -1,
    ) -> Any:
        """Ask at home, and return what is answered, or raise it."""
        outcome: asyncio.Future[bytes] = self._loop.create_future()
        asked = self._caller.make(kind, session_id, timeout, outcome, event, event_id, durable, again, slot)
        self._caller.ask(asked)
        return self._read(await outcome, session_id)

    def _ask_sync(
        self,
        kind: Kind,
        session_id: str,
        timeout: float,
        event: bytes = b"",
        event_id: str | None = None,
        durable: bool = False,
        again: bool = False,
    ) -> Any:
        """The same for a thread, without a task at home."""
        outcome = new_future()
        asked = self._caller.make(kind, session_id, timeout, outcome, event, event_id, durable, again)
        self._post(asked)
        return self._read(self._wait(asked, outcome, timeout), session_id)

    def _post(self, asked: Asked) -> None:
        try:
            self._loop.call_soon_threadsafe(self._caller.ask, asked)
        except RuntimeError:
            raise loop_ended() from None

    def _wait(self, asked: Asked, future: Future[Any], timeout: float) -> Any:
        """Wait in a thread for what ends at home within *timeout*."""
        try:
            return self._await(future, time.monotonic() + timeout + HANGS)
        except TimeoutError:
            if future.done():
                raise
            text = f"the cluster's event loop stands still; {asked.stage.value}"
            raise TurnTimeoutError(asked.session_id, text) from None

    def _read(self, outcome: bytes, session_id: str) -> Any:
        try:
            return unpack_outcome(outcome, session_id)
        except UndecodableError as error:
            text = f"the answer cannot be read: {error}; is its shard of another release?"
            raise StoreError(self._caller.store, text, session_id=session_id or None) from error
