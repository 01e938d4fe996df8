"""Calling a store on threads that may be lost to it: each call has a deadline, and one that outlives it is left behind."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

from actorbot._runtime.clock import Clock, Timer
from actorbot._runtime.home import Home, Promise, new_future
from actorbot._runtime.threads import Lane, Task
from actorbot.errors import ActorbotError, ManagerClosedError, OutcomeUnknownError, StoreUnavailableError
from actorbot.stores.base import Record, RecordStore

__all__ = ["Loader", "StoreThread"]

MAX_STUCK = 8  # calls that may be left behind before further ones fail at once


class _Call:
    """One call on its way."""

    __slots__ = ("closed", "lane", "on_thread", "overdue", "timer")

    def __init__(self, overdue: Callable[[ActorbotError], None], on_thread: bool) -> None:
        self.overdue = overdue
        self.on_thread = on_thread  # whether that is to be called on the thread that goes on
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
        self._lock = threading.Lock()  # guards the five below, and how each call ends
        self._closed = False
        self._lane = Lane(name)
        self._lanes = 1  # made so far
        self._stuck = 0
        self._running: set[_Call] = set()  # more than one for a moment, after a late call has come back

    def submit(self, task: Task) -> None:
        """Run *task* on the thread after what was handed in before; it may call the store through `run`."""
        with self._lock:
            self._lane.submit(task)

    def now(self) -> float:
        """Return the monotonic second that `call` counts from."""
        return self._clock.monotonic()

    def call(
        self, function: Callable[..., Any], *args: Any, deadline: float | None = None, since: float | None = None
    ) -> Future[Any]:
        """Call *function* on the thread after what was handed in before; the deadline counts from now, or from *since*.

        The future holds what it returned, or an ActorbotError for whatever it raised.
        """
        outcome = new_future()
        call = self._watch(outcome.set_exception, self._deadline if deadline is None else deadline, since)

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
        call = self._watch(overdue, self._deadline, on_thread=True)
        return self._make(call, function, *args)

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
            self._leave_behind(
                call, OutcomeUnknownError(self._store, f"no answer within {seconds:g} s (store_deadline)")
            )

        call.timer = self._clock.call_at((self.now() if since is None else since) + seconds, end)
        return call

    def _make(self, call: _Call, function: Callable[..., Any], *args: Any) -> tuple[Any, ActorbotError | None] | None:
        with self._lock:
            if call.closed:
                return None  # its time was up while it stood in line
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
        except BaseException as exc:  # a driver may raise anything; nothing of it may end this thread
            error = OutcomeUnknownError(self._store, f"{type(exc).__name__}: {exc}")
            error.__cause__ = exc
        if call.timer is not None:
            call.timer.cancel()
        return (value, error) if self._came_back(call) else None

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
            # Back to the older thread: a client may be bound to the one that it was made in, as sqlite3's is.
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
                # Told first: what stood in line must not take the call for done. Also after `close`, or who waits would wait for ever.
                self._lane = Lane(self._name, self._lanes, [*told, *self._lane.give_up()])
                self._lanes += 1
                if self._closed:
                    self._lane.close()
            else:
                for task in told:
                    self._lane.submit(task)
        if not call.on_thread:
            call.overdue(error)


_Ask = tuple[str, Promise, float]  # a session id, what is to become of it, and when it was asked for


class Loader:
    """Reads records for turns at *home*: all that are asked for while one call is on its way go out together in the next."""

    def __init__(self, store: RecordStore, thread: StoreThread, home: Home, batch_size: int) -> None:
        self._home = home
        self._store = store
        self._thread = thread
        self._batch_size = batch_size
        # Ids in a call that runs, also after its deadline; none of the call that `_fly` comes after.
        self._at_store: set[str] = set()
        self._lock = threading.Lock()  # guards the three below
        self._asked: deque[_Ask] = deque()
        self._flying: list[_Ask] | None = None  # what a call is about that is on its way
        self._closed = False
        self.reads = 0

    async def read(self, session_id: str) -> Record | None:
        """Return the session's record, `None` if there is none. At home. Raises: CorruptSessionError, StoreUnavailableError."""
        if self._store.may_block:
            return await self._home.wait(self._ask(session_id))  # type: ignore[no-any-return]
        if self._closed:
            raise _closed()
        self.reads += 1
        try:
            (found,) = self._store.read_many([session_id])
        except ActorbotError:
            raise
        except Exception as error:
            reason = f"reading failed: {type(error).__name__}: {error}"
            raise StoreUnavailableError(self._store.name, reason, session_id=session_id) from error
        if isinstance(found, ActorbotError):
            raise found
        return found

    def _ask(self, session_id: str) -> Promise:
        answer = self._home.promise()
        with self._lock:
            if self._closed:
                answer.set_exception(_closed())
                return answer
            self._asked.append((session_id, answer, self._thread.now()))
            if self._flying is not None:
                return answer
            self._flying = []
        self._fly()
        return answer

    def close(self) -> None:
        """Tell everybody who waits for a record that it will not come."""
        with self._lock:
            self._closed = True
            waiting = [*(self._flying or ()), *self._asked]
            self._flying = None
            self._asked.clear()
        self._tell([(answer, _closed()) for _, answer, _ in waiting])

    def _fly(self) -> None:
        batch: list[_Ask] = []
        while not batch:
            with self._lock:
                size = min(len(self._asked), self._batch_size, self._store.reads_at_once)
                asked = [self._asked.popleft() for _ in range(size)]
                batch = [one for one in asked if one[0] not in self._at_store]
                self._flying = batch if asked else None
            if len(batch) < size:
                self._refuse([one for one in asked if one not in batch])
            if not asked:
                return
        self.reads += len(batch)
        ids = list(dict.fromkeys(session_id for session_id, _, _ in batch))
        # Who asked first has waited for the call before; but where calls are about few, as a plain driver's, each has its own time.
        since = batch[0][2] if self._store.reads_at_once >= self._batch_size else None
        call = self._thread.call(self._read, ids, since=since)
        call.add_done_callback(lambda outcome: self._land(ids, outcome))

    def _read(self, ids: list[str]) -> dict[str, Any]:
        self._at_store.update(ids)
        try:
            found = self._store.read_many(ids)
            if len(found) != len(ids):
                raise StoreUnavailableError(self._store.name, f"{len(found)} records for {len(ids)} sessions")
            return dict(zip(ids, found, strict=True))
        finally:
            self._at_store.difference_update(ids)

    def _refuse(self, asked: list[_Ask]) -> None:
        """Refuse what is at the store already: asking again for what has not come back would cost one more of the `MAX_STUCK`."""
        reason = "an earlier read has not come back yet; try again"
        self._tell(
            [(answer, StoreUnavailableError(self._store.name, reason, session_id=one)) for one, answer, _ in asked]
        )

    def _land(self, ids: Sequence[str], outcome: Future[Any]) -> None:
        error = outcome.exception()
        if isinstance(error, OutcomeUnknownError):  # a read leaves nothing behind that could be unknown
            unavailable = StoreUnavailableError(self._store.name, f"reading failed: {error}")
            unavailable.__cause__ = error
            error = unavailable
        found = outcome.result() if error is None else dict.fromkeys(ids, error)
        with self._lock:
            batch = self._flying
            self._flying = None if self._closed else []
        self._tell([(answer, found[session_id]) for session_id, answer, _ in batch or ()])
        self._fly()

    def _tell(self, answers: list[tuple[Promise, Any]]) -> None:
        if answers:
            self._home.post(_settle, answers)


def _settle(answers: Sequence[tuple[Promise, Any]]) -> None:
    for answer, value in answers:
        if answer.done():
            continue  # who asked was cancelled
        if isinstance(value, BaseException):
            answer.set_exception(value)
        else:
            answer.set_result(value)


def _closed() -> ManagerClosedError:
    return ManagerClosedError("the manager was closed before the store had answered")
