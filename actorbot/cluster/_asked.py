"""`Asked`: a request on its way, and who waits for its answer."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from enum import Enum

__all__ = ["Asked", "Outcome", "Stage"]

Outcome = asyncio.Future[bytes] | Future[bytes]


class Stage(Enum):
    """How far a request has come."""

    UNSENT = "it was not sent: nothing was done"
    SENT = "the log has not confirmed it: its outcome is open"
    ACCEPTED = "it was accepted, and goes on: its outcome is open"


class Asked:
    """A request, and who waits for it. Made in any thread."""

    __slots__ = (
        "__weakref__", "accepted", "deadline", "event_id", "number", "outcome", "payload", "session_id", "since", "slot", "stage",
        "timeout",
    )  # fmt: skip

    def __init__(
        self,
        session_id: str,
        slot: int,
        number: int,
        event_id: str,
        payload: bytes,
        timeout: float,
        outcome: Outcome,
    ) -> None:
        self.session_id = session_id
        self.slot = slot
        """Where it goes; below 0 if its session says so."""
        self.number = number
        self.event_id = event_id
        self.payload = payload
        self.timeout = timeout
        self.outcome = outcome
        """Ended with what `pack_result` or `pack_error` has made, or with what kept us from it."""
        self.accepted: Outcome | None = None
        """Ended when the log has it, for who waits for that alone."""
        self.stage = Stage.UNSENT
        self.since = self.deadline = 0.0

    def is_over(self) -> bool:
        """Tell whether it was answered, or its caller has gone."""
        return self.outcome.done() or (self.accepted is not None and self.accepted.done())

    def accept(self) -> bool:
        """Note that the log has it; tell whether that is new."""
        if self.stage is Stage.ACCEPTED:
            return False
        self.stage = Stage.ACCEPTED
        self.payload = b""  # nobody sends it again
        if self.accepted is not None and not self.accepted.done():
            self.accepted.set_result(b"")
        return True

    def fail(self, error: Exception) -> None:
        """End it with *error*, unless it has ended."""
        for future in (self.accepted, self.outcome):
            if future is not None and not future.done():
                future.set_exception(error)
                if future is self.accepted:
                    return  # its receipt was never given out
