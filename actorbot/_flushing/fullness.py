"""Which sessions come near to the largest that a session may be, and that their author hears of it.

At `max_session_bytes` a session's events fail, each of them, until something is taken out of it. A
history that grows with each event comes there one day.
"""

from __future__ import annotations

import logging
import threading
from typing import Final
from weakref import WeakSet

from actorbot._flushing.write import Flushable
from actorbot._state.committed import STATE

__all__ = ["Fullness"]

logger = logging.getLogger("actorbot")

NEAR: Final = 0.8  # of max_session_bytes


class Fullness:
    """The sessions in memory that are nearly full. Any thread."""

    def __init__(self, max_session_bytes: int) -> None:
        self._most = max_session_bytes
        self.near = int(NEAR * max_session_bytes)
        """A session with more bytes than this is nearly full."""
        self._lock = threading.Lock()  # guards _met
        # Those that were nearly full since they came into memory; each is warned of once.
        self._met: WeakSet[Flushable] = WeakSet()

    def meet(self, session: Flushable, size: int) -> None:
        """Warn of a session of *size* bytes if it is nearly full, once while it is in memory."""
        if size <= self.near:
            return
        with self._lock:
            if session in self._met:
                return
            self._met.add(session)
        logger.warning(
            "session %r takes %d bytes, more than %d %% of the %d allowed (max_session_bytes): at that bound its"
            " events fail; keep less in it",
            session.session_id,
            size,
            100 * NEAR,
            self._most,
            extra={"session_id": session.session_id},
        )

    def count(self) -> int:
        """Count the sessions in memory that are nearly full now."""
        with self._lock:
            met = list(self._met)
        states = (session.committed[STATE] for session in met if session.committed is not None and not session.closed)
        return sum(state is not None and len(state) > self.near for state in states)
