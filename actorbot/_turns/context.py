"""`Context`: what a handler holds during its turn, and the states of a turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from contextvars import Context as ContextVars
from typing import Any, Final, NoReturn

from actorbot._runtime.current import current
from actorbot._runtime.home import Sent
from actorbot._state.committed import SEEN, STATE
from actorbot._turns.terms import Terms
from actorbot.errors import (
    ActorbotError,
    ConfigError,
    CorruptSessionError,
    HandlerTimeoutError,
    ManagerClosedError,
    TurnEndedError,
)

__all__ = ["Apology", "Context", "chain", "find_held", "find_parent", "innermost", "never_begun", "raise_for", "shield"]


_QUEUED = Sent()
MANY: Final = 1_000  # replies of one turn; with more, each is checked


# The states of a turn. Only three files change them: this one, session_actor.py and overdue.py.
#
#   state         running   _session   _revoked        _rolled_back   next
#   open          yes       a value    None            False          any of the others
#   committed     no        None       None            False          rolled back, if a write fails
#   revoked       no        None       an error        False          rolled back, as its code ends
#   rolled back   no        None       None or error   True           none
#
# "Running" means: it is in `RunningTurns.deadlines`. An open turn is taken out of there in one
# step, and whoever takes it decides which state is next.
#
# `_passed_on` says who leaves the mailbox. False: the code that runs the turn. True: somebody else
# has left it, or will: the write that the answer waits for, the ticker when a handler does not
# end, or `undo_turn`.


class Context:
    """One event's stay in its session: what `handler` receives and `turn()` lends.

    It is used on the thread or loop that runs the handler, until the turn ends. After that, and
    after a time-out, it gives no access to the session any more (`TurnEndedError`).
    """

    # Rarely set and rarely read, so the class has the defaults: a context is made for every event.
    _interrupt: Callable[[], None] | None = None
    _may_cancel = True  # whether a time-out cancels the task
    _interrupted = False  # whether it has
    _reserved = 0  # of its replies have room; see outbox.py
    _variables: ContextVars | None = None  # those of its code, for `deliver`
    _terms: Terms | None = None  # of its replies
    _waits_for: tuple[Any, ...] = ()  # the actors whose turn its code waits for; see deadlock.py

    def __init__(
        self, actor: Any, session: Any, event: Any, before: Any, parent: Context | None, task: asyncio.Task[Any] | None
    ) -> None:
        self._actor = actor
        self._session = session
        self._before = before  # what was committed when it began
        self._parent = parent
        # Only until the turn ends. The task holds its variables, the variable `current` holds this,
        # and this holds the task. Only the garbage collector would free such a cycle, and a bot
        # that makes a task for each event would keep it busy.
        self._task = task
        self._cancels = 0 if task is None else task.cancelling()  # as it began; see cancelled.py
        # Read in every turn. To find a default in the class takes five times as long.
        self._ends_session = self._passed_on = self._rolled_back = False
        self._replies: list[Any] | None = None
        self._event_id: bytes | None = None
        self._revoked: ActorbotError | None = None  # why the session was taken; its caller gets it
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
        """Reply with *message*. `deliver` gets it after the turn is acknowledged, in order.

        If the turn fails, it is never sent. With `gated=False` it is sent at once, whatever
        becomes of the turn. Where too many replies wait (`max_replies`), the turn fails with an
        OverloadedError at its commit, or here. Raises: TurnEndedError.
        """
        if self._session is None:
            raise self._ended()
        if not gated:
            return Sent(self._actor.shared.outbox.send_now(self, message))
        replies = self._replies
        if replies is None:
            self._actor.shared.outbox.check()
            replies = self._replies = []
        if len(replies) >= MANY:  # or its commit refuses them
            self._actor.shared.outbox.room.refuse_more(self.session_id, len(replies))
        replies.append(message)
        return _QUEUED

    def end_session(self) -> None:
        """Destroy the session when this turn commits; the user's next event meets a new one."""
        if not self._open:
            raise self._ended()
        self._ends_session = True

    def __repr__(self) -> str:
        return f"<Context of session {self.session_id!r}{'' if self._open else ', ended'}>"

    def _keep_to(self, terms: Terms) -> None:
        """Note what is different about the replies, as the turn commits."""
        self._terms = terms
        if terms.silent:
            self._replies = None

    def _call_when_revoked(self, interrupt: Callable[[], None]) -> None:
        self._interrupt = interrupt
        if self._revoked is not None:  # it was revoked before there was anything to interrupt
            interrupt()

    def _ended(self) -> TurnEndedError:
        if self._revoked is None:
            return TurnEndedError(self.session_id, "the turn cannot be used any more: it is over")
        how = "this process does not own its session any more"
        if isinstance(self._revoked, HandlerTimeoutError):
            how = "its handler timed out"
        elif isinstance(self._revoked, ManagerClosedError):
            how = "the manager was closed"
        return TurnEndedError(self.session_id, f"the turn cannot be used any more: {how}")


