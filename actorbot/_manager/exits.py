"""Managers that are still open when the program ends, or when it forks a child."""

from __future__ import annotations

import atexit
import logging
from typing import Protocol

from actorbot._manager.access import Life
from actorbot._runtime.forks import KeptFromChildren, kept_from_children
from actorbot.errors import ActorbotError

__all__ = ["forget", "remember"]

logger = logging.getLogger("actorbot")


class Leftover(KeptFromChildren, Protocol):
    """A manager that may be left open."""

    _life: Life

    def _close_at_exit(self) -> None:
        """Close it."""


_open: set[Leftover] = set()  # also those that the program has dropped: they run on


def remember(manager: Leftover) -> None:
    """Close *manager* if it is open when the program ends. A forked child cannot use it."""
    _open.add(manager)
    kept_from_children.add(manager)


def forget(manager: Leftover) -> None:
    """Take *manager* for closed."""
    _open.discard(manager)
    kept_from_children.discard(manager)


def _at_exit() -> None:
    # By now all threads but daemons have ended. Managers have daemons only, which still run.
    for manager in list(_open):
        if manager._life is Life.OPEN:
            logger.warning("the program ends with an open manager: close it, or use `with`; flushing what it has")
            try:
                manager._close_at_exit()
            except ActorbotError as error:
                logger.error("at the end of the program: %s", error)


atexit.register(_at_exit)
