"""What a session may hold comes back equal and of the same type; what it may not hold is refused,
by name and place.
"""

from __future__ import annotations

import enum
import json
import math
import random
import struct
import threading
import tracemalloc
from collections import OrderedDict, namedtuple
from datetime import UTC, date, datetime, timedelta, timezone, tzinfo
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgpack
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorbot._state.codec import _packers, decode_state, encode_state, pack_fields
from actorbot._state.document import from_document, to_document
from actorbot._state.values import MAX_DEPTH, UndecodableError
from actorbot.errors import NotEncodableError, SessionTooLargeError

PARIS = ZoneInfo("Europe/Paris")
MANY = 1 << 20

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
tag_like = st.sampled_from(
    ["$actorbot", "$$actorbot", "$bytes", "$$bytes", "$tuple", "$set", "$date", "$x", "$", "$$", "actorbot", "tuple"]
)
keys = texts | tag_like
offsets = st.timedeltas(timedelta(hours=-23), timedelta(hours=23)).map(timezone)
zones = st.none() | st.just(UTC) | offsets | st.sampled_from(["Europe/Paris", "America/New_York", "UTC"]).map(ZoneInfo)
hashable_leaves: st.SearchStrategy[Any] = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False, allow_infinity=False),
    texts,
    st.binary(max_size=8),
    st.datetimes(timezones=zones),
    st.dates(),
    st.timedeltas(),
    st.uuids(),
    st.decimals(allow_nan=False, allow_infinity=False),
)
hashables = st.recursive(
    hashable_leaves,
    lambda inner: st.lists(inner, max_size=3).map(tuple) | st.frozensets(inner, max_size=3),
    max_leaves=4,
)
values = st.recursive(
    hashables,
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=4).map(tuple),
        st.dictionaries(keys, inner, max_size=3),
        st.sets(hashables, max_size=3),
    ),
    max_leaves=12,
)
states = st.dictionaries(keys, values, max_size=4)
few = settings(max_examples=200, deadline=None)


def typed(value: Any) -> Any:
    """Return *value* with the type of each part beside it, comparable with `==`."""
    if isinstance(value, dict):
        return type(value), frozenset((key, typed(part)) for key, part in value.items())
    if isinstance(value, list | tuple):
        return type(value), tuple(typed(part) for part in value)
    if isinstance(value, set | frozenset):
        return type(value), frozenset(typed(part) for part in value)
    if isinstance(value, datetime):
        return datetime, value, value.fold, str(value.utcoffset())
    return type(value), repr(value) if isinstance(value, float | Decimal) else value


def same(found: Any, expected: Any) -> bool:
    return bool(found == expected) and typed(found) == typed(expected)


def there_and_back(state: dict[str, Any]) -> dict[str, Any]:
    return decode_state(encode_state(state, MANY))


def through_json(state: dict[str, Any]) -> dict[str, Any]:
    return from_document(json.loads(json.dumps(to_document(state), allow_nan=False)))


def nested(depth: int, wrap: Any = lambda inner: [inner]) -> dict[str, Any]:
    """Return a session of *depth* levels, itself included."""
    value: Any = 1
    for _ in range(depth - 1):
        value = wrap(value)
    return {"a": value}


# --- what comes back ----------------------------------------------------------------------------


@few
@given(states)
def test_every_value_comes_back_equal_and_of_the_same_type(state):
    encoded = encode_state(state, MANY)

    assert same(decode_state(encoded), state)
    assert same(decode_state(encoded, trusted=True), state)
    assert encode_state(state, MANY) == encoded


@few
@given(states)
def test_every_value_comes_back_from_a_json_document(state):
    assert same(through_json(state), state)


