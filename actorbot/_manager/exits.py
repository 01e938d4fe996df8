"""Open managers that nobody closes: of a program that ends, and of a child that a fork has made."""

from __future__ import annotations

import atexit
from typing import Protocol

from actorbot._runtime.forks import KeptFromChildren, kept_from_children

__all__ = ["forget", "remember"]


class Leftover(KeptFromChildren, Protocol):
    """A manager that may be left open."""

    def _close_at_exit(self) -> None:
        """Close it, unless it is closed already."""


_open: set[Leftover] = set()  # also those that a program has let go of: they run until they are closed


def remember(manager: Leftover) -> None:
    """Have *manager* closed when the program ends, if nobody has by then; a child of a fork is not to use it."""
    _open.add(manager)
    kept_from_children.add(manager)


def forget(manager: Leftover) -> None:
    """Take *manager* for closed."""
    _open.discard(manager)
    kept_from_children.discard(manager)


def _at_exit() -> None:
    # By now all threads but the daemons have ended, and the managers' own, which are daemons, still run.
    for manager in list(_open):
        manager._close_at_exit()


atexit.register(_at_exit)
