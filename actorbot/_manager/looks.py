"""`Looks`: what a manager shows of itself."""

from __future__ import annotations

from collections.abc import Iterator

from actorbot._manager.access import Access, Life
from actorbot._manager.figures import health_of, sessions_of, stats_of
from actorbot._manager.parts import Parts
from actorbot._reports import Conflict, Health, SessionInfo, Stats

__all__ = ["Looks"]


class Looks(Access):
    """The verbs of `SessionManager` that change nothing."""

    _parts: Parts  # from the start on

    async def delivered(self, session_id: str) -> None:
        """Return when `deliver` has taken the session's replies so far, or has failed with them."""
        self._check_here()
        await self._home.wait(self._parts.shared.outbox.emptied(session_id))

    def stats(self) -> Stats:
        """Return counters and gauges. Any thread."""
        self._check_open(lost=True)
        return stats_of(self._parts)

    def conflicts(self) -> list[Conflict]:
        """List what could not be flushed because another process had written the session.

        The newest 1,000, oldest first. With a journal, also those of earlier managers that used it.
        Any thread.
        """
        self._check_open(lost=True)
        return list(self._parts.hooks.conflicts)

    def health(self) -> Health:
        """Say whether the manager does its work. Any thread."""
        if self._lost is not None:
            return Health("failing", str(self._lost))
        if self._life is Life.STARTING and self._waits_for is not None:
            return Health(
                "failing", f"the manager is starting, and waits for the owner of its store: {self._waits_for}"
            )
        if self._life is not Life.OPEN:
            return Health("failing", f"the manager is {self._life.value}")
        return health_of(self._parts)

    def resident(self) -> Iterator[tuple[str, SessionInfo]]:
        """Iterate over the sessions in memory. Any thread."""
        self._check_open(lost=True)
        yield from sessions_of(self._parts)
