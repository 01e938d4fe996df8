"""Takes sessions out of memory at once, whatever they do, and has nothing of them written.

What the store does not have of them is handed to `on_conflict`. That goes for what only the journal
has, too, also of sessions that are not in memory: else it would be brought to the store later.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable
from concurrent.futures import Future

from actorbot._journal.entry import Entry
from actorbot._residents.table import Table
from actorbot._runtime.home import new_future
from actorbot._turns.session_actor import SessionActor
from actorbot._turns.shared import TurnShared
from actorbot.errors import ActorbotError

__all__ = ["Abandonment"]

logger = logging.getLogger("actorbot")


class Abandonment:
    """Abandons sessions. Any thread."""

    def __init__(self, shared: TurnShared, table: Table) -> None:
        self._shared = shared
        self._table = table

    def begin(self, session_ids: Iterable[str], error: ActorbotError) -> None:
        """Abandon these sessions; whoever has or awaits a turn of them gets *error*.

        Waits for nothing. What is handed over comes when the call to the store that is on its way,
        if there is one, has ended; until then no session of these ids is read again.
        """
        ids = list(dict.fromkeys(session_ids))
        actors = [actor for each in ids if (actor := self._table.actors.get(each)) is not None]
        read = {actor.session_id for actor in actors if actor.committed is not None}
        self._shared.flusher.abandon(actors, error)
        for actor in actors:
            actor.turn.acquire(False)  # or somebody has it, and does not pass it on
            self._table.discard(actor)
        self._shared.running.revoke(set(actors), error)
        for actor in actors:
            self._table.dismiss(actor, error)
        for session_id in ids:
            self._shared.answers.forget(session_id)
            if session_id not in read:
                self._take_from_journal(session_id, error)

    def _take_from_journal(self, session_id: str, error: ActorbotError) -> None:
        journal, letting_go = self._shared.journal, self._shared.flusher.letting_go
        if journal is None or not journal.yields:
            return
        taken = new_future()
        letting_go.keep([session_id], taken)

        def begin(_: object) -> None:
            before = letting_go.first(session_id)
            if before is not None and before is not taken:
                before.add_done_callback(begin)  # what it brings to the journal is not to be taken
            elif journal.holds(session_id):
                journal.read(session_id).add_done_callback(take)
            else:
                taken.set_result(None)

        def take(read: Future[Entry | None]) -> None:
            failure = read.exception()
            if failure is not None:
                logger.error(
                    "what the journal has of session %r could not be handed over: %s",
                    session_id,
                    failure,
                    extra={"session_id": session_id},
                )
            elif (entry := read.result()) is not None:
                actor = SessionActor(session_id, self._shared, self._shared.monotonic())
                actor.adopt_entry(entry)
                self._shared.flusher.abandon([actor], error)
            taken.set_result(None)

        begin(None)
