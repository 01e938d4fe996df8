"""Sessions in Redis and Valkey: what goes wrong between a bot and its server, and what becomes of
the sessions then.
"""

from __future__ import annotations

import logging
import random
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actorbot import RedisSessionStore, errors
from actorbot._state.record import TOMBSTONE_AGE, Record
from actorbot.stores import _redis_pool
from actorbot.stores import redis as redis_module
from actorbot.stores.base import Write
from actorbot.testing import StoreContract
from actorbot.testing._expect import get, make_record, make_tombstone, put, write_all
from tests.servers.proxy import Proxy
from tests.servers.redis_servers import KINDS, QUICK, Server, cluster, free_port, is_write
from tests.tiers import tiers
from tests.waiting import Call

SECRET = "s3cret-pa55"


@pytest.fixture
def store(redis_server: Server) -> Iterator[RedisSessionStore]:
    """A store on a server of the test's own."""
    opened = RedisSessionStore(redis_server.url).init()
    yield opened
    opened.close()


@pytest.fixture
def proxy(redis_server: Server) -> Iterator[Proxy]:
    with Proxy(redis_server.port) as between:
        yield between


@pytest.fixture
def far_store(proxy: Proxy) -> Iterator[RedisSessionStore]:
    """A store behind the proxy, with time-outs fit for a test."""
    opened = RedisSessionStore(f"redis://127.0.0.1:{proxy.port}/0?socket_timeout=0.5").init()
    yield opened
    opened.close()


def says_nothing_of(secret: str, error: BaseException) -> bool:
    return secret not in "".join(traceback.format_exception(error)) and secret not in repr(error)


class TestARedisThatIsKilled(StoreContract):
    persistent = True

    @pytest.fixture(autouse=True)
    def _prepare(self, redis_server: Server) -> None:
        self.server = redis_server

    def make_store(self) -> Any:
        return RedisSessionStore(self.server.url)

    def break_store(self, store: Any) -> None:
        self.server.kill()


# --- keys ---------------------------------------------------------------------------------------


def hostile_ids(count: int) -> list[str]:
    rng = random.Random(20_170_101)
    pieces = [
        "actorbot:", "{", "}", "{}", "{a}", "*", "?", "[a-z]", ":", "::", "\\", "/", "../", "%", "%00", "'", '"', " ", "  ", "$", "\r",
        "é", "e\u0301", "É", "ß", "\N{LATIN SMALL LETTER LONG S}", "K",
        "\N{KELVIN SIGN}", "\u200b", "\u202e", "\N{ROCKET}", "0", "00", "-1", "nil", "(nil)", "*3", "$-1",
        "FLUSHALL", "EVAL", "redis.call('FLUSHALL')", "ann", "Ann", "ANN", "x" * 100,
    ]  # fmt: skip
    ids: dict[str, None] = dict.fromkeys(piece for piece in pieces)
    while len(ids) < count:
        made = "".join(rng.choice(pieces) for _ in range(rng.randint(1, 8)))
        if 0 < len(made.encode()) <= 512:
            ids[made] = None
    return list(ids)


def test_hostile_ids_are_exact_and_no_key_is_outside_the_prefix(redis_server: Server, store: RedisSessionStore) -> None:
    ids = hostile_ids(10_000)
    records = [make_record(each, {"id": each}) for each in ids]
    for at in range(0, len(ids), 500):
        write_all(store, [Write(record, b"") for record in records[at : at + 500]])
    found = [record for at in range(0, len(ids), 500) for record in store.read_many(ids[at : at + 500])]
    with redis_server.client() as client:
        keys = {bytes(key) for key in client.scan_iter(count=1000)}

    assert found == records
    assert keys == {b"actorbot:" + each.encode() for each in ids}


def test_stores_with_different_prefixes_do_not_see_each_other(redis_server: Server, store: RedisSessionStore) -> None:
    put(store, "b:ann", {"n": 1})
    other = RedisSessionStore(redis_server.url, key_prefix="b:").init()
    try:
        assert other.read_many(["ann"]) == [None]
        put(other, "ann", {"n": 2})
        assert get(store, "b:ann") == {"n": 1}
    finally:
        other.close()


