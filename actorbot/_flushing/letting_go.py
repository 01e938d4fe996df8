"""Which sessions must not be read now: an earlier stay of theirs in memory is being abandoned."""

from __future__ import annotations

import threading
from collections.abc import Iterable
from concurrent.futures import Future

__all__ = ["LettingGo"]


class LettingGo:
    """Keeps readers away while what is kept of a session, in store or journal, changes. Any thread.

    By id: the session that is read is another object than the one that was abandoned.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()  # guards _until
        self._until: dict[str, list[Future[None]]] = {}

    def keep(self, session_ids: Iterable[str], until: Future[None]) -> None:
        """Let no session of these ids be read until *until* ends."""
        ids = list(session_ids)
        with self._lock:
            for session_id in ids:
                self._until.setdefault(session_id, []).append(until)

        def end(_: Future[None]) -> None:
            with self._lock:
                for session_id in ids:
                    self._until[session_id].remove(until)
                    if not self._until[session_id]:
                        del self._until[session_id]

        until.add_done_callback(end)

    def first(self, session_id: str) -> Future[None] | None:
        """Return what to wait for before a session is read, one after the other."""
        with self._lock:
            return next((each for each in self._until.get(session_id, ()) if not each.done()), None)
