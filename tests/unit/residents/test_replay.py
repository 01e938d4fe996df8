"""Bringing to the store what only the journal has."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from actorbot._residents.replay import Replay
from actorbot.errors import StoreUnavailableError


async def test_an_outage_that_ends_as_it_ends_a_replay_is_followed_by_another_replay() -> None:
    lists = []

    class Retries:
        """In an outage that ends right after the replay has seen it."""

        looks = 0

        @property
        def outage_since(self) -> float | None:
            self.looks += 1
            return 1.0 if self.looks == 1 else None

    def ids() -> list[str]:
        lists.append("ann")
        return ["ann"] if len(lists) == 1 else []

    async def refuse(_: str) -> Any:
        await replay.run()  # stands for the call at the end of the outage: it finds the replay running
        raise StoreUnavailableError("store", "told to be out")

    async def wait(_: object) -> None:
        return None

    shared: Any = SimpleNamespace(
        journal=SimpleNamespace(ids=ids),
        flusher=SimpleNamespace(retries=Retries(), flush=lambda actors: None),
        home=SimpleNamespace(wait=wait),
    )
    table: Any = SimpleNamespace(actors={}, closed=None)
    activation: Any = SimpleNamespace(wait_for_turn=refuse)
    replay = Replay(shared, table, activation)
    await replay.run()
    assert len(lists) == 2
