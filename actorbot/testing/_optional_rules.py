"""What not every store can do: compare before it writes, list its sessions, sweep."""

from __future__ import annotations

from actorbot.stores.base import Write
from actorbot.testing._expect import (
    Rules,
    destroy,
    expect,
    expect_scan,
    make_record,
    make_tombstone,
    must,
    opened,
    put,
    refused,
    skip_unless_it_compares,
    skip_unless_it_lists,
    write_all,
)
from actorbot.testing._value_rules import IDS

__all__ = ["OptionalRules"]


class OptionalRules(Rules):
    """Rules that are skipped for a driver without `compare_and_write` or without `ids`."""

    # --- comparing -------------------------------------------------------------------------------

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

    # --- listing and sweeping --------------------------------------------------------------------

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