def test_what_is_not_ours_under_a_key_is_reported_and_left_alone(
    redis_server: Server, store: RedisSessionStore
) -> None:
    redis_server.ask("SET", "actorbot:text", "hello, this is somebody else's text of some length")
    redis_server.ask("SET", "actorbot:empty", "")
    redis_server.ask("HSET", "actorbot:hash", "field", "value")
    ids = ["text", "empty", "hash"]

    put(store, "ann", {"n": 1})
    found = store.read_many([*ids, "nobody", "ann"])
    assert [type(each) for each in found] == [*[errors.CorruptSessionError] * 3, type(None), Record]
    outcomes = store.write_many([Write(make_record(each, {"n": 2}), b"") for each in ("text", "hash", "bob")])
    assert [type(each) for each in outcomes] == [errors.ConflictError, errors.CorruptSessionError, type(None)]
    assert redis_server.ask("HGET", "actorbot:hash", "field") == b"value"

    write_all(store, [Write(make_tombstone(each), None) for each in ids])  # what destroy() does
    assert [get(store, each) for each in ids] == [None] * 3


@pytest.mark.parametrize("damage", ["truncated", "flipped", "ring"])
def test_a_damaged_record_is_reported_and_not_absent(damage: str, redis_server: Server) -> None:
    with redis_server.client() as client:
        store = RedisSessionStore(redis_server.url).init()
        put(store, "ann", {"n": 1})
        value = bytearray(client.get("actorbot:ann"))  # type: ignore[arg-type]
        if damage == "truncated":
            del value[-3:]
        else:
            value[3 if damage == "ring" else -3] ^= 1
        client.set("actorbot:ann", bytes(value))

        found = store.read_many(["ann"])[0]
        store.close()
        assert isinstance(found, errors.CorruptSessionError)
        assert client.get("actorbot:ann") == bytes(value)


def test_a_destroy_that_arrives_twice_does_not_end_what_has_begun_since(store: RedisSessionStore) -> None:
    put(store, "ann", {"n": 1})
    end = Write(make_tombstone("ann"), None)
    write_all(store, [end])
    begun = put(store, "ann", {"n": 2}, end.record)

    assert store.write_many([end]) == [None]
    assert store.read_many(["ann"]) == [begun]


# --- expiry -------------------------------------------------------------------------------------


def test_the_server_drops_a_record_some_minutes_after_it_ends(redis_server: Server, store: RedisSessionStore) -> None:
    now = time.time()
    write_all(
        store,
        [
            Write(make_record("short", {}, expires_at=now + 0.25), b""),
            Write(make_record("ended", {}, expires_at=1.0), b""),
            Write(make_record("long", {}, expires_at=1e300), b""),
            Write(Record.tombstone("gone", now=now), None),
        ],
    )
    left = {each: int(str(redis_server.ask("PTTL", f"actorbot:{each}"))) / 1000 for each in ("short", "ended", "gone")}

    grace = redis_module.GRACE
    assert left["short"] == pytest.approx(grace + 0.25, abs=20)
    assert left["ended"] == pytest.approx(grace, abs=20)
    assert left["gone"] == pytest.approx(TOMBSTONE_AGE + grace, abs=20)
    assert get(store, "long") == {}


# --- start --------------------------------------------------------------------------------------


def test_a_wrong_port_is_an_error_that_names_it(tmp_path: Path) -> None:
    port = free_port()
    with pytest.raises(errors.StoreUnavailableError, match=f"127.0.0.1:{port}") as caught:
        Call(RedisSessionStore(f"redis://bot:{SECRET}@127.0.0.1:{port}/0").init).result()

    assert says_nothing_of(SECRET, caught.value)


@pytest.mark.parametrize("login", [f":{SECRET}x@", f"bot:{SECRET}x@", f"nobody:{SECRET}@", ""])
@pytest.mark.parametrize("kind", KINDS)
def test_a_wrong_password_is_an_error_without_the_password(kind: str, login: str, tmp_path: Path) -> None:
    with Server(kind, tmp_path, "--requirepass", SECRET) as server:
        store = RedisSessionStore(f"redis://{login}127.0.0.1:{server.port}/0")
        with pytest.raises(errors.StoreUnavailableError, match=f"127.0.0.1:{server.port} does not accept") as caught:
            store.init()

        assert says_nothing_of(SECRET, caught.value)
        assert SECRET not in repr(store)
        right = RedisSessionStore(f"redis://:{SECRET}@127.0.0.1:{server.port}/0").init()
        put(right, "ann", {"n": 1})
        right.close()


