"""Open managers that nobody closes: of a program that ends, and of a child that a fork has made."""

from __future__ import annotations

import atexit
import os
from typing import Protocol

__all__ = ["forget", "remember"]


class Leftover(Protocol):
    """What an open manager does when its program ends, or in a forked child."""

    def _close_at_exit(self) -> None: ...

    def _forked(self) -> None: ...


_open: set[Leftover] = set()  # also those that a program has let go of: they run until they are closed


def remember(manager: Leftover) -> None:
    """Close *manager* when the program ends, if nobody has by then."""
    _open.add(manager)


def forget(manager: Leftover) -> None:
    """Take *manager* for closed."""
    _open.discard(manager)


def _after_fork() -> None:
    for manager in list(_open):
        manager._forked()
    _open.clear()


def _at_exit() -> None:
    # By now all threads but the daemons have ended, and the managers' own, which are daemons, still run.
    for manager in list(_open):
        manager._close_at_exit()


os.register_at_fork(after_in_child=_after_fork)
atexit.register(_at_exit)
