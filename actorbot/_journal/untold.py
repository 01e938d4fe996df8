"""Groups that the journal has committed, and whose callers are not told yet."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

from actorbot._journal.ahead import Ahead
from actorbot._runtime.threads import Lane
from actorbot.errors import ActorbotError

__all__ = ["Untold"]


class _Group(NamedTuple):
    """The entries of one transaction, and what became of it."""

    batch: Sequence[Ahead]
    error: ActorbotError | None


class Untold:
    """Tells callers, at home, what became of their entries. On the journal's thread only."""

    def __init__(self, post: Callable[..., object]) -> None:
        self._post = post
        self._groups: list[_Group] = []
        self._teller = Lane("actorbot-journal-tells")

    def __len__(self) -> int:
        """Count the entries."""
        return sum(len(group.batch) for group in self._groups)

    def add(self, batch: Sequence[Ahead], error: ActorbotError | None) -> None:
        """Note that *batch* is committed, or why it is not."""
        self._groups.append(_Group(batch, error))

    def tell(self) -> None:
        """Tell all of them."""
        for group in self._groups:
            self._tell(group)
        self._groups.clear()

    def tell_while_writing(self) -> None:
        """Have all of them told by another thread.

        That thread gets the interpreter when this one waits for the disk. If this one told them,
        they would take the interpreter at once, and the disk would wait until their next events
        are made.
        """
        for group in self._groups:
            self._teller.submit(partial(self._tell, group))
        self._groups.clear()

    def _tell(self, group: _Group) -> None:
        self._post(_settle, group)

    def close(self) -> None:
        """End the thread that tells."""
        self._teller.close()


def _settle(group: _Group) -> None:
    for ahead in group.batch:
        ahead.settle(group.error)
