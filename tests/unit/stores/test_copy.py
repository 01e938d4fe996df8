"""Moving house: `actorbot.stores.copy`."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from actorbot import DUPLICATE, FileSessionStore, MemorySessionStore, SessionManager, errors
from actorbot._state.codec import encode_state
from actorbot.stores import CopyReport, Record, RecordStore, Write, copy
from actorbot.testing import FaultyStore, RecordingStore
from actorbot.testing._expect import make_record, make_tombstone, write_all
from actorbot.testing._value_rules import IDS, VALUES
from tests.backends import STORES, AsyncDictStore, ComparingStore, DictStore
from tests.handlers import count
from tests.servers.redis_servers import QUICK

EVENT_IDS = bytes(range(64))


class ListingStore(DictStore):
    def ids(self) -> list[str]:
        return list(self.data)


class AsyncListingStore(AsyncDictStore):
    async def ids(self) -> Any:
        return list(self.inner.data)


class StreamingStore(AsyncDictStore):
    async def ids(self) -> Any:
        for session_id in list(self.inner.data):
            yield session_id


class ListingAndComparingStore(ComparingStore):
    def ids(self) -> Iterator[str]:
        return iter(list(self.data))


SOURCES: dict[str, Callable[[Path], Any]] = {
    **{name: make for name, make in STORES.items() if name in ("memory", "file", "mongo", QUICK)},
    "driver": lambda _: ListingStore(),
    "async driver": lambda _: AsyncListingStore(),
    "streaming driver": lambda _: StreamingStore(),
    "comparing driver": lambda _: ListingAndComparingStore(),
}


@pytest.fixture
def make_store() -> Iterator[Callable[[str, Path], Any]]:
    """Make a store that is closed at the end of the test: a copy leaves it open."""
    made = []

    def make(kind: str, folder: Path) -> Any:
        made.append((STORES | SOURCES)[kind](folder))
        return made[-1]

    yield make
    for store in made:
        if isinstance(store, RecordStore):
            store.close()


PAIRS = list(product(SOURCES, SOURCES))


def fill(store: Any, records: list[Record]) -> None:
    with_stamps = MemorySessionStore()
    write_all(with_stamps, [Write(record, None) for record in records])
    copy(with_stamps, store)


def records_of(store: Any) -> dict[str, Record]:
    copied = MemorySessionStore()
    report = copy(store, copied)
    assert report.failed == ()
    return {each.session_id: each for each in copied.scan() if isinstance(each, Record)}


def some_records() -> list[Record]:
    values = make_record("console:1", VALUES)
    seen = Record("telegram:42", 7, values.state, values.write_ids, EVENT_IDS, 1.6e9 + 0.123456789, 4e9 + 0.987654321)
    return [seen, *(make_record(each, {"id": each}) for each in IDS)]


@pytest.mark.parametrize(("of", "to"), PAIRS, ids=[" to ".join(pair) for pair in PAIRS])
def test_sessions_move_as_they_are_between_any_two_stores(
    of: str, to: str, make_store: Callable[[str, Path], Any], tmp_path: Path
) -> None:
    source, target = make_store(of, tmp_path / "source"), make_store(to, tmp_path / "target")
    records = some_records()
    fill(source, records)

    report = copy(source, target)

    assert report == CopyReport(copied=len(records))
    assert records_of(target) == {each.session_id: each for each in records}
    assert copy(source, target) == CopyReport(already_there=len(records))


def test_a_copy_that_was_broken_off_goes_on_where_it_was() -> None:
    source, target = MemorySessionStore(), RecordingStore()
    write_all(source, [Write(make_record(f"user:{n}", {"n": n}), b"") for n in range(450)])

    def give_up(done: int) -> None:
        if done >= 200:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        copy(source, target, progress=give_up)
    assert len(target.writes) == 200

    assert copy(source, target) == CopyReport(copied=250, already_there=200)
    assert len(target.writes) == 450


@pytest.mark.parametrize("failing", ["source", "target"])
def test_an_outage_in_the_middle_is_said_and_costs_nothing(failing: str) -> None:
    source, target = FaultyStore(), FaultyStore()
    write_all(source, [Write(make_record(f"user:{n}", {"n": n}), b"") for n in range(250)])
    store = source if failing == "source" else target
    scan = source.inner.scan

    def scan_or_fail() -> Iterator[Any]:
        for n, record in enumerate(scan()):
            if n == 150 and store is source and source._down:
                raise errors.StoreUnavailableError("memory", "told to be out")
            yield record

    source.inner.scan = scan_or_fail  # type: ignore[method-assign]
    with pytest.raises(errors.StoreUnavailableError):
        copy(source, target, progress=lambda _: store.outage())
    store.restore()

    assert copy(source, target) == CopyReport(copied=150, already_there=100)


def test_progress_is_told_after_each_batch() -> None:
    source, told = MemorySessionStore(), []
    write_all(source, [Write(make_record(f"user:{n}", {"n": n}), b"") for n in range(250)])
    copy(source, MemorySessionStore(), progress=told.append)

    assert told == [100, 200, 250]
    assert source.count() == 250


def test_what_has_changed_since_is_brought_up_to_date() -> None:
    source, target = MemorySessionStore(), MemorySessionStore()
    first = make_record("ann", {"n": 1})
    write_all(source, [Write(first, b"")])
    copy(source, target)
    second = make_record("ann", {"n": 2}, first)
    write_all(source, [Write(second, first.write_id)])

    assert copy(source, target) == CopyReport(copied=1)
    assert target.read_many(["ann"]) == [second]


def test_a_session_destroyed_between_two_runs_is_gone_in_the_target_too() -> None:
    source, target = MemorySessionStore(), MemorySessionStore()
    write_all(source, [Write(make_record("ann", {"n": 1}), b""), Write(make_record("bob", {"n": 1}), b"")])
    copy(source, target)
    source.destroy("ann")
    write_all(source, [Write(make_tombstone("never there"), None)])

    assert copy(source, target) == CopyReport(already_there=1, destroyed=1)
    assert target.read("ann") is None
    assert copy(source, target) == CopyReport(already_there=2)


def test_what_has_expired_stays_behind() -> None:
    source, target = MemorySessionStore(), MemorySessionStore()
    write_all(source, [Write(make_record("ann", {}, expires_at=1.0), b""), Write(make_record("bob", {}), b"")])

    assert copy(source, target) == CopyReport(copied=1, expired=1)
    assert target.count() == 1


def test_what_somebody_else_has_written_in_the_target_is_left_alone_and_reported() -> None:
    source, target = MemorySessionStore(), MemorySessionStore()
    write_all(source, [Write(make_record(each, {"from": "source"}), b"") for each in ("ann", "bob")])
    theirs = make_record("ann", {"from": "target"})
    write_all(target, [Write(theirs, b"")])

    report = copy(source, target)

    assert (report.copied, [error.session_id for error in report.failed]) == (1, ["ann"])  # type: ignore[attr-defined]
    assert isinstance(report.failed[0], errors.ConflictError)
    assert target.read_many(["ann"]) == [theirs]


def test_a_record_that_cannot_be_read_is_reported_and_the_rest_is_copied(tmp_path: Path) -> None:
    source, target = FileSessionStore(tmp_path / "sessions").init(), MemorySessionStore()
    write_all(source, [Write(make_record(each, {"n": 1}), b"") for each in ("ann", "bob", "eve")])
    damaged = next(path for path in (tmp_path / "sessions").glob("*.session") if b"bob" in path.read_bytes())
    data = damaged.read_bytes()
    damaged.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    (tmp_path / "sessions" / ("s-" + "0" * 64 + ".session")).write_bytes(b"garbage")

    report = copy(source, target)
    source.close()

    assert report.copied == 2
    assert sorted(type(error).__name__ for error in report.failed) == ["CorruptSessionError"] * 2
    assert any("bob" in str(error) for error in report.failed)
    assert any("0000.session" in str(error) for error in report.failed)


def test_a_session_that_the_target_refuses_is_reported(make_store: Callable[[str, Path], Any], tmp_path: Path) -> None:
    source, target = MemorySessionStore(), make_store("mongo", tmp_path)
    write_all(source, [Write(make_record("big", {"text": "x" * 1_000_000}), b"")])
    huge = encode_state({"text": "x" * 17 * 1024**2}, 1 << 30)
    write_all(source, [Write(Record("huge", 1, huge, b"12345678", b"", 1.5e9, 4e9), b"")])

    report = copy(source, target)

    assert report.copied == 1
    assert [type(error) for error in report.failed] == [errors.SessionTooLargeError]


def test_a_document_that_was_there_before_actorbot_is_copied_once() -> None:
    source, target = ListingStore(), RecordingStore()
    source.data["ann"] = {"nickname": "Ann"}

    assert copy(source, target) == CopyReport(copied=1)
    assert copy(source, target) == CopyReport(already_there=1)
    assert (target.inner.read("ann") or {})["nickname"] == "Ann"


def test_a_driver_that_cannot_list_says_so() -> None:
    with pytest.raises(errors.ConfigError, match="ids"):
        copy(DictStore(), MemorySessionStore())


def test_a_store_is_not_copied_into_itself() -> None:
    store = MemorySessionStore()
    with pytest.raises(errors.ConfigError, match="another store"):
        copy(store, store)


async def test_a_bot_goes_on_in_the_new_house(make_store: Callable[[str, Path], Any], tmp_path: Path) -> None:
    old, new = make_store("file", tmp_path), make_store(QUICK, tmp_path)
    async with SessionManager(old, handler=count) as manager:
        for n in range(3):
            await manager.dispatch("ann", "hi", event_id=f"{n}")
    report = await asyncio.to_thread(copy, old, new)
    assert report == CopyReport(copied=1)

    async with SessionManager(new, handler=count) as manager:
        assert await manager.dispatch("ann", "hi", event_id="2") is DUPLICATE
        assert await manager.dispatch("ann", "hi", event_id="3") == 4


class Transactions(ListingStore):
    """Reads and writes a batch in one go, and has a session that it can do neither with."""

    def __init__(self, bad: str, verb: str) -> None:
        super().__init__()
        self.bad, self.verb = bad, verb
        self.batches: list[int] = []

    def look(self, verb: str, ids: list[str]) -> None:
        self.batches.append(len(ids))
        if verb == self.verb and self.bad in ids:
            raise ValueError("no such text in jsonb")

    def read_many(self, session_ids: list[str]) -> dict[str, Any]:
        self.look("read", session_ids)
        return {each: self.data[each] for each in session_ids if each in self.data}

    def write_many(self, items: list[tuple[str, Any]]) -> None:
        self.look("write", [session_id for session_id, _ in items])
        self.data.update(items)


@pytest.mark.parametrize("verb", ["read", "write"])
def test_a_session_that_the_target_refuses_is_named_and_the_others_are_copied(verb):
    source, target = MemorySessionStore(), Transactions("user:7", verb)
    write_all(source, [Write(make_record(f"user:{n}", {"n": n}), None) for n in range(150)])
    report = copy(source, target)

    assert report.copied == len(target.data) == 149
    (failure,) = report.failed
    assert isinstance(failure, errors.StoreUnavailableError)
    assert failure.session_id == "user:7"
    assert "no such text in jsonb" in str(failure)
    assert len(target.batches) <= 4 + 2 * 7  # two batches, and two calls for each time that one is divided


def test_a_session_that_the_source_cannot_read_is_named_and_the_others_are_copied():
    source, target = Transactions("user:7", "read"), MemorySessionStore()
    fill(source, [make_record(f"user:{n}", {"n": n}) for n in range(150) if n != 7])
    source.data["user:7"] = {}
    report = copy(source, target)

    assert report.copied == target.count() == 149
    assert [failure.session_id for failure in report.failed] == ["user:7"]


def test_a_target_that_takes_nothing_ends_the_copy():
    class Full(Transactions):
        def look(self, verb: str, ids: list[str]) -> None:
            self.batches.append(len(ids))
            raise ValueError("no")

    source, target = MemorySessionStore(), Full("", "")
    write_all(source, [Write(make_record(f"user:{n}", {"n": n}), None) for n in range(150)])
    with pytest.raises(errors.StoreUnavailableError, match="ValueError: no"):
        copy(source, target)
    assert len(target.batches) <= 3 + 2 * 7
