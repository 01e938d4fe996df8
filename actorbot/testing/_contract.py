"""What every store keeps, as tests to inherit."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from typing import Any
from unittest import SkipTest
from uuid import UUID

from actorbot._codec import decode_state, encode_state
from actorbot.errors import ConflictError
from actorbot.stores.base import Record, RecordStore, Write
from actorbot.stores.driver import DriverStore

__all__ = ["StoreContract"]

VALUES: dict[str, Any] = {
    "nothing": None, "truth": True, "text": "héllo \N{ROCKET}", "empty": "", "least": -(2**63), "most": 2**63 - 1, "half": 0.5,
    "raw": b"\x00\xff", "pair": (1, "two", (3,)), "bag": {1, 2}, "ice": frozenset({"a"}), "amount": Decimal("1.10"),
    "id": UUID(int=7), "day": date(2024, 2, 29), "span": timedelta(days=-1, microseconds=1), "naive": datetime(2024, 1, 1, 1, 2, 3, 4),  # noqa: DTZ001  # naive on purpose
    "aware": datetime(2024, 1, 1, tzinfo=UTC), "deep": {"a.b": {"$c": [{"d": ()}]}}, "list": [1, [2, [3]]], "$x": {"$set": [1]},
}  # fmt: skip
IDS = [
    "console:1", "CONSOLE:1", "../../etc/passwd", "CON", "a/b", "a\\b", "{}", "*", ":", "$where", " ", "-rf", "con.", "\u00e9", "e\u0301",
    "x" * 512, "\N{ROCKET}",
]  # fmt: skip


class StoreContract:
    """Subclass it for your store, give it `make_store`, and let pytest run it.

    ```python
    class TestMyStore(StoreContract):
        def make_store(self):
            return MyStore()
    ```
    """

    def make_store(self) -> Any:
        """Make a fresh, empty store: one of actorbot's or a driver of four methods."""
        raise NotImplementedError

    def test_every_type_of_value_comes_back_equal_and_of_the_same_type(self) -> None:
        with _Opened(self.make_store()) as store:
            _put(store, "ann", VALUES)
            state = _get(store, "ann")

            assert state == VALUES
            assert _spelled(state) == _spelled(VALUES)

    def test_a_session_without_values_is_not_an_absent_one(self) -> None:
        with _Opened(self.make_store()) as store:
            _put(store, "ann", {})

            assert _get(store, "ann") == {}

    def test_an_absent_session_reads_as_none(self) -> None:
        with _Opened(self.make_store()) as store:
            assert store.read_many(["nobody"]) == [None]

    def test_a_write_replaces_the_whole_session(self) -> None:
        with _Opened(self.make_store()) as store:
            first = _put(store, "ann", {"old": 1, "both": 1})
            _put(store, "ann", {"both": 2}, base=first)

            assert _get(store, "ann") == {"both": 2}

    def test_what_belongs_to_the_record_comes_back_too(self) -> None:
        with _Opened(self.make_store()) as store:
            written = _put(store, "ann", {"n": 1})

            assert store.read_many(["ann"]) == [written]

    def test_a_destroyed_session_reads_as_absent(self) -> None:
        with _Opened(self.make_store()) as store:
            _put(store, "ann", {"n": 1})
            _destroy(store, "ann")
            _destroy(store, "nobody")

            assert _get(store, "ann") is None
            assert _get(store, "nobody") is None

    def test_a_destroyed_session_does_not_come_back_by_an_older_write(self) -> None:
        with _Opened(self.make_store()) as store:
            _skip_unless_it_compares(store)
            first = _put(store, "ann", {"n": 1})
            _destroy(store, "ann")
            outcome = store.write_many([Write(_record("ann", {"n": 2}, first), first.write_id)])[0]

            assert isinstance(outcome, ConflictError)
            assert _get(store, "ann") is None

    def test_a_write_on_a_stale_base_is_a_conflict_and_changes_nothing(self) -> None:
        with _Opened(self.make_store()) as store:
            _skip_unless_it_compares(store)
            first = _put(store, "ann", {"n": 1})
            _put(store, "ann", {"n": 2}, base=first)
            outcome = store.write_many([Write(_record("ann", {"n": 3}, first), first.write_id)])[0]

            assert isinstance(outcome, ConflictError)
            assert _get(store, "ann") == {"n": 2}

    def test_the_same_write_sent_again_is_recognised_as_done(self) -> None:
        with _Opened(self.make_store()) as store:
            first = _put(store, "ann", {"n": 1})
            second = _put(store, "ann", {"n": 2}, base=first)
            outcome = store.write_many([Write(second, first.write_id)])[0]

            assert outcome is None
            assert _get(store, "ann") == {"n": 2}

    def test_odd_ids_stay_apart_and_exact(self) -> None:
        with _Opened(self.make_store()) as store:
            written = store.write_many([Write(_record(each, {"id": each}), b"") for each in IDS])
            assert list(written) == [None] * len(IDS)

            found = store.read_many(list(reversed(IDS)))
            assert [record.session_id for record in found if isinstance(record, Record)] == list(reversed(IDS))
            assert [_get(store, each) for each in IDS] == [{"id": each} for each in IDS]

    def test_a_batch_is_answered_in_the_order_of_its_ids(self) -> None:
        with _Opened(self.make_store()) as store:
            ann, bob = _put(store, "ann", {"n": 1}), _put(store, "bob", {"n": 2})

            assert list(store.read_many(["bob", "nobody", "ann"])) == [bob, None, ann]

    def test_what_was_read_may_be_changed_without_changing_what_is_stored(self) -> None:
        with _Opened(self.make_store()) as store:
            _put(store, "ann", {"cart": ["tea"]})
            document = store.read("ann")
            assert document is not None
            document["cart"].append("cake")
            document["$actorbot"].clear()

            assert _get(store, "ann") == {"cart": ["tea"]}

    def test_an_expired_record_is_still_returned(self) -> None:
        with _Opened(self.make_store()) as store:
            record = _record("ann", {"n": 1}, expires_at=time.time() - 1.0)
            store.write_many([Write(record, b"")])

            assert store.read_many(["ann"]) == [record]


