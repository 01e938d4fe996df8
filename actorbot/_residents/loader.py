"""Finds what is kept of a session: in the journal first, then in the store.

Reads of the store are batched: all that are asked for while one call is on its way go out
together in the next call.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from copy import copy
from typing import Any, NamedTuple

from actorbot._flushing.write import Flushable
from actorbot._journal.entry import Entry
from actorbot._runtime.deadline_thread import DeadlineThread
from actorbot._runtime.home import Promise
from actorbot._turns.shared import TurnShared
from actorbot.errors import ActorbotError, ManagerClosedError, OutcomeUnknownError, StoreUnavailableError
from actorbot.stores._batches import ask_in_parts
from actorbot.stores._secrets import GIVEN
from actorbot.stores.base import Record, RecordStore

__all__ = ["Loader"]


class _Ask(NamedTuple):
    session_id: str
    answer: Promise
    """Gets the record, or the error."""
    since: float
    """The monotonic second at which the record was asked for."""


class _FailedRead(NamedTuple):
    reason: str
    writes: int
    """How many writes the store had confirmed then."""


class Loader:
    """Reads records for turns. *thread* is where the store is called.

    Methods are called at home unless they say otherwise.
    """

    def __init__(self, shared: TurnShared, store: RecordStore, thread: DeadlineThread, batch_size: int) -> None:
        self._shared = shared
        self._home = shared.home
        self._store = store
        self._thread = thread
        self._batch_size = batch_size
        self._failed: _FailedRead | None = None  # the last read, if the store did not answer it
        # The ids of calls that run now, also of one whose deadline has passed. A call that has come
        # back takes its ids out before `_fly` makes the next one.
        self._at_store: set[str] = set()
        self._lock = threading.Lock()  # guards `_asked`, `_flying` and `_closed`
        self._asked: deque[_Ask] = deque()
        self._flying: list[_Ask] | None = None  # what the call that is on its way will answer
        self._closed = False
        self.reads = 0

    async def find(self, session_id: str, reader: Flushable | None = None) -> Entry | Record | None:
        """Return the journal's entry of the session, or else the store's record.

        `None` if there is neither. *reader* is the session, if it is coming into memory. Raises:
        CorruptSessionError, StoreUnavailableError; why the reader was abandoned.
        """
        while (letting_go := self._shared.flusher.letting_go.first(session_id)) is not None:
            if reader is not None and reader.abandoned is not None:
                raise reader.abandoned  # what it would wait for next is its own turn
            try:
                await self._home.wait(letting_go, self._shared.policy.store_deadline)
            except TimeoutError:
                reason = "its earlier state is still on its way; try again"
                raise StoreUnavailableError(self._store.name, reason, session_id=session_id) from None
        journal = self._shared.journal
        if journal is not None and journal.holds(session_id):
            entry: Entry | None = await self._home.wait(journal.read(session_id))
            if entry is not None:
                return entry
        try:
            record = await self._read_store(session_id)
        except ActorbotError as error:
            down = isinstance(error, StoreUnavailableError)
            self._failed = _FailedRead(str(error), self._shared.flusher.outcome.writes) if down else None
            raise
        self._failed = None
        return record

    async def read(self, session_id: str) -> Record | None:
        """Return the record that `find` finds. Raises: as `find`."""
        found = await self.find(session_id)
        return found.record if isinstance(found, Entry) else found

    def unreadable(self) -> str | None:
        """Say why the last read failed, unless the store has answered since. Any thread."""
        failed = self._failed
        return None if failed is None or self._shared.flusher.outcome.writes != failed.writes else failed.reason

    def close(self, error: ActorbotError | None = None) -> None:
        """Tell everybody who waits for a record that it will not come, because of *error*."""
        with self._lock:
            self._closed = True
            waiting = [*(self._flying or ()), *self._asked]
            self._flying = None
            self._asked.clear()
        self._tell([(ask.answer, _closed() if error is None else copy(error)) for ask in waiting])

    # --- the store -------------------------------------------------------------------------------

    async def _read_store(self, session_id: str) -> Record | None:
        if self._store.may_block:
            return await self._home.wait(self._ask(session_id))  # type: ignore[no-any-return]
        if self._closed:
            raise _closed()
        self.reads += 1
        found: Record | ActorbotError | None
        try:
            (found,) = self._store.read_many([session_id])
        except (ActorbotError, RecursionError):
            raise  # the stack is the caller's
        except Exception as error:
            said, cause = GIVEN.tell(error)
            found = StoreUnavailableError(self._store.name, f"reading failed: {said}", session_id=session_id)
            found.__cause__ = cause
        if isinstance(found, ActorbotError):
            raise found
        return found

    def _ask(self, session_id: str) -> Promise:
        answer = self._home.promise()
        with self._lock:
            if self._closed:
                answer.set_exception(_closed())
                return answer
            self._asked.append(_Ask(session_id, answer, self._thread.now()))
            if self._flying is not None:
                return answer
            self._flying = []
        self._fly()
        return answer

    def _fly(self) -> None:
        """Make the next call, if anybody has asked for a record. Any thread, one at a time."""
        batch: list[_Ask] = []
        while not batch:
            with self._lock:
                size = min(len(self._asked), self._batch_size, self._store.reads_at_once)
                asked = [self._asked.popleft() for _ in range(size)]
                batch = [ask for ask in asked if ask.session_id not in self._at_store]
                self._flying = batch if asked else None
            if len(batch) < size:
                self._refuse([ask for ask in asked if ask not in batch])
            if not asked:
                return
        self.reads += len(batch)
        ids = list(dict.fromkeys(ask.session_id for ask in batch))
        # The deadline counts from the first request of the batch, which has waited for the call
        # before. But a driver that reads few at a time has a full deadline for each of its calls.
        since = batch[0].since if self._store.reads_at_once >= self._batch_size else None
        call = self._thread.call(self._read, ids, since=since)
        call.add_done_callback(lambda outcome: self._land(ids, outcome))

    def _read(self, ids: list[str]) -> dict[str, Any]:
        """Call the store, more than once if it cannot read one of them. On its thread."""
        self._at_store.update(ids)
        try:
            found = ask_in_parts(StoreUnavailableError, self._store.name, self._store.read_many, ids)
            return dict(zip(ids, found, strict=True))
        finally:
            self._at_store.difference_update(ids)

    def _refuse(self, asked: list[_Ask]) -> None:
        """Refuse what an earlier call still reads.

        A second call would get stuck, too, and only `MAX_STUCK` calls may.
        """
        name, reason = self._store.name, "an earlier read has not come back yet; try again"
        self._tell([(ask.answer, StoreUnavailableError(name, reason, session_id=ask.session_id)) for ask in asked])

    def _land(self, ids: Sequence[str], outcome: Future[Any]) -> None:
        """Hand out what a call has brought, and make the next one. Any thread."""
        error = outcome.exception()
        if isinstance(error, OutcomeUnknownError):  # said of any call; but a read changes nothing
            unavailable = StoreUnavailableError(self._store.name, f"reading failed: {error}")
            unavailable.__cause__ = error
            error = unavailable
        found = outcome.result() if error is None else dict.fromkeys(ids, error)
        with self._lock:
            batch = self._flying
            self._flying = None if self._closed else []
        self._tell([(ask.answer, found[ask.session_id]) for ask in batch or ()])
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
