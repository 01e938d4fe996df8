"""Sessions whose record is broken are not read again for a while.

The while gets longer each time. Whoever asks for such a session meanwhile gets the same error.
"""

from __future__ import annotations

from typing import Final, NamedTuple

from actorbot.errors import ActorbotError

__all__ = ["BrokenRecords"]

BASE: Final = 1.0  # seconds without a read after the first failure; doubled with each further one
CAP: Final = 60.0  # seconds, at most
MOST: Final = 1_000  # sessions that are remembered; beyond, the oldest failure is forgotten


class _Broken(NamedTuple):
    failures: int
    until: float
    """The monotonic second from which on the record may be read again."""
    error: ActorbotError


class BrokenRecords:
    """The sessions whose record cannot be decoded, by id. Any thread: each change is one step."""

    def __init__(self) -> None:
        self._known: dict[str, _Broken] = {}

    def check(self, session_id: str, now: float) -> None:
        """Raises: the error of the last failure, as long as the record is not to be read again."""
        broken = self._known.get(session_id)
        if broken is not None and now < broken.until:
            # Without its traceback, which would grow with each caller that gets the error.
            raise broken.error.with_traceback(None)

    def note(self, session_id: str, error: ActorbotError, now: float) -> float:
        """Note a failure; return for how many seconds the record is not read again."""
        before = self._known.get(session_id)
        failures = 1 if before is None else before.failures + 1
        if len(self._known) >= MOST and before is None:
            self._known.pop(next(iter(self._known)), None)
        pause = min(CAP, BASE * 2.0 ** (failures - 1))
        self._known[session_id] = _Broken(failures, now + pause, error)
        return pause

    def count(self, now: float) -> int:
        """Count the sessions whose record is not to be read again yet."""
        return sum(now < broken.until for broken in list(self._known.values()))

    def forget(self, session_id: str) -> None:
        """Forget the failures of a session: its record may be read at once."""
        self._known.pop(session_id, None)
