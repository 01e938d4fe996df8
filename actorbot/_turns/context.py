"""What a handler holds during its turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from typing import Any

from actorbot._runtime.current import current
from actorbot._runtime.home import Sent
from actorbot._state.committed import SEEN, STATE
from actorbot.errors import ActorbotError, HandlerTimeoutError, TurnEndedError

__all__ = ["Apology", "Context", "chain", "innermost"]


_QUEUED = Sent()


class Context:
    """One event's stay in its session: what `handler` receives and `turn()` lends.

    Used on the thread or loop that runs the handler, until the turn ends; after that, and after a time-out, the session
    can no longer be reached through it (`TurnEndedError`).
    """

    # Rarely set, so they are class attributes first: a context is made for every event.
    _ends_session = False
    _passed_on = False
    _rolled_back = False
    _replies: list[Any] | None = None
    _waits_for: list[Any] | None = None
    _revoked: ActorbotError | None = None  # what its caller gets, once its session was taken from it
    _event_id: bytes | None = None
    _interrupt: Callable[[], None] | None = None

    def __init__(
        self, actor: Any, session: Any, event: Any, before: Any, parent: Context | None, task: asyncio.Task[Any] | None
    ) -> None:
        self._actor = actor
        self._session = session  # None once the turn has ended
        self._before = before
        self._parent = parent
        # Until the turn ends: the task holds its variables, `current` among them, and that this. Only the garbage collector would end
        # such a circle, and a bot that makes a task for each event would keep it busy.
        self._task = task
        self.event = event
        """What was dispatched, unchanged; `None` in a borrowed turn."""

    @property
    def _open(self) -> bool:
        return self._session is not None

    @property
    def is_new(self) -> bool:
        """Whether this is the first event of a new or expired session."""
        return self._before[STATE] is None

    @property
    def last_activity(self) -> float | None:
        """Wall-clock seconds of the session's previous event; `None` if there was none."""
        return None if self._before[STATE] is None else self._before[SEEN]

    @property
    def session_id(self) -> str:
        """The id of the session, e.g. `"console:1"`."""
        return self._actor.session_id  # type: ignore[no-any-return]

    @property
    def session(self) -> Any:
        """The session's values, to be changed in place. Raises: TurnEndedError."""
        session = self._session
        if session is None:
            raise self._ended()
        return session

    @session.setter
    def session(self, value: Any) -> None:  # what `context.session |= …` ends with
        if value is not self.session:
            raise AttributeError("a session is not replaced but changed in place: clear() and update() it, for example")

    def send_text(self, text: str, *, gated: bool = True) -> Sent:
        """Reply with *text*; the same as `send`."""
        return self.send(text, gated=gated)

    def send(self, message: Any, *, gated: bool = True) -> Sent:
        """Reply with *message*: handed to `deliver` after the turn is acknowledged, in order, and never if the turn fails.

        With `gated=False` it is handed over at once, whatever becomes of the turn. Raises: TurnEndedError.
        """
        if self._session is None:
            raise self._ended()
        if not gated:
            return Sent(self._actor.shared.outbox.send_now(self, message))
        if self._replies is None:
            self._actor.shared.outbox.check()
            self._replies = []
        self._replies.append(message)
        return _QUEUED

    def end_session(self) -> None:
        """Destroy the session when this turn commits; the user's next event meets a new one."""
        if not self._open:
            raise self._ended()
        self._ends_session = True

    def __repr__(self) -> str:
        return f"<Context of session {self.session_id!r}{'' if self._open else ', ended'}>"

    def _call_when_revoked(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        if self._revoked is not None:  # meanwhile: who took the session away had nobody to interrupt yet
            interrupt()

    def _ended(self) -> TurnEndedError:
        if self._revoked is None:
            return TurnEndedError(self.session_id, "the turn cannot be used any more: it is over")
        how = "its handler timed out" if isinstance(self._revoked, HandlerTimeoutError) else "the manager was closed"
        return TurnEndedError(self.session_id, f"the turn cannot be used any more: {how}")


class Apology(Context):
    """What `on_error` receives, after a turn or about one of its replies: nothing is left of the session, but it may reply."""

    def __init__(self, context: Context) -> None:
        super().__init__(context._actor, None, context.event, context._before, None, None)
        self._revoked = context._revoked

    def send(self, message: Any, *, gated: bool = True) -> Sent:
        """Reply with *message*: handed to `deliver` after what the session sent before; with `gated=False` past it.

        If it cannot be delivered that is logged, and is no reason to apologise again.
        """
        outbox = self._actor.shared.outbox
        if not gated:
            return Sent(outbox.send_now(self, message))
        outbox.check()
        outbox.put(self, [message])
        return _QUEUED


def innermost() -> Context | None:
    """Return the last turn that the running code has begun; it may have ended since."""
    return current.get()  # type: ignore[return-value]  # only turns of this class are ever set there


def chain() -> Iterator[Context]:
    """Walk the turns, still open, that the running code is part of: innermost first."""
    context = innermost()
    while context is not None:
        if context._open:
            yield context
        context = context._parent
