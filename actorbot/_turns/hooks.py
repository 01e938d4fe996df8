"""`Hooks`: the bot author's functions, and the calls of those that no turn waits for."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from concurrent.futures import Future
from typing import Any

from actorbot._flushing.write import Flushable
from actorbot._reports import Conflict
from actorbot._runtime.current import Errand, errand
from actorbot._runtime.home import Home, new_future
from actorbot._state.codec import decode_state
from actorbot._state.committed import STATE, Committed
from actorbot._state.values import UndecodableError
from actorbot._turns.context import Apology, Context

__all__ = ["Hook", "Hooks"]

logger = logging.getLogger("actorbot")

Hook = Callable[..., Any]
KEPT = 1_000  # conflicts, the newest
IN_TURNS = ("handler", "on_session_start")  # they run in a turn, whose time limit holds for them


class Hooks:
    """The handler, `deliver` and the `on_…` hooks of one manager, by name. Any thread."""

    def __init__(self, home: Home, functions: Mapping[str, Hook | None], *, limit: float, most_told: int) -> None:
        self._home = home
        self._bound = {
            name: home.bind(function, None if name in IN_TURNS else limit)
            for name, function in functions.items()
            if function is not None
        }
        self._most_told = most_told
        self._telling = threading.Lock()  # guards _told
        # The ends that `on_session_expire` was told, oldest first. A record may outlast its session
        # and be met again.
        self._told: dict[str, float] = {}
        self.running: set[Future[None]] = set()
        self.dead_letters = 0
        self.are_run_again = False
        """Whether events that a conflict has taken are run again, so that nothing is lost."""
        self.conflicts: deque[Conflict] = deque(maxlen=KEPT)

    def bound(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]] | None:
        """Return the function of that name as a coroutine function; `None` if there is none."""
        return self._bound.get(name)

    async def report_error(self, context: Context, error: BaseException) -> None:
        """Call `on_error` about a turn that was rolled back."""
        hook = self.bound("on_error")
        if hook is None:
            return
        before, done = errand.get(), new_future()  # so that a close waits for it: the turn is over
        self.running.add(done)
        errand.set(Errand(done, self._home.current_task()))
        try:
            await hook(Apology(context), error)
        except BaseException as failure:
            if self._home.is_ending(failure):
                raise
            logger.exception(
                "on_error failed for session %r", context.session_id, extra={"session_id": context.session_id}
            )
        finally:
            errand.set(before)
            self.running.discard(done)
            done.set_result(None)

    async def report_undelivered(self, context: Context, error: BaseException) -> None:
        """Call `on_error` about a reply that `deliver` has failed with, or log it."""
        if isinstance(context, Apology) or self.bound("on_error") is None:
            session_id = context.session_id
            logger.error(
                "a reply of session %r was not delivered: %r",
                session_id,
                error,
                exc_info=error,
                extra={"session_id": session_id},
            )
        else:
            await self.report_error(context, error)

    def report_expired(self, session_id: str, state: bytes, end: float) -> None:
        """Call `on_session_expire` about a session that has ended at *end*, once.

        The same record may be met again: in memory, by a read, or by a sweep.
        """
        if self.bound("on_session_expire") is None:
            return
        with self._telling:
            if self._told.pop(session_id, None) == end:
                self._told[session_id] = end
                return
            if len(self._told) >= self._most_told:
                del self._told[next(iter(self._told))]
            self._told[session_id] = end
        try:
            values = decode_state(state)
        except UndecodableError:
            logger.exception("an expired session cannot be decoded", extra={"session_id": session_id})
            return
        self._call_later("on_session_expire", session_id, values)

    def report_conflict(self, session: Flushable, unflushed: Committed) -> None:
        """Call `on_conflict` with what was not flushed of a session that another process wrote.

        Or of one that was abandoned.
        """
        if self.are_run_again:
            logger.debug(
                "session %r was written by another process, or has another owner; its events are run again",
                session.session_id,
                extra={"session_id": session.session_id},
            )
            return
        if session.abandoned is None:
            logger.error(
                "session %r was written by another process; what this one had not flushed goes to on_conflict",
                session.session_id,
                extra={"session_id": session.session_id},
            )
        else:
            logger.warning(
                "session %r was abandoned; what was not flushed goes to on_conflict",
                session.session_id,
                extra={"session_id": session.session_id},
            )
        self.keep(session.session_id, unflushed)
        state = unflushed[STATE]
        self._call_later("on_conflict", session.session_id, None if state is None else decode_state(state))

    def keep(self, session_id: str, unflushed: Committed) -> None:
        """Keep what was lost to a conflict, for `SessionManager.conflicts`."""
        version, state, _, last_activity, _ = unflushed
        self.conflicts.append(
            Conflict(session_id, None if state is None else decode_state(state), version, last_activity)
        )

    def bury(self, session_id: str, event: Any, error: BaseException) -> None:
        """Make *event* a dead letter."""
        self.dead_letters += 1
        logger.error(
            "dead letter of session %r: %r", session_id, error, exc_info=error, extra={"session_id": session_id}
        )
        self._call_later("on_dead_letter", session_id, event, f"{type(error).__name__}: {error}")

    def _call_later(self, name: str, *args: Any) -> None:
        hook = self.bound(name)
        if hook is None:
            return
        done = new_future()
        self.running.add(done)

        async def call() -> None:
            errand.set(Errand(done, self._home.current_task()))
            try:
                await hook(*args)
            except BaseException as failure:
                if self._home.is_ending(failure):
                    raise
                logger.exception("%s failed for session %r", name, args[0], extra={"session_id": args[0]})
            finally:
                self.running.discard(done)
                done.set_result(None)

        self._home.spawn(call)
