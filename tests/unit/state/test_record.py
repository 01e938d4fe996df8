"""A record comes back whole from bytes and from a document, or it is said to be corrupt and why."""

from __future__ import annotations

import dataclasses
import json
import pickle
import zlib
from collections import OrderedDict
from datetime import date
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorbot._state.codec import encode_state, pack_fields
from actorbot._state.record import MAGIC, TOMBSTONE_AGE, Record
from actorbot.errors import CorruptSessionError

STATE: dict[str, Any] = {"n": 1, "born": date(2000, 2, 29), "cart": ({"sku": 1},), "$actorbot": "mine"}
RECORD = Record("ann", 7, encode_state(STATE, 1000), b"w" * 16, b"e" * 24, 1_700_000_000.25, 1_700_000_060.5)
TOMBSTONE = Record.tombstone("ann", now=1_700_000_000.0)

ids = st.lists(st.binary(min_size=8, max_size=8), max_size=16).map(b"".join)
times = st.floats(0, 1e11)
records = st.builds(
    Record,
    session_id=st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=20),
    version=st.integers(0, 2**63 - 1),
    state=st.none() | st.dictionaries(st.sampled_from("abc"), st.integers(0, 9)).map(lambda s: encode_state(s, 1000)),
    write_ids=ids,
    event_ids=ids,
    last_activity=times,
    expires_at=times,
)


def read(data: bytes, session_id: str = "ann") -> Record:
    return Record.from_bytes(data, session_id=session_id, store="file")


def read_document(document: Any, *, expires_in: float = 60.0, now: float | None = None) -> Record:
    return Record.from_document(document, session_id="ann", store="mongo", expires_in=expires_in, now=now)


def framed(fields: Any) -> bytes:
    """Return *fields* as a record with the right checksum."""
    body = pack_fields(fields)
    return MAGIC + zlib.crc32(body).to_bytes(4, "big") + body


# --- writes -------------------------------------------------------------------------------------


def test_every_write_has_an_id_of_its_own_and_remembers_the_last_sixteen():
    record = dataclasses.replace(RECORD, write_ids=b"")
    assert record.write_id == b""
    seen = []
    for _ in range(20):
        record = record.next_write()
        seen.append(record.write_id)

    assert len(set(seen)) == 20
    assert record.write_ids == b"".join(reversed(seen[-16:]))
    assert dataclasses.replace(record, write_ids=RECORD.write_ids) == RECORD


def test_a_tombstone_is_remembered_for_an_hour():
    assert (TOMBSTONE.state, TOMBSTONE.version, TOMBSTONE.event_ids) == (None, 0, b"")
    assert len(TOMBSTONE.write_id) == 8
    assert TOMBSTONE.expires_at == TOMBSTONE.last_activity + TOMBSTONE_AGE
    assert TOMBSTONE_AGE == 3600.0
    assert not TOMBSTONE.is_expired(1_700_003_599.9)
    assert TOMBSTONE.is_expired(1_700_003_600.0)


# --- bytes --------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(records)
def test_a_record_comes_back_from_bytes_and_from_a_document(record):
    assert Record.from_bytes(record.to_bytes(), session_id=record.session_id, store="file") == record
    assert Record.peek_id(record.to_bytes()) == record.session_id

    document = json.loads(json.dumps(record.to_document(), allow_nan=False))
    assert Record.from_document(document, session_id=record.session_id, store="mongo", expires_in=1.0) == record


def test_a_clock_that_counts_in_whole_seconds_may_be_used():
    record = dataclasses.replace(RECORD, last_activity=5, expires_at=6)

    assert type(read(record.to_bytes()).expires_at) is float


@pytest.mark.parametrize("record", [RECORD, TOMBSTONE], ids=["record", "tombstone"])
def test_a_truncated_record_is_corrupt_wherever_it_ends(record):
    data = record.to_bytes()
    for end in range(len(data)):
        with pytest.raises(CorruptSessionError, match="truncated"):
            read(data[:end])


@pytest.mark.parametrize("record", [RECORD, TOMBSTONE], ids=["record", "tombstone"])
def test_a_record_with_one_flipped_bit_is_corrupt_wherever_it_flips(record):
    data = record.to_bytes()
    for bit in range(len(data) * 8):
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptSessionError):
            read(bytes(damaged))


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (RECORD.to_bytes() + b"\x00", "checksum"),
        (RECORD.to_bytes() * 2, "checksum"),
        (dataclasses.replace(RECORD, session_id="bob").to_bytes(), "record of session 'bob'"),
        (b"ABS\x02" + RECORD.to_bytes()[4:], "format version is 2, and this release reads 1"),
        (pickle.dumps(RECORD.session_id), "not a record of actorbot"),
        (b'{"n": 1}', "not a record of actorbot"),
        (framed({"n": 1}), "fields"),
        (framed([]), "fields"),
        (framed(["ann", 7, b"", b"", b"", 1.0]), "fields"),
        (framed(["ann", 7, b"", b"", b"", 1.0, 1.0, 1.0]), "fields"),
        (framed(["ann", True, b"", b"", b"", 1.0, 1.0]), "fields"),
        (framed(["ann", 7, "", b"", b"", 1.0, 1.0]), "fields"),
        (framed(["ann", 7, b"", b"", b"", None, 1.0]), "fields"),
        (framed(["ann", -1, b"", b"", b"", 1.0, 1.0]), "range"),
        (framed(["ann", 7, b"", b"123", b"", 1.0, 1.0]), "range"),
        (framed(["ann", 7, b"", b"", b"123", 1.0, 1.0]), "range"),
        (framed(["ann", 7, b"", b"", b"", 1.0, float("nan")]), "range"),
        (framed(["ann", 7, b"", b"", b"", float("inf"), 1.0]), "range"),
        (MAGIC + zlib.crc32(b"\xc1").to_bytes(4, "big") + b"\xc1", "malformed"),
        (MAGIC + zlib.crc32(b"").to_bytes(4, "big"), "malformed"),
    ],
)
def test_bytes_that_are_no_record_of_this_session_are_corrupt(data, reason):
    with pytest.raises(CorruptSessionError, match=reason) as caught:
        read(data)

    assert (caught.value.store, caught.value.session_id) == ("file", "ann")


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=80), st.integers(0, 2))
def test_any_bytes_are_a_record_or_corrupt(data, kind):
    data = [data, MAGIC + data, MAGIC + zlib.crc32(data).to_bytes(4, "big") + data][kind]
    with pytest.raises(CorruptSessionError):
        read(data)
    assert isinstance(Record.peek_id(data), str)


