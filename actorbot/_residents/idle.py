"""When each session in memory is to be looked at: has its time to leave come?

Sessions wait in buckets of time. A timer for each of 100,000 sessions would cost too much.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from itertools import chain

from actorbot._turns.session_actor import SessionActor

__all__ = ["IdleBuckets"]


class IdleBuckets:
    """Sessions by the time at which they are to be looked at. Any thread.

    *span* is the shortest time, in seconds, after which a session may have to leave. One bucket
    covers a sixteenth of it (`quantum`).
    """

    def __init__(self, span: float) -> None:
        self.span = span
        self.quantum = max(span / 16, 0.001)
        self._lock = threading.Lock()  # guards the buckets
        self._buckets: dict[int, deque[SessionActor]] = {}

    def __len__(self) -> int:
        """Count the sessions in the buckets, also those that have left memory since."""
        return sum(map(len, list(self._buckets.values())))

    def add(self, actor: SessionActor, due: float) -> None:
        """Have *actor* looked at when the monotonic second *due* has passed."""
        key = int(due / self.quantum) + 1
        with self._lock:
            bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._buckets[key] = deque()
            bucket.append(actor)

    def take_due(self, now: float) -> Iterator[SessionActor]:
        """Take out the sessions whose time has come, and iterate over them."""
        with self._lock:
            due = [self._buckets.pop(key) for key in sorted(self._buckets) if key * self.quantum <= now]
        return chain.from_iterable(due)

    def take_first(self) -> SessionActor | None:
        """Take out the session that is to be looked at first; `None` if there is none."""
        with self._lock:
            key = min(self._buckets, default=None)
            if key is None:
                return None
            actor = self._buckets[key].popleft()
            if not self._buckets[key]:
                del self._buckets[key]
            return actor