def test_a_user_who_may_do_no_more_than_the_docstring_says_will_do(redis_server: Server) -> None:
    rights = ["+eval", "+evalsha", "+script|load", "+mget", "+get", "+exists", "+set", "+getrange"]
    redis_server.ask("ACL", "SETUSER", "bot", "on", f">{SECRET}", "~actorbot:*", *rights)
    store = RedisSessionStore(f"redis://bot:{SECRET}@127.0.0.1:{redis_server.port}/0").init()
    try:
        put(store, "ann", {"n": 1})
        redis_server.ask("SCRIPT", "FLUSH")
        put(store, "bob", {"n": 2})
        assert [get(store, each) for each in ("ann", "bob", "nobody")] == [{"n": 1}, {"n": 2}, None]
    finally:
        store.close()


def test_a_user_who_may_not_write_is_refused_and_not_unknown(redis_server: Server) -> None:
    redis_server.ask("ACL", "SETUSER", "bot", "on", f">{SECRET}", "~*", "+@all")
    store = RedisSessionStore(f"redis://bot:{SECRET}@127.0.0.1:{redis_server.port}/0").init()
    redis_server.ask("ACL", "SETUSER", "bot", "resetkeys", "~other:*")
    try:
        with pytest.raises(errors.StoreUnavailableError) as caught:
            put(store, "ann", {"n": 1})
        assert type(caught.value) is errors.StoreUnavailableError
    finally:
        store.close()


