"""A thread for calls that may hang, with a deadline for each.

A call that is not back by then is left behind with its thread, and another thread goes on.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from enum import Enum
from typing import Any, Final, Literal, NamedTuple

from actorbot._runtime.clock import Clock, Timer
from actorbot._runtime.home import new_future
from actorbot._runtime.threads import Lane, Task
from actorbot.errors import ActorbotError, OutcomeUnknownError, StoreUnavailableError

__all__ = ["LATE", "Answer", "DeadlineThread"]

MAX_STUCK: Final = 8  # calls that may be left behind before further ones fail at once


class Answer(NamedTuple):
    """What came of a call that came back in time."""

    value: Any
    error: ActorbotError | None


class _Late(Enum):
    """The call came back after its deadline, when another thread had taken over."""

    LATE = "late"


LATE: Final = _Late.LATE


class _Call:
    """One call on its way."""

    __slots__ = ("closed", "lane", "on_thread", "overdue", "timer")

    def __init__(self, overdue: Callable[[ActorbotError], None], on_thread: bool) -> None:
        self.overdue = overdue
        self.on_thread = on_thread  # whether `overdue` is to be called on the thread that goes on
        self.lane: Lane | None = None  # where the call runs, once it does
        self.closed = False  # whether its end is decided: it came back, or it was left behind
        self.timer: Timer | None = None


class DeadlineThread:
    """One thread on which a store is called. Used from any thread.

    While a call does not come back, another thread takes its place.
    """

    def __init__(self, name: str, store: str, clock: Clock, deadline: float) -> None:
        self._name = name
        self._store = store
        self._clock = clock
        self._deadline = deadline
        # Guards _closed, _lane, _lanes, _stuck and _running, and how each call ends.
        self._lock = threading.Lock()
        self._closed = False
        self._lane = Lane(name)
        self._lanes = 1  # made so far
        self._stuck = 0
        # More than one for a moment, after a late call has come back.
        self._running: set[_Call] = set()

    def submit(self, task: Task) -> None:
        """Run *task* on the thread after what was handed in before; it may call `run`."""
        with self._lock:
            self._lane.submit(task)

    def now(self) -> float:
        """Return the monotonic second that `call` counts from."""
        return self._clock.monotonic()

    def call(
        self, function: Callable[..., Any], *args: Any, deadline: float | None = None, since: float | None = None
    ) -> Future[Any]:
        """Call *function* on the thread after what was handed in before.

        The deadline counts from now, or from *since*. The future holds what the function returned,
        or an ActorbotError for whatever it raised.
        """
        outcome = new_future()
        call = self._watch(outcome.set_exception, self._deadline if deadline is None else deadline, since)

        def work() -> None:
            answer = self._make(call, function, *args)
            if answer is LATE:
                return
            if answer.error is None:
                outcome.set_result(answer.value)
            else:
                outcome.set_exception(answer.error)

        self.submit(work)
        return outcome

    def run(
        self, overdue: Callable[[ActorbotError], None], function: Callable[..., Any], *args: Any
    ) -> Answer | Literal[_Late.LATE]:
        """Call *function* here, in a task of this thread; what it raises becomes an ActorbotError.

        `LATE` means that the call came back after its deadline. The task must then end without
        touching anything: another thread has taken the place of this one, and has called *overdue*.
        """
        call = self._watch(overdue, self._deadline, on_thread=True)
        return self._make(call, function, *args)

    def is_busy(self) -> bool:
        """Tell whether a call is under way, or was left behind and has not come back."""
        with self._lock:
            return bool(self._running or self._stuck)

    def leave_behind(self) -> None:
        """Leave behind whatever call is running, as if its time were up."""
        with self._lock:
            running = list(self._running)
        for call in running:
            self._leave_behind(call, OutcomeUnknownError(self._store, "no answer until the manager was closed"))

    def close(self) -> None:
        """End the thread after what was handed in so far; does not wait."""
        with self._lock:
            self._closed = True
            self._lane.close()

    def _watch(
        self,
        overdue: Callable[[ActorbotError], None],
        seconds: float,
        since: float | None = None,
        *,
        on_thread: bool = False,
    ) -> _Call:
        call = _Call(overdue, on_thread)

        def end() -> None:
            whose = " (store_deadline)" if seconds == self._deadline else ""
            self._leave_behind(call, OutcomeUnknownError(self._store, f"no answer within {seconds:g} s{whose}"))

        call.timer = self._clock.call_at((self.now() if since is None else since) + seconds, end)
        return call

    def _make(self, call: _Call, function: Callable[..., Any], *args: Any) -> Answer | Literal[_Late.LATE]:
        with self._lock:
            if call.closed:
                return LATE  # its time was up while it stood in line
            full = self._stuck >= MAX_STUCK
            if not full:
                call.lane = Lane.here()
                self._running.add(call)
        value, error = None, None
        try:
            if full:
                raise StoreUnavailableError(
                    self._store, f"{MAX_STUCK} calls have not come back; no more are made until one does"
                )
            value = function(*args)
        except ActorbotError as exc:
            error = exc
        except BaseException as exc:  # a driver may raise anything, and must not end this thread
            error = OutcomeUnknownError(self._store, f"{type(exc).__name__}: {exc}")
            error.__cause__ = exc
        if call.timer is not None:
            call.timer.cancel()
        return Answer(value, error) if self._came_back(call) else LATE

    def _came_back(self, call: _Call) -> bool:
        with self._lock:
            if not call.closed:
                call.closed = True
                self._running.discard(call)
                return True
            lane = call.lane
            if lane is None:
                return False
            self._stuck -= 1
            # Go back to the older thread: a client may be bound to the thread that made it, as
            # sqlite3's is (docs/decisions/0004).
            if lane.number < self._lane.number and not lane.closed:
                lane, self._lane = self._lane, lane
                for task in lane.give_up():
                    self._lane.submit(task)
            lane.close()
            if self._closed:
                self._lane.close()
            return False

    def _leave_behind(self, call: _Call, error: ActorbotError) -> None:
        with self._lock:
            if call.closed:
                return
            call.closed = True
            self._running.discard(call)
            if call.lane is not None:
                self._stuck += 1
            told: list[Task] = [lambda: call.overdue(error)] if call.on_thread else []
            if call.lane is self._lane:
                # *told* goes first: what stood in line must not take the call for done. This also
                # happens after `close`, or who waits would wait for ever.
                self._lane = Lane(self._name, self._lanes, [*told, *self._lane.give_up()])
                self._lanes += 1
                if self._closed:
                    self._lane.close()
            else:
                for task in told:
                    self._lane.submit(task)
        if not call.on_thread:
            call.overdue(error)
