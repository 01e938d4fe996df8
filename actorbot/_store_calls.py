"""Calling a store on threads that may be lost to it: each call has a deadline, and one that outlives it is left behind."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from actorbot._clock import Clock, Timer
from actorbot._dispatcher import Lane, Task
from actorbot._home import new_future
from actorbot.errors import ActorbotError, OutcomeUnknownError, StoreUnavailableError
from actorbot.stores.base import Record, RecordStore

__all__ = ["Loader", "StoreThread"]

MAX_STUCK = 8  # calls that may be left behind before further ones fail at once


class _Call:
    """One call on its way."""

    __slots__ = ("closed", "lane", "overdue", "timer")

    def __init__(self, overdue: Callable[[ActorbotError], None]) -> None:
        self.overdue = overdue
        self.lane: Lane | None = None  # where it runs, once it does
        self.closed = False  # decided: it came back, or was left behind
        self.timer: Timer | None = None


class StoreThread:
    """One thread on which a store is called. While a call does not come back, another thread takes its place. Used from any thread."""

    def __init__(self, name: str, store: str, clock: Clock, deadline: float) -> None:
        self._name = name
        self._store = store
        self._clock = clock
        self._deadline = deadline
        self._lock = threading.Lock()  # guards the four below, and how each call ends
        self._closed = False
        self._lane = Lane(name)
        self._stuck = 0
        self._running: _Call | None = None

    def submit(self, task: Task) -> None:
        """Run *task* on the thread after what was handed in before; it may call the store through `run`."""
        with self._lock:
            self._lane.submit(task)

    def call(self, function: Callable[..., Any], *args: Any, deadline: float | None = None) -> Future[Any]:
        """Call *function* on the thread after what was handed in before; the deadline counts from now.

        The future holds what it returned, or an ActorbotError for whatever it raised.
        """
        outcome = new_future()
        call = self._watch(outcome.set_exception, self._deadline if deadline is None else deadline)

        def work() -> None:
            answer = self._make(call, function, *args)
            if answer is None:
                return
            value, error = answer
            if error is None:
                outcome.set_result(value)
            else:
                outcome.set_exception(error)

        self.submit(work)
        return outcome

    def run(
        self, overdue: Callable[[ActorbotError], None], function: Callable[..., Any], *args: Any
    ) -> tuple[Any, ActorbotError | None] | None:
        """Call *function* here, in a task of this thread; return its value, or an ActorbotError for whatever it raised.

        `None` if the call comes back after its deadline. The task must then end without touching anything: another thread has taken
        the place of this one, and has called *overdue* there.
        """
        call = self._watch(lambda error: self.submit(lambda: overdue(error)), self._deadline)
        return self._make(call, function, *args)

    def leave_behind(self) -> None:
        """Leave the call behind that is running, if one is, as if its time were up."""
        running = self._running
        if running is not None:
            self._leave_behind(running, OutcomeUnknownError(self._store, "no answer until the manager was closed"))

    def close(self) -> None:
        """End the thread after what was handed in so far; does not wait."""
        with self._lock:
            self._closed = True
            self._lane.close()

    def _watch(self, overdue: Callable[[ActorbotError], None], seconds: float) -> _Call:
        call = _Call(overdue)

        def end() -> None:
            self._leave_behind(
                call, OutcomeUnknownError(self._store, f"no answer within {seconds:g} s (store_deadline)")
            )

        call.timer = self._clock.call_at(self._clock.monotonic() + seconds, end)
        return call

    def _make(self, call: _Call, function: Callable[..., Any], *args: Any) -> tuple[Any, ActorbotError | None] | None:
        with self._lock:
            if call.closed:
                return None  # its time was up while it stood in line
            full = self._stuck >= MAX_STUCK
            if not full:
                call.lane, self._running = self._lane, call
        value, error = None, None
        try:
            if full:
                raise StoreUnavailableError(
                    self._store, f"{MAX_STUCK} calls have not come back; no more are made until one does"
                )
            value = function(*args)
        except ActorbotError as exc:
            error = exc
        except BaseException as exc:  # a driver may raise anything; nothing of it may end this thread
            error = OutcomeUnknownError(self._store, f"{type(exc).__name__}: {exc}")
            error.__cause__ = exc
        if call.timer is not None:
            call.timer.cancel()
        return (value, error) if self._came_back(call) else None

    def _came_back(self, call: _Call) -> bool:
        with self._lock:
            if not call.closed:
                call.closed, self._running = True, None
                return True
            self._stuck -= 1
            assert call.lane is not None
            # Back to the older thread: a client may be bound to the one that it was made in, as sqlite3's is.
            newer, self._lane = sorted((call.lane, self._lane), key=lambda lane: -lane.number)
            newer.close()
            if self._closed:
                self._lane.close()
            return False

    def _leave_behind(self, call: _Call, error: ActorbotError) -> None:
        with self._lock:
            if call.closed:
                return
            call.closed = True
            if call.lane is not None:
                self._stuck += 1
                self._running = None
                self._lane = Lane(self._name, self._lane.number + 1, self._lane.give_up())
        call.overdue(error)


class Loader:
    """Reads records: all that are asked for while one call is on its way go out together in the next. Used from any thread."""

    def __init__(self, store: RecordStore, thread: StoreThread, batch_size: int) -> None:
        self._store = store
        self._thread = thread
        self._batch_size = min(batch_size, store.at_once)
        self._at_store: set[str] = (
            set()
        )  # in a call that runs, also after its deadline; none of the call that `_fly` comes after
        self._lock = threading.Lock()  # guards the two below
        self._asked: deque[tuple[str, Future[Record | None]]] = deque()
        self._flying = False
        self.reads = 0

    def read(self, session_id: str) -> Future[Record | None]:
        """Return a future of the session's record, `None` if there is none, or an error: CorruptSessionError, StoreUnavailableError."""
        answer = new_future()
        with self._lock:
            self._asked.append((session_id, answer))
            if self._flying:
                return answer
            self._flying = True
        self._fly()
        return answer

    def _fly(self) -> None:
        batch: list[tuple[str, Future[Record | None]]] = []
        while not batch:
            with self._lock:
                batch = [self._asked.popleft() for _ in range(min(len(self._asked), self._batch_size))]
                if not batch:
                    self._flying = False
                    return
            if self._at_store:
                batch = self._refuse_stuck(batch)
        self.reads += len(batch)
        ids = list(dict.fromkeys(session_id for session_id, _ in batch))
        call = self._thread.call(self._read, ids)
        call.add_done_callback(lambda outcome: self._land(ids, batch, outcome))

    def _read(self, ids: list[str]) -> Sequence[Any]:
        self._at_store.update(ids)
        try:
            return self._store.read_many(ids)
        finally:
            self._at_store.difference_update(ids)

    def _refuse_stuck(self, batch: list[tuple[str, Future[Record | None]]]) -> list[tuple[str, Future[Record | None]]]:
        """Return what may be read: asking again where a call has not come back would cost one more of the `MAX_STUCK`."""
        rest = []
        for session_id, answer in batch:
            if session_id in self._at_store:
                reason = "an earlier read has not come back yet; try again"
                answer.set_exception(StoreUnavailableError(self._store.name, reason, session_id=session_id))
            else:
                rest.append((session_id, answer))
        return rest

    def _land(self, ids: Sequence[str], batch: list[tuple[str, Future[Record | None]]], outcome: Future[Any]) -> None:
        error = outcome.exception()
        if isinstance(error, OutcomeUnknownError):  # a read leaves nothing behind that could be unknown
            unavailable = StoreUnavailableError(self._store.name, f"reading failed: {error}")
            unavailable.__cause__ = error
            error = unavailable
        found = dict.fromkeys(ids, error) if error is not None else dict(zip(ids, outcome.result(), strict=True))
        for session_id, answer in batch:
            value = found[session_id]
            if isinstance(value, BaseException):
                answer.set_exception(value)
            else:
                answer.set_result(value)
        self._fly()
