"""What every store keeps, as tests to inherit."""

from __future__ import annotations

import threading
import time
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from unittest import SkipTest
from uuid import UUID

from actorbot.errors import ActorbotError, StoreUnavailableError
from actorbot.stores.base import Record, Write
from actorbot.stores.driver import DriverStore
from actorbot.testing._expect import (
    destroy,
    expect,
    expect_records,
    expect_scan,
    get,
    make_record,
    make_tombstone,
    must,
    opened,
    put,
    read,
    read_document,
    refused,
    skip_unless_it_compares,
    skip_unless_it_lists,
    spelled,
    write_all,
)

__all__ = ["StoreContract"]

VALUES: dict[str, Any] = {
    "nothing": None, "truth": True, "one": 1, "text": "héllo \N{ROCKET}\n\x00", "empty": "", "least": -(2**63), "most": 2**63 - 1,
    "half": 0.5, "whole float": 1.0, "minus zero": -0.0, "third": 1 / 3, "tiny": 5e-324, "huge": 1.7976931348623157e308,
    "raw": b"\x00\xff", "no bytes": b"", "pair": (1, "two", (3,)), "bag": {1, 2}, "ice": frozenset({"a"}), "no bag": set(),
    "amount": Decimal("1.10"), "exponent": Decimal("1E+2"), "id": UUID(int=7), "day": date(2024, 2, 29),
    "span": timedelta(days=-1, microseconds=1), "naive": datetime(2024, 1, 1, 1, 2, 3, 4),  # noqa: DTZ001  # naive on purpose
    "aware": datetime(2024, 1, 1, tzinfo=UTC), "away": datetime(2024, 1, 1, 1, 2, 3, 456, timezone(timedelta(hours=5, minutes=30))),
    "deep": {"a.b": {"$c": [{"d": ()}]}}, "list": [1, [2, [3]], None], "keys": {"": 1, " ": 2, "ключ": 3},
    "$x": {"$set": [1]}, "like ours": {"$date": "2024-02-29"}, "$actorbot": {"mine": True}, "a.b": 1, "_id": 1, "": 1,
}  # fmt: skip
IDS = [
    "console:1", "CONSOLE:1", "console:11", "console:1 ", "../../etc/passwd", "CON", "con.", "a/b", "a\\b", "a_b", "a%b", "axb", "a?b",
    "a*b", "%", "_", "{}", "*", ":", "$where", " ", "-rf", "'; drop table sessions; --", '"', "null", "None", "0", "00", "\u00e9",
    "e\u0301", "x" * 511 + "y", "x" * 512, "\N{ROCKET}" * 128, "\N{ROCKET}",
]  # fmt: skip
PATIENCE = 30.0  # real seconds for a rule that uses threads


