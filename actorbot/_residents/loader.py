"""Reads records for turns, batched: all that are asked for while one call is on its way go out together in the next."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from actorbot._runtime.deadline_thread import DeadlineThread
from actorbot._runtime.home import Home, Promise
from actorbot.errors import ActorbotError, ManagerClosedError, OutcomeUnknownError, StoreUnavailableError
from actorbot.stores.base import Record, RecordStore

__all__ = ["Loader"]

_Ask = tuple[str, Promise, float]  # a session id, what is to become of it, and when it was asked for


class Loader:
    """Reads records for turns at *home*: all that are asked for while one call is on its way go out together in the next."""

    def __init__(self, store: RecordStore, thread: DeadlineThread, home: Home, batch_size: int) -> None:
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
