"""Calling a store from threads that may be lost to it: each call has a deadline, and one that outlives it is left behind."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from actorbot._clock import Clock
from actorbot._dispatcher import Lane
from actorbot._home import new_future
from actorbot.errors import ActorbotError, OutcomeUnknownError, StoreUnavailableError
from actorbot.stores.base import Record, RecordStore

__all__ = ["Call", "Loader", "StoreThread"]

MAX_STUCK = 8  # calls that may be left behind before further ones fail at once


class Call:
    """One call on its way."""

    __slots__ = ("closed", "outcome", "returned")

    def __init__(self) -> None:
        self.closed = False  # decided: it came back, or was left behind
        self.outcome: Future[Any] = new_future()
        """What the store answered within the deadline, or an error."""
        self.returned: Future[None] = new_future()
        """Done when the driver has really returned, however late."""


class StoreThread:
    """One thread on which a store is called; replaced when a call does not come back. Used from any thread."""

    def __init__(self, name: str, store: str, clock: Clock, deadline: float) -> None:
        self._name = name
        self._store = store
        self._clock = clock
        self._deadline = deadline
        self._lock = threading.Lock()  # guards the two below
        self._lane = Lane(name)
        self._stuck = 0

    def call(self, function: Callable[..., Any], *args: Any, deadline: float | None = None) -> Call:
        """Run *function* on the thread after what was called before. The outcome is an ActorbotError for whatever it raised."""
        call = Call()
        with self._lock:
            if self._stuck >= MAX_STUCK:
                call.returned.set_result(None)
                call.outcome.set_exception(
                    StoreUnavailableError(
                        self._store, f"{MAX_STUCK} calls have not come back; no more are made until one does"
                    )
                )
                return call
            lane = self._lane
        seconds = self._deadline if deadline is None else deadline
        timer = self._clock.call_at(self._clock.monotonic() + seconds, lambda: self._leave_behind(call, lane, seconds))

        def work() -> None:
            value, error = None, None
            try:
                value = function(*args)
            except ActorbotError as exc:
                error = exc
            except BaseException as exc:  # a driver may raise anything; nothing of it may end this thread
                error = OutcomeUnknownError(self._store, f"{type(exc).__name__}: {exc}")
                error.__cause__ = exc
            timer.cancel()
            self._came_back(call, value, error)

        lane.submit(work)
        return call

    def close(self) -> None:
        """End the thread after the calls made so far; does not wait."""
        with self._lock:
            self._lane.close()

    def _came_back(self, call: Call, value: Any, error: ActorbotError | None) -> None:
        with self._lock:
            late, call.closed = call.closed, True
            self._stuck -= late
        call.returned.set_result(None)
        if late:
            return
        if error is None:
            call.outcome.set_result(value)
        else:
            call.outcome.set_exception(error)

    def _leave_behind(self, call: Call, lane: Lane, seconds: float) -> None:
        with self._lock:
            if call.closed:
                return
            call.closed = True
            self._stuck += 1
            if lane is self._lane:
                lane.close()
                self._lane = Lane(self._name)
            error = OutcomeUnknownError(self._store, f"no answer within {seconds:g} s (store_deadline)")
        call.outcome.set_exception(error)


class Loader:
    """Reads records: all that are asked for while one call is on its way go out together in the next. Used from any thread."""

    def __init__(self, store: RecordStore, thread: StoreThread, batch_size: int) -> None:
        self._store = store
        self._thread = thread
        self._batch_size = batch_size
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
        with self._lock:
            batch = [self._asked.popleft() for _ in range(min(len(self._asked), self._batch_size))]
            if not batch:
                self._flying = False
                return
            self.reads += len(batch)
        ids = list(dict.fromkeys(session_id for session_id, _ in batch))
        call = self._thread.call(self._store.read_many, ids)
        call.outcome.add_done_callback(lambda outcome: self._land(ids, batch, outcome))

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
