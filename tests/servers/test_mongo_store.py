"""The MongoDB store: what stands in the collection, what comes back from it, and what becomes of
failures.
"""

from __future__ import annotations

import logging
import os
import random
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from actorbot import MongoSessionStore, errors
from actorbot._state.codec import decode_state, encode_state
from actorbot._state.record import Record
from actorbot._state.values import MAX_DEPTH
from actorbot.stores._mongo_documents import GRACE, MAX_BYTES
from actorbot.stores.base import Write
from actorbot.testing import StoreContract
from tests.servers.mongo_servers import free_port, is_update, server, shared, shared_store
from tests.servers.proxy import Proxy
from tests.tiers import tiers
from tests.unit.state.test_codec import nested, same
from tests.waiting import Call


def record(session_id: str, state: dict[str, Any] | None = None, expires_at: float = 4e9) -> Record:
    values = {"n": 1} if state is None else state
    return Record(session_id, 1, encode_state(values, 1 << 25), b"", b"", 1.5e9, expires_at).next_write()


def put(store: MongoSessionStore, session_id: str, state: dict[str, Any] | None = None) -> Record:
    written = record(session_id, state)
    assert store.write_many([Write(written, b"")]) == [None]
    return written


def read(store: MongoSessionStore, session_id: str) -> Any:
    found = store.read_many([session_id])[0]
    assert isinstance(found, Record)
    return None if found.state is None else decode_state(found.state)


@pytest.fixture
def store(tmp_path: Path) -> Iterator[MongoSessionStore]:
    store = shared_store(tmp_path).init()
    yield store
    store.close()


@pytest.fixture
def collection(store: MongoSessionStore) -> Iterator[Any]:
    """What somebody else sees of the store."""
    with shared().client() as client:
        yield client["actorbot_tests"][store._link.collection_name]


@contextmanager
def lossy(port: int, loses: Callable[[], bool], **options: Any) -> Iterator[tuple[Proxy, MongoSessionStore]]:
    """A store behind a proxy that loses the replies to those updates for which *loses* says so."""
    with Proxy(port) as proxy:
        proxy.loses = lambda request: is_update(request) and loses()
        url = f"mongodb://127.0.0.1:{proxy.port}/?directConnection=true&timeoutMS=2000"  # half of what it has by itself
        store = MongoSessionStore(url, **options)
        try:
            yield proxy, store
        finally:
            store.close()


@pytest.mark.parametrize("replica_set", tiers([False, True]), ids=["standalone", "replica set"])
class TestMongo(StoreContract):
    persistent = True

    @pytest.fixture(autouse=True)
    def _prepare(self, replica_set: bool, tmp_path: Path) -> None:
        self.make_store = lambda: shared_store(tmp_path, replica_set)  # type: ignore[method-assign]
        self.make_store_beside = lambda: shared_store(tmp_path / "beside", replica_set)  # type: ignore[method-assign]


class TestMongoThatGoesAway(StoreContract):
    @pytest.fixture(autouse=True)
    def _prepare(self, tmp_path: Path) -> Iterator[None]:
        with ExitStack() as stack:

            def make_store() -> MongoSessionStore:
                self.proxy, store = stack.enter_context(
                    lossy(shared().port, lambda: False, collection_name=f"away_{os.getpid()}_{tmp_path.name}")
                )
                return store

            self.make_store = make_store  # type: ignore[method-assign]
            yield

    def break_store(self, store: Any) -> None:
        self.proxy.close()


# --- values -------------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["$bytes", "$uuid", "$decimal", "$json", "$tuple", "$ref"])
@pytest.mark.parametrize("value", ["aGk=", [], "1"])
def test_a_sessions_only_key_is_no_tag_whatever_it_is_called(store: MongoSessionStore, key: str, value: Any) -> None:
    put(store, "ann", {key: value})

    assert read(store, "ann") == {key: value}


