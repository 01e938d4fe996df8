"""Passwords in URLs: whatever they hold, no error, `repr` or log shows a part of one."""

from __future__ import annotations

import logging
import socketserver
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import EntryPoint, EntryPoints
from typing import Any
from urllib.parse import quote, quote_plus

import pytest
from click.testing import CliRunner
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from actorbot import FlushPolicy, MemorySessionStore, RedisSessionStore, SessionManager, errors, store_from_url
from actorbot.cli._command import command
from actorbot.stores import copy
from actorbot.stores._secrets import Secrets
from actorbot.stores.driver import as_records
from tests.backends import DictStore
from tests.handlers import count

LEAST = 3  # characters of a password that say something about it

# Letters of which no text of ours holds three in a row, and all that has a meaning in a URL.
PASSWORDS = st.text(alphabet="QXZJ90/?#@: %&=+[];,\\'\"\n", min_size=4, max_size=12).filter(
    lambda text: any(parts_of(text))
)
WAYS = (
    "bot:{}@127.0.0.1:1/0",
    ":{}@127.0.0.1:1/0",
    "{}@127.0.0.1:1/0",
    "bot:{}@",
    "127.0.0.1:1/0?password={}",
    "127.0.0.1:1/0?authMechanismProperties=AWS_SESSION_TOKEN:{}",
    "bot:{}@/run/redis.sock",
    "socket/redis.sock?password={}",
    "bot:{}@127.0.0.1:1/0?expires_in=soon",
    "bot:{}@127.0.0.1:1/0?no_such_option=1",
)
SCHEMES = ("redis", "rediss", "unix", "mongodb", "mongodb+srv", "plain", "odd", "file", "memory", "REDIS")
URLS = st.builds(
    lambda scheme, way, password, write: (f"{scheme}://{way.format(write(password))}", password),
    st.sampled_from(SCHEMES),
    st.sampled_from(WAYS),
    PASSWORDS,
    st.sampled_from([str, quote_plus, lambda text: quote(text, safe="")]),
).filter(lambda pair: "///" not in pair[0] and not (set(":/") & set(pair[1]) and f"://{pair[1][0]}" in pair[0]))
# What is left out is a path, and a user's name with a password of its own.


def parts_of(password: str) -> Iterator[str]:
    """Yield what must not be seen of *password*. Signs and digits alone may stand anywhere."""
    for at in range(len(password) - LEAST + 1):
        part = password[at : at + LEAST]
        letters = sum(each in "QXZJ" for each in part)
        if letters >= 2 or (letters and set(part) <= set("QXZJ90")):
            yield part


def texts_of(error: BaseException | None) -> Iterator[str]:
    """Yield all that a traceback, a log or a curious reader may show of *error*."""
    if error is not None:
        yield from traceback.format_exception_only(error)
        yield f"{error} {error!r} {vars(error)}"
        yield from texts_of(error.__cause__)
        yield from texts_of(error.__context__)


class Quoting(DictStore):
    """Somebody else's driver, whose errors quote its URL."""

    def __init__(self, url: str) -> None:
        super().__init__()
        self.url = url

    def init(self) -> None:
        raise OSError(f"cannot reach {self.url}")

    def ids(self) -> list[str]:
        raise OSError(f"cannot list {self.url}")

    def read(self, session_id: str) -> dict[str, Any] | None:
        raise OSError(f"cannot read from {self.url}")


@pytest.fixture(autouse=True)
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    """Serve `plain://` as another package does."""
    monkeypatch.setattr(EntryPoint, "load", lambda self: Quoting)
    points = EntryPoints([EntryPoint("plain", "builtins:str", "actorbot.stores")])
    monkeypatch.setattr("actorbot.stores.url.entry_points", points.select)


