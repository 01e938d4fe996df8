"""Making room for one more session where `max_resident` are in memory.

A session that is idle and flushed leaves at once. If none of those tried is, a batch of them is
flushed, and whoever needs room waits for that flush.
"""

from __future__ import annotations

from collections import deque
from concurrent.futures import Future
from typing import Final

from actorbot._residents.idle import IdleBuckets
from actorbot._residents.table import Table
from actorbot._turns.session_actor import SessionActor
from actorbot._turns.shared import TurnShared
from actorbot.errors import ActorbotError, OverloadedError

__all__ = ["Room"]

TRIES: Final = 64  # sessions that are tried before a flush is begun


class Room:
    """Keeps at most *max_resident* sessions in memory. Methods may be called from any thread."""

    def __init__(self, shared: TurnShared, table: Table, idle: IdleBuckets, max_resident: int) -> None:
        self._shared = shared
        self._table = table
        self._idle = idle
        self._max_resident = max_resident
        self._clearing: Future[None] | None = None  # the flush of sessions that are to leave then
        self._cleared: deque[SessionActor] = deque()  # what it has flushed; some are busy again

    def is_full(self) -> bool:
        """Tell whether a session must leave before another one may come."""
        return len(self._table.actors) >= self._max_resident

    async def make(self) -> None:
        """Let a session leave, after a flush if that is needed.

        One flush serves all who wait for room. Raises: OverloadedError.
        """
        shared = self._shared
        until = shared.clock.monotonic() + shared.policy.store_deadline
        while not self._passivate_some(TRIES):
            clearing = self._begin_clearing()
            if clearing is None:
                # Between the two looks the flusher may have brought all of them to the store.
                if self._passivate_some(shared.policy.batch_size):
                    return
                raise self._no_room()
            try:
                await shared.home.wait(clearing, max(0.0, until - shared.clock.monotonic()))
            except (TimeoutError, ActorbotError):
                if not self._passivate_some(TRIES):
                    raise self._no_room() from None
                return

    def make_at_once(self) -> None:
        """Let a session leave, without waiting.

        Raises: OverloadedError, after it has begun a flush that makes room.
        """
        if not self._passivate_some(TRIES):
            self._begin_clearing()  # for whoever comes next
            raise self._no_room()

    def _passivate_some(self, most: int) -> bool:
        """Try sessions until one leaves; `False` if none does.

        First come those that were flushed for this, then at most *most* that are due first.
        Sessions that have left already are taken out of the buckets.
        """
        while self._cleared:
            actor = self._cleared.popleft()
            if self._table.actors.get(actor.session_id) is actor and self._table.passivate(actor):
                return True
        for _ in range(most):
            first = self._idle.take_first()
            if first is None:
                return False
            if self._table.actors.get(first.session_id) is not first:
                continue
            if self._table.passivate(first):
                return True
            self._look_later(first)
        return False

    def _begin_clearing(self) -> Future[None] | None:
        """Flush a batch of the sessions that are due first; return the flush.

        Only one such flush is under way at a time. `None` if none of them has anything to flush:
        they are busy.
        """
        if self._clearing is not None and not self._clearing.done():
            return self._clearing
        seen: dict[SessionActor, None] = {}  # a set that keeps its order
        for _ in range(self._shared.policy.batch_size):
            actor = self._idle.take_first()
            if actor is None:
                break
            if self._table.actors.get(actor.session_id) is actor:
                self._look_later(actor)
                if actor in seen:
                    break
                seen[actor] = None
        actors = [actor for actor in seen if actor.behind()]
        if not actors:
            return None
        self._clearing = self._shared.flusher.flush(actors)
        self._clearing.add_done_callback(lambda _: self._cleared.extend(actors))
        return self._clearing

    def _look_later(self, actor: SessionActor) -> None:
        self._idle.add(actor, self._shared.clock.monotonic() + self._idle.span)

    def _no_room(self) -> OverloadedError:
        return OverloadedError(f"{self._max_resident} sessions are resident (max_resident) and none can leave")