@pytest.mark.parametrize("query", tiers(["?socket_timeout=0.3", ""]), ids=["of the URL", "of itself"])
def test_a_server_that_accepts_and_never_answers_is_given_up_within_the_deadline(query: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        with pytest.raises(errors.StoreUnavailableError, match=f"127.0.0.1:{port} does not answer"):
            Call(RedisSessionStore(f"redis://:{SECRET}@127.0.0.1:{port}/0{query}").init).result()


@pytest.mark.parametrize(
    "url",
    [
        f"http://:{SECRET}@localhost", f"redis//:{SECRET}@localhost", f"redis://:{SECRET}", f"redis://:{SECRET}@localhost/sessions",
        f"redis://:{SECRET}@localhost:port", f"redis://:{SECRET}@localhost?socket_timeout={SECRET}", f"redis://localhost?ttl={SECRET}",
        SECRET, "", None, 6379, [f"redis://:{SECRET}@localhost"],
    ],
)  # fmt: skip
def test_a_url_that_is_none_is_refused_without_its_password(url: Any) -> None:
    with pytest.raises(errors.ConfigError, match="url=") as caught:
        RedisSessionStore(url)

    assert says_nothing_of(SECRET, caught.value)


@pytest.mark.parametrize("prefix", ["", "a\n", "x" * 257, b"actorbot:", None])
def test_a_prefix_that_is_none_is_refused(prefix: Any) -> None:
    with pytest.raises(errors.ConfigError, match="key_prefix="):
        RedisSessionStore("redis://localhost", key_prefix=prefix)


def test_a_replica_is_refused_at_the_start_and_its_primary_named(redis_server: Server, tmp_path: Path) -> None:
    with Server(redis_server.kind, tmp_path) as primary:
        redis_server.ask("REPLICAOF", "127.0.0.1", primary.port)
        with pytest.raises(errors.StoreUnavailableError, match=f"replica.*127.0.0.1:{primary.port}"):
            RedisSessionStore(redis_server.url).init()


@pytest.mark.parametrize(
    ("options", "warning"),
    [
        (["--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru"], "may evict sessions"),
        (["--appendonly", "no"], "persistence is off"),
        (["--appendonly", "no", "--save", "60", "1"], "since its last snapshot"),
        ([], ""),
    ],
)
@pytest.mark.parametrize("kind", KINDS)
def test_a_server_that_may_lose_sessions_is_warned_of(
    kind: str, options: list[str], warning: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(kind, tmp_path, *options) as server, caplog.at_level(logging.WARNING, "actorbot"):
        RedisSessionStore(server.url).init().close()

    assert len(caplog.messages) == bool(warning)
    assert warning in caplog.text


# --- a server that refuses ----------------------------------------------------------------------


def test_a_full_server_refuses_writes_and_goes_on_reading(redis_server: Server, store: RedisSessionStore) -> None:
    first = put(store, "ann", {"n": 1})
    redis_server.ask("CONFIG", "SET", "maxmemory-policy", "noeviction")
    redis_server.ask("CONFIG", "SET", "maxmemory", 1)

    second = Write(make_record("ann", {"n": 2}, first), first.write_id)
    with pytest.raises(errors.StoreUnavailableError, match=r"OOM|maxmemory") as caught:
        store.write_many([second])
    assert type(caught.value) is errors.StoreUnavailableError
    assert get(store, "ann") == {"n": 1}

    redis_server.ask("CONFIG", "SET", "maxmemory", 0)
    write_all(store, [second])
    assert get(store, "ann") == {"n": 2}


def test_a_server_that_has_become_a_replica_refuses_writes(
    redis_server: Server, store: RedisSessionStore, tmp_path: Path
) -> None:
    first = put(store, "ann", {"n": 1})
    with Server(redis_server.kind, tmp_path) as primary:
        redis_server.ask("REPLICAOF", "127.0.0.1", primary.port)
        with pytest.raises(errors.StoreUnavailableError) as caught:
            put(store, "ann", {"n": 2}, first)
        assert type(caught.value) is errors.StoreUnavailableError


def test_a_server_that_has_forgotten_the_script_is_told_it_again(
    redis_server: Server, store: RedisSessionStore
) -> None:
    first = put(store, "ann", {"n": 1})
    redis_server.ask("SCRIPT", "FLUSH")
    put(store, "ann", {"n": 2}, first)

    assert get(store, "ann") == {"n": 2}


def test_a_server_that_has_restarted_is_used_again_at_once(redis_server: Server, store: RedisSessionStore) -> None:
    first = put(store, "ann", {"n": 1})
    redis_server.restart()
    assert get(store, "ann") == {"n": 1}
    redis_server.restart()
    put(store, "ann", {"n": 2}, first)

    assert get(store, "ann") == {"n": 2}


def test_a_command_that_the_server_does_not_know_is_not_repeated_with_its_arguments(tmp_path: Path) -> None:
    with Server(QUICK, tmp_path, "--rename-command", "AUTH", "") as server:
        with pytest.raises(errors.StoreUnavailableError, match="unknown command") as caught:
            RedisSessionStore(f"redis://bot:{SECRET}@127.0.0.1:{server.port}/0").init()

        assert says_nothing_of(SECRET, caught.value)


# --- the network --------------------------------------------------------------------------------


def test_a_lost_reply_leaves_the_outcome_open_until_the_write_is_sent_again(
    proxy: Proxy, far_store: RedisSessionStore, store: RedisSessionStore
) -> None:
    first = put(far_store, "ann", {"n": 1})
    second = Write(make_record("ann", {"n": 2}, first), first.write_id)
    proxy.loses = is_write
    with pytest.raises(errors.OutcomeUnknownError):
        far_store.write_many([second])
    assert proxy.lost == 1
    assert get(store, "ann") == {"n": 2}

    proxy.loses = lambda _: False
    third = put(store, "ann", {"n": 3}, second.record)  # somebody else goes on
    assert far_store.write_many([second]) == [None]  # done before
    assert store.read_many(["ann"]) == [third]


def test_a_write_that_never_arrived_is_done_when_it_is_sent_again(
    proxy: Proxy, far_store: RedisSessionStore, store: RedisSessionStore
) -> None:
    write = Write(make_record("ann", {"n": 1}), b"")
    proxy.black_hole = True
    with pytest.raises(errors.OutcomeUnknownError):
        far_store.write_many([write])
    assert get(store, "ann") is None

    proxy.black_hole = False
    write_all(far_store, [write])
    assert get(store, "ann") == {"n": 1}


def test_an_answer_that_comes_too_late_is_never_taken_for_another_s(
    proxy: Proxy, far_store: RedisSessionStore, store: RedisSessionStore
) -> None:
    for each in ("ann", "bob"):
        put(store, each, {"id": each})
    proxy.latency = 0.4  # to the server and back: longer than the store waits
    with pytest.raises(errors.StoreUnavailableError):
        far_store.read_many(["ann"])
    proxy.latency = 0.0

    assert get(far_store, "bob") == {"id": "bob"}


def test_a_read_is_repeated_when_its_connection_breaks(
    proxy: Proxy, far_store: RedisSessionStore, store: RedisSessionStore
) -> None:
    put(store, "ann", {"n": 1})
    breaks = iter([True])
    proxy.loses = lambda request: b"MGET" in request and next(breaks, False)

    assert get(far_store, "ann") == {"n": 1}
    assert proxy.lost == 1


def test_connections_that_were_cut_while_idle_cost_nothing(proxy: Proxy, far_store: RedisSessionStore) -> None:
    first = put(far_store, "ann", {"n": 1})
    for n in range(2, 6):
        proxy.reset()
        first = put(far_store, "ann", {"n": n}, first)

    assert get(far_store, "ann") == {"n": 5}


def test_what_comes_in_slices_is_put_together(proxy: Proxy, far_store: RedisSessionStore) -> None:
    proxy.slice = 7
    put(far_store, "ann", {"text": "ü" * 2_000})

    assert get(far_store, "ann") == {"text": "ü" * 2_000}


def test_a_batch_that_is_too_large_for_one_call_is_written_whole(
    store: RedisSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(redis_module, "CALL_BYTES", 10_000)
    records = [make_record(f"user:{n}", {"text": "x" * 3_000}) for n in range(20)]
    write_all(store, [Write(each, b"") for each in records])

    assert store.read_many([each.session_id for each in records]) == records


def test_many_threads_share_a_bounded_number_of_connections(redis_server: Server, store: RedisSessionStore) -> None:
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            record = None
            for n in range(20):
                record = put(store, f"user:{number}", {"n": n}, record)
                assert get(store, f"user:{number}") == {"n": n}
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,), daemon=True) for number in range(40)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)

    assert not failures
    clients = str(redis_server.ask("CLIENT", "LIST", "TYPE", "normal")).count(" addr=127")
    assert clients <= _redis_pool.MAX_CONNECTIONS + 1


