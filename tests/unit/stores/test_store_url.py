"""A store by its URL: from a configuration file, an environment variable or a command."""

from __future__ import annotations

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
