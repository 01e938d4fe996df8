"""A batch that was refused is divided, until the sessions that cannot be written are alone."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import islice, takewhile

from actorbot._flushing.write import Flushable, PendingWrite
from actorbot.stores._batches import patience

__all__ = ["Division"]


class Division:
    """Which sessions may be written together. On the store's thread.

    After a batch of n was refused, none of its sessions goes with more than n / 2 others, until it
    has been written. So one bad session costs 2 log2(n) calls, once. From then on it goes alone.
    """

    def __init__(self) -> None:
        self._apart = 0  # how many sessions have a bound; those that have left memory count too
        self._refused = 0  # calls in a row
        self._patience = 0  # how many there may be

    def divide(self, jobs: Sequence[PendingWrite]) -> bool:
        """Note that the store has refused a batch.

        `False`: it has refused so many in a row that it counts as down.
        """
        size = len(jobs)
        for job in jobs:
            self._apart += not job.session.company
            job.session.company = (size + 1) // 2
        if size > 1:  # one alone says nothing about others
            self._refused += 1
            self._patience = max(self._patience, patience(size))
        return self._refused <= self._patience

    def note_answer(self) -> None:
        """Note that the store has taken something."""
        self._refused = self._patience = 0

    def reunite(self, sessions: Iterable[Flushable]) -> None:
        """Let *sessions* go with any others again: they were written, or need not be."""
        if self._apart:
            for session in sessions:
                self._apart -= bool(session.company)
                session.company = 0

    def size(self, wanted: Mapping[Flushable, object], most: int) -> int:
        """Return how many of *wanted*, from the first on and at most *most*, may go together."""
        if not self._apart or not wanted:
            return most
        bounds = (session.company for session in islice(wanted, most))
        first = next(bounds)
        alike = 1 + sum(1 for _ in takewhile(first.__eq__, bounds))
        return min(first or most, alike)