@pytest.mark.parametrize("kind", KINDS)
def test_a_socket_in_the_file_system_will_do(kind: str) -> None:
    with (
        tempfile.TemporaryDirectory(prefix="actorbot-") as folder,  # short, as the path of a socket must be
        Server(kind, Path(folder), "--unixsocket", f"{folder}/socket"),
    ):
        store = RedisSessionStore(f"unix://{folder}/socket?db=2").init()
        put(store, "ann", {"n": 1})
        assert get(store, "ann") == {"n": 1}
        assert repr(store) == f"<RedisSessionStore {folder}/socket, key_prefix='actorbot:'>"
        store.close()


def test_tls_is_used_and_the_server_s_certificate_checked(redis_server: Server, tmp_path: Path) -> None:
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("no openssl to make a certificate with")
    certificate, key = tmp_path / "certificate.pem", tmp_path / "key.pem"
    subprocess.run(
        [
            openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost", "-addext",
            "subjectAltName=DNS:localhost,IP:127.0.0.1", "-keyout", key, "-out", certificate,
        ],
        check=True, capture_output=True, timeout=30,
    )  # fmt: skip
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate, key)
    with Proxy(redis_server.port, tls=context) as proxy:
        url = f"rediss://127.0.0.1:{proxy.port}/0"
        with pytest.raises(errors.StoreUnavailableError, match="certificate"):
            RedisSessionStore(url).init()
        store = RedisSessionStore(f"{url}?ssl_ca_certs={certificate}").init()
        try:
            put(store, "ann", {"n": 1})
            assert get(store, "ann") == {"n": 1}
        finally:
            store.close()


