"""`Many`: the verbs of a manager that are about several sessions at once."""

from __future__ import annotations

from collections.abc import Iterable

from actorbot._checks import check_timeout
from actorbot._manager.looks import Looks
from actorbot._manager.options import Options
from actorbot._manager.verbs import Verbs
from actorbot._reports import ShutdownReport

__all__ = ["Many"]


class Many(Looks):
    """The verbs of `SessionManager` that bring sessions to the store, and out of memory."""

    _options: Options
    _verbs: Verbs  # from the start on

    async def flush(self, session_id: str | Iterable[str] | None = None) -> None:
        """Return when the store has what was committed: of one session, of several, or of all.

        Raises: StoreUnavailableError; ConflictError; OverloadedError if a session that left memory
        in an outage finds no room there now.
        """
        self._check_here()
        await self._verbs.flush(session_id)

    def flush_sync(self, session_id: str | Iterable[str] | None = None) -> None:
        """The same as `flush`, for threads."""
        self._check_away()
        self._run_sync(self._verbs.flush, session_id)

    async def release(self, session_ids: str | Iterable[str], timeout: float | None = None) -> ShutdownReport:
        """Finish what was accepted for these sessions, flush them, and take them out of memory.

        The manager stays open: a later event reads the session from the store again. All this takes
        *timeout* seconds, or else `close_timeout`. What could not be done by then stays in memory,
        and the report says so. Raises: DeadlockError within a turn of one of these sessions.
        """
        seconds = self._options.close_timeout if timeout is None else check_timeout(timeout)
        self._check_here()
        return await self._verbs.release(session_ids, seconds)

    def release_sync(self, session_ids: str | Iterable[str], timeout: float | None = None) -> ShutdownReport:
        """The same as `release`, for threads."""
        seconds = self._options.close_timeout if timeout is None else check_timeout(timeout)
        self._check_away()
        return self._run_sync(self._verbs.release, session_ids, seconds)  # type: ignore[no-any-return]

    def abandon(self, session_ids: str | Iterable[str]) -> None:
        """Take these sessions out of memory now, and flush nothing of them. Any thread.

        For who learns that another process has them. What the store does not have goes to
        `on_conflict` and `conflicts`; when a write is on its way, as soon as it has ended. A turn
        under way is taken from its handler: its caller gets OwnershipLostError, and so do those in
        line. The next event reads what the store has.
        """
        self._check_anywhere()
        self._verbs.abandon(session_ids)