@pytest.mark.parametrize("through", [there_and_back, through_json])
@pytest.mark.parametrize(
    "value",
    [
        datetime(2024, 10, 27, 2, 30, tzinfo=PARIS),
        datetime(2024, 10, 27, 2, 30, tzinfo=PARIS, fold=1),
        datetime(2024, 7, 1, tzinfo=PARIS, fold=1),
        datetime(2024, 1, 1, fold=1),  # noqa: DTZ001 - naive ones are kept too
        datetime(1, 1, 1, tzinfo=timezone(timedelta(microseconds=-1))),
        Decimal("-0.00"),
        Decimal("1E+5000"),
        -0.0,
        timedelta(days=-1, microseconds=1),
        timedelta.min,
        -(2**63),
        2**63 - 1,
        [True, 1, 1.0],
        ["all", "are", "text", 4],
        [],
        (),
        [[], {}, (), set(), frozenset()],
        "\x00\N{ROCKET}",
        ["x"] * 1000,
        {"$tuple": [1]},
        {"$$tuple": [1]},
        {"$tuple": [1], "$set": [2]},
        {"$actorbot": 1},
    ],
    ids=repr,
)
def test_an_unusual_value_comes_back_as_it_was(value, through):
    found = through({"v": value, "$actorbot": value})

    assert same(found, {"v": value, "$actorbot": value})


def test_a_time_in_a_zone_keeps_the_zone_and_the_fold():
    moment = datetime(2024, 10, 27, 2, 30, tzinfo=PARIS, fold=1)

    found = there_and_back({"at": moment})["at"]

    assert (found.tzinfo, found.fold, found.utcoffset()) == (PARIS, 1, timedelta(hours=1))


class Eastern(tzinfo):
    """Somebody's own time zone; with a fold, it is not a fixed offset."""

    def __init__(self, fold_matters: bool = False) -> None:
        self.fold_matters = fold_matters

    def utcoffset(self, moment: datetime | None) -> timedelta:
        return timedelta(hours=-5 - bool(self.fold_matters and moment and moment.fold))

    def dst(self, moment: datetime | None) -> timedelta:
        return timedelta(0)


class Broken(tzinfo):
    def utcoffset(self, moment: datetime | None) -> timedelta:
        raise ZeroDivisionError


def test_a_time_in_a_zone_of_another_kind_gets_that_offset():
    moment = datetime(2024, 1, 1, tzinfo=Eastern())

    found = there_and_back({"at": moment})["at"]

    assert found == moment
    assert found.tzinfo == timezone(timedelta(hours=-5))


@pytest.mark.parametrize("zone", [Eastern(fold_matters=True), Broken(), tzinfo()])
def test_a_time_whose_zone_would_be_lost_is_refused(zone):
    with pytest.raises(NotEncodableError, match="time zone") as caught:
        encode_state({"at": [datetime(2024, 1, 1, tzinfo=zone)]}, MANY)

    assert caught.value.path == "session['at'][0]"


def test_decoding_gives_fresh_objects():
    encoded = encode_state({"cart": []}, MANY)

    decode_state(encoded)["cart"].append(1)

    assert decode_state(encoded) == {"cart": []}


# --- what is refused, and where -----------------------------------------------------------------


class Color(enum.IntEnum):
    RED = 1


class Text(str):
    __slots__ = ()


Point = namedtuple("Point", "x y")


