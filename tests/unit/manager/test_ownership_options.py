"""`ownership=` and `takeover_timeout=`: what may be asked of which store, and what is meant if
nothing is.
"""

from __future__ import annotations

import logging
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from actorbot import FileSessionStore, FlushPolicy, MemorySessionStore, SessionManager
from actorbot.errors import ConfigError
from tests.backends import DictStore, LeasedMemoryStore, LeasedStore
from tests.handlers import count

THROUGH = FlushPolicy.write_through()


@pytest.mark.parametrize("seconds", [-1, nan, inf, "15", None, True, [15.0], 1e10])
def test_a_takeover_timeout_that_is_no_number_of_seconds_is_refused(seconds: Any) -> None:
    with pytest.raises(ConfigError, match=r"takeover_timeout=.*expected seconds, at least 0"):
        SessionManager(LeasedMemoryStore(), handler=count, takeover_timeout=seconds)


@pytest.mark.parametrize("word", ["mine", "", "Exclusive", "exclusive ", 1, True, [], b"shared"])
def test_an_unknown_ownership_is_refused_with_the_words_that_there_are(word: Any) -> None:
    with pytest.raises(ConfigError, match=r"ownership=.*expected exclusive or shared or none"):
        SessionManager(LeasedMemoryStore(), handler=count, ownership=word)


@pytest.mark.parametrize("word", ["exclusive", "shared"])
def test_a_driver_without_the_methods_of_a_lease_cannot_be_owned(word: str) -> None:
    with pytest.raises(ConfigError, match="a driver with the methods read_lease and swap_lease"):
        SessionManager(DictStore(), handler=count, ownership=word)


def test_files_cannot_be_shared(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="one process at a time has a folder of files"):
        SessionManager(FileSessionStore(tmp_path / "s"), handler=count, flush=THROUGH, ownership="shared")


class OnALoop(LeasedStore):
    """Its lease would run on the loop that a handler can hold up."""

    async def read_lease(self) -> Any:
        return super().read_lease()


def test_a_lease_on_the_event_loop_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^OnALoop\.read_lease=.*a plain `def`"):
        SessionManager(OnALoop(), handler=count)


@pytest.mark.parametrize("make", [LeasedStore, LeasedMemoryStore], ids=["a driver", "a record store"])
@pytest.mark.parametrize(
    ("options", "mode"),
    [
        ({}, "exclusive"),
        ({"flush": FlushPolicy.write_behind()}, "exclusive"),
        ({"flush": FlushPolicy.journaled("journal")}, "exclusive"),
        ({"flush": THROUGH}, "shared"),
        ({"flush": THROUGH, "ownership": "exclusive"}, "exclusive"),
        ({"ownership": "shared"}, "shared"),
    ],
    ids=str,
)
async def test_a_store_is_shared_by_who_stores_each_event_first_and_owned_by_others(
    make: Any, options: dict[str, Any], mode: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    async with SessionManager(make(), handler=count, **options) as manager:
        assert await manager.dispatch("ann", "hi") == 1
        assert (ownership := manager.stats().ownership) is not None
        assert ownership.mode == mode


@pytest.mark.parametrize("make", [LeasedStore, LeasedMemoryStore], ids=["a driver", "a record store"])
async def test_who_wants_no_lease_is_warned_and_leaves_none(make: Any, caplog: pytest.LogCaptureFixture) -> None:
    store = make()
    async with SessionManager(store, handler=count, ownership="none") as manager:
        assert await manager.dispatch("ann", "hi") == 1
        assert manager.stats().ownership is None

    assert [each.levelno for each in caplog.records if "no lease is taken" in each.message] == [logging.WARNING]
    assert (store.driver if isinstance(store, LeasedMemoryStore) else store).lease is None


@pytest.mark.parametrize("word", [None, "exclusive", "none"])
async def test_a_store_of_one_process_needs_no_lease_and_no_warning(
    word: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    async with SessionManager(MemorySessionStore(), handler=count, ownership=word) as manager:
        assert manager.stats().ownership is None

    assert not caplog.messages
