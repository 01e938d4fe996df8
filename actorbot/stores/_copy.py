"""All sessions of one store, as they are, into another."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from hashlib import blake2b
from time import time
from typing import Any, Final, TypeVar

from actorbot._checks import check_plain
from actorbot._state.record import Record, has_id
from actorbot.errors import (
    ActorbotError,
    ConfigError,
    ConflictError,
    OutcomeUnknownError,
    StoreError,
    StoreUnavailableError,
)
from actorbot.stores._batches import ask_in_parts
from actorbot.stores._users import is_used
from actorbot.stores.base import RecordStore, Write
from actorbot.stores.driver import as_records

__all__ = ["CopyReport", "copy"]

AT_ONCE: Final = 100  # records that are compared and written at a time
BYTES_AT_ONCE: Final = 16 * 1024**2

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class CopyReport:
    """What became of the records of a copy."""

    copied: int = 0
    already_there: int = 0
    expired: int = 0
    """Expired ones, which were not copied."""
    destroyed: int = 0
    """Copied by an earlier run, then destroyed in the source; now destroyed in the target too."""
    failed: tuple[ActorbotError, ...] = ()
    """One error for each session that was not copied; it names the session."""


def copy(source: Any, target: Any, *, progress: Callable[[int], object] | None = None) -> CopyReport:
    """Copy all sessions of *source* to *target*: stores or drivers, the first one able to list.

    Records are copied as they are: values, version, event ids, last activity and end. Expired ones
    are left out. It may be run again, after an interruption or to bring changes over. Then a
    session that is there already is not written again, one that was copied before is brought up to
    date, and one that somebody else has written in the target stays as it is and is reported as a
    ConflictError.

    It blocks (on an event loop: `await asyncio.to_thread(copy, …)`). Bots that use one of the two
    should not run meanwhile. Stores of actorbot's are opened if need be, and stay open. Drivers of
    four methods are opened, and closed unless a manager uses them; `async def` ones run on a loop
    of the copy's own. After each batch, *progress* is called with the number of records that were
    looked at so far.

    A batch that fails is divided, until the sessions that cannot be copied are alone. `failed`
    names them; the others are copied.

    Raises: StoreUnavailableError, also OutcomeUnknownError, if a store is down or takes nothing;
    what was copied before is in the target. StoreError if the source's folder or collection is not
    there: it is not made. ConfigError.
    """
    if source is target:
        raise ConfigError("target", type(target), "another store than the source")
    if progress is not None:
        check_plain("progress", progress, "a function of a number")
    with ExitStack() as stack:
        out_of, into = (stack.enter_context(_opened(store, look)) for store, look in ((source, True), (target, False)))
        totals: dict[str, int] = dict.fromkeys(("copied", "already_there", "expired", "destroyed"), 0)
        failed: list[ActorbotError] = []
        seen = 0
        for batch in _batches(out_of):
            records = []
            for found in batch:
                if isinstance(found, ActorbotError):
                    failed.append(found)
                elif found.is_expired(time()) and found.state is not None:
                    totals["expired"] += 1
                else:
                    records.append(found)
            for outcome in _copy_batch(records, into):
                if isinstance(outcome, ActorbotError):
                    failed.append(outcome)
                elif outcome:
                    totals[outcome] += 1
            seen += len(batch)
            if progress is not None:
                progress(seen)
        return CopyReport(**totals, failed=tuple(failed))


@contextmanager
def _opened(store: Any, look: bool) -> Iterator[RecordStore]:
    with as_records(store) as records:
        missing = records.look() if look else None
        if missing is not None:
            raise StoreError(records.name, missing)
        if not look:
            records.init()
        try:
            yield records
        finally:
            if records is not store and not is_used(store):
                records.close()


def _batches(store: RecordStore) -> Iterator[list[Record | ActorbotError]]:
    batch: list[Record | ActorbotError] = []
    size = 0
    for found in store.scan():
        batch.append(found)
        size += 0 if isinstance(found, ActorbotError) or found.state is None else len(found.state)
        if len(batch) == AT_ONCE or size >= BYTES_AT_ONCE:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _copy_batch(records: Sequence[Record], target: RecordStore) -> Iterator[ActorbotError | str]:
    """Yield what became of each: the count that it belongs to (`""`: none), or the error."""
    records = [_with_write_id(record) for record in {record.session_id: record for record in records}.values()]
    there = _read_in_turn(target, [record.session_id for record in records])
    writes: list[Write] = []
    for record, stored in zip(records, there, strict=True):
        decided = _decide(record, stored, target.name)
        if isinstance(decided, Write):
            writes.append(decided)
        else:
            yield decided
    outcomes = _write_in_turn(target, writes)
    for write, error in zip(writes, outcomes, strict=True):
        if error is not None:
            yield error
        else:
            yield "destroyed" if write.record.state is None else "copied"


def _read_in_turn(store: RecordStore, ids: Sequence[str]) -> list[Record | ActorbotError | None]:
    parts = _parts(ids, store.reads_at_once)
    return [each for part in parts for each in ask_in_parts(StoreUnavailableError, store.name, store.read_many, part)]


def _write_in_turn(store: RecordStore, writes: Sequence[Write]) -> list[ActorbotError | None]:
    return [
        outcome
        for part in _parts(writes, store.writes_at_once)
        for outcome in ask_in_parts(
            OutcomeUnknownError, store.name, store.write_many, part, lambda write: write.record.session_id
        )
    ]


def _parts(items: Sequence[_T], at_once: int) -> Iterator[Sequence[_T]]:
    return (items[at : at + at_once] for at in range(0, len(items), at_once))


def _with_write_id(record: Record) -> Record:
    """Give an adopted document, which has no write id, one that a later run makes again."""
    if record.write_ids:
        return record
    content = record.session_id.encode() + b"\0" + (record.state or b"")
    return replace(record, write_ids=blake2b(content, digest_size=8).digest())


def _decide(record: Record, stored: Record | ActorbotError | None, target: str) -> Write | ActorbotError | str:
    if isinstance(stored, ActorbotError):
        return stored
    if stored is None:
        return "" if record.state is None else Write(record, b"")
    if stored.write_id == record.write_id:
        return "already_there"
    if stored.write_id and has_id(record.write_ids, stored.write_id):
        return Write(record, stored.write_id)
    # A tombstone has no earlier write ids, so which came first is told by the time.
    if record.state is None and stored.last_activity <= record.last_activity:
        return "" if stored.state is None else Write(record, stored.write_id)
    reason = "someone else wrote it in the target; to copy the source's, destroy it in the target first"
    return ConflictError(target, reason, session_id=record.session_id)
