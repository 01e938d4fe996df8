"""`Outbox`: replies on their way to `deliver`.

Those of one session go in order. Each goes at most once, and none before its turn is acknowledged.
A reply has its room from the commit of its turn on, until `deliver` is done with it.
"""

from __future__ import annotations

import logging
import threading
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterable
from concurrent.futures import Future
from contextvars import Context as ContextVars
from contextvars import copy_context
from dataclasses import dataclass
from typing import Any

from actorbot._ownership.keeper import Keeper
from actorbot._runtime.current import errand, outside_of_turns
from actorbot._runtime.home import Home, is_async, new_future
from actorbot._turns.context import Context
from actorbot._turns.reply_room import ReplyRoom
from actorbot._turns.terms import Durable, Terms
from actorbot.errors import ActorbotError, ConfigError

__all__ = ["Outbox", "ask_again"]

logger = logging.getLogger("actorbot")

Deliver = Callable[[str, Any], Awaitable[Any]]
OnFailure = Callable[[Context, BaseException], Awaitable[None]]


@dataclass(frozen=True, slots=True)
class Parcel:
    """The replies of one turn."""

    context: Context | None
    messages: list[Any]
    """Those that `deliver` is not done with yet."""
    gate: Future[Any] | None  # must succeed before they are delivered
    variables: ContextVars | None  # those of the turn's code: a request's id, for example
    delivered: Future[Any] | None = None  # ends when everything before this parcel has left

    @property
    def confirmed(self) -> Future[bool] | None:
        """Ends with whether they may be sent, by the terms of their turn."""
        terms = None if self.context is None else self.context._terms
        return None if terms is None else terms.confirmed


class _LateError(Exception):
    """It became doubtful on the way to `deliver` whether this process still owns the store."""


def ask_again(deliver: Callable[..., Any], keeper: Keeper) -> Callable[..., Any]:
    """Make a *deliver* that is not called if its thread comes to it when that is in doubt.

    Another thread may come late: the process may have been frozen meanwhile.
    """

    def here(session_id: str, message: Any) -> Any:
        if keeper.now() >= keeper.until:
            raise _LateError
        return deliver(session_id, message)

    async def on_loop(session_id: str, message: Any) -> Any:
        return await here(session_id, message)

    return on_loop if is_async(deliver) else here