REFUSED: list[tuple[Any, str, str]] = [
    ({"a": object()}, "session['a']", "object"),
    ({"cart": [1, 2, {3j}]}, "session['cart'][2]{...}", "complex"),
    ({"a": (1, {"b": frozenset([range(1)])})}, "session['a'][1]['b']{...}", "range"),
    ({"a": {1: 2}}, "session['a']", "key of type int"),
    ({1: 2}, "session", "key of type int"),
    ({Text("a"): 2}, "session", "key of type Text"),
    ({"a": {b"x": 2}}, "session['a']", "key of type bytes"),
    ({"a": {"\ud800": 2}}, "session['a']", "surrogate"),
    ({"a": "x\udfff"}, "session['a']", "surrogate"),
    ({"a": ["x", "\udfff"]}, "session['a'][1]", "surrogate"),
    ({"a": (1, "\udfff")}, "session['a'][1]", "surrogate"),
    ({"a": math.nan}, "session['a']", "finite"),
    ({"a": [-math.inf]}, "session['a'][0]", "finite"),
    ({"a": Decimal("NaN")}, "session['a']", "finite"),
    ({"a": Decimal("sNaN")}, "session['a']", "finite"),
    ({"a": Decimal("-Infinity")}, "session['a']", "finite"),
    ({"a": 2**63}, "session['a']", "64 bit"),
    ({"a": -(2**63) - 1}, "session['a']", "64 bit"),
    ({"a": 10**5000}, "session['a']", "64 bit"),
    ({"a": (2**63,)}, "session['a'][0]", "64 bit"),
    ({"a": Text("x")}, "session['a']", "subclasses"),
    ({"a": [Text("x")]}, "session['a'][0]", "subclasses"),
    ({"a": ["x", Text("x")]}, "session['a'][1]", "subclasses"),
    ({"t": (), "a": ["x", Text("x")]}, "session['a'][1]", "subclasses"),
    ({"a": Color.RED}, "session['a']", "subclasses"),
    ({"a": OrderedDict()}, "session['a']", "subclasses"),
    ({"a": OrderedDict()}, "session['a']", "subclasses"),
    ({"a": Point(1, 2)}, "session['a']", "subclasses"),
    ({"a": bytearray(b"x")}, "session['a']", "bytearray"),
    ({"a": memoryview(b"x")}, "session['a']", "memoryview"),
    ({"a": msgpack.Timestamp(1)}, "session['a']", "Timestamp"),
    ({"a": [msgpack.ExtType(1, b"")]}, "session['a'][0]", "ExtType"),
    ({"a": tuple}, "session['a']", "type"),
    ({"ok": 1, "a": {"b": ["x", None, {"c": object()}]}}, "session['a']['b'][2]['c']", "object"),
]


@pytest.mark.parametrize(("state", "path", "reason"), REFUSED, ids=[f"{path} {why}" for _, path, why in REFUSED])
def test_what_a_session_cannot_keep_is_refused_with_its_place(state, path, reason):
    with pytest.raises(NotEncodableError, match=reason) as caught:
        encode_state(state, MANY)

    assert caught.value.path == path


def test_a_refusal_leaves_nothing_behind_for_the_next_session():
    good = {"n": 1, "texts": ["x" * 5000]}
    expected = encode_state(good, MANY)
    for state, _, _ in REFUSED:
        with pytest.raises(NotEncodableError):
            encode_state({"before": ["secret"] * 900, "more": {"x": 1}} | state, MANY)

        assert encode_state(good, MANY) == expected


def test_every_thread_packs_with_a_packer_of_its_own():
    packers: list[Any] = []
    threads = [threading.Thread(target=lambda: packers.append(_packers.pack)) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)

    assert len({id(pack.__self__) for pack in [*packers, _packers.pack]}) == 4


# --- what is too large --------------------------------------------------------------------------

WRAPS = {
    "list": lambda inner: [inner],
    "list after a text": lambda inner: ["x", inner],
    "dict": lambda inner: {"k": inner},
    "tuple": lambda inner: (inner,),
    "frozenset": lambda inner: frozenset([inner]),
    "list of the same twice": lambda inner: [inner] if inner == 1 else [inner, 1],
}


@pytest.mark.parametrize("wrap", WRAPS.values(), ids=WRAPS.keys())
def test_sixty_four_levels_come_back_and_one_more_is_refused(wrap):
    deepest = nested(MAX_DEPTH, wrap)
    assert same(there_and_back(deepest), deepest)
    assert same(through_json(deepest), deepest)

    with pytest.raises(SessionTooLargeError, match="deeper than 64 levels") as caught:
        encode_state(nested(MAX_DEPTH + 1, wrap), MANY)
    with pytest.raises(UndecodableError, match="deeper than 64 levels"):
        through_json(nested(MAX_DEPTH + 1, wrap))

    assert caught.value.limit == MAX_DEPTH
    assert caught.value.path.startswith("session['a']")


def test_a_deepest_list_of_texts_counts_as_a_level():
    with pytest.raises(SessionTooLargeError, match="levels"):
        encode_state(nested(MAX_DEPTH, lambda inner: ["x"] if inner == 1 else [inner]) | {"b": 1} | deeper(), MANY)


def deeper() -> dict[str, Any]:
    value: Any = ["x"]
    for _ in range(MAX_DEPTH - 1):
        value = [value]
    return {"c": value}


