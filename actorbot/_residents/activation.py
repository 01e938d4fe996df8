"""How a session comes into memory and gets its turn.

Whoever wants a turn of a session that is absent makes its actor and holds the first turn at once.
The record is read within that turn (`load`).
"""

from __future__ import annotations

import asyncio
import logging

from actorbot._journal.entry import Entry
from actorbot._residents.backoff import BrokenRecords
from actorbot._residents.idle import IdleBuckets
from actorbot._residents.loader import Loader
from actorbot._residents.room import Room
from actorbot._residents.table import Table
from actorbot._runtime.actor import Envelope
from actorbot._turns.deadlock import begin_to_wait, end_to_wait
from actorbot._turns.session_actor import SessionActor
from actorbot._turns.shared import TurnShared
from actorbot._turns.told import Handle
from actorbot.errors import ActorbotError, CorruptSessionError, TurnTimeoutError

__all__ = ["Activation"]

logger = logging.getLogger("actorbot")


class Activation:
    """Gives turns, and brings in the sessions that are absent."""

    def __init__(
        self, shared: TurnShared, table: Table, room: Room, idle: IdleBuckets, loader: Loader, broken: BrokenRecords
    ) -> None:
        self._shared = shared
        self._table = table
        self._room = room
        self._idle = idle
        self._loader = loader
        self._broken = broken

    async def wait_for_turn(self, session_id: str, timeout: float | None = None) -> SessionActor:
        """Wait for the turn of *session_id*, bringing the session in if it is absent.

        The caller must leave the turn. Raises: OverloadedError, DeadlockError, TurnTimeoutError,
        and CorruptSessionError while the session is backed off.
        """
        while True:
            actor = self._table.actors.get(session_id)
            if actor is None:
                while self._room.is_full():
                    await self._room.make()
                actor = self._make_actor(session_id)
                if actor is not None:
                    return actor
            elif actor.enter() or await self._wait_in_line(actor, timeout):
                return actor
            else:
                self._table.wait_until_gone()

    async def _wait_in_line(self, actor: SessionActor, timeout: float | None) -> bool:
        """Wait for the turn of *actor*; `False` if the actor was closed before it gave the turn."""
        mine = begin_to_wait(actor)
        try:
            waiter = self._shared.home.waiter(actor, timeout)
            if not actor.join(waiter, self._shared.max_mailbox):
                return False
            await waiter
            return True
        finally:
            if mine:
                end_to_wait(mine, actor)

    def put_in_line(self, session_id: str, message: Handle) -> SessionActor:
        """Put an event in line for which nobody waits. Any thread.

        Raises: OverloadedError, and CorruptSessionError while the session is backed off.
        """
        envelope = Envelope(message)
        while True:
            actor = self._table.actors.get(session_id)
            if actor is None:
                if self._room.is_full():
                    self._room.make_at_once()
                actor = self._make_actor(session_id)
                if actor is not None:
                    actor.join(envelope, self._shared.max_mailbox)
                    actor.leave()
                    return actor
            elif actor.join(envelope, self._shared.max_mailbox):
                return actor
            else:
                self._table.wait_until_gone()

    def _make_actor(self, session_id: str) -> SessionActor | None:
        """Bring the session in, its turn held by the caller; `None` if somebody else was faster."""
        now = self._shared.clock.monotonic()
        self._broken.check(session_id, now)
        actor = SessionActor(session_id, self._shared, now)
        if not self._table.add(actor):
            return None
        self._idle.add(actor, now + self._idle.span)
        return actor

    async def load(self, actor: SessionActor) -> None:
        """Read the record of *actor*, whose turn the caller holds.

        If the read fails, everybody in its line gets the error. The session leaves memory, unless
        it has a state that may be all that is left of it. Raises: also why it was abandoned.
        """
        _check_kept(actor)
        try:
            found = await self._loader.find(actor.session_id, actor)
        except (asyncio.CancelledError, TurnTimeoutError):
            raise  # only this caller has given up: the next in line reads for itself
        except ActorbotError as error:
            damaged = isinstance(error, CorruptSessionError)
            if damaged and actor.keep_doubted(error):
                return
            if damaged:
                pause = self._broken.note(actor.session_id, error, self._shared.clock.monotonic())
                logger.error(
                    "a session cannot be read; it is not read again for %g s: %s",
                    pause,
                    error,
                    extra={"session_id": actor.session_id},
                )
            if actor.doubted is None:
                self._table.discard(actor)
            self._table.dismiss(actor, error)
            raise
        self._broken.forget(actor.session_id)
        if isinstance(found, Entry):
            actor.adopt_entry(found)
        else:
            actor.adopt(found)
        _check_kept(actor)  # last: who abandons it notes that first, and takes its state then


def _check_kept(actor: SessionActor) -> None:
    """Raises: why *actor* was abandoned, if it was."""
    if actor.abandoned is not None:
        actor.committed = None
        raise actor.abandoned
