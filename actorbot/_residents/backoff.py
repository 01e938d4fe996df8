"""Sessions whose record is broken are left alone for a while: longer each time, and whoever asks meanwhile is told why."""

from __future__ import annotations

from typing import Final

from actorbot.errors import ActorbotError

__all__ = ["BrokenRecords"]

BASE: Final = 1.0  # seconds that a session is left alone at first, doubled each time
CAP: Final = 60.0
MOST: Final = 1_000  # sessions; of more than these the oldest failure is forgotten, and its record read again


class BrokenRecords:
    """The failures that sessions are backed off for, by session id. Any thread: each change is a single step."""

    def __init__(self) -> None:
        self._known: dict[str, tuple[int, float, ActorbotError]] = {}  # how many, until when, what was wrong

    def check(self, session_id: str, now: float) -> None:
        """Raises: the error of the last failure, while the session is left alone."""
        known = self._known.get(session_id)
        if known is not None and now < known[1]:
            raise known[2].with_traceback(None)  # or it would grow with each who is told

    def note(self, session_id: str, error: ActorbotError, now: float) -> float:
        """Count a failure; return for how many seconds the session is left alone."""
        failures = self._known.get(session_id, (0, 0.0, error))[0] + 1
        if len(self._known) >= MOST and session_id not in self._known:
            self._known.pop(next(iter(self._known)), None)
        pause = min(CAP, BASE * 2.0 ** (failures - 1))
        self._known[session_id] = (failures, now + pause, error)
        return pause

    def count(self, now: float) -> int:
        """Count the sessions that are left alone."""
        return sum(now < until for _, until, _ in list(self._known.values()))

    def forget(self, session_id: str) -> None:
        """Leave the session alone no longer."""
        self._known.pop(session_id, None)