def what_is_seen(url: str) -> Iterator[str]:
    """Yield what somebody sees who makes the store of *url* and uses it without a server."""
    try:
        store = store_from_url(url)
        yield repr(store)
        yield repr(SessionManager(store, handler=print))
        with as_records(store) as records:
            yield f"{records!r} {records.name}"
            if isinstance(store, Quoting):
                for verb in (records.init, records.count):
                    with pytest.raises(errors.StoreUnavailableError) as caught:
                        verb()
                    yield from texts_of(caught.value)
                yield from texts_of(records.read_many(["ann"])[0])  # type: ignore[arg-type]
            else:
                records.read_many(["ann"])  # it is not open, and its error says where it would be
    except errors.ActorbotError as error:
        yield from texts_of(error)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pymongo's, about options that it does not know
@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@example(("mongodb+srv://user:QXZ/JQX@cluster.example/", "QXZ/JQX"))
@example(("mongodb+srv://user:QXZJ?x@cluster.example/", "QXZJ?x"))
@example(("mongodb+srv://user:QXZJ#x@cluster.example/", "QXZJ#x"))
@example(("mongodb+srv://user:QXZJ", "QXZJ"))
@example(("mongodb://user:QXZJ", "QXZJ"))
@example(("redis://user:QXZJ", "QXZJ"))
@example(("plain://user:QXZJ", "QXZJ"))
@example(("redis://bot:900#QXZ@127.0.0.1:1/0", "900#QXZ"))
@example(("redis://bot:Q@ZX/JJX@127.0.0.1:1/0", "Q@ZX/JJX"))
@example(("redis://127.0.0.1:1/0?password=QX&QXZJ=1", "QX&QXZJ=1"))
@example(("mongodb://127.0.0.1:1/?authMechanismProperties=A:Q&QXZJ=1", "Q&QXZJ=1"))
@example(("plain://127.0.0.1:1/0?password=;QXZJ#QZZ", ";QXZJ#QZZ"))
@example(("redis://?00J=@127.0.0.1:1/0", "?00J="))
@example(("plain://#QXZ@127.0.0.1:1/0", "#QXZ"))
@example(("QXZJ@127.0.0.1:6379", "QXZJ"))
@example(("bot:QXZJ@127.0.0.1:6379", "QXZJ"))
@example(("QXZJ", "QXZJ"))
@given(URLS)
def test_no_part_of_a_password_is_seen_in_an_error_a_repr_or_a_log(
    caplog: pytest.LogCaptureFixture, url_and_password: tuple[str, str]
) -> None:
    url, password = url_and_password
    with caplog.at_level(logging.DEBUG), pytest.MonkeyPatch.context() as patch:
        fresh = Secrets("")  # else what an earlier URL held would be hidden too
        patch.setattr("actorbot.stores.url.GIVEN", fresh)
        patch.setattr("actorbot.stores.driver.GIVEN", fresh)
        seen = [*what_is_seen(url), *(f"{vars(each)}" for each in caplog.records)]
    caplog.clear()

    assert [(part, text) for text in seen for part in parts_of(password) if part in text] == []


@pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "mongodb", "mongodb+srv"])
@pytest.mark.parametrize("sign", ["/", "?"])
def test_a_password_that_cuts_its_url_in_two_is_to_be_percent_encoded(scheme: str, sign: str) -> None:
    with pytest.raises(errors.ConfigError, match="percent-encoded"):
        store_from_url(f"{scheme}://bot:QXZ{sign}JQX@host.example/")
    with pytest.raises(errors.ConfigError, match="percent-encoded"):
        store_from_url(f"{scheme}://bot:12345{sign}JQX@host.example/")


def test_a_socket_may_have_an_at_sign_in_its_path() -> None:
    assert "user@1000" in repr(store_from_url("unix:///run/user@1000/redis.sock"))


@pytest.mark.parametrize("scheme", ["redis", "mongodb+srv", "plain", "odd"])
@pytest.mark.parametrize(
    "verb", [("doctor",), ("sessions", "ls"), ("sessions", "copy", "memory://"), ("nothing",), ("--x",)]
)
@pytest.mark.parametrize("password", ["QXZ/JQX", "QXZ?JQX", "QXZ#JQX", "QXZ@JQX", "QXZ:JQX", "QXZ JQX"])
def test_no_part_of_a_password_is_seen_in_what_the_command_says(
    scheme: str, verb: tuple[str, ...], password: str
) -> None:
    for url in (f"{scheme}://bot:{password}@", f"{scheme}://{password}@127.0.0.1:1/0"):
        done = CliRunner().invoke(command, [*verb, url], prog_name="actorbot")

        assert done.exit_code in {1, 2}
        assert "Traceback" not in done.output
        assert not [part for part in parts_of(password) if part in done.output], done.output


