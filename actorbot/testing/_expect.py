"""What the rules of the contract ask of a store, and how they say what it did instead."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import fields
from typing import Any
from unittest import SkipTest

from actorbot._state.codec import decode_state, encode_state
from actorbot.errors import ActorbotError, ConfigError, ConflictError, StoreUnavailableError
from actorbot.stores.base import Record, RecordStore, Write
from actorbot.stores.driver import DriverStore, as_records

__all__ = [
    "Rules",
    "destroy",
    "expect",
    "expect_records",
    "expect_scan",
    "get",
    "make_record",
    "make_tombstone",
    "must",
    "opened",
    "put",
    "read",
    "read_document",
    "refused",
    "skip_unless_it_compares",
    "skip_unless_it_lists",
    "spelled",
    "write_all",
]


class Rules:
    """Some of the rules that stores keep, as tests. Each test makes a store of its own."""

    def make_store(self) -> Any:
        """Make a store: one of actorbot's, or a driver of four methods.

        The first one that a test asks for is empty.
        """
        raise NotImplementedError


def must(kept: bool, store: RecordStore, otherwise: str) -> None:
    if not kept:
        raise AssertionError(f"{store.name}: {otherwise}")


def expect(store: RecordStore, session_id: str, state: dict[str, Any] | None) -> None:
    found = get(store, session_id)
    must(found == state, store, f"session {session_id[:40]!r} should be {_short(state)} and reads as {_short(found)}")


def expect_records(store: RecordStore, records: Sequence[Record | None], expected: Sequence[Record | None]) -> None:
    for found, record in zip(records, expected, strict=True):
        if found == record:
            continue
        if found is None or record is None:
            one = record or found
            assert one is not None
            said = "came back absent" if found is None else "is there, which must be absent"
            must(False, store, f"the record of session {one.session_id[:40]!r} {said}")
        assert found is not None
        pairs = [(field.name, getattr(found, field.name), getattr(record, field.name)) for field in fields(Record)]
        changed = [f"{name} is {_short(had)}, was {_short(was)}" for name, had, was in pairs if had != was]
        must(False, store, f"the record of session {found.session_id[:40]!r} came back changed: {'; '.join(changed)}")


def _short(value: Any) -> str:
    text = "absent" if value is None else repr(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def make_record(session_id: str, state: dict[str, Any], base: Record | None = None, expires_at: float = 4e9) -> Record:
    version = 1 if base is None else base.version + 1
    ids = b"" if base is None else base.write_ids
    return Record(session_id, version, encode_state(state, 1 << 20), ids, b"", 1.5e9, expires_at).next_write()


def make_tombstone(session_id: str, base: Record | None = None) -> Record:
    ids = b"" if base is None else base.write_ids
    return Record(session_id, 0, None, ids, b"", 2e9, 4e9).next_write()


def put(store: RecordStore, session_id: str, state: dict[str, Any], base: Record | None = None) -> Record:
    record = make_record(session_id, state, base)
    write_all(store, [Write(record, b"" if base is None else base.write_id)])
    return record


def destroy(store: RecordStore, session_id: str) -> None:
    write_all(store, [Write(make_tombstone(session_id), None)])


def write_all(store: RecordStore, writes: Sequence[Write]) -> None:
    for write, outcome in zip(writes, store.write_many(writes), strict=True):
        if outcome is not None:
            verb = "destroying" if write.record.state is None else "writing"
            raise AssertionError(
                f"{store.name}: {verb} {write.record.session_id[:40]!r} failed: {outcome}"
            ) from outcome


def refused(store: RecordStore, write: Write) -> None:
    outcome = store.write_many([write])[0]
    must(
        isinstance(outcome, ConflictError), store, f"a write that must be refused, as a ConflictError, gave {outcome!r}"
    )


def read(store: RecordStore, session_ids: Sequence[str]) -> list[Record | None]:
    records = []
    for session_id, found in zip(session_ids, store.read_many(session_ids), strict=True):
        if isinstance(found, ActorbotError):
            raise AssertionError(f"{store.name}: reading {session_id[:40]!r} failed: {found}") from found
        records.append(found)
    return records


def get(store: RecordStore, session_id: str) -> Any:
    found = read(store, [session_id])[0]
    return None if found is None or found.state is None else decode_state(found.state)


def read_document(store: RecordStore, session_id: str) -> Any:
    """Return what the store itself returns: a driver's own dict and not what is made of it."""
    if isinstance(store, DriverStore):
        return store._calls.one(store._driver.read, session_id)
    return store.read(session_id)


def skip_unless_it_compares(store: RecordStore) -> None:
    if isinstance(store, DriverStore) and not store.compares:
        raise SkipTest("the driver has no compare_and_write")


def skip_unless_it_lists(store: RecordStore) -> None:
    try:
        store.count()
    except ConfigError as error:
        raise SkipTest("the store cannot list its sessions") from error


def expect_scan(store: RecordStore, expected: Mapping[str, Record]) -> list[Record]:
    """Expect a scan to yield these, perhaps more than once; return what else it yields."""
    missing, others = dict(expected), []
    for found in store.scan():
        if isinstance(found, ActorbotError):
            raise AssertionError(f"{store.name}: a scan failed on a session: {found}") from found
        missing.pop(found.session_id, None)
        if found.session_id in expected:
            expect_records(store, [found], [expected[found.session_id]])
        else:
            others.append(found)
    must(not missing, store, f"a scan leaves out {len(missing)} of {len(expected)} sessions: {list(missing)[:5]}")
    odd = [each.session_id for each in others if each.state is not None]
    must(not odd, store, f"a scan yields what was never stored: {odd[:5]}")
    return others


def spelled(value: Any) -> str:
    """Spell *value* out with the type of each part: 1, 1.0 and True differ, and 1.1 and 1.10."""
    if isinstance(value, dict):
        parts = [f"{key!r}: {spelled(part)}" for key, part in sorted(value.items())]
    elif isinstance(value, list | tuple):
        parts = [spelled(part) for part in value]
    elif isinstance(value, set | frozenset):
        parts = sorted(spelled(part) for part in value)
    else:
        parts = [repr(value)]
    return f"{type(value).__name__}({', '.join(parts)})"


@contextmanager
def opened(given: Any, *, breaks: bool = False) -> Iterator[RecordStore]:
    """Have a store from `init` to `close`. If it *breaks* meanwhile, its close may fail."""
    with as_records(given) as store:
        store.init()
        try:
            yield store
        finally:
            try:
                store.close()
            except StoreUnavailableError:
                if not breaks:
                    raise
