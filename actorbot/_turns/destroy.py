"""`Destroy`: the end of a session that somebody destroys."""

from __future__ import annotations

import os
from concurrent.futures import Future

from actorbot._journal.ahead import Ahead
from actorbot._runtime.home import new_future
from actorbot._state.committed import ANYBODYS, OWNER_BYTES, VERSION, Committed, Lineage
from actorbot._state.record import TOMBSTONE_AGE
from actorbot._turns.session_actor import SessionActor
from actorbot.errors import ActorbotError, ConflictError, OutcomeUnknownError

__all__ = ["Destroy"]


class Destroy(Ahead):
    """A destroy on its way to the journal, if there is one, and then to the store. At home.

    Whoever makes it has the actor's turn, which is left at the end. A destroy that has begun goes
    on even if its caller is cancelled.
    """

    def __init__(self, actor: SessionActor) -> None:
        self._shared = actor.shared
        self._actor = actor
        self._forced = actor.committed is None  # nobody knows what the store has
        self._done = new_future()
        gone = self._make_gone()
        # A lineage of its own: if the session was not read, nobody knows which versions of it this
        # manager has made before. Its owner is this manager all the same.
        journal = actor.shared.journal
        name = os.urandom(8) if journal is None else journal.lineage[:OWNER_BYTES] + os.urandom(4)
        super().__init__(actor.session_id, gone, actor.write_ids, (Lineage(name, gone[VERSION]), ANYBODYS))

    def _make_gone(self) -> Committed:
        """Make what is left of the session. It may not have been read."""
        actor, journal = self._actor, self._shared.journal
        wall = self._shared.wall()
        version = actor.flushed if actor.committed is None else actor.committed[VERSION]
        if journal is not None:  # its entry may be newer than what was read, if anything was
            version = max(version, journal.version(actor.session_id))
            if actor.committed is None:
                # Nobody knows which versions this manager has made of it. No version may come
                # twice: both would have the same write id, and the new one would be taken for the
                # old one, which the store has.
                actor.flushed = version = max(version, journal.newest)
        return version + 1, None, b"", wall, wall + TOMBSTONE_AGE

    def begin(self) -> Future[None]:
        """Begin. The future ends when the store has it, or when only the journal can."""
        journal = self._shared.journal
        if journal is None:
            self._write()
        else:
            journal.put(self)
        return self._done

    def settle(self, error: ActorbotError | None) -> None:
        if error is None:
            self._actor.lineages = self.lineages
            self._write()
        else:
            self._leave(error)

    def _write(self) -> None:
        written = self._shared.flusher.write(self._actor, self.committed, forced=self._forced)
        written.add_done_callback(lambda written: self._shared.home.post(self._note, written.exception()))

    async def _force(self) -> None:
        """Write over what another process has written, unless that one owns the store now."""
        try:
            await self._shared.confirm()
        except ActorbotError as error:
            self._note(error)
        else:
            self._write()

    def _note(self, error: BaseException | None) -> None:
        actor = self._actor
        actor.unanswered = 0
        if isinstance(error, ConflictError) and not self._forced:
            # Whoever has written the session, it goes. Only the second write is forced. If this
            # process is killed and the next one goes on, a late write of this one must still
            # meet a conflict.
            self._forced = True
            self._shared.home.spawn(self._force)
            return
        # Where nobody knows what the store holds now, the next turn reads it.
        if error is not None and actor.abandoned is not None:
            if self._shared.journal is not None:  # the journal has it: it is handed over
                actor.committed = self.committed
                self._shared.flusher.abandon([actor], actor.abandoned)
        elif error is not None and self._shared.journal is not None:
            error = None  # the journal has it, and the store will
            actor.committed = self.committed
            self._shared.dirty.mark(actor)
        elif error is None:
            self._shared.ended += actor.committed is not None
            actor.committed = self.committed
        elif isinstance(error, OutcomeUnknownError) and not actor.behind():
            actor.doubt()
        self._leave(error)

    def _leave(self, error: BaseException | None) -> None:
        self._shared.answers.forget(self.session_id)
        self._actor.leave()
        if error is None:
            self._done.set_result(None)
        else:
            self._done.set_exception(error)