@pytest.mark.parametrize("depth", [600, 100_000])
def test_hostile_depth_is_refused_without_recursion(depth):
    with pytest.raises(SessionTooLargeError, match="levels"):
        encode_state(nested(depth), MANY)


def test_many_boxes_side_by_side_are_not_deep():
    state = {"rows": [{"n": n} for n in range(500)]}

    assert there_and_back(state) == state


def test_a_cycle_is_called_a_cycle():
    short: dict[str, Any] = {"n": 1}
    short["self"] = [short]
    wide: dict[str, Any] = {}
    wide.update({str(n): wide for n in range(50)})
    long: list[Any] = []
    inner = long
    for _ in range(500):
        inner.append([])
        inner = inner[0]
    inner.append(long)
    through_tuple: list[Any] = []
    through_tuple.append((through_tuple,))

    for state, path in (
        (short, "session['self'][0]"),
        (wide, "session['0']"),
        ({"a": through_tuple}, "session['a'][0][0]"),
        ({"a": long}, None),
    ):
        with pytest.raises(NotEncodableError, match="cycle") as caught:
            encode_state(state, MANY)
        assert path in {None, caught.value.path}


def test_a_small_value_shared_billions_of_times_is_refused_quickly():
    laughs: Any = ["ha"]
    for _ in range(50):
        laughs = [laughs] * 10
    pairs: Any = ()
    for _ in range(60):
        pairs = (pairs, pairs)

    for value in (laughs, pairs):
        with pytest.raises(SessionTooLargeError) as caught:
            encode_state({"a": value}, 262_144)
        assert caught.value.limit == 262_144


@pytest.mark.parametrize(
    "value",
    [
        ["x" * MANY] * 100_000,
        [b"x" * MANY] * 100_000,
        [Decimal("1" * 100_000)] * 100_000,
        {"k" * 100: 1},
        [{"k" * MANY: 1}] * 1000,
        list(range(200)),
        [None] * 10_000_000,
        "é" * 60,
    ],
    ids=["texts", "bytes", "decimals", "key", "keys", "ints", "length", "encoded"],
)
def test_what_would_take_more_bytes_than_allowed_is_refused(value):
    with pytest.raises(SessionTooLargeError, match="100") as caught:
        encode_state({"a": value}, 100)

    assert caught.value.limit == 100


@pytest.mark.parametrize(
    "value", [["x" * MANY] * 90, [b"x" * MANY] * 90, [Decimal("1" * 100_000)] * 90], ids=["texts", "bytes", "decimals"]
)
def test_what_is_too_large_is_not_packed_to_find_out(value):
    tracemalloc.start()
    try:
        with pytest.raises(SessionTooLargeError):
            encode_state({"a": value}, 100)
        peak = tracemalloc.get_traced_memory()[1]
        assert peak < (20 * MANY if isinstance(value[0], str) else 4 * MANY)
    finally:
        tracemalloc.stop()


@few
@given(states, st.integers(0, 200))
def test_the_check_never_refuses_what_would_fit(state, limit):
    size = len(encode_state(state, MANY))
    if size <= limit:
        assert len(encode_state(state, limit)) == size
    else:
        with pytest.raises(SessionTooLargeError):
            encode_state(state, limit)


# --- hostile bytes ------------------------------------------------------------------------------


def array_of(*parts: bytes) -> bytes:
    return bytes([0x90 + len(parts)]) + b"".join(parts)


def in_a_map(value: bytes, extended: bool = False) -> bytes:
    return (b"\xc1" if extended else b"") + b"\x81\xa1a" + value


