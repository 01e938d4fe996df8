"""What goes into a store comes back as it was: values of every type, under ids of every kind."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any
from uuid import UUID

from actorbot.stores.base import Record, Write
from actorbot.testing._expect import (
    Rules,
    expect,
    expect_records,
    get,
    make_record,
    must,
    opened,
    put,
    read,
    read_document,
    spelled,
    write_all,
)

__all__ = ["IDS", "VALUES", "ValueRules"]

VALUES: dict[str, Any] = {
    "nothing": None, "truth": True, "one": 1, "least": -(2**63), "most": 2**63 - 1,
    "text": "héllo \N{ROCKET}\n\x00", "empty": "", "half": 0.5, "whole float": 1.0, "minus zero": -0.0,
    "third": 1 / 3, "tiny": 5e-324, "huge": 1.7976931348623157e308, "raw": b"\x00\xff", "no bytes": b"",
    "pair": (1, "two", (3,)), "bag": {1, 2}, "ice": frozenset({"a"}), "no bag": set(),
    "amount": Decimal("1.10"), "exponent": Decimal("1E+2"), "id": UUID(int=7), "day": date(2024, 2, 29),
    "span": timedelta(days=-1, microseconds=1),
    "naive": datetime(2024, 1, 1, 1, 2, 3, 4),  # noqa: DTZ001  # naive on purpose
    "aware": datetime(2024, 1, 1, tzinfo=UTC),
    "away": datetime(2024, 1, 1, 1, 2, 3, 456, timezone(timedelta(hours=5, minutes=30))),
    "deep": {"a.b": {"$c": [{"d": ()}]}}, "list": [1, [2, [3]], None], "keys": {"": 1, " ": 2, "ключ": 3},
    "$x": {"$set": [1]}, "like ours": {"$date": "2024-02-29"}, "$actorbot": {"mine": True}, "a.b": 1,
    "_id": 1, "": 1,
}  # fmt: skip
IDS = [
    "console:1", "CONSOLE:1", "console:11", "console:1 ", "../../etc/passwd", "CON", "con.", "a/b", "a\\b",
    "a_b", "a%b", "axb", "a?b", "a*b", "%", "_", "{}", "*", ":", "$where", " ", "-rf",
    "'; drop table sessions; --", '"', "null", "None", "0", "00", "\u00e9", "e\u0301", "x" * 511 + "y",
    "x" * 512, "\N{ROCKET}" * 128, "\N{ROCKET}",
]  # fmt: skip


class ValueRules(Rules):
    """Every value and every session id is exact."""

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
