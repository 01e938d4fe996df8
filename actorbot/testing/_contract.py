"""What every store keeps, as tests to inherit."""

from __future__ import annotations

import threading
import time
from typing import Any
from unittest import SkipTest

from actorbot.errors import ActorbotError, StoreUnavailableError
from actorbot.stores.base import Write
from actorbot.stores.driver import DriverStore
from actorbot.testing._expect import (
    destroy,
    expect,
    expect_records,
    get,
    make_record,
    make_tombstone,
    must,
    opened,
    put,
    read,
    refused,
    write_all,
)
from actorbot.testing._lease_rules import LeaseRules
from actorbot.testing._optional_rules import OptionalRules
from actorbot.testing._value_rules import IDS, ValueRules

__all__ = ["StoreContract"]

PATIENCE = 30.0  # real seconds for a rule that uses threads


class StoreContract(ValueRules, OptionalRules, LeaseRules):
    """The rules that every store keeps. Subclass it for yours and let pytest or unittest run it.

    ```python
    class TestMyStore(StoreContract):
        persistent = True

        @pytest.fixture(autouse=True)
        def _folder(self, tmp_path):
            self.path = tmp_path / "my.db"

        def make_store(self):
            return MyStore(self.path)
    ```

    The name of a rule is what it asks for. An AssertionError says which store did what instead.
    The rules about values, about what not every store can do, and about the lease are in the base
    classes.
    """

    persistent: bool = False
    """Whether a second store that `make_store` makes in a test finds what the first has written."""

    def break_store(self, store: Any) -> None:
        """Make *store*, which `make_store` made, fail from now on, as an outage would.

        Override it: without it the rules about failed reads and failed writes are skipped.
        """
        raise SkipTest("break_store is not overridden")

    # --- reading and writing ---------------------------------------------------------------------

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

    def test_an_expired_record_is_still_returned(self) -> None:
        with opened(self.make_store()) as store:
            record = make_record("ann", {"n": 1}, expires_at=time.time() - 1.0)
            write_all(store, [Write(record, b"")])
            # The record's own stamp decides; a server that expires records by itself waits a minute
            # longer.
            expect_records(store, read(store, ["ann"]), [record])

    # --- destroying ------------------------------------------------------------------------------

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

    # --- closing and opening ---------------------------------------------------------------------

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
