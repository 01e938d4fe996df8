"""`Mailbox`: the turn of a session, which is a lock, and the line of those who wait for it."""

from __future__ import annotations

import threading
from collections import deque
from typing import Any, Protocol

from actorbot._runtime.actor import EndOfBatch, Envelope, Inbox, PooledActor
from actorbot.errors import OverloadedError

__all__ = ["Mailbox", "Waiter"]

# Guards the making of a line, which each mailbox does at most once; one lock for all mailboxes.
_MAKING_A_LINE = threading.Lock()


class Waiter(Protocol):
    """Somebody who waits in line for the turn."""

    def grant(self) -> bool:
        """Hand the turn over; `False` if the waiter has given up. Any thread."""

    def fail(self, error: BaseException) -> None:
        """Tell the waiter that it will not get the turn. Any thread."""


class Mailbox(PooledActor):
    """An actor with a bounded line of those who wait for its turn. Any thread.

    The actor is its own inbox: one object less for each of 100,000 sessions. The lock `turn` is
    held while somebody has the turn, while a batch is scheduled, and when the mailbox is closed.
    `line` has envelopes (events that were told) and waiters (who await), in the order of their
    acceptance. It is `None` until somebody has to wait, because a deque takes 600 bytes.

    No wake-up is lost: whoever joins appends first and tries the lock then; whoever leaves releases
    the lock first and looks at the line then. A turn that nobody else wants costs one lock
    operation at each end: 76 ns. With a guard lock and a state field it was 300 ns.
    """

    __slots__ = ("closed", "line", "scheduled", "turn")

    def __init__(self) -> None:
        self.turn = threading.Lock()
        self.line: deque[Waiter | Envelope[Any]] | None = None
        self.scheduled: Envelope[Any] | None = None
        self.closed = False
        self.turn.acquire()  # whoever makes a session has its first turn

    def schedule(self) -> None:
        """Run the batch in `scheduled` soon. The caller has the turn, and gives it to the batch."""
        raise NotImplementedError

    def enter(self) -> bool:
        """Take the turn, if it is free and nobody waits for it."""
        return not self.line and self.turn.acquire(False)

    def join(self, item: Waiter | Envelope[Any], limit: float) -> bool:
        """Take a place at the end of the line; `False` if the mailbox is closed.

        Raises: OverloadedError if *limit* are in line already.
        """
        line = self.line
        if line is None:
            with _MAKING_A_LINE:
                if self.line is None:
                    self.line = deque()
                line = self.line
        if len(line) >= limit:
            raise OverloadedError(
                f"the mailbox of the session is full ({limit:.0f} events wait for their turn)", retry_after=0.5
            )
        line.append(item)
        if self.turn.acquire(False):
            self.leave()
        return not (self.closed and self.withdraw(item))

    def withdraw(self, item: Any) -> bool:
        """Step out of the line; `False` if the item is no longer in it."""
        try:
            if self.line is not None:
                self.line.remove(item)
                return True
        except ValueError:
            pass  # somebody else has just taken it out
        return False

    def leave(self) -> None:
        """Pass the turn on. The caller has it. The turn of a closed mailbox is not passed on."""
        if self.closed:
            return
        while True:
            while self.line:
                try:
                    item = self.line.popleft()
                except IndexError:
                    continue  # it has just withdrawn
                if isinstance(item, Envelope):
                    self.scheduled = item
                    self.schedule()
                    return
                if item.grant():
                    return
            self.turn.release()
            if not self.line or not self.turn.acquire(False):
                return

    def close_if_nobody_waits(self) -> bool:
        """Close the mailbox for good, unless somebody is in line. The caller keeps the turn.

        Whoever joins appends first and looks at `closed` then. Here it is the other way round, so
        that one of the two sees the other.
        """
        self.closed = True
        if self.line:
            self.closed = False
            return False
        return True

    def drain(self) -> list[Waiter | Envelope[Any]]:
        """Take everybody out of the line."""
        items: list[Waiter | Envelope[Any]] = []
        while self.line:
            try:
                items.append(self.line.popleft())
            except IndexError:
                break  # it has just withdrawn
        return items

    # --- what pykka asks of an inbox -------------------------------------------------------------

    @property
    def actor_inbox(self) -> Inbox:  # type: ignore[override]  # an attribute in pykka
        return self

    def put(self, envelope: Envelope[Any], /) -> None:
        raise NotImplementedError("events reach a session through its manager, which knows the bound of the mailbox")

    def get(self) -> Envelope[Any]:
        """Give pykka's loop the told event whose turn it is; end the batch when asked again.

        A batch is one event, since the turn of an event may outlast the call that starts it.
        """
        if self.scheduled is None:
            raise EndOfBatch
        envelope, self.scheduled = self.scheduled, None
        return envelope

    def empty(self) -> bool:
        return self.scheduled is None