MARK = b"\xc7\x00"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "incomplete"),
        (b"\xc1", "incomplete"),
        (b"\x90", "not list"),
        (b"\xc1\x90", "not list"),
        (b"\x01", "not int"),
        (b"\x80\x80", "extra"),
        (b"\x80\xc1", "extra"),
        (b"\x81\x01\x02", "map key"),
        (b"\x81\xc4\x01x\x02", "key of type bytes"),
        (in_a_map(b"\x81\xc4\x01x\x02"), "key of type bytes"),
        (in_a_map(b"\xa1\xff"), "utf-8"),
        (in_a_map(b"\xa3\xed\xa0\x80"), "utf-8"),
        (in_a_map(b"\xd6\xff\0\0\0\1"), "Timestamp"),
        (in_a_map(b"\xd6\xff\0\0\0\1", True), "Timestamp"),
        (in_a_map(b"\xd4\x10x"), "ExtType"),
        (in_a_map(b"\xd4\x63x", True), "unknown extension type 99"),
        (in_a_map(b"\xd4\x01x", True), "unknown extension type 1"),
        (in_a_map(MARK + b"\x01", True), "type"),
        (in_a_map(array_of(b"\x01", MARK + b"\x01"), True), "type"),
        (in_a_map(array_of(MARK + b"\x02", array_of()), True), "unhashable"),
        (in_a_map(b"\xd4\x10x", True), "isoformat"),
        (in_a_map(b"\xc7\x03\x14NaN", True), "finite"),
        (in_a_map(b"\xc7\x0d\x10" + b"2024-01-01[x]", True), "x"),
        (in_a_map(b"\xc7\x13\x10" + b"2024-01-01[/etc/pw]", True), "malformed"),
        (in_a_map(b"\xd5\x12" + b"1" * 2, True)[:-1] + b"x", "malformed"),
        (in_a_map(b"\xcb" + struct.pack(">d", math.nan)), "finite"),
        (in_a_map(b"\xcf" + b"\xff" * 8), "64 bit"),
        (in_a_map(b"\xdd\xff\xff\xff\xff"), "exceeds"),
        (in_a_map(b"\xdf\x7f\xff\xff\xff"), "exceeds"),
        (in_a_map(b"\xdb\xff\xff\xff\xff"), "malformed"),
        (in_a_map(b"\x91" * 64 + b"\x90"), "64 levels"),
        (in_a_map(b"\x91" * 5000 + b"\x90"), "malformed"),
        (b"\x80\x04\x95", "extra"),
    ],
)
def test_bytes_that_are_no_session_are_refused_with_a_reason(data, reason):
    with pytest.raises(UndecodableError, match=reason):
        decode_state(data)


def test_nested_declarations_of_length_cost_no_memory():
    with pytest.raises(UndecodableError):
        decode_state(in_a_map(b"\xdd\x00\x10\x00\x00" * 1000 + b"\x00" * MANY))


@few
@given(st.binary(max_size=60), st.booleans())
def test_any_bytes_are_decoded_or_refused(data, extended):
    try:
        state = decode_state(b"\xc1" + data if extended else data)
    except UndecodableError:
        return
    assert same(there_and_back(state), state)


@few
@given(states, st.randoms(use_true_random=False))
def test_damaged_bytes_are_decoded_or_refused(state, chance: random.Random):
    data = bytearray(encode_state(state, MANY))
    for _ in range(chance.randint(1, 3)):
        at = chance.randrange(len(data) + 1)
        data[at : at + chance.randint(0, 2)] = chance.randbytes(chance.randint(0, 2))
    try:
        found = decode_state(bytes(data))
    except UndecodableError:
        return
    encode_state(found, MANY)
    json.dumps(to_document(found), allow_nan=False)


# --- documents ----------------------------------------------------------------------------------

json_like = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | texts,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts.filter(lambda key: key[:1] != "$"), inner),
    max_leaves=8,
)


@few
@given(st.dictionaries(texts.filter(lambda key: key[:1] != "$"), json_like, max_size=4))
def test_a_plain_dict_from_elsewhere_reads_as_itself(document):
    assert same(from_document(document), document)


def test_a_document_shows_its_values_readably():
    state = {
        "name": "Ann",
        "at": datetime(2024, 7, 1, 12, tzinfo=PARIS),
        "born": date(2000, 2, 29),
        "raw": b"\x00",
        "pair": (1, UUID(int=0)),
        "sum": Decimal("1.50"),
    }

    assert to_document(state) == {
        "name": "Ann",
        "at": {"$datetime": "2024-07-01T12:00:00[Europe/Paris]"},
        "born": {"$date": "2000-02-29"},
        "raw": {"$bytes": "AA=="},
        "pair": {"$tuple": [1, {"$uuid": "00000000-0000-0000-0000-000000000000"}]},
        "sum": {"$decimal": "1.50"},
    }