# --- documents ----------------------------------------------------------------------------------


def test_a_document_has_the_state_on_top_and_the_rest_under_one_key():
    assert RECORD.to_document() == {
        "n": 1,
        "born": {"$date": "2000-02-29"},
        "cart": {"$tuple": [{"sku": 1}]},
        "$$actorbot": "mine",
        "$actorbot": {
            "format": 1,
            "version": 7,
            "write_ids": [(b"w" * 8).hex()] * 2,
            "event_ids": [(b"e" * 8).hex()] * 3,
            "last_activity": 1_700_000_000.25,
            "expires_at": 1_700_000_060.5,
        },
    }


def test_a_tombstone_is_marked_as_deleted():
    document = TOMBSTONE.to_document()

    assert list(document) == ["$actorbot"]
    assert document["$actorbot"]["deleted"] is True
    assert read_document(document) == TOMBSTONE


def test_a_dict_without_our_key_is_adopted_as_a_session():
    document = OrderedDict(name="Ann", visits=3, tags=["a"], more={"x": None, "y": 0.5})

    record = read_document(document, expires_in=60.0, now=100.0)

    assert record == Record("ann", 0, encode_state(dict(document), 1000), b"", b"", 100.0, 160.0)
    assert record.write_id == b""


def test_an_adopted_session_was_active_just_now(monkeypatch):
    monkeypatch.setattr("time.time", lambda: 5000.0)

    record = read_document({}, expires_in=60.0)

    assert (record.last_activity, record.expires_at) == (5000.0, 5060.0)


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"a": {"$date": "soon"}}, r"malformed \$date"),
        ({"a": [object()]}, r"session\['a'\]\[0\]: is of type object"),
        ({"a": float("nan")}, "finite"),
        ({"a": 2**64}, "64 bit"),
        ({1: 2}, "key of type int"),
        ({"a": "\ud800"}, "surrogate"),
        ({"a": ["x" * (1 << 20)] * 17}, "bytes allowed"),
    ],
)
def test_an_adopted_dict_that_a_session_cannot_hold_is_corrupt(values, reason):
    with pytest.raises(CorruptSessionError, match=reason) as caught:
        read_document(values)

    assert (caught.value.store, caught.value.session_id) == ("mongo", "ann")


def test_a_document_nested_without_end_is_corrupt():
    endless: list[Any] = []
    endless.append(endless)

    with pytest.raises(CorruptSessionError, match="nested deeper"):
        read_document({"a": endless})


MISSING = object()


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("format", 2, "format version is 2, and this release reads 1"),
        ("format", MISSING, "format version is None"),
        ("version", MISSING, "no 'version'"),
        ("version", "7", "version"),
        ("version", -1, "version"),
        ("version", 2**63, "version"),
        ("write_ids", MISSING, "no 'write_ids'"),
        ("write_ids", None, "malformed"),
        ("write_ids", "77" * 8, "16 hexadecimal"),
        ("write_ids", ["77" * 7], "16 hexadecimal"),
        ("write_ids", ["77 " * 5 + "7"], "malformed"),
        ("write_ids", ["77" * 7 + "  "], "16 hexadecimal"),
        ("write_ids", [b"w" * 16], "16 hexadecimal"),
        ("event_ids", ["zz" * 8], "malformed"),
        ("event_ids", MISSING, "no 'event_ids'"),
        ("last_activity", None, "malformed"),
        ("last_activity", MISSING, "no 'last_activity'"),
        ("expires_at", float("inf"), "finite"),
        ("expires_at", 10**400, "malformed"),
        ("expires_at", "tomorrow", "malformed"),
        ("deleted", 1, "deleted"),
    ],
)
def test_a_document_with_a_damaged_rest_is_corrupt(name, value, reason):
    document = RECORD.to_document()
    document["$actorbot"][name] = value
    if value is MISSING:
        del document["$actorbot"][name]

    with pytest.raises(CorruptSessionError, match=reason):
        read_document(document)


@pytest.mark.parametrize("rest", [None, [], "x", 1])
def test_a_document_whose_rest_is_no_dict_is_not_adopted(rest):
    with pytest.raises(CorruptSessionError, match="not a dict"):
        read_document({"n": 1, "$actorbot": rest})


def test_whole_seconds_in_a_document_are_times_too():
    document = RECORD.to_document()
    document["$actorbot"]["expires_at"] = 1_700_000_060

    assert type(read_document(document).expires_at) is float
