"""A store that has gone back in time, as its writer sees it.

So it is after a restart from a snapshot, a fail-over to a replica that lagged, or a restored
backup. What is stored then is an older state of what this process has: it is written over.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from math import inf
from typing import Final

from actorbot._flushing.write import Flushable
from actorbot._runtime.clock import Clock
from actorbot._state.committed import OWNER_BYTES
from actorbot._state.record import BY_HAND, Record, has_id

__all__ = ["SetBacks"]

logger = logging.getLogger("actorbot")

MOST_NUMBERS: Final = 2**32  # of one owner's write ids
SKEW: Final = 5.0  # seconds that the clocks of two machines may differ unnoticed
QUIET: Final = 60.0  # seconds without a set back session, after which the next one is news


class SetBacks:
    """Makes write ids, and recognises records that are older states of what is in memory.

    A write id begins with its owner, 4 random bytes for each start of a manager. So a manager knows
    its own writes again, however many it has made since: the 16 ids of a record need not reach so
    far back.
    """

    def __init__(self, store: str, clock: Clock, lineage: bytes | None) -> None:
        self._store = store
        self._clock = clock
        self._began = clock.wall(), clock.monotonic()
        self._owner = os.urandom(OWNER_BYTES) if lineage is None else lineage[:OWNER_BYTES]
        self._own = {self._owner}
        self._number = 0
        self.on_news: Callable[[], None] = lambda: None
        """Called on the store's thread when the first session of many turns out to be set back."""
        self._last = -inf  # the monotonic second at which a session was last set back
        self.count = 0
        """Writes that went over an older state of the same session."""

    def write_id(self) -> bytes:
        """Return a write id that no other write has. On the store's thread."""
        self._number += 1
        if self._number == MOST_NUMBERS:
            self._owner, self._number = os.urandom(OWNER_BYTES), 1
            self._own.add(self._owner)
        return self._owner + self._number.to_bytes(4, "big")

    def is_own(self, write_ids: bytes) -> bool:
        """Tell whether the newest of *write_ids* was made here."""
        return write_ids[:OWNER_BYTES] in self._own

    def is_older(self, stored: Record, session: Flushable) -> bool:
        """Tell whether *stored* is an older state of what the store has confirmed of *session*.

        `False` where somebody else may have gone on from an older state: that is a conflict.
        """
        write_id, confirmed = stored.write_id, session.write_ids
        if not write_id or not confirmed or write_id == confirmed[:8]:
            return False
        if has_id(confirmed, write_id):
            return True
        if has_id(stored.write_ids, confirmed[:8]):
            return False  # it goes on from what was confirmed
        owner = write_id[:OWNER_BYTES]
        if owner in self._own:
            return True
        # Of an earlier process. One that is still there would make a record with a later event.
        # Each write counts the version up: what goes on from the confirmed one has a greater one,
        # but for a destroy by somebody who has not read it.
        made_before = stored.last_activity < self._start() - SKEW and stored.version < session.flushed
        return made_before and stored.state is not None and owner != BY_HAND

    def _start(self) -> float:
        """Return the second at which this process began, by the wall clock as it is now.

        That clock may have been set back since, and the monotonic one may have stood still while
        the machine slept: the earlier of the two is no later than the start.
        """
        wall, monotonic = self._began
        return min(wall, self._clock.wall() - (self._clock.monotonic() - monotonic))

    def note(self, sessions: Sequence[Flushable]) -> None:
        """Count *sessions* whose older states were written over; log the first of many."""
        if not sessions:
            return
        now = self._clock.monotonic()
        is_news, self._last = now - self._last > QUIET, now
        self.count += len(sessions)
        if is_news:
            logger.warning(
                "%s has gone back in time: it holds older states of sessions that this process has written since"
                " (restarted from a snapshot, failed over to a replica that lagged, or restored from a backup)."
                " What is in memory is written over them; sessions that had left memory are as the store has them",
                self._store,
                extra={"session_id": sessions[0].session_id},
            )
            self.on_news()