def _record(session_id: str, state: dict[str, Any], base: Record | None = None, expires_at: float = 4e9) -> Record:
    version = 1 if base is None else base.version + 1
    ids = b"" if base is None else base.write_ids
    return Record(session_id, version, encode_state(state, 1 << 20), ids, b"", 1.5e9, expires_at).next_write()


def _put(store: RecordStore, session_id: str, state: dict[str, Any], base: Record | None = None) -> Record:
    record = _record(session_id, state, base)
    outcome = store.write_many([Write(record, b"" if base is None else base.write_id)])[0]
    assert outcome is None, outcome
    return record


def _destroy(store: RecordStore, session_id: str) -> None:
    outcome = store.write_many([Write(Record.tombstone(session_id, now=2e9), None)])[0]
    assert outcome is None, outcome


def _get(store: RecordStore, session_id: str) -> Any:
    found = store.read_many([session_id])[0]
    assert found is None or isinstance(found, Record), found
    return None if found is None or found.state is None else decode_state(found.state)


def _skip_unless_it_compares(store: RecordStore) -> None:
    if isinstance(store, DriverStore) and not store.compares:
        raise SkipTest("the driver has no compare_and_write")


def _spelled(value: Any) -> str:
    """Spell *value* out with the type of each part, so that 1, 1.0 and True differ, and 1.1 and 1.10 too."""
    if isinstance(value, dict):
        parts = [f"{key}: {_spelled(part)}" for key, part in sorted(value.items())]
    elif isinstance(value, list | tuple):
        parts = [_spelled(part) for part in value]
    elif isinstance(value, set | frozenset):
        parts = sorted(_spelled(part) for part in value)
    else:
        parts = [repr(value)]
    return f"{type(value).__name__}({', '.join(parts)})"


class _Opened:
    def __init__(self, given: Any) -> None:
        self._loop = asyncio.new_event_loop()
        self._store = given if isinstance(given, RecordStore) else DriverStore(given, run=self._run)

    def _run(self, make: Callable[[], Awaitable[Any]]) -> Any:
        async def finish() -> Any:
            return await make()

        return self._loop.run_until_complete(finish())

    def __enter__(self) -> RecordStore:
        return self._store.init()

    def __exit__(self, *_: object) -> None:
        self._store.close()
        self._loop.close()
