"""Which sessions are to be looked at, and when: in buckets of time, since a timer for each of 100,000 would be too much."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Iterator
from itertools import chain

from actorbot._turns.session_actor import SessionActor

__all__ = ["IdleBuckets"]


class IdleBuckets:
    """Sessions by the quantum in which they may be due, a sixteenth of *span* seconds. Any thread."""

    def __init__(self, span: float) -> None:
        self.quantum = max(span / 16, 0.001)
        self._lock = threading.Lock()  # guards the buckets
        self._buckets: dict[int, deque[SessionActor]] = {}

    def __len__(self) -> int:
        """How many sessions are watched, those that are gone already among them."""
        return sum(map(len, list(self._buckets.values())))

    def add(self, actor: SessionActor, due: float) -> None:
        """IdleBuckets *actor*, which is to be looked at when *due* has passed."""
        key = int(due / self.quantum) + 1
        with self._lock:
            bucket = self._buckets.get(key)
            if bucket is None:
                bucket = self._buckets[key] = deque()
            bucket.append(actor)

    def take_due(self, now: float) -> Iterator[SessionActor]:
        """IdleBuckets those no longer that are due, and iterate over them."""
        with self._lock:
            due = [self._buckets.pop(key) for key in sorted(self._buckets) if key * self.quantum <= now]
        return chain.from_iterable(due)

    def take_first(self) -> SessionActor | None:
        """IdleBuckets the one that is due first no longer, and return it."""
        with self._lock:
            key = min(self._buckets, default=None)
            if key is None:
                return None
            actor = self._buckets[key].popleft()
            if not self._buckets[key]:
                del self._buckets[key]
            return actor
