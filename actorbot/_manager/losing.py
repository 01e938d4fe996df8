"""What becomes of a manager whose store another process has taken over."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable

from actorbot._manager.parts import Parts
from actorbot._residents.abandon import Abandonment
from actorbot.errors import OwnershipLostError

__all__ = ["lose"]

logger = logging.getLogger("actorbot")


def lose(
    parts: Parts, error: OwnershipLostError, on_lost: Iterable[Callable[[OwnershipLostError], object]] = ()
) -> None:
    """End every turn with *error*, and hand what is not flushed to `on_conflict`. At home.

    Nothing more is written. The outbox asks the keeper itself, and sends no reply any more. The
    second time nothing happens. *on_lost* is told at the end.
    """
    if not parts.losing.take():
        return
    logger.critical("%s", error)
    try:
        _end(parts, error)
    finally:
        for tell in on_lost:
            tell(error)


def _end(parts: Parts, error: OwnershipLostError) -> None:
    table, shared = parts.table, parts.shared
    shared.flusher.stop()
    table.close_intake(error)
    shared.running.end_all(error)
    parts.loader.close(error)
    only_in_journal = [] if shared.journal is None else shared.journal.ids()
    Abandonment(shared, table).begin([*table.actors, *only_in_journal], error)
    taken_out = [each for each in shared.flusher.dirty.sessions() if each.abandoned is None]
    shared.flusher.abandon(taken_out, error)  # by a close that is under way
