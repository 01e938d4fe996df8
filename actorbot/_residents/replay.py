"""Brings to the store what only the journal has, of sessions that are not in memory.

Such sessions are left by an earlier process, or by an outage during which they left memory. Each
is brought into memory, flushed, and let go.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Final

from actorbot._residents.activation import Activation
from actorbot._residents.table import Table
from actorbot._turns.session_actor import SessionActor
from actorbot._turns.shared import TurnShared
from actorbot.errors import ActorbotError, ConflictError

__all__ = ["Replay"]

logger = logging.getLogger("actorbot")

AT_ONCE: Final = 500  # sessions of the journal that come into memory together


class Replay:
    """From the journal to the store, through memory. At home."""

    def __init__(self, shared: TurnShared, table: Table, activation: Activation) -> None:
        self._shared = shared
        self._table = table
        self._activation = activation
        self._running = False

    async def run(self) -> None:
        """Bring everything to the store that only the journal has; an outage ends this early.

        Begun at the start and after an outage. While it runs, a second call does nothing.
        """
        journal = self._shared.journal
        if journal is None or self._running:
            return
        self._running = True
        try:
            ids = [session_id for session_id in journal.ids() if session_id not in self._table.actors]
            whole, outage = True, False
            for at in range(0, len(ids), AT_ONCE):
                if self._table.closed is not None:
                    return
                try:
                    await self._bring(ids[at : at + AT_ONCE])
                except ConflictError:
                    pass  # reported, and the state kept for `conflicts()`
                except ActorbotError as error:
                    logger.warning("what the journal holds could not be brought to the store yet: %s", error)
                    whole = False
                if outage := self._shared.flusher.retries.outage_since is not None:
                    break
        finally:
            self._running = False
        if outage:
            if self._shared.flusher.retries.outage_since is None:
                # The outage has ended between the two looks. Who came then found this running.
                await self.run()
        elif not whole:
            clock, home = self._shared.clock, self._shared.home
            clock.call_at(clock.monotonic() + self._shared.policy.retry.cap, lambda: home.spawn(self.run))

    async def flush_absent(self, session_ids: Sequence[str]) -> None:
        """Bring to the store what only the journal had of these sessions, which were absent.

        Raises: the error of one that could not be brought there.
        """
        journal = self._shared.journal
        if journal is None or not journal.yields:
            return
        came = list(filter(None, map(self._find_read, session_ids)))  # are in memory again
        if came:
            await self._shared.home.wait(self._shared.flusher.flush(came))
        ids = [each for each in session_ids if journal.holds(each) and self._find_read(each) is None]
        while ids:
            # In an outage only one, to see whether it is over: more would take up room for nothing.
            at_once = AT_ONCE if self._shared.flusher.retries.outage_since is None else 1
            await self._bring(ids[:at_once])
            ids = ids[at_once:]

    def _find_read(self, session_id: str) -> SessionActor | None:
        actor = self._table.actors.get(session_id)
        return None if actor is None or actor.committed is None else actor

    async def _bring(self, ids: Sequence[str]) -> None:
        """Activate these sessions, flush them and let them go.

        All of them are tried. Raises: the error of one for which that failed.
        """
        actors: list[SessionActor] = []
        failure: ActorbotError | None = None
        for session_id in ids:
            try:
                actors.append(await self._activate(session_id))
            except ActorbotError as error:
                failure = error
        try:
            await self._shared.home.wait(self._shared.flusher.flush(actors))
        except ActorbotError as error:
            # A conflict is settled. It must not hide a session that did not reach the store.
            if failure is None or not isinstance(error, ConflictError):
                failure = error
        finally:
            for actor in actors:
                self._table.passivate(actor)
        if failure is not None:
            raise failure

    async def _activate(self, session_id: str) -> SessionActor:
        actor = await self._activation.wait_for_turn(session_id)
        try:
            if actor.committed is None:
                await self._activation.load(actor)
        finally:
            actor.leave()
        return actor