def test_a_report_of_a_copy_shows_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(Quoting):
        def init(self) -> None:
            pass

        def ids(self) -> list[str]:
            return ["ann"]

    monkeypatch.setattr(EntryPoint, "load", lambda self: Half)
    report = copy(store_from_url("plain://bot:QXZJ90@here"), store_from_url("memory://"))

    assert "plain://bot:…@here" in str(report.failed[0])
    assert "QXZ" not in "".join([repr(report), *texts_of(report.failed[0])])


@pytest.mark.parametrize(
    "url", ["memory://", "redis://localhost:6379/0", "redis://localhost/?key_prefix=bot:", "file:///a/b"]
)
def test_a_url_without_a_password_hides_nothing(url: str) -> None:
    assert Secrets(url).hide(f"no answer from {url}") == f"no answer from {url}"


@pytest.mark.parametrize("blocks", [True, False])
@pytest.mark.parametrize("policy", ["write-through:retry.base=0.01", "write-behind:retry.base=0.01"])
async def test_a_record_store_of_somebody_else_shows_no_password_to_a_bot(
    blocks: bool, policy: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Down(MemorySessionStore):
        may_block = blocks

        def __init__(self, url: str) -> None:
            super().__init__()
            self.url = url
            self.reads = False

        def read_many(self, session_ids: Any) -> Any:
            if self.reads:
                return super().read_many(session_ids)
            raise OSError(f"cannot read from {self.url}")

        def write_many(self, writes: Any) -> Any:
            raise OSError(f"cannot write to {self.url}")

    monkeypatch.setattr(EntryPoint, "load", lambda self: Down)
    store = store_from_url("plain://bot:QXZ90JJX@here")
    seen: list[str] = []
    with caplog.at_level(logging.DEBUG):
        flush = FlushPolicy.parse(policy)
        async with SessionManager(store, handler=count, flush=flush, close_timeout=0.1) as manager:
            for store.reads in (False, True):
                try:
                    await manager.dispatch("ann", "hi")
                    await manager.flush()
                except errors.ActorbotError as error:
                    seen += texts_of(error)
            seen.append(f"{manager.health()} {manager.stats()} {manager!r} {manager.conflicts()}")

    assert "plain://bot:…@here" in "".join(seen)
    assert "QXZ" not in "".join([*seen, caplog.text])


# --- a server that repeats what it was sent -----------------------------------------------------


class Parrot(socketserver.StreamRequestHandler):
    """Knows no command, and quotes it."""

    form: bytes

    def handle(self) -> None:
        while line := self.rfile.readline():
            words = []
            for _ in range(int(line[1:])):
                size = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(size + 2)[:-2])
            self.wfile.write(self.form % (words[0], b" ".join(words[1:])) + b"\r\n")


@contextmanager
def parrot(said: bytes) -> Iterator[int]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), type("Saying", (Parrot,), {"form": said})) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


@pytest.mark.parametrize(
    "said",
    [
        b"-ERR unknown command '%s', with args beginning with: %s",
        b"-ERR unknown command %s %s",
        b"-WRONGPASS you cannot %s with %s",
        b"-NOPERM %s %s",
    ],
)
def test_a_server_that_repeats_the_password_is_not_quoted(said: bytes) -> None:
    with parrot(said) as port:
        for login in ("bot:QXZ%2FJQX@", ":QXZ%2FJQX@"):
            store = RedisSessionStore(f"redis://{login}127.0.0.1:{port}/0")
            with pytest.raises(errors.StoreUnavailableError, match=f"127.0.0.1:{port}") as caught:
                store.init()

            assert not [text for text in texts_of(caught.value) for part in parts_of("QXZ/JQX") if part in text]