@pytest.mark.parametrize(
    "wrap",
    [lambda inner: {"a": inner}, lambda inner: [inner], lambda inner: (inner,), lambda inner: {"a": 1, "\0": (inner,)}],
    ids=["dicts", "lists", "tuples", "dicts with odd keys"],
)
def test_as_many_levels_as_a_session_may_have_come_back(store: MongoSessionStore, wrap: Any) -> None:
    depth = MAX_DEPTH if wrap(0) != {"a": 1, "\0": (0,)} else MAX_DEPTH // 2
    state = nested(depth, wrap)
    put(store, "ann", state)

    assert same(read(store, "ann"), state)


def test_sessions_can_be_found_by_their_values(store: MongoSessionStore, collection: Any) -> None:
    state = {
        "nickname": "Tim", "cart": [{"item": "tea", "price": Decimal("2.50")}], "a\0b": 1, "id": UUID(int=7), "raw": b"\0\xff",
        "n": 2**40, "half": 0.5, "day": datetime(2024, 1, 1, 1, 2, 3, 4, UTC),
    }  # fmt: skip
    put(store, "telegram:1", state)
    put(store, "telegram:2", {"nickname": "Tom"})

    def found(query: dict[str, Any]) -> list[str]:
        return [each["_id"] for each in collection.find(query)]

    assert found({"state.nickname": "Tim"}) == ["telegram:1"]
    assert found({"state.cart.item": "tea"}) == ["telegram:1"]
    assert found({"state.cart.price": {"$gt": 2}}) == ["telegram:1"]
    assert found({"state.n": {"$gte": 2**40}, "state.half": {"$lt": 1}, "state.raw": b"\0\xff"}) == ["telegram:1"]
    assert read(store, "telegram:1") == state


def test_a_document_of_somebody_else_is_adopted(store: MongoSessionStore, collection: Any) -> None:
    collection.insert_one({"_id": "ann", "state": {"nickname": "Ann", "seen": datetime(2024, 1, 1, tzinfo=UTC)}})
    found = store.read_many(["ann"])[0]

    assert isinstance(found, Record)
    assert read(store, "ann") == {"nickname": "Ann", "seen": datetime(2024, 1, 1, tzinfo=UTC)}
    assert found.expires_at == pytest.approx(time.time() + store.expires_in, abs=60)
    assert store.write_many([Write(found.next_write(), found.write_id)]) == [None]
    assert isinstance(store.write_many([Write(found.next_write(), found.write_id)])[0], errors.ConflictError)


def test_ten_thousand_odd_ids_stay_apart_and_exact(store: MongoSessionStore, collection: Any) -> None:
    chance = random.Random(4)
    marks = "aA.$%/\\*?{}[]:'\" _-\u00e9e\u0301\N{ROCKET}\u2028\ufeff"
    ids = list({"".join(chance.choices(marks, k=chance.randint(1, 12))) for _ in range(12_000)})[:10_000]
    ids[:4] = ["$where", '{"$gt": ""}', "x" * 512, "\N{ROCKET}" * 128]
    ids = list(dict.fromkeys(ids))
    assert len(ids) > 9_990
    for batch in (ids[start : start + 1_000] for start in range(0, len(ids), 1_000)):
        assert not any(store.write_many([Write(record(each, {"id": each}), b"") for each in batch]))

    found = store.read_many(ids)
    assert [decode_state(each.state)["id"] for each in found if isinstance(each, Record) and each.state] == ids
    assert collection.count_documents({}) == len(ids)


# --- records that fail alone --------------------------------------------------------------------


@pytest.mark.timeout(120)
def test_a_session_larger_than_mongodb_takes_fails_alone(store: MongoSessionStore) -> None:
    large = record("large", {"text": "x" * MAX_BYTES})
    outcomes = store.write_many([Write(record("ann"), b""), Write(large, b""), Write(record("bob"), b"")])

    assert [type(each) for each in outcomes] == [type(None), errors.SessionTooLargeError, type(None)]
    assert [type(each) for each in store.read_many(["ann", "large", "bob"])] == [Record, type(None), Record]


@pytest.mark.timeout(120)
def test_a_session_as_large_as_mongodb_takes_is_written_and_compared(store: MongoSessionStore) -> None:
    room = MAX_BYTES - 300
    first = put(store, "ann", {"text": "x" * room})
    second = Record(
        "ann", 2, encode_state({"text": "y" * room}, 1 << 25), first.write_ids, b"", 1.5e9, 4e9
    ).next_write()

    assert store.write_many([Write(second, first.write_id)]) == [None]
    assert read(store, "ann") == {"text": "y" * room}


