"""Your own driver of four methods, seen as a store of records."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterable, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import isawaitable
from typing import Any, Self

from actorbot._state.record import Record
from actorbot.errors import (
    ActorbotError,
    ConfigError,
    CorruptSessionError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from actorbot.stores._findings import Finding
from actorbot.stores.base import ONE_YEAR, RecordStore, Write, check_expires_in

__all__ = ["DriverStore", "as_records"]

OPTIONAL = ("read_many", "write_many", "compare_and_write", "ids", "close")
AT_ONCE = 32  # calls of an async driver that are under way at the same time

Runner = Callable[[Callable[[], Awaitable[Any]]], Any]


@contextmanager
def as_records(store: Any, deadline: float | None = None) -> Iterator[RecordStore]:
    """See any store or driver as a store of records, without a manager. Opens and closes nothing.

    What an `async def` method of a driver makes runs on a loop of its own, for at most *deadline* seconds.
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


class DriverStore(RecordStore):
    """Wraps a driver; *run* runs what an `async def` method makes on the loop where it belongs, and blocks for it.

    *deadline*, in seconds, is how long a caller waits for one call of this store.
    """

    name: str  # type: ignore[misc]  # the driver's class, so not the same for all

    def __init__(self, driver: Any, run: Runner, deadline: float | None = None) -> None:
        missing = [verb for verb in ("init", "read", "write", "destroy") if not callable(getattr(driver, verb, None))]
        if missing or isinstance(driver, type):
            raise ConfigError(
                "store",
                driver if isinstance(driver, type) else type(driver),  # not the value: it may be a URL with a password
                "a store, or an object with the methods init, read, write, destroy"
                + (f": no {', '.join(missing)}" if missing else ": this is the class itself"),
            )
        self.name = type(driver).__name__
        self.expires_in = check_expires_in(getattr(driver, "expires_in", ONE_YEAR))
        self.compares = callable(getattr(driver, "compare_and_write", None))
        self._driver = driver
        self._run = run
        # An awaitable that hangs is cancelled a little earlier, so that those beside it get their own answers.
        self._patience = None if deadline is None else 0.9 * deadline
        self._writes_many = not self.compares and callable(getattr(driver, "write_many", None))
        # One by one, each with the whole deadline, until it is seen that the answers can be awaited side by side.
        if not callable(getattr(driver, "read_many", None)):
            self.reads_at_once = 1
        if not self._writes_many:
            self.writes_at_once = 1

    def init(self) -> Self:
        try:
            self._call(self._driver.init)
        except ActorbotError:
            raise
        except BaseException as error:
            raise StoreUnavailableError(self.name, f"init failed: {type(error).__name__}: {error}") from error
        return self

    def examine(self) -> Iterator[Finding]:
        self.init()
        yield Finding("reach", "ok", f"{self.name} opens")
        has = [name for name in OPTIONAL if callable(getattr(self._driver, name, None))]
        yield Finding("optional methods", "ok", f"{self.name} has {', '.join(has) or 'none'} of {', '.join(OPTIONAL)}")

    def close(self) -> None:
        if not callable(close := getattr(self._driver, "close", None)):
            return
        try:
            self._call(close)
        except BaseException as error:
            raise StoreUnavailableError(self.name, f"close failed: {type(error).__name__}: {error}") from error

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        if callable(read_many := getattr(self._driver, "read_many", None)):
            try:
                found = self._call(read_many, list(session_ids))
                answers = [found.get(session_id) for session_id in session_ids]
            except BaseException as error:
                raise StoreUnavailableError(self.name, f"read_many failed: {type(error).__name__}: {error}") from error
        else:
            calls = [(session_id,) for session_id in session_ids]
            answers, self.reads_at_once = self._call_each(self._driver.read, calls)
        return [self._to_record(session_id, answer) for session_id, answer in zip(session_ids, answers, strict=True)]

    def scan(self) -> Iterator[Record | ActorbotError]:
        ids = self._ids()
        while ids:
            page, ids = ids[: self.reads_at_once], ids[self.reads_at_once :]
            yield from (found for found in self.read_many(page) if found is not None)

    def count(self) -> int:
        return len(self._ids())

    def _ids(self) -> list[str]:
        if not callable(ids := getattr(self._driver, "ids", None)):
            raise self._unlisted()
        try:
            found = self._call(ids)
            if isinstance(found, AsyncIterable):
                listed = found

                async def collect() -> list[str]:
                    return [session_id async for session_id in listed]

                found = self._run(collect)
            return list(found)
        except BaseException as error:
            raise StoreUnavailableError(self.name, f"ids failed: {type(error).__name__}: {error}") from error

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        if not self._writes_many:
            return self._write_each(writes, self.compares)
        kept = [write.record for write in writes if write.record.state is not None]
        gone = [write for write in writes if write.record.state is None]
        failure = self._write_batch(kept) if kept else None
        outcomes: dict[str, ActorbotError | None] = {record.session_id: failure for record in kept}
        destroyed = self._write_each(gone, False)
        outcomes.update((write.record.session_id, each) for write, each in zip(gone, destroyed, strict=True))
        return [outcomes[write.record.session_id] for write in writes]

    def _write_batch(self, records: Sequence[Record]) -> ActorbotError | None:
        try:
            self._call(self._driver.write_many, [(record.session_id, record.to_document()) for record in records])
        except BaseException as error:
            return self._failed("write_many", error)
        return None

    def _write_each(self, writes: Sequence[Write], guarded: bool) -> list[ActorbotError | None]:
        outcomes: list[ActorbotError | None] = []
        calls: list[tuple[Any, ...]] = []
        for write in writes:
            record = write.record
            if (
                guarded and write.base is not None
            ):  # of the end of a session too: what ends may be somebody else's by now
                base = write.base.hex() or None
                calls.append((self._driver.compare_and_write, record.session_id, record.to_document(), base))
            elif record.state is None:
                calls.append((self._driver.destroy, record.session_id))
            else:
                calls.append((self._driver.write, record.session_id, record.to_document()))
        answers, at_once = self._call_each(lambda method, *args: method(*args), calls)
        if not self._writes_many:
            self.writes_at_once = at_once
        for write, call, answer in zip(writes, calls, answers, strict=True):
            if isinstance(answer, BaseException):
                verb = "destroying" if write.record.state is None else "writing"
                outcomes.append(self._failed(verb, answer, write.record.session_id))
            elif len(call) == 4:
                outcome = None if answer else self._look_back(write)
                if outcome is None and write.record.state is None:  # its mark is there; now remove it
                    outcome = self._write_each([replace(write, base=None)], False)[0]
                outcomes.append(outcome)
            else:
                outcomes.append(None)
        return outcomes

    def _look_back(self, write: Write) -> ActorbotError | None:
        """Tell a conflict from a write that was refused because it had been applied before, or had nothing to be compared with.

        A record that is no longer there was dropped by a driver that expires them itself, or destroyed; who holds its base writes it again.
        """
        found = self.read_many([write.record.session_id])[0]
        if isinstance(found, ActorbotError):
            return found
        if found is None and write.base:
            return self._write_each([replace(write, base=b"")], True)[0]
        if found is not None and not found.write_ids and not write.base:
            return self._write_each([write], False)[0]  # an adopted session: there is no id yet that could be compared
        ids = b"" if found is None else found.write_ids
        if write.record.write_id in [ids[i : i + 8] for i in range(0, len(ids), 8)]:
            return None
        return write.conflict(self.name)

    def _to_record(self, session_id: str, answer: Any) -> Record | ActorbotError | None:
        if answer is None:
            return None
        if isinstance(answer, ActorbotError):
            return answer
        if isinstance(answer, BaseException):
            failure = StoreUnavailableError(
                self.name, f"reading failed: {type(answer).__name__}: {answer}", session_id=session_id
            )
            failure.__cause__ = answer
            return failure
        if not isinstance(answer, Mapping):
            return CorruptSessionError(self.name, session_id, f"read returned a {type(answer).__name__}, not a dict")
        try:
            return Record.from_document(answer, session_id=session_id, store=self.name, expires_in=self.expires_in)
        except CorruptSessionError as error:
            return error
        except Exception as error:  # its mapping is of its own making too
            return self._to_record(session_id, error)

    def _failed(self, what: str, error: BaseException | None, session_id: str | None = None) -> ActorbotError | None:
        if error is None or isinstance(error, ActorbotError):
            return error
        kind = StoreUnavailableError if isinstance(error, ConnectionRefusedError) else OutcomeUnknownError
        ours = kind(self.name, f"{what} failed: {type(error).__name__}: {error}", session_id=session_id)
        ours.__cause__ = error
        return ours

    def _call(self, method: Callable[..., Any], *args: Any) -> Any:
        answer = method(*args)
        if not isawaitable(answer):
            return answer

        async def finish() -> Any:
            return await answer

        return self._run(finish)

    def _call_each(self, method: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> tuple[list[Any], int]:
        """Call once per tuple of arguments; an error is its answer. What turns out to be awaitable runs side by side.

        Also returns how many such calls to make next time.
        """
        answers: list[Any] = []
        for args in calls:
            try:
                answers.append(method(*args))
            except BaseException as error:
                answers.append(error)
        awaitable = sum(map(isawaitable, answers))
        at_once = AT_ONCE if awaitable == len(answers) else 1
        if not awaitable:
            return answers, at_once
        return list(self._run(lambda: _gather(answers, self._patience))), at_once


async def _gather(answers: list[Any], patience: float | None) -> list[Any]:
    limit = asyncio.Semaphore(AT_ONCE)

    async def finish(answer: Any) -> Any:
        if not isawaitable(answer):
            return answer
        async with limit:
            try:
                async with asyncio.timeout(patience) as time:
                    return await answer
            except (Exception, asyncio.CancelledError, SystemExit, KeyboardInterrupt) as error:
                return TimeoutError("cancelled, since it took too long (store_deadline)") if time.expired() else error

    return await asyncio.gather(*map(finish, answers))
