"""Lets sessions leave memory when they have been idle, or when their data has ended by age.

This goes on in a thread of its own. What has expired in the store is removed now and then, too, on
the store's thread.
"""

from __future__ import annotations

import logging
import time
from concurrent.futures import Future
from dataclasses import dataclass
from typing import Any, Final

from actorbot._residents.idle import IdleBuckets
from actorbot._residents.table import Table
from actorbot._runtime.actor import ServiceActor
from actorbot._runtime.deadline_thread import DeadlineThread
from actorbot._runtime.home import new_future
from actorbot._state.committed import ENDS, STATE
from actorbot._turns.session_actor import SessionActor
from actorbot._turns.shared import TurnShared
from actorbot.stores.base import RecordStore

__all__ = ["Sweeper"]

logger = logging.getLogger("actorbot")

CHUNK: Final = 500  # sessions that a sweep looks at before it lets other threads run
SHORTEST: Final = 0.005  # seconds between two sweeps
STORE_DEADLINE: Final = 600.0  # seconds that a sweep of the store may take


@dataclass(frozen=True, slots=True)
class Sweep:
    """To the sweeper: look at the sessions whose time has come."""

    done: Future[None]


class Sweeper(ServiceActor):
    """Sweeps the sessions in memory and the store, from `begin` until the intake is closed."""

    def __init__(
        self,
        shared: TurnShared,
        table: Table,
        idle: IdleBuckets,
        idle_timeout: float,
        store: RecordStore,
        writer: DeadlineThread,
    ) -> None:
        super().__init__()
        self._shared = shared
        self._table = table
        self._idle = idle
        self._idle_timeout = idle_timeout
        self._store = store
        self._writer = writer

    def begin(self) -> None:
        """Start the thread and sweep from now on."""
        super().begin()
        self._sweep_later()
        self._sweep_store_later()

    # --- memory ----------------------------------------------------------------------------------

    def _sweep_later(self) -> None:
        if self._table.closed is not None:
            return
        clock = self._shared.clock

        def sweep() -> Future[None] | None:
            done = new_future()
            if not self.notify(Sweep(done)):
                return None
            self._sweep_later()
            return done

        # Not more often: a virtual clock that goes on by hours would do nothing but sweep.
        clock.call_at(clock.monotonic() + max(self._idle.quantum, SHORTEST), sweep)

    def on_receive(self, message: Any) -> None:
        try:
            if isinstance(message, Sweep):
                self._sweep()
                message.done.set_result(None)
        except Exception as error:  # or pykka would end the actor, and no session could leave
            logger.exception("the sweeper met an error of its own")
            message.done.set_exception(error)

    def _sweep(self) -> None:
        now = self._shared.clock.monotonic()
        wall = self._shared.clock.wall()
        unflushed: list[SessionActor] = []
        for seen, actor in enumerate(self._idle.take_due(now), 1):
            if self._look_at(actor, now, wall):
                unflushed.append(actor)
                if len(unflushed) == self._shared.policy.batch_size:
                    self._flush_out(unflushed)
                    unflushed = []
            if seen % CHUNK == 0:
                # Lets a thread that waits for the interpreter have it; `Event().wait(0)` does not.
                time.sleep(0)
        if unflushed:
            self._flush_out(unflushed)

    def _look_at(self, actor: SessionActor, now: float, wall: float) -> bool:
        """Let *actor* leave if its time has come, or look at it again later.

        `True` if it has to be flushed first; then the caller sees that it is looked at again.
        """
        if self._table.actors.get(actor.session_id) is not actor:
            return False
        due = actor.touched + self._idle_timeout
        committed = actor.committed
        if committed is not None and committed[STATE] is not None:
            ends_in = committed[ENDS] - wall
            if ends_in <= 0 and self._table.expire(actor):
                return False
            due = min(due, now + max(ends_in, 0.0))
        if due > now:
            self._idle.add(actor, due)
        elif not self._table.passivate(actor):
            if actor.behind():
                return True
            self._idle.add(actor, now)
        return False

    def _flush_out(self, actors: list[SessionActor]) -> None:
        """Flush *actors*, and let those leave then that have had no event meanwhile.

        Until then they are in no bucket: no sweep need look at them.
        """
        self._shared.flusher.flush(actors).add_done_callback(lambda done: self._look_again(actors, done))

    def _look_again(self, actors: list[SessionActor], flushed: Future[None]) -> None:
        now, wall = self._shared.clock.monotonic(), self._shared.clock.wall()
        unflushed = [actor for actor in actors if self._look_at(actor, now, wall)]
        if unflushed and flushed.exception() is None:
            self._flush_out(unflushed)
            return
        for actor in unflushed:
            self._idle.add(actor, now)  # the store does not take it now: the next sweep tries again

    # --- the store -------------------------------------------------------------------------------

    def _sweep_store_later(self) -> None:
        """Have the store remove what has expired in it, again and again."""
        clock = self._shared.clock
        seconds = min(600.0, max(1.0, self._store.expires_in / 10))

        def sweep() -> Future[None] | None:
            if self._table.closed is not None:
                return None
            done = new_future()
            call = self._writer.call(lambda: list(self._store.sweep(clock.wall())), deadline=STORE_DEADLINE)
            call.add_done_callback(lambda outcome: self._swept(outcome, done))
            return done

        clock.call_at(clock.monotonic() + seconds, sweep)

    def _swept(self, outcome: Future[Any], done: Future[None]) -> None:
        try:
            if (error := outcome.exception()) is not None:
                logger.warning("sweeping expired records failed: %s", error)
            else:
                for record in outcome.result():
                    if record.session_id not in self._table.actors:
                        self._shared.on_expire(record.session_id, record.state, record.expires_at)
            self._sweep_store_later()
        finally:
            done.set_result(None)
