"""MongoDB as others use it: URLs that providers hand out, documents that other tools write."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from datetime import UTC, datetime
from itertools import count
from typing import Any

import bson
import pytest
from bson.raw_bson import RawBSONDocument

from actorbot import MongoSessionStore, errors, store_from_url
from actorbot.stores import mongo
from actorbot.stores._mongo_url import times_of
from actorbot.stores.base import Record, Write
from actorbot.testing._expect import get, make_record, put, write_all
from tests.servers.mongo_servers import shared

number = count(1)


@pytest.fixture
def collection() -> Iterator[Any]:
    with shared().client() as client:
        yield client.actorbot_others[f"sessions_{next(number)}"]


@pytest.fixture
def store(collection: Any) -> Iterator[MongoSessionStore]:
    opened = MongoSessionStore(shared().url, database="actorbot_others", collection_name=collection.name).init()
    yield opened
    opened.close()


# --- the URL ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "options", "place"),
    [
        ("mongodb://host/mybot", {}, "mybot.sessions"),
        ("mongodb://host:27017,other/mybot?retryWrites=true&w=majority&appName=Cluster0", {}, "mybot.sessions"),
        ("mongodb+srv://bot:pw@cluster0.example/mybot", {}, "mybot.sessions"),
        ("mongodb://host/my%2Dbot", {}, "my-bot.sessions"),
        ("mongodb://host", {}, "actorbot.sessions"),
        ("mongodb://host/?authSource=users", {}, "actorbot.sessions"),
        ("mongodb://bot:pw@host/admin", {}, "actorbot.sessions"),  # where the user is known
        ("mongodb://bot:pw@host/users", {"database": "mybot", "collection_name": "chats"}, "mybot.chats"),
        ("mongodb://%2Ftmp%2Fmongo.sock/mybot", {}, "mybot.sessions"),
    ],
)
def test_the_database_is_the_one_that_the_url_names_unless_an_option_does(
    url: str, options: dict[str, Any], place: str
) -> None:
    query = "&".join(f"{name}={value}" for name, value in options.items())
    whole = f"{url}{'&' if '?' in url else '?'}{query}" if query else url

    assert place in repr(MongoSessionStore(url, **options))
    assert place in repr(store_from_url(whole))


def test_sessions_are_where_the_url_says() -> None:
    store = MongoSessionStore(f"{shared().url}actorbot_path").init()
    put(store, "ann", {"n": 1})
    with shared().client() as client:
        assert client.actorbot_path.sessions.count_documents({"_id": "ann"}) == 1
        client.drop_database("actorbot_path")
    store.close()


@pytest.mark.parametrize("path", ["mybot.chats", "my%20bot", "my$bot"])
def test_a_path_that_is_no_database_is_refused_and_not_quoted(path: str) -> None:
    for scheme in ("mongodb", "mongodb+srv"):
        with pytest.raises(errors.ConfigError) as caught:
            MongoSessionStore(f"{scheme}://host.example.net/{path}")

        assert caught.value.field == "url"


def test_shorter_times_of_a_url_hold_and_longer_ones_are_told_of(caplog: pytest.LogCaptureFixture) -> None:
    longest = {"serverSelectionTimeoutMS": 4.0, "connectTimeoutMS": 4.0}
    short = times_of("mongodb://host/?serverselectiontimeoutms=1500&connectTimeoutMS=0", longest)
    with caplog.at_level(logging.WARNING, "actorbot"):
        MongoSessionStore(f"{shared().url}?serverSelectionTimeoutMS=30000").init().close()

    assert short == {"serverSelectionTimeoutMS": 1500}
    assert [
        each.getMessage()
        for each in caplog.records
        if "serverSelectionTimeoutMS=30000 (it is 4000)" in each.getMessage()
    ]


# --- documents ----------------------------------------------------------------------------------

NUMBERS = [1_999_999_999, bson.Int64(1_999_999_999), 1_999_999_999.0, bson.Decimal128("1999999999")]


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *((field, each) for field in ("expires_at", "last_activity") for each in NUMBERS),
        ("expires_at", datetime.fromtimestamp(1_999_999_999, UTC)),
        *(("version", each) for each in (2, bson.Int64(2), 2.0, bson.Decimal128("2"))),
        *(("format", each) for each in (1, bson.Int64(1), 1.0, bson.Decimal128("1"))),
    ],
)
def test_a_number_is_read_however_another_tool_has_stored_it(
    field: str, value: Any, store: MongoSessionStore, collection: Any
) -> None:
    first = put(store, "ann", {"n": 1})
    collection.update_one({"_id": "ann"}, {"$set": {field: value}})
    found = store.read_many(["ann"])[0]
    assert isinstance(found, Record)
    fields = {"expires_at": 1_999_999_999.0, "last_activity": 1_999_999_999.0, "version": 2}
    assert getattr(found, field, None) == fields.get(field)

    write_all(store, [Write(make_record("ann", {"n": 2}, first), found.write_id)])
    assert get(store, "ann") == {"n": 2}


@pytest.mark.parametrize(
    ("field", "value"),
    [("version", 1.5), ("version", "2"), ("version", True), ("version", -1), ("version", 2.0**63), ("version", float("nan")),
     ("expires_at", "2030"), ("expires_at", True), ("expires_at", None), ("expires_at", bson.Decimal128("NaN")),
     ("format", 2), ("format", "1")],
)  # fmt: skip
def test_what_is_no_such_number_is_reported(field: str, value: Any, store: MongoSessionStore, collection: Any) -> None:
    put(store, "ann", {"n": 1})
    collection.update_one({"_id": "ann"}, {"$set": {field: value}})

    assert isinstance(store.read_many(["ann"])[0], errors.CorruptSessionError)


IDS = [
    7, 2.5, True, None, b"raw", bson.Int64(7 << 40), bson.ObjectId("6b0d5ea7b8d76ce7145cc887"), bson.Decimal128("1.5"),
    bson.Timestamp(1, 1), bson.MinKey(), bson.MaxKey(), bson.Code("x"), bson.Code("x", {"a": 1}), datetime(2020, 1, 1, tzinfo=UTC),
    {"user": 1}, {"user": {"id": "ann"}}, "", "ann", "zed",
]  # fmt: skip


@pytest.mark.parametrize("page", [1, 250])
def test_a_listing_ends_and_names_what_is_no_session(
    page: int, store: MongoSessionStore, collection: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(mongo, "PAGE", page)
    collection.insert_many([{"_id": each, "state": {"n": 1}} for each in IDS])
    for bad in (b"\xff\xfe", b"a\xff"):
        raw = bson.encode({"_id": "?" * len(bad), "state": {}}).replace(b"?" * len(bad) + b"\0", bad + b"\0", 1)
        collection.insert_one(RawBSONDocument(raw))
    nested = bson.encode({"_id": {"user": "??"}, "state": {}}).replace(b"??\0", b"\xff\xfe\0")
    collection.insert_one(RawBSONDocument(nested))
    found = []
    for each in store.scan():
        found.append(each)
        assert len(found) <= len(IDS) + 3, "the listing does not end"
    odd = [each for each in found if isinstance(each, errors.CorruptSessionError)]

    assert {each.session_id for each in found if isinstance(each, Record)} == {"", "ann", "zed"}
    assert len(odd) == len(found) - 3 == len(IDS)
    assert {"7", "2.5", "b'raw'", "{'user': 1}", "ObjectId('6b0d5ea7b8d76ce7145cc887')"} <= {
        each.session_id for each in odd
    }
    assert store.count() == len(found)


# --- collations ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "collation",
    [
        {"strength": 2},
        {"strength": 1},
        {"strength": 1, "caseLevel": True},
        {"alternate": "shifted"},
        {"numericOrdering": True},
    ],
    ids=str,
)
def test_a_collection_that_takes_two_ids_for_one_is_refused_at_the_start(
    collation: dict[str, Any], collection: Any
) -> None:
    collection.database.create_collection(collection.name, collation={"locale": "en"} | collation)
    with pytest.raises(errors.ConfigError, match="collation") as caught:
        MongoSessionStore(shared().url, database="actorbot_others", collection_name=collection.name).init()

    assert caught.value.field == "collection_name"
    assert re.search("Name another collection, or move", str(caught.value))


def test_a_collation_that_only_orders_will_do(collection: Any) -> None:
    collection.database.create_collection(collection.name, collation={"locale": "de"})
    store = MongoSessionStore(shared().url, database="actorbot_others", collection_name=collection.name).init()
    put(store, "ann", {"n": 1})
    put(store, "Ann", {"n": 2})

    assert (get(store, "ann"), get(store, "Ann")) == ({"n": 1}, {"n": 2})
    store.close()