# --- a cluster ----------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=KINDS)
def three_nodes(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    with cluster(request.param, tmp_path_factory.mktemp("cluster")) as servers:
        yield servers


@pytest.fixture
def nodes(three_nodes: list[Server]) -> list[Server]:
    """The nodes of a cluster that is empty."""
    for node in three_nodes:
        node.ask("FLUSHALL")
    return three_nodes


class TestACluster(StoreContract):
    persistent = True

    @pytest.fixture(autouse=True)
    def _prepare(self, nodes: list[Server]) -> None:
        self.url = nodes[0].url

    def make_store(self) -> Any:
        return RedisSessionStore(self.url)

    def make_store_beside(self) -> Any:
        return RedisSessionStore(self.url, key_prefix="actorbot:other:")  # which begins with that of the first


def test_in_a_cluster_sessions_are_on_all_nodes_or_with_a_hash_tag_on_one(nodes: list[Server]) -> None:
    for prefix, expected in (("{mybot}:", 1), ("actorbot:", 3)):
        store = RedisSessionStore(nodes[1].url, key_prefix=prefix).init()
        records = [make_record(each, {"id": each}) for each in hostile_ids(1_000)]
        write_all(store, [Write(record, b"") for record in records])
        found = store.read_many([record.session_id for record in records])
        store.close()

        assert found == records
        assert sum(node.ask("DBSIZE") != 0 for node in nodes) == expected


def test_a_slot_that_has_moved_is_followed(nodes: list[Server]) -> None:
    store = RedisSessionStore(nodes[0].url, key_prefix="{mybot}:").init()
    first = put(store, "ann", {"n": 1})
    slot = nodes[0].ask("CLUSTER", "KEYSLOT", "{mybot}:")
    source = next(node for node in nodes if node.ask("DBSIZE"))
    target = next(node for node in nodes if node is not source)
    value = source.ask("GET", "{mybot}:ann")
    source.ask("DEL", "{mybot}:ann")
    name = target.ask("CLUSTER", "MYID")
    for node in (target, *nodes):
        node.ask("CLUSTER", "SETSLOT", slot, "NODE", name)
    assert isinstance(value, bytes)
    target.ask("SET", "{mybot}:ann", value)

    assert get(store, "ann") == {"n": 1}
    put(store, "ann", {"n": 2}, first)
    assert get(store, "ann") == {"n": 2}
    store.close()


def test_one_node_that_is_down_costs_its_own_sessions_only(tmp_path: Path) -> None:
    with cluster(QUICK, tmp_path) as nodes:
        for node in nodes:
            node.ask("CONFIG", "SET", "cluster-require-full-coverage", "no")
        store = RedisSessionStore(nodes[0].url).init()
        records = [make_record(f"user:{n}", {"n": n}) for n in range(100)]
        write_all(store, [Write(each, b"") for each in records])
        nodes[2].kill()
        found = store.read_many([each.session_id for each in records])
        again = [make_record(each.session_id, {"again": 1}, each) for each in records]
        outcomes = store.write_many([Write(new, old.write_id) for new, old in zip(again, records, strict=True)])
        store.close()

    lost = [isinstance(each, errors.StoreUnavailableError) for each in found]
    assert 0 < sum(lost) < 100
    assert [isinstance(each, errors.StoreUnavailableError) for each in outcomes] == lost


# --- without the extra --------------------------------------------------------------------------


def test_without_redis_py_the_store_says_what_to_install_and_all_else_works() -> None:
    code = (
        "import sys; sys.modules['redis'] = None\n"
        "from actorbot import *\n"
        "import actorbot\n"
        "try: actorbot.RedisSessionStore\n"
        "except ImportError as error: print(error)\n"
        "print(SessionManager.__name__)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)

    assert (
        done.stdout
        == "RedisSessionStore needs redis-py: pip install '.[redis]' in a clone of actorbot\nSessionManager\n"
    )


def test_importing_the_package_does_not_import_the_driver() -> None:
    code = (
        "import sys, actorbot; print('redis' in sys.modules); actorbot.RedisSessionStore; print('redis' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True)

    assert done.stdout == "False\nTrue\n"
