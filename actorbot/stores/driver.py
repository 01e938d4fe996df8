"""Your own driver of four methods, seen as a store of records."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, Self

from actorbot._checks import check_function
from actorbot._state.record import Record, has_id
from actorbot.errors import (
    ActorbotError,
    ConfigError,
    CorruptSessionError,
    OutcomeUnknownError,
    StoreError,
    StoreUnavailableError,
)
from actorbot.stores._batches import ask_in_parts, is_outage
from actorbot.stores._driver_calls import Calls, Runner
from actorbot.stores._driver_lease import DriverLease
from actorbot.stores._findings import Finding
from actorbot.stores._ids import sort_ids
from actorbot.stores._lease import METHODS
from actorbot.stores._secrets import GIVEN
from actorbot.stores.base import ONE_YEAR, RecordStore, Write, check_expires_in

__all__ = ["DriverStore", "as_records"]

logger = logging.getLogger("actorbot")

VERBS = ("init", "read", "write", "destroy")
OPTIONAL = ("read_many", "write_many", "compare_and_write", "ids", "close")


@contextmanager
def as_records(store: Any, deadline: float | None = None) -> Iterator[RecordStore]:
    """See any store or driver as a store of records, without a manager. Opens and closes nothing.

    The `async def` methods of a driver run on a loop of its own, each for at most *deadline*
    seconds.
    """
    if isinstance(store, RecordStore):
        yield store
        return
    # With a factory the runner leaves alone which loop is this thread's.
    with asyncio.Runner(loop_factory=asyncio.new_event_loop) as runner:

        def run(make: Callable[[], Awaitable[Any]]) -> Any:
            async def finish() -> Any:
                async with asyncio.timeout(deadline):
                    return await make()

            return runner.run(finish())

        yield DriverStore(store, run, deadline)


class DriverStore(DriverLease, RecordStore):
    """Wraps a driver of four methods.

    *run* takes an `async def` method's coroutine to the loop where it belongs, and blocks until it
    is done. *deadline* is how long, in seconds, a caller waits for one call of this store.
    """

    name: str  # type: ignore[misc]  # the driver's class, so not the same for all

    def __init__(self, driver: Any, run: Runner, deadline: float | None = None) -> None:
        missing = [verb for verb in VERBS if not callable(getattr(driver, verb, None))]
        if missing or isinstance(driver, type):
            raise ConfigError(
                "store",
                driver if isinstance(driver, type) else type(driver),  # not the value: it may be a URL with a password
                "a store, or an object with the methods init, read, write, destroy"
                + (f"; it lacks {', '.join(missing)}" if missing else "; it is the class itself, not an object of it"),
            )
        self.name = type(driver).__name__
        for verb in (*VERBS, *OPTIONAL):
            if verb != "ids" and (method := getattr(driver, verb, None)) is not None:
                check_function(f"{self.name}.{verb}", method, "a method, def or async def")
        self._driver = driver
        self._check_lease()
        self.expires_in = check_expires_in(getattr(driver, "expires_in", ONE_YEAR))
        self.compares = self._optional("compare_and_write") is not None
        self._calls = Calls(run, deadline)
        self._writes_many = not self.compares and self._optional("write_many") is not None
        # One by one, each with the whole deadline, until the answers turn out to be awaitable:
        # those are awaited side by side.
        if self._optional("read_many") is None:
            self.reads_at_once = 1
        if not self._writes_many:
            self.writes_at_once = 1

    def init(self) -> Self:
        try:
            self._calls.one(self._driver.init)
            return self
        except ActorbotError:
            raise
        except BaseException as error:
            failure = self._error(StoreUnavailableError, "init", error)
        raise failure  # not while the driver's error is handled: as a `__context__` it may show a password

    def examine(self) -> Iterator[Finding]:
        self.init()
        yield Finding("reach", "ok", f"{self.name} opens")
        optional = OPTIONAL + METHODS
        has = [name for name in optional if self._optional(name) is not None]
        yield Finding("optional methods", "ok", f"{self.name} has {', '.join(has) or 'none'} of {', '.join(optional)}")
        if not self.keeps_lease:
            text = "cannot be told without read_lease and swap_lease: nothing keeps a second process from the same sessions"
            yield Finding("owner", "warning", text)
        if {"write_many", "compare_and_write"} <= set(has):
            text = "compare_and_write is used, not write_many, which compares nothing; a RecordStore does both at once"
            yield Finding("batches", "warning", text)

    def close(self) -> None:
        close = self._optional("close")
        if close is None:
            return
        try:
            self._calls.one(close)
            return
        except BaseException as error:
            failure = self._error(StoreUnavailableError, "close", error)
        raise failure

    def _optional(self, name: str) -> Callable[..., Any] | None:
        """Return the driver's method of that *name*, if it has one."""
        method = getattr(self._driver, name, None)
        return method if callable(method) else None

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        read_many = self._optional("read_many")
        if read_many is not None:
            outage = None
            try:
                found = self._calls.one(read_many, list(session_ids))
                answers = [found.get(session_id) for session_id in session_ids]
            except BaseException as error:
                if is_outage(error):
                    outage = self._error(StoreUnavailableError, "read_many", error)
                elif len(session_ids) > 1:
                    raise  # who asks divides the batch
                else:
                    answers = [self._error(StoreUnavailableError, "read_many", error, session_ids[0])]
            if outage is not None:
                raise outage
        else:
            calls = [(self._driver.read, session_id) for session_id in session_ids]
            answers, self.reads_at_once = self._calls.each(calls)
        return [self._to_record(session_id, answer) for session_id, answer in zip(session_ids, answers, strict=True)]

    def scan(self) -> Iterator[Record | ActorbotError]:
        ids, errors = sort_ids(self._ids(), self.name)
        yield from errors
        absent, listed = 0, len(ids)
        while ids:
            page, ids = ids[: self.reads_at_once], ids[self.reads_at_once :]
            found = ask_in_parts(StoreUnavailableError, self.name, self.read_many, page)
            absent += found.count(None)
            yield from (each for each in found if each is not None)
        if absent:
            said = f"read() has nothing for {absent} of the {listed} ids that ids() gives"
            if absent == listed:
                yield StoreError(self.name, f"{said}; do both mean the same ids?")
            else:
                logger.warning("%s: %s: they are left out", self.name, said)

    def count(self) -> int:
        return len(self._ids())

    def _ids(self) -> list[object]:
        ids = self._optional("ids")
        if ids is None:
            raise self._unlisted()
        try:
            found = self._calls.one(ids)
            if isinstance(found, AsyncIterable):
                listed = found

                async def collect() -> list[object]:
                    return [each async for each in listed]

                found = self._calls.run(collect)
            return [found] if isinstance(found, str | bytes) else list(found)
        except BaseException as error:
            failure = self._error(StoreUnavailableError, "ids", error)
        raise failure

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        if not self._writes_many:
            return self._write_each(writes, self.compares)
        outcomes: dict[str, ActorbotError | None] = {}
        kept: list[tuple[str, dict[str, Any]]] = []
        for record in (write.record for write in writes if write.record.state is not None):
            try:
                kept.append((record.session_id, self._document(record)))
            except StoreUnavailableError as error:
                outcomes[record.session_id] = error
        failure = self._write_batch(kept) if kept else None
        outcomes.update((session_id, failure) for session_id, _ in kept)
        gone = [write for write in writes if write.record.state is None]
        destroyed = self._write_each(gone, False)
        outcomes.update((write.record.session_id, each) for write, each in zip(gone, destroyed, strict=True))
        return [outcomes[write.record.session_id] for write in writes]

    def _write_batch(self, items: list[tuple[str, dict[str, Any]]]) -> ActorbotError | None:
        try:
            self._calls.one(self._driver.write_many, items)
        except BaseException as error:
            if len(items) > 1 and not is_outage(error):
                raise  # who writes divides the batch
            return self._failed("write_many", error, items[0][0] if len(items) == 1 else None)
        return None

    def _write_each(self, writes: Sequence[Write], guarded: bool) -> list[ActorbotError | None]:
        """Write one by one. If *guarded*, a write with a base goes to `compare_and_write`."""
        answers, at_once = self._calls.each([self._as_call(write, guarded) for write in writes])
        if not self._writes_many:
            self.writes_at_once = at_once
        pairs = zip(writes, answers, strict=True)
        return [self._outcome(write, guarded, answer) for write, answer in pairs]

    def _as_call(self, write: Write, guarded: bool) -> tuple[Any, ...]:
        """Return the driver's method, and what it is called with."""
        record = write.record
        # The end of a session is compared too: the session may be somebody else's by now.
        if guarded and write.base is not None:
            return self._hand_over, self._driver.compare_and_write, record, write.base.hex() or None
        if record.state is None:
            return self._driver.destroy, record.session_id
        return self._hand_over, self._driver.write, record

    def _hand_over(self, method: Callable[..., Any], record: Record, *rest: Any) -> Any:
        return method(record.session_id, self._document(record), *rest)

    def _document(self, record: Record) -> dict[str, Any]:
        try:
            return record.to_document()
        except Exception as error:  # for sure nothing was sent
            raise self._error(StoreUnavailableError, "encoding", error, record.session_id) from error

    def _outcome(self, write: Write, guarded: bool, answer: Any) -> ActorbotError | None:
        if isinstance(answer, BaseException):
            verb = "destroying" if write.record.state is None else "writing"
            failure = self._failed(verb, answer, write.record.session_id)
            if not guarded or is_outage(answer):
                return failure
            if (known := self._find_out(write, failure)) is not None:
                return known
            answer = True
        if not guarded or write.base is None:
            return None
        outcome = None if answer else self._look_back(write)
        if outcome is None and write.record.state is None:
            # The record of its end was written by comparing. Now that this was allowed, destroy it.
            outcome = self._write_each([replace(write, base=None)], False)[0]
        return outcome

    def _find_out(self, write: Write, failure: ActorbotError) -> ActorbotError | None:
        """Find out whether a write that the driver has refused with an error was done: `None`.

        It was not, as a rule. Once that is known, newer state may be sent in its place.
        """
        found = self.read_many([write.record.session_id])[0]
        if isinstance(found, ActorbotError) or not isinstance(failure, OutcomeUnknownError):
            return failure
        if found is not None and has_id(found.write_ids, write.record.write_id):
            return None
        return self._error(StoreUnavailableError, "writing", failure.__cause__ or failure, write.record.session_id)

    def _look_back(self, write: Write) -> ActorbotError | None:
        """Find out why a write was refused: it is a conflict, or applied before, or not comparable.

        If the record is no longer there, it was destroyed, or dropped by a driver that expires
        records itself. Who holds its base writes it again.
        """
        found = self.read_many([write.record.session_id])[0]
        if isinstance(found, CorruptSessionError) and write.over_damage:
            self.note_damage(write.record.session_id, found.reason, "not kept: a driver has no place for it")
            return self._write_each([replace(write, base=None)], False)[0]
        if isinstance(found, ActorbotError):
            return found
        if found is None and write.base:
            return self._write_each([replace(write, base=b"")], True)[0]
        if found is not None and not found.write_ids and not write.base:
            return self._write_each([write], False)[0]  # an adopted session has no id yet to compare
        if found is not None and has_id(found.write_ids, write.record.write_id):
            return None
        return write.conflict(self.name)

    def _to_record(self, session_id: str, answer: Any) -> Record | ActorbotError | None:
        if answer is None:
            return None
        if isinstance(answer, ActorbotError):
            return answer
        if isinstance(answer, BaseException):
            return self._error(StoreUnavailableError, "reading", answer, session_id)
        if not isinstance(answer, Mapping):
            return CorruptSessionError(self.name, session_id, f"read returned a {type(answer).__name__}, not a dict")
        try:
            return Record.from_document(answer, session_id=session_id, store=self.name, expires_in=self.expires_in)
        except CorruptSessionError as error:
            return error
        except Exception as error:  # the mapping is the driver's own code too
            return self._to_record(session_id, error)

    def _failed(self, what: str, error: BaseException, session_id: str | None = None) -> ActorbotError:
        """Make the error of a write that failed: it may have been done, unless nobody was there."""
        if isinstance(error, ActorbotError):
            return error
        kind = StoreUnavailableError if isinstance(error, ConnectionRefusedError) else OutcomeUnknownError
        return self._error(kind, what, error, session_id)

    def _error(
        self, kind: type[StoreUnavailableError], what: str, error: BaseException, session_id: str | None = None
    ) -> StoreUnavailableError:
        said, cause = GIVEN.tell(error)
        ours = kind(self.name, f"{what} failed: {said}", session_id=session_id)
        ours.__cause__ = cause
        return ours