def test_keys_that_look_like_tags_are_escaped_and_others_are_not():
    state = {"$actorbot": 1, "$$actorbot": 2, "$tuple": 3, "a": {"$set": 4}, "b": {"$$set": 5}, "c": {"$ref": 6}}

    document = to_document(state)

    assert document == {
        "$$actorbot": 1,
        "$$$actorbot": 2,
        "$tuple": 3,
        "a": {"$$set": 4},
        "b": {"$$$set": 5},
        "c": {"$ref": 6},
    }
    assert from_document(document) == state


def test_a_document_shares_nothing_with_the_session():
    state: dict[str, Any] = {"cart": [{"sku": 1}]}

    to_document(state)["cart"][0]["sku"] = 2
    from_document(state)["cart"][0]["sku"] = 2

    assert state == {"cart": [{"sku": 1}]}


def test_numbers_and_texts_of_a_driver_become_plain_ones():
    class Int64(int):
        pass

    found = from_document({"n": Int64(5), "t": [Text("x")], "flag": True, "d": OrderedDict(a=1)})

    assert same(found, {"n": 5, "t": ["x"], "flag": True, "d": {"a": 1}})


@pytest.mark.parametrize(
    "value",
    [
        {"$tuple": 1},
        {"$tuple": {"a": 1}},
        {"$set": [[]]},
        {"$bytes": "not base 64!"},
        {"$bytes": "AA==!"},
        {"$bytes": "é"},
        {"$bytes": None},
        {"$date": "yesterday"},
        {"$date": 5},
        {"$datetime": "2024-01-01T00:00[Nowhere/Land]"},
        {"$datetime": "2024-01-01T00:00[Europe]"},
        {"$datetime": "2024-01-01T00:00+01:00[Europe/Paris]"},
        {"$datetime": "2024-01-01T00:00[Europe/Paris"},
        {"$datetime": "2024-01-01T00:00[../../etc/passwd]"},
        {"$datetime": "2024-01-01T00:00[\x00]"},
        {"$timedelta": "1 2 3 4 5 6 7 8"},
        {"$timedelta": "9" * 20},
        {"$timedelta": "9" * 10_000},
        {"$uuid": "1"},
        {"$decimal": "NaN"},
        {"$decimal": "one"},
        {"$decimal": "1e99999999999999999999"},
    ],
    ids=repr,
)
def test_a_malformed_tag_is_refused(value):
    with pytest.raises(UndecodableError, match=r"malformed \$"):
        from_document({"a": [value]})


def test_a_hostile_document_is_refused_without_recursion():
    aliases: Any = []
    for _ in range(60):
        aliases = [aliases, aliases]
    endless: list[Any] = []
    endless.append(endless)
    tags: Any = 1
    for _ in range(500):
        tags = {"$tuple": [tags]}

    for value in (aliases, endless, tags, nested(100_000)["a"]):
        with pytest.raises(UndecodableError, match="nested deeper"):
            from_document({"a": value})


@few
@given(st.dictionaries(keys, st.recursive(json_like, lambda inner: st.dictionaries(tag_like, inner, max_size=2))))
def test_any_json_document_is_read_or_refused(document):
    try:
        state = from_document(document)
    except UndecodableError:
        return
    try:
        encoded = encode_state(state, MANY)
    except NotEncodableError:
        return
    assert same(decode_state(encoded), state)


def test_the_frame_of_a_record_is_plain_msgpack():
    assert msgpack.unpackb(pack_fields(["ann", 1, None, b"x", 1.5])) == ["ann", 1, None, b"x", 1.5]


@pytest.mark.parametrize("value", [2**63, [2**64 - 1], -(2**63) - 1])
def test_an_integer_beyond_64_bits_is_refused_by_every_way_through_the_check(value: Any) -> None:
    with pytest.raises(NotEncodableError):
        encode_state({"n": value}, 1_000)