def test_a_session_that_an_index_refuses_fails_alone_and_is_not_quoted(
    store: MongoSessionStore, collection: Any
) -> None:
    collection.create_index("state.mail", unique=True)
    put(store, "ann", {"mail": "secret@example.com"})
    twice, fine = record("bob", {"mail": "secret@example.com"}), record("eve", {"mail": "eve@example.com"})
    outcomes = store.write_many([Write(twice, b""), Write(fine, b"")])

    assert isinstance(outcomes[0], errors.StoreUnavailableError)
    assert "unique index on state.mail" in str(outcomes[0])
    assert "secret" not in f"{outcomes[0]!r} {outcomes[0].__cause__!r} {outcomes[0].__context__!r}"
    assert outcomes[1] is None


DAMAGE: dict[str, Any] = {
    "no state": {"$unset": {"state": 1}},
    "another format": {"$set": {"format": 2}},
    "no format": {"$unset": {"format": 1}},
    "bad write ids": {"$set": {"write_ids": "0"}},
    "short write id": {"$set": {"write_ids": [b"1"]}},
    "bad event ids": {"$set": {"event_ids": b"1"}},
    "bad version": {"$set": {"version": -1}},
    "bad time": {"$set": {"expires_at": float("inf")}},
    "no time": {"$unset": {"last_activity": 1}},
    "a date beyond dates": {"$set": {"state.when": {"$date": 1}}},
    "unknown tag payload": {"$set": {"state.when": {"$uuid": "x"}}},
    "malformed text": {"$set": {"state.when": {"$json": "["}}},
    "not a number": {"$set": {"state.n": float("nan")}},
    "deleted and not": {"$set": {"deleted": True}},
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_damaged_document_is_reported_and_stays_as_it_is(
    store: MongoSessionStore, collection: Any, damage: dict[str, Any]
) -> None:
    first, other = put(store, "ann"), put(store, "bob")
    literal = {field: {path: {"$literal": value} for path, value in part.items()} for field, part in damage.items()}
    collection.update_one({"_id": "ann"}, [literal] if "$set" in damage else damage)
    broken = collection.find_one({"_id": "ann"})

    found = store.read_many(["ann", "bob"])
    assert isinstance(found[0], errors.CorruptSessionError)
    assert found[1] == other
    for base in (b"", b"elsewhen"):
        outcome = store.write_many([Write(first.next_write(), base)])[0]
        assert isinstance(outcome, errors.CorruptSessionError), outcome
        assert repr(collection.find_one({"_id": "ann"})) == repr(broken)
    assert store.write_many([Write(Record.tombstone("ann", now=time.time()), None)]) == [None]
    assert read(store, "ann") is None


# --- comparing ----------------------------------------------------------------------------------


def test_a_batch_of_all_kinds_of_outcome_is_answered_in_order(store: MongoSessionStore) -> None:
    applied, old = put(store, "applied"), put(store, "conflict")
    assert store.write_many([Write(old.next_write(), old.write_id)]) == [None]
    outcomes = store.write_many(
        [
            Write(record("new"), b""),
            Write(old.next_write(), old.write_id),
            Write(applied, b""),
            Write(record("gone"), b"gone-for"),
            Write(record("more"), None),
        ]
    )

    assert [type(each) for each in outcomes] == [type(None), errors.ConflictError, type(None), type(None), type(None)]


def test_a_destroy_that_arrives_twice_does_not_end_what_has_begun_since(store: MongoSessionStore) -> None:
    put(store, "ann")
    destroy = Write(Record.tombstone("ann", now=time.time()), None)
    assert store.write_many([destroy]) == [None]
    again = Record("ann", 1, record("ann").state, destroy.record.write_ids, b"", 1.5e9, 4e9).next_write()
    assert store.write_many([Write(again, destroy.record.write_id)]) == [None]

    assert store.write_many([destroy]) == [None]
    assert read(store, "ann") == {"n": 1}


def test_a_write_is_confirmed_whatever_the_url_says(tmp_path: Path) -> None:
    plain = shared_store(tmp_path)
    careless = MongoSessionStore(
        f"{shared().url}?w=0&retryWrites=true&readPreference=secondaryPreferred",
        database="actorbot_tests", collection_name=plain._link.collection_name,
    ).init()  # fmt: skip
    put(careless, "ann")

    assert isinstance(careless.write_many([Write(record("ann"), b"")])[0], errors.ConflictError)
    careless.close()


def test_a_write_whose_reply_was_lost_is_recognised_when_it_is_sent_again(tmp_path: Path) -> None:
    losses = iter([True, False, False])
    with lossy(shared().port, lambda: next(losses), collection_name=f"lost_{os.getpid()}") as (_, store):
        store.init()
        write = Write(record("ann"), b"")
        with pytest.raises(errors.OutcomeUnknownError):
            store.write_many([write])

        assert store.write_many([write]) == [None]
        assert read(store, "ann") == {"n": 1}


# --- expiry -------------------------------------------------------------------------------------


def test_the_server_removes_what_has_expired_but_not_before_its_grace() -> None:
    with server("--setParameter", "ttlMonitorSleepSecs=1") as own:
        store = MongoSessionStore(own.url).init()
        now = time.time()
        ages = {"in grace": now - GRACE + 55, "over": now - GRACE - 1, "alive": now + 60, "for ever": 1e300}
        store.write_many([Write(record(each, expires_at=ends), b"") for each, ends in ages.items()])
        until = time.monotonic() + 20
        while store.read_many(["over"])[0] is not None:
            assert time.monotonic() < until, "the server's TTL monitor has not come"
        left = store.read_many(list(ages))
        with own.client() as client:
            index = client.actorbot.sessions.index_information()["actorbot_expiry"]
        store.close()

    assert GRACE >= 60
    assert (index["key"], index["expireAfterSeconds"]) == ([("expireAt", 1)], 0)
    assert [each is None for each in left] == [False, True, False, False]


def test_an_index_of_somebody_else_is_kept_and_told_of_if_it_expires_nothing(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = shared_store(tmp_path)
    with shared().client() as client:
        collection = client["actorbot_tests"][store._link.collection_name]
        collection.create_index("expireAt")
        with caplog.at_level(logging.WARNING, "actorbot"):
            store.init().close()
        assert "no TTL index" in caplog.text
        caplog.clear()

        collection.drop_indexes()
        collection.create_index("expireAt", expireAfterSeconds=3600)
        store.init().close()
        assert caplog.text == ""


# --- servers that fail --------------------------------------------------------------------------


def fails_to_open(url: str, *says: str) -> None:
    with pytest.raises(errors.StoreUnavailableError) as caught:
        Call(MongoSessionStore(url).init).result()
    for text in says:
        assert text in str(caught.value)
    assert "hunter2" not in f"{caught.value!r} {caught.value} {caught.value.__cause__!r}"


each_deadline = pytest.mark.parametrize("query", tiers(["?timeoutMS=500", ""]), ids=["of the URL", "of itself"])


@each_deadline
def test_a_wrong_port_is_told_within_the_deadline(query: str) -> None:
    port = free_port()
    fails_to_open(f"mongodb://bot:hunter2@127.0.0.1:{port}/{query}", f"127.0.0.1:{port}")


@each_deadline
def test_a_server_that_accepts_and_never_answers_is_told_within_the_deadline(query: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        fails_to_open(f"mongodb://bot:hunter2@127.0.0.1:{port}/{query}", f"127.0.0.1:{port}")


def test_a_wrong_password_or_none_is_told_and_the_right_one_is_not_shown() -> None:
    with server(password="right-1") as own:
        host = f"127.0.0.1:{own.port}"
        fails_to_open(f"mongodb://bot:hunter2@{host}/", host, "password")
        fails_to_open(f"mongodb://{host}/", host)
        store = MongoSessionStore(own.url).init()
        put(store, "ann")
        own.kill()
        with pytest.raises(errors.StoreUnavailableError) as caught:
            store.read_many(["ann"])
        store.close()

    assert "right-1" not in f"{store!r} {caught.value!r} {caught.value.__cause__!r}"


@pytest.mark.parametrize("query", tiers(["?timeoutMS=2000", ""]), ids=["of the URL", "of itself"])
def test_a_frozen_server_holds_a_call_no_longer_than_its_deadline(query: str) -> None:
    with server() as own:
        store = MongoSessionStore(f"{own.url}{query}").init()
        first = put(store, "ann")
        second = Write(Record("ann", 2, first.state, first.write_ids, b"", 1.5e9, 4e9).next_write(), first.write_id)
        own.freeze()
        with pytest.raises(errors.OutcomeUnknownError):
            Call(store.write_many, [second]).result()
        with pytest.raises(errors.StoreUnavailableError):
            Call(store.read_many, ["ann"]).result()
        own.thaw()

        until = time.monotonic() + 20
        while True:
            try:
                assert store.write_many([second]) == [None]
                break
            except errors.StoreUnavailableError:
                assert time.monotonic() < until
        assert store.read_many(["ann"]) == [second.record]
        own.freeze()
        Call(store.close).result()


# --- life ---------------------------------------------------------------------------------------


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork")
@pytest.mark.filterwarnings("ignore")
def test_a_forked_process_connects_anew_and_leaves_its_parent_s_connection_alone(store: MongoSessionStore) -> None:
    put(store, "ann")
    child = os.fork()
    if not child:
        status = 1
        try:
            try:
                store.read_many(["ann"])
            except errors.StoreUnavailableError:
                store.init()
                put(store, "of the child")
                store.close()
                status = 0
        finally:
            os._exit(status)
    assert os.waitpid(child, 0)[1] == 0
    assert read(store, "ann") == read(store, "of the child") == {"n": 1}


def test_a_store_that_is_not_open_says_so() -> None:
    store = MongoSessionStore("mongodb://localhost")
    store.close()
    for call in (lambda: store.read_many(["ann"]), lambda: store.write_many([Write(record("ann"), b"")])):
        with pytest.raises(errors.StoreUnavailableError, match="init"):
            call()


@pytest.mark.parametrize(
    ("options", "field"),
    [
        ({"url": "redis://localhost"}, "url"), ({"url": 27017}, "url"), ({"url": "mongodb://"}, "url"),
        ({"url": "mongodb://bot:hunter2/@localhost"}, "url"), ({"url": "mongodb://bot:hunter2@localhost:port"}, "url"),
        ({"database": "a.b"}, "database"), ({"database": ""}, "database"), ({"database": {"$gt": ""}}, "database"),
        ({"collection_name": "a$b"}, "collection_name"), ({"collection_name": "system.users"}, "collection_name"),
        ({"expires_in": 0}, "expires_in"), ({"expires_in": float("nan")}, "expires_in"),
    ],
)  # fmt: skip
def test_a_bad_option_is_named_and_no_password_is_quoted(options: dict[str, Any], field: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        MongoSessionStore(**({"url": "mongodb://localhost"} | options))

    assert caught.value.field == field
    assert "hunter2" not in f"{caught.value} {caught.value.__cause__!r}"


def test_without_its_driver_the_package_works_and_the_store_says_what_to_install() -> None:
    code = (
        "import sys; sys.modules['pymongo'] = None\n"
        "from actorbot import *\n"
        "print(MemorySessionStore.__name__)\n"
        "from actorbot import MongoSessionStore"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)

    assert done.stdout == "MemorySessionStore\n"
    assert (
        "ImportError: MongoSessionStore needs the driver pymongo: pip install '.[mongo]' in a clone of actorbot"
        in done.stderr
    )


def test_the_package_does_not_import_the_driver_before_it_is_wanted() -> None:
    code = "import sys, actorbot; print('pymongo' in sys.modules, 'bson' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)

    assert done.stdout == "False False\n"


def test_many_processes_may_open_a_new_collection_at_once(tmp_path: Path) -> None:
    name = shared_store(tmp_path)._link.collection_name
    code = "import sys; from actorbot import MongoSessionStore as M; M(sys.argv[1], collection_name=sys.argv[2]).init().close()"
    workers = [subprocess.Popen([sys.executable, "-c", code, shared().url, name]) for _ in range(4)]

    assert [worker.wait(timeout=30) for worker in workers] == [0, 0, 0, 0]
