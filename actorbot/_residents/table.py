"""The sessions in memory, by id, and each way in which one leaves.

            add                          load
    absent ─────► in memory, its record ──────► in memory, and ready for any number of turns
       ▲          not read yet                        │
       │                  │ the read fails            │
       │ discard, dismiss │                           │
       ├──────────────────┘                           │
       │ passivate: it is idle, the store has its     │
       │            state, and nobody is in line      │
       │ expire:    its data has ended by age         │
       │ retire:    the manager closes                │
       └──────────────────────────────────────────────┘

`activation.py` calls `add` and loads; the new session's first turn is held from the start. A
session that has left is never used again: the next event of the same id makes a new actor.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from copy import copy

from actorbot._runtime.actor import Envelope
from actorbot._state.committed import ENDS, STATE
from actorbot._turns.session_actor import SessionActor
from actorbot._turns.shared import TurnShared
from actorbot.errors import ActorbotError, ManagerClosedError

__all__ = ["Table"]


class Table:
    """The sessions in memory. Methods may be called from any thread."""

    def __init__(self, shared: TurnShared) -> None:
        self.actors: dict[str, SessionActor] = {}
        self.closed: ActorbotError | None = None
        self.activations = self.passivations = 0
        self._shared = shared
        # Guards that an actor is closed and leaves `actors` in one step. Who closes an actor holds
        # this lock until the actor is out.
        self._lock = threading.Lock()

    # --- coming ----------------------------------------------------------------------------------

    def add(self, actor: SessionActor) -> bool:
        """Put in a new actor, whose turn the caller holds; `False` if its id has one already.

        Raises: ManagerClosedError.
        """
        if self.actors.setdefault(actor.session_id, actor) is not actor:
            return False
        # Here the actor is put in first, and `closed` is looked at then. A close does it the other
        # way round: it sets `closed` and lists the actors then. So one of the two sees the other.
        if (closed := self.closed) is not None:
            error = copy(closed)
            self.discard(actor)
            self.dismiss(actor, error)
            raise error
        self.activations += 1
        return True

    def wait_until_gone(self) -> None:
        """Wait until an actor that was met closed is out of `actors`, which takes microseconds."""
        with self._lock:
            pass

    # --- leaving ---------------------------------------------------------------------------------

    def discard(self, actor: SessionActor) -> None:
        """Take out *actor*, whose turn the caller holds; nothing is flushed.

        Its turn is never free again.
        """
        with self._lock:
            actor.closed = True
            if self.actors.get(actor.session_id) is actor:
                del self.actors[actor.session_id]

    def dismiss(self, actor: SessionActor, error: ActorbotError) -> None:
        """Give *error* to everybody in line: their turn will not come."""
        for item in actor.drain():
            if isinstance(item, Envelope):
                item.message.outcome.set_exception(error)
            else:
                item.fail(error)

    def passivate(self, actor: SessionActor, *, may_spill: bool = True) -> bool:
        """Take out *actor* if it is idle and clean and nobody is in line, and tell whether it left.

        Never waits, and no event waits for it. While the store is down, a session that is not clean
        may leave, too, if there is a journal and it *may_spill*: the journal has what the store
        lacks.
        """
        shared = self._shared
        with self._lock:
            if not actor.enter():
                return False
            clean = not actor.behind() and not actor.dirty
            spills = may_spill and shared.journal is not None and shared.flusher.retries.outage_since is not None
            if (clean or spills) and actor.close_if_nobody_waits():
                del self.actors[actor.session_id]
                self.passivations += 1
                if not clean:
                    shared.flusher.spill(actor)
                return True
        actor.leave()
        return False

    def expire(self, actor: SessionActor) -> bool:
        """Take out *actor* if it is idle and its data has ended by age; tell whether it left."""
        with self._lock:
            if not actor.enter():
                return False
            committed = actor.committed
            ended = (
                committed is not None
                and committed[STATE] is not None
                and self._shared.clock.wall() >= committed[ENDS]
                and not actor.dirty
                # An older write of the session may be on its way. Then its next turn ends the data.
                and not actor.behind()
            )
            if ended and actor.close_if_nobody_waits():
                del self.actors[actor.session_id]
                self.passivations += 1
                assert committed is not None
                assert committed[STATE] is not None
                self._shared.on_expire(actor.session_id, committed[STATE], committed[ENDS])
                return True
        actor.leave()
        return False

    # --- a close ---------------------------------------------------------------------------------

    def close_intake(self, error: ActorbotError | None = None) -> None:
        """Let no session come any more, because of *error*. The sweeps end with this, too."""
        self.closed = self.closed or error or ManagerClosedError("the manager is closing")

    def retire(self, actor: SessionActor) -> bool:
        """Take out *actor*, whose turn the caller holds, flushed or not, and tell whether it left.

        It stays if somebody is in line.
        """
        with self._lock:
            if not actor.close_if_nobody_waits():
                return False
            self.actors.pop(actor.session_id, None)
            return True

    def dismiss_all(self) -> int:
        """Take out all sessions and fail everybody in line; return how many turns were held."""
        busy = 0
        for actor in self.resident():
            busy += actor.turn.locked()
            self.discard(actor)
            self.dismiss(actor, ManagerClosedError("the manager was closed before the event had its turn"))
        return busy

    # --- looking ---------------------------------------------------------------------------------

    def resident(self) -> Iterator[SessionActor]:
        """Iterate over the actors that are in memory now."""
        return iter(list(self.actors.values()))
