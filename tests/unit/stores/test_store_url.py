"""A store by its URL: from a configuration file, an environment variable or a command."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import EntryPoint, EntryPoints
from pathlib import Path
from typing import Any

import pytest

from actorbot import (
    FileSessionStore,
    MemorySessionStore,
    MongoSessionStore,
    RedisSessionStore,
    errors,
    store_from_url,
)


def test_a_url_names_a_store_in_memory_and_its_options() -> None:
    store = store_from_url("memory://?max_sessions=7&expires_in=12.5")

    assert isinstance(store, MemorySessionStore)
    assert store.expires_in == 12.5
    assert isinstance(store_from_url("memory://"), MemorySessionStore)


def test_a_url_names_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    store = store_from_url(f"file://{tmp_path}/a%20folder?expires_in=60")

    assert isinstance(store, FileSessionStore)
    assert (store.directory, store.expires_in) == (f"{tmp_path}/a folder", 60.0)
    assert store_from_url("file://here/below").directory == str(tmp_path / "here" / "below")
    assert store_from_url("file://").directory == str(tmp_path / ".sessions")


def test_a_folder_may_stand_under_the_users_own_or_on_localhost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)

    for url in ("file://~/bot", "file:~/bot", "file://%7E/bot"):
        assert store_from_url(url).directory == str(tmp_path / "bot")
    assert FileSessionStore("~/bot").directory == FileSessionStore(Path("~/bot")).directory == str(tmp_path / "bot")
    assert FileSessionStore("./~/bot").directory == str(tmp_path / "~" / "bot")
    assert FileSessionStore("~nobody-here/bot").directory == str(tmp_path / "~nobody-here" / "bot")
    for url in (f"file://localhost{tmp_path}/bot", f"FILE://LocalHost{tmp_path}/bot"):
        assert store_from_url(url).directory == str(tmp_path / "bot")
    assert store_from_url("file://localhost").directory == str(tmp_path / "localhost")  # a folder of that name
    assert repr(store_from_url("unix://~/redis.sock?db=2")).startswith(f"<RedisSessionStore {tmp_path}/redis.sock")


@pytest.mark.parametrize("change", [str.upper, str.capitalize, str.lower])
def test_a_scheme_may_be_in_any_case(change: Callable[[str], str], tmp_path: Path) -> None:
    for scheme, rest in [
        ("redis", "localhost:6399/0"), ("rediss", "localhost"), ("unix", "/run/redis.sock"),
        ("mongodb", "ann:secret@localhost:27099/"), ("memory", ""), ("file", str(tmp_path)),
    ]:  # fmt: skip
        assert (
            repr(store_from_url(f"{change(scheme)}://{rest}")).split(" at ")[0]
            == (repr(store_from_url(f"{scheme}://{rest}")).split(" at ")[0])
        )
    assert repr(RedisSessionStore(f"{change('redis')}://h/0")) == repr(RedisSessionStore("redis://h/0"))
    MongoSessionStore(f"{change('mongodb')}://h/")


@pytest.mark.parametrize(
    ("url", "known"),
    [
        ("memory://?expire=3", "max_sessions, expires_in"),
        ("file:///x?expire=3", "expires_in"),
        ("file:///x?expires_in=3&expire=3", "expires_in"),
        ("redis://localhost/0?expire=3", "key_prefix, expires_in, and the driver's"),
        ("rediss://ann:secret@localhost/0?expires_in=3&expire=3", "key_prefix, expires_in, and the driver's"),
        ("unix:///x?expire=3", "key_prefix, expires_in, and the driver's"),
        ("mongodb://ann:secret@localhost/?expire=3", "database, collection_name, expires_in, and the driver's"),
    ],
)
def test_a_wrong_option_is_named_with_those_that_there_are(url: str, known: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        store_from_url(url)

    assert known in caught.value.expected
    assert caught.value.expected.endswith("found expire")
    assert "secret" not in str(caught.value)


def test_a_wrong_option_that_may_be_a_part_of_a_password_is_not_named() -> None:
    for url in ("file:///x?pass=word&expire=3", "redis://ann:se?cret=1@localhost/0", "redis://h/0?a=1&password=x&cret"):
        with pytest.raises(errors.ConfigError) as caught:
            store_from_url(url)
        assert "found" not in str(caught.value)


def test_a_url_names_a_server_and_keeps_what_is_the_drivers() -> None:
    redis = store_from_url("redis://localhost:6399/0?key_prefix=my%20bot:&expires_in=10&socket_timeout=1")
    mongo = store_from_url("mongodb://localhost:27099/?database=bots&retryReads=false&expires_in=10")

    assert isinstance(redis, RedisSessionStore)
    assert (redis.key_prefix, redis.expires_in) == ("my bot:", 10.0)
    assert isinstance(mongo, MongoSessionStore)
    assert mongo.expires_in == 10.0


@pytest.mark.parametrize(
    ("url", "field"),
    [
        ("", "url"),
        ("localhost", "url"),
        (None, "url"),
        ("https://ann:secret@example.org/", "url"),
        ("memory://somewhere", "url"),
        ("memory://?expires=1", "url"),
        ("memory://?expires_in=soon", "expires_in"),
        ("memory://?expires_in=-1", "expires_in"),
        ("memory://?expires_in=1&expires_in=2", "expires_in"),
        ("redis://:secret@localhost/0?expires_in=never", "expires_in"),
    ],
)
def test_a_bad_url_is_named_and_its_password_is_not(url: Any, field: str) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        store_from_url(url)

    assert caught.value.field == field
    assert "secret" not in str(caught.value)


def test_other_packages_serve_other_schemes(monkeypatch: pytest.MonkeyPatch) -> None:
    points = EntryPoints([EntryPoint("plain", "builtins:str", "actorbot.stores")])
    monkeypatch.setattr("actorbot.stores.url.entry_points", points.select)

    assert store_from_url("plain://anything?at=all") == "plain://anything?at=all"
    with pytest.raises(errors.ConfigError, match=r"memory.*plain"):
        store_from_url("odd://")
