"""Groups that the journal has committed, and whose callers are not told yet."""

from __future__ import annotations

from collections import deque
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
    """Tells callers, at home, what became of their entries. On the journal's thread.

    A transaction that was left behind may come back on an older thread meanwhile, and have callers
    told from there. So each group is taken out in one step, and told by who has it.
    """

    def __init__(self, post: Callable[..., object]) -> None:
        self._post = post
        self._groups: deque[_Group] = deque()
        self._teller = Lane("actorbot-journal-tells")

    def __len__(self) -> int:
        """Count the entries."""
        return sum(len(group.batch) for group in list(self._groups))  # the list is made in one step

    def add(self, batch: Sequence[Ahead], error: ActorbotError | None) -> None:
        """Note that *batch* is committed, or why it is not."""
        self._groups.append(_Group(batch, error))

    def tell(self) -> None:
        """Tell all of them."""
        while (group := self._take()) is not None:
            self._tell(group)

    def tell_while_writing(self) -> None:
        """Have all of them told by another thread.

        That thread gets the interpreter when this one waits for the disk. If this one told them,
        they would take the interpreter at once, and the disk would wait until their next events
        are made.
        """
        while (group := self._take()) is not None:
            self._teller.submit(partial(self._tell, group))

    def _take(self) -> _Group | None:
        try:
            return self._groups.popleft()
        except IndexError:
            return None

    def _tell(self, group: _Group) -> None:
        self._post(_settle, group)

    def close(self) -> None:
        """End the thread that tells."""
        self._teller.close()


def _settle(group: _Group) -> None:
    for ahead in group.batch:
        ahead.settle(group.error)