class StoreContract:
    """The rules that every store keeps. Subclass it for yours, give it `make_store`, and let pytest or unittest run it.

    ```python
    class TestMyStore(StoreContract):
        persistent = True

        @pytest.fixture(autouse=True)
        def _folder(self, tmp_path):
            self.path = tmp_path / "my.db"

        def make_store(self):
            return MyStore(self.path)
    ```

    A rule's name is what it asks for, and an AssertionError says which store did what instead. Rules about comparing are skipped for
    a driver without `compare_and_write`.
    """

    persistent: bool = False
    """Whether a second store that `make_store` makes in a test finds what the first one has written."""

    def make_store(self) -> Any:
        """Make a store: one of actorbot's or a driver of four methods. The first that a test asks for is empty."""
        raise NotImplementedError

    def break_store(self, store: Any) -> None:
        """Make *store*, which `make_store` made, fail from now on, as an outage would. Override it: without it that rule is skipped."""
        raise SkipTest("break_store is not overridden")

    # --- values -----------------------------------------------------------------------------------

    def test_every_type_of_value_comes_back_equal_and_of_the_same_type(self) -> None:
        with opened(self.make_store()) as store:
            changed = []
            for name, value in VALUES.items():
                try:
                    put(store, f"value:{name}", {name: value})
                    found = get(store, f"value:{name}")
                except AssertionError as error:
                    changed.append(f"{name!r}: {error}")
                else:
                    if spelled(found) != spelled({name: value}):
                        changed.append(f"{name!r}: {spelled({name: value})} became {spelled(found)}")
            must(not changed, store, "values are lost or changed:\n" + "\n".join(changed))

    def test_values_do_not_disturb_each_other(self) -> None:
        with opened(self.make_store()) as store:
            put(store, "ann", VALUES)

            found = get(store, "ann")
            must(found is not None, store, "a session of many values came back absent")
            changed = sorted(key for key in {*VALUES, *found} if spelled(found.get(key)) != spelled(VALUES.get(key)))
            must(
                not changed, store, f"in a session of many values these keys came back changed, lost or new: {changed}"
            )

    def test_a_large_session_comes_back_whole(self) -> None:
        with opened(self.make_store()) as store:
            state = {"text": "ü" * 60_000, "raw": bytes(range(256)) * 256, "list": list(range(10_000))}
            put(store, "ann", state)

            found = get(store, "ann")
            must(found is not None, store, "a session of 200 KB came back absent")
            changed = [key for key in state if found.get(key) != state[key]]
            must(not changed, store, f"of a session of 200 KB these values came back changed: {changed}")

    def test_a_session_without_values_is_not_an_absent_one(self) -> None:
        with opened(self.make_store()) as store:
            put(store, "ann", {})

            expect(store, "ann", {})

    def test_what_belongs_to_the_record_comes_back_too(self) -> None:
        with opened(self.make_store()) as store:
            record = make_record("ann", {"n": 1})
            for _ in range(20):
                record = record.next_write()
            written = Record(
                "ann", 7, record.state, record.write_ids, b"digested" * 64, 1.5e9 + 0.123456, 4e9 + 0.654321
            )
            write_all(store, [Write(written, b"")])

            expect_records(store, read(store, ["ann"]), [written])

    def test_what_was_read_may_be_changed_without_changing_what_is_stored(self) -> None:
        with opened(self.make_store()) as store:
            put(store, "ann", {"cart": ["tea"]})
            document = read_document(store, "ann")
            try:
                document["cart"].append("cake")
                document["$actorbot"].clear()
                document["more"] = 1
            except (AttributeError, TypeError):
                pass  # a mapping that cannot be changed keeps the rule too

            again = read_document(store, "ann")
            kept = again.get("cart") == ["tea"] and "more" not in again and again.get("$actorbot")
            must(kept, store, "what read() gave was changed, and so what is stored; it must give a copy")

    # --- reading and writing ----------------------------------------------------------------------

    def test_an_absent_session_reads_as_none(self) -> None:
        with opened(self.make_store()) as store:
            expect_records(store, read(store, ["nobody"]), [None])

    def test_a_failed_read_is_an_error_and_not_an_absent_session(self) -> None:
        given = self.make_store()
        with opened(given, breaks=True) as store:
            put(store, "ann", {"n": 1})
            self.break_store(given)
            for session_id in ("ann", "nobody"):
                try:
                    found = store.read_many([session_id])[0]
                except StoreUnavailableError:
                    continue
                said = "a failing store must raise, or a user's session is taken for a new one"
                must(isinstance(found, StoreUnavailableError), store, f"{said}; reading {session_id!r} gave {found!r}")

    def test_a_failed_write_is_an_error(self) -> None:
        given = self.make_store()
        with opened(given, breaks=True) as store:
            first = put(store, "ann", {"n": 1})
            self.break_store(given)
            for write in (
                Write(make_record("ann", {"n": 2}, first), first.write_id),
                Write(make_tombstone("ann"), None),
            ):
                try:
                    outcome = store.write_many([write])[0]
                except StoreUnavailableError:
                    continue
                verb = "destroying" if write.record.state is None else "writing"
                must(isinstance(outcome, ActorbotError), store, f"{verb} 'ann' was confirmed by a store that fails")

    def test_a_write_replaces_the_whole_session(self) -> None:
        with opened(self.make_store()) as store:
            first = put(store, "ann", {"old": "x" * 5000, "both": {"old": 1}})
            second = put(store, "ann", {"both": {"new": 2}}, base=first)
            expect(store, "ann", {"both": {"new": 2}})

            put(store, "ann", {"long": "y" * 9000}, base=second)
            expect(store, "ann", {"long": "y" * 9000})

    def test_the_last_of_many_writes_is_what_is_read(self) -> None:
        with opened(self.make_store()) as store:
            record = None
            for n in range(20):
                record = put(store, "ann", {"n": n}, base=record)
                expect(store, "ann", {"n": n})

    def test_odd_ids_stay_apart_and_exact(self) -> None:
        with opened(self.make_store()) as store:
            write_all(store, [Write(make_record(each, {"id": each}), b"") for each in IDS])
            found = read(store, list(reversed(IDS)))

            must(
                [each and each.session_id for each in found] == IDS[::-1],
                store,
                "a batch answers other ids than it was asked for",
            )
            for each in IDS:
                expect(store, each, {"id": each})

    def test_a_batch_is_answered_in_the_order_of_its_ids(self) -> None:
        with opened(self.make_store()) as store:
            ann, bob = put(store, "ann", {"n": 1}), put(store, "bob", {"n": 2})
            expect_records(store, read(store, ["bob", "nobody", "ann"]), [bob, None, ann])

    def test_a_batch_of_many_sessions_is_written_whole(self) -> None:
        with opened(self.make_store()) as store:
            records = [make_record(f"user:{n}", {"n": n}) for n in range(200)]
            gone = put(store, "gone", {"n": 1})
            write_all(
                store,
                [*(Write(each, b"") for each in records[:100]), Write(make_tombstone("gone", gone), gone.write_id)],
            )
            write_all(store, [Write(each, b"") for each in records[100:]])
            ids = [each.session_id for each in records]
            lost = [each.session_id for each, found in zip(records, read(store, ids), strict=True) if found != each]

            must(
                not lost,
                store,
                f"{len(lost)} of 200 sessions written in batches came back absent or changed: {lost[:5]}",
            )
            expect(store, "gone", None)

    def test_reads_while_others_write_give_whole_records(self) -> None:
        with opened(self.make_store()) as store:
            if isinstance(store, DriverStore):
                raise SkipTest("a driver of plain methods is called from one thread at a time")
            ids = [f"user:{n}" for n in range(10)]
            current = {each: put(store, each, {"n": 0, "again": 0}) for each in ids}
            failures: list[BaseException] = []

            def write() -> None:
                try:
                    for n in range(1, 15):
                        following = {each: make_record(each, {"n": n, "again": n}, current[each]) for each in ids}
                        write_all(store, [Write(following[each], current[each].write_id) for each in ids])
                        current.update(following)
                except BaseException as error:
                    failures.append(error)

            writer = threading.Thread(target=write, name="contract-writer", daemon=True)
            writer.start()
            until = time.monotonic() + PATIENCE
            while writer.is_alive() and time.monotonic() < until:
                for each in ids:
                    state = get(store, each)
                    must(
                        state is not None and state["n"] == state["again"], store, f"{each!r} was torn or gone: {state}"
                    )
            writer.join(timeout=PATIENCE)
            if failures:
                raise failures[0]
            expect_records(store, read(store, ids), [current[each] for each in ids])

    # --- listing ----------------------------------------------------------------------------------

    def test_a_scan_yields_what_is_stored_and_nothing_else(self) -> None:
        with opened(self.make_store()) as store:
            skip_unless_it_lists(store)
            stored = {each: make_record(each, {"id": each}) for each in IDS}
            stored["past"] = make_record("past", {}, expires_at=1.0)
            write_all(store, [Write(each, b"") for each in stored.values()])
            expect_scan(store, stored)
            destroy(store, IDS[0])
            found = expect_scan(store, {each: record for each, record in stored.items() if each != IDS[0]})

            must(all(each.state is None for each in found), store, f"a scan yields {IDS[0]!r}, which was destroyed")

    def test_a_scan_of_many_sessions_is_whole(self) -> None:
        with opened(self.make_store()) as store:
            skip_unless_it_lists(store)
            stored = {f"user:{n}": make_record(f"user:{n}", {"n": n}) for n in range(1_200)}
            for at in range(0, 1_200, 200):
                write_all(store, [Write(each, b"") for each in [*stored.values()][at : at + 200]])

            expect_scan(store, stored)

    def test_a_store_counts_what_it_holds(self) -> None:
        with opened(self.make_store()) as store:
            skip_unless_it_lists(store)
            must(store.count() == 0, store, f"it counts {store.count()} sessions where there are none")
            write_all(store, [Write(make_record(each, {}), b"") for each in IDS])

            must(store.count() == len(IDS), store, f"it counts {store.count()} sessions and holds {len(IDS)}")

    # --- destroying -------------------------------------------------------------------------------

    def test_a_destroyed_session_reads_as_absent(self) -> None:
        with opened(self.make_store()) as store:
            put(store, "ann", {"n": 1})
            destroy(store, "ann")

            expect(store, "ann", None)

    def test_destroying_what_is_not_there_is_no_error(self) -> None:
        with opened(self.make_store()) as store:
            destroy(store, "nobody")
            put(store, "ann", {"n": 1})
            destroy(store, "ann")
            destroy(store, "ann")

            expect(store, "nobody", None)
            expect(store, "ann", None)

    def test_destroying_one_session_leaves_the_others(self) -> None:
        with opened(self.make_store()) as store:
            odd = [
                each
                for each in IDS
                if any(mark in each for mark in "*?%_") or each in {"console:1", "CONSOLE:1", "CON", " "}
            ]
            write_all(store, [Write(make_record(each, {"id": each}), b"") for each in IDS])
            for each in odd:
                destroy(store, each)

            for each in IDS:
                expect(store, each, None if each in odd else {"id": each})

    def test_a_session_may_begin_again_after_it_was_destroyed(self) -> None:
        with opened(self.make_store()) as store:
            put(store, "ann", {"old": 1})
            destroy(store, "ann")
            left = read(store, ["ann"])[0]
            again = put(store, "ann", {"new": 1}, base=left)
            expect(store, "ann", {"new": 1})

            put(store, "ann", {"new": 2}, base=again)
            expect(store, "ann", {"new": 2})

    def test_a_destroyed_session_does_not_come_back_by_an_older_write(self) -> None:
        with opened(self.make_store()) as store:
            if isinstance(store, DriverStore):
                raise SkipTest("a driver's destroy leaves nothing behind; the manager waits for the write in flight")
            first = put(store, "ann", {"n": 1})
            destroy(store, "ann")
            refused(store, Write(make_record("ann", {"n": 2}, first), first.write_id))

            expect(store, "ann", None)

    # --- comparing --------------------------------------------------------------------------------

    def test_a_write_on_a_stale_base_is_a_conflict_and_changes_nothing(self) -> None:
        with opened(self.make_store()) as store:
            skip_unless_it_compares(store)
            first = put(store, "ann", {"n": 1})
            put(store, "ann", {"n": 2}, base=first)
            refused(store, Write(make_record("ann", {"n": 3}, first), first.write_id))

            expect(store, "ann", {"n": 2})

    def test_a_first_write_where_something_is_stored_is_a_conflict(self) -> None:
        with opened(self.make_store()) as store:
            skip_unless_it_compares(store)
            put(store, "ann", {"n": 1})
            refused(store, Write(make_record("ann", {"n": 2}), b""))

            expect(store, "ann", {"n": 1})

    def test_a_session_that_somebody_else_has_written_is_not_ended(self) -> None:
        with opened(self.make_store()) as store:
            skip_unless_it_compares(store)
            first = put(store, "ann", {"n": 1})
            put(store, "ann", {"n": 2}, base=first)
            refused(store, Write(make_tombstone("ann", first), first.write_id))

            expect(store, "ann", {"n": 2})

    def test_the_same_write_sent_again_is_recognised_as_done(self) -> None:
        with opened(self.make_store()) as store:
            first = put(store, "ann", {"n": 1})
            second = put(store, "ann", {"n": 2}, base=first)
            write_all(store, [Write(second, first.write_id)])

            expect(store, "ann", {"n": 2})

    # --- age and life -----------------------------------------------------------------------------

    def test_an_expired_record_is_still_returned(self) -> None:
        with opened(self.make_store()) as store:
            record = make_record("ann", {"n": 1}, expires_at=time.time() - 1.0)
            write_all(store, [Write(record, b"")])
            # The record's own stamp decides; a server that expires records by itself waits a minute longer.
            expect_records(store, read(store, ["ann"]), [record])

    def test_a_sweep_leaves_what_has_not_ended(self) -> None:
        with opened(self.make_store()) as store:
            write_all(
                store,
                [Write(make_record("old", {"n": 1}, expires_at=2e9), b""), Write(make_record("new", {"n": 2}), b"")],
            )
            swept = [each.session_id for each in store.sweep(2e9)]

            must(swept in ([], ["old"]), store, f"only 'old' had ended, and a sweep removed {swept}")
            expect(store, "old", None if swept else {"n": 1})
            expect(store, "new", {"n": 2})

    def test_a_closed_store_may_be_opened_again(self) -> None:
        given = self.make_store()
        for n in range(2):
            with opened(given) as store:
                put(store, f"round {n}", {"n": n})

                expect(store, f"round {n}", {"n": n})

    def test_what_was_written_is_there_when_the_store_is_opened_anew(self) -> None:
        if not self.persistent:
            raise SkipTest("the store is not persistent")
        with opened(self.make_store()) as store:
            written = [put(store, each, {"id": each}) for each in ("ann", "bob")]
            put(store, "eve", {"n": 1})
            destroy(store, "eve")
        with opened(self.make_store()) as store:
            expect_records(store, read(store, ["ann", "bob"]), written)
            expect(store, "eve", None)