class Apology(Context):
    """What `on_error` receives after a failed turn, or about a reply that could not be delivered.

    It gives no access to the session, but it can reply.
    """

    def __init__(self, context: Context) -> None:
        super().__init__(context._actor, None, context.event, context._before, None, None)
        self._revoked = context._revoked
        self._terms = context._terms

    def send(self, message: Any, *, gated: bool = True) -> Sent:
        """Reply with *message*, after what the session sent before; with `gated=False`, at once.

        If it cannot be delivered, that is logged, and `on_error` is not called again.
        """
        outbox = self._actor.shared.outbox
        if not gated:
            return Sent(outbox.send_now(self, message))
        outbox.check()
        if self._terms is not None and self._terms.silent:
            return _QUEUED
        self._replies = [message]
        outbox.reserve(self)
        outbox.put(self)
        return _QUEUED


def never_begun(actor: Any, event: Any, error: BaseException) -> Context | None:
    """Return a turn to tell `on_error` of *error*, if a session's own values were why none began.

    They can be read, but not decoded, or the session's type refuses them. A read that failed is
    told otherwise.
    """
    if actor.committed is None or not isinstance(error, ConfigError | CorruptSessionError):
        return None
    return Context(actor, None, event, actor.committed, None, None)


def innermost() -> Context | None:
    """Return the last turn that the running code has begun; it may have ended since."""
    return current.get()  # type: ignore[return-value]  # only such turns are ever set there


def find_parent() -> Context | None:
    """Return the turn inside which the running code is about to begin another.

    Turns that are over are skipped. A revoked turn whose code still runs is not: that code must
    learn that its session was taken.
    """
    parent: Context | None = current.get()  # type: ignore[assignment]  # as in `innermost`
    while parent is not None and parent._session is None and (parent._revoked is None or parent._rolled_back):
        parent = parent._parent
    return parent


def chain() -> Iterator[Context]:
    """Iterate over the open turns that the running code is part of, the innermost first."""
    context = innermost()
    while context is not None:
        if context._open:
            yield context
        context = context._parent


def find_held(shared: Any, session_id: str) -> Context | None:
    """Find the open turn of a session that the running code is part of.

    *shared* says of which manager: of one that has not started, there is no turn. Raises:
    TurnEndedError if the turn was taken from the code.
    """
    context = innermost()
    while context is not None:
        if context.session_id == session_id and context._actor.shared is shared:
            if context._open:
                return context
            if context._revoked is not None:
                raise context._ended()
        context = context._parent
    return None


def shield() -> None:
    """Let no time-out cancel the running code: it waits for the close, which ends its turns."""
    for context in chain():
        context._may_cancel = False


def raise_for(error: BaseException, raised: BaseException) -> NoReturn:
    """Raise *raised*, which a caller gets for *error*: the same, or another because of it."""
    try:
        if raised is error:
            raise error
        raise raised from error
    finally:
        del error, raised  # they hold this frame by their tracebacks: only the collector would free both
