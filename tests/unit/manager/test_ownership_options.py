"""How a store is owned where the author says nothing, and what a store must do for it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from actorbot import FlushPolicy, SessionManager
from actorbot.errors import ConfigError
from tests.backends import LeasedMemoryStore, LeasedStore
from tests.handlers import count

THROUGH = FlushPolicy.write_through()


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


class OnALoop(LeasedStore):
    """Its lease would run on the loop that a handler can hold up."""

    async def read_lease(self) -> Any:
        return super().read_lease()


def test_a_lease_on_the_event_loop_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"^OnALoop\.read_lease=.*a plain `def`"):
        SessionManager(OnALoop(), handler=count)