class Outbox:
    """Hands replies to `deliver`. Any thread."""

    def __init__(
        self, home: Home, deliver: Deliver | None, on_failure: OnFailure, room: ReplyRoom, keeper: Keeper | None = None
    ) -> None:
        self.room = room
        self._keeper = keeper  # who has lost the store answers nobody
        self._home = home
        self._deliver = deliver
        self._on_failure = on_failure
        # Guards room, _lines, _ungated and _waiting. Never held while a reply is delivered.
        self._lock = threading.Lock()
        self._lines: dict[str, deque[Parcel]] = {}
        self._ungated: Counter[str] = Counter()  # replies on their way outside of a session's line
        self._waiting: list[Future[Any]] = []
        self._ended = False

    def __len__(self) -> int:
        """How many sessions have replies on their way."""
        return len(self.addressees())

    def addressees(self) -> set[str]:
        """Return the ids of the sessions that have replies on their way."""
        return self._lines.keys() | self._ungated.keys()

    def check(self) -> None:
        """Raises: ConfigError if there is nowhere to send to."""
        if self._deliver is None:
            raise ConfigError(
                "deliver", None, "a function of (session_id, message); without one a reply has nowhere to go"
            )

    def reserve(self, context: Context, terms: Durable = False) -> None:
        """Take room for a turn's replies, until `put` or `release`. Raises: OverloadedError."""
        if isinstance(terms, Terms):
            context._keep_to(terms)
        context._variables = outside_of_turns()  # here its own code runs; perhaps not where it is put
        with self._lock:
            if not context._reserved:
                self.room.check(context.session_id, replies := context._replies or [])
                self.room.take(context.session_id, replies)
                context._reserved = len(replies)

    def release(self, context: Context) -> None:
        """Give the room back: the turn was rolled back."""
        with self._lock:
            if context._reserved:
                self.room.give_back(context.session_id, (context._replies or [])[: context._reserved])
                context._reserved = 0

    def put(self, context: Context, gate: Future[Any] | None = None) -> None:
        """Deliver a turn's replies after what the session sent before.

        Also after *gate* has succeeded, and what the turn's terms name. If one fails, they are
        never sent.
        """
        session_id = context.session_id
        with self._lock:
            messages = list(context._replies or ())
            # All of them, if the caller was cancelled while the commit was on its way.
            self.room.take(session_id, messages[context._reserved :])
            context._reserved = 0
            parcel = Parcel(context, messages, gate, context._variables)
            line = self._lines.get(session_id)
            if line is not None:
                line.append(parcel)
                return
            line = self._lines[session_id] = deque()
        self._begin(session_id, line, parcel)

    def send_now(self, context: Context, message: Any) -> Future[Any]:
        """Deliver *message* at once, outside of the session's line.

        The future gets what `deliver` returns, or its error, which is also reported.
        Raises: OverloadedError.
        """
        self.check()
        delivered = new_future()
        session_id = context.session_id

        async def send() -> None:
            errand.set(session_id)
            try:
                await self._hand_over(context, message, delivered)
            finally:
                with self._lock:
                    self.room.give_back(session_id, [message])
                    self._ungated[session_id] -= 1
                    if not self._ungated[session_id]:
                        del self._ungated[session_id]
                    waiting = self._take_waiting()
                _release(waiting)

        with self._lock:
            self.room.check(session_id, [message])
            self.room.take(session_id, [message])
            self._ungated[session_id] += 1
        self._home.spawn(send, copy_context())  # inside the turn, which may wait for it
        return delivered

    def emptied(self, session_id: str | None = None) -> Future[Any]:
        """Return a future that ends when nothing is on its way any more.

        With a *session_id*: when what stands in its line now has left.
        """
        future = new_future()
        with self._lock:
            line = None if session_id is None else self._lines.get(session_id)
            if line is not None:
                line.append(Parcel(None, [], None, None, delivered=future))
            elif session_id is None and (self._lines or self._ungated):
                self._waiting.append(future)
            else:
                future.set_result(None)
        return future

    def _begin(self, session_id: str, line: deque[Parcel], parcel: Parcel) -> None:
        confirmed = parcel.confirmed
        if confirmed is None or confirmed.done():
            self._spawn(session_id, line, parcel)
        else:  # no task and no thread waits for what may take long
            confirmed.add_done_callback(lambda _: self._spawn(session_id, line, parcel))

    def _spawn(self, session_id: str, line: deque[Parcel], parcel: Parcel) -> None:
        if not self._ended:
            self._home.spawn(lambda: self._work_off(session_id, line, parcel), parcel.variables)

    async def _work_off(self, session_id: str, line: deque[Parcel], parcel: Parcel) -> None:
        """Deliver *parcel*, then the next of *line*, each with the variables of its own turn."""
        errand.set(session_id)
        try:
            if parcel.context is not None and await self._passes(parcel):
                while parcel.messages:
                    await self._hand_over(parcel.context, parcel.messages[0])
                    self._done_with(session_id, parcel, 1)
            else:
                self._done_with(session_id, parcel, len(parcel.messages))
            while (further := self._next(session_id, line)) is not None:
                parcel = further
                if parcel.delivered is None:
                    self._begin(session_id, line, parcel)
                    return
                parcel.delivered.set_result(None)
        except BaseException:
            self._break_off(session_id, (parcel, *line))
            raise

    def _done_with(self, session_id: str, parcel: Parcel, count: int) -> None:
        """Give back the room of the first *count* messages of *parcel*."""
        with self._lock:
            self.room.give_back(session_id, parcel.messages[:count])
        del parcel.messages[:count]

    def _next(self, session_id: str, line: deque[Parcel]) -> Parcel | None:
        """Take the next parcel out of *line*. If there is none, remove the line."""
        with self._lock:
            if line:
                return line.popleft()
            del self._lines[session_id]
            waiting = self._take_waiting()
        _release(waiting)
        return None

    def _break_off(self, session_id: str, line: Iterable[Parcel]) -> None:
        """Give up what stands in *line*: its task was cancelled, as at the end of the loop."""
        with self._lock:
            del self._lines[session_id]
            for parcel in line:
                self.room.give_back(session_id, parcel.messages)
            waiting = [parcel.delivered for parcel in line if parcel.delivered is not None] + self._take_waiting()
        logger.error("replies of session %r were given up", session_id, extra={"session_id": session_id})
        _release(waiting)

    def release_waiters(self) -> None:
        """Keep nobody waiting any longer: the manager is closed, and its tasks end."""
        self._ended = True
        with self._lock:
            waiting, self._waiting = self._waiting, []
            for line in self._lines.values():
                waiting += [parcel.delivered for parcel in line if parcel.delivered is not None]
                left = [parcel for parcel in line if parcel.delivered is None]
                line.clear()
                line.extend(left)
        _release(waiting)

    def _take_waiting(self) -> list[Future[Any]]:
        # The caller holds the lock.
        if self._lines or self._ungated:
            return []
        waiting, self._waiting = self._waiting, []
        return waiting

    async def _passes(self, parcel: Parcel) -> bool:
        if parcel.confirmed is not None and not parcel.confirmed.result():
            return False
        if parcel.gate is None:
            return True
        try:
            await self._home.wait(parcel.gate)
        except ActorbotError:
            return False  # the caller of the turn gets this error
        return True

    async def _hand_over(self, context: Context, message: Any, delivered: Future[Any] | None = None) -> None:
        assert self._deliver is not None
        keeper = self._keeper
        try:
            while True:
                if keeper is not None and keeper.now() >= keeper.until:
                    await keeper.confirm(self._home)
                try:
                    value = await self._deliver(context.session_id, message)
                    break
                except _LateError:
                    continue
        except BaseException as error:  # `deliver` may raise anything, and the line must go on
            if delivered is not None:
                delivered.set_exception(error)
            if self._home.is_ending(error):
                raise
            await self._on_failure(context, error)
        else:
            if delivered is not None:
                delivered.set_result(value)


def _release(waiting: list[Future[Any]]) -> None:
    for future in waiting:
        future.set_result(None)
