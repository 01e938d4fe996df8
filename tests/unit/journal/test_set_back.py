"""A recovery that meets a store newer than the journal, or a journal that was set back."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Self

import pytest

from actorbot import (
    Retry,
    SessionManager,
    errors,
)
from tests.journals import Server, kill, make_manager


async def test_what_somebody_else_has_written_since_is_not_overwritten_by_a_recovery(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, given = Server(), []
    async with make_manager(store, tmp_path / "journal", close_timeout=0.1) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        await manager.dispatch("ann", "hi")
        left = kill(tmp_path / "journal")
        store.outage()
    store.restore()
    async with SessionManager(store) as other, other.turn("ann") as turn:
        turn.session["n"] = 100
    with caplog.at_level(logging.CRITICAL):
        async with make_manager(
            store, left, on_conflict=lambda session_id, state: given.append((session_id, state))
        ) as heir:
            assert await heir.dispatch("ann", "hi") == 101

            assert [(each.session_id, each.state) for each in heir.conflicts()] == [("ann", {"n": 2})]

    assert given == [("ann", {"n": 2})]
    assert (store.read("ann") or {})["n"] == 101


async def test_a_journal_that_a_power_loss_has_set_back_gives_way_to_the_newer_store(tmp_path: Path) -> None:
    store, given = Server(), []
    policy = {"sync": "normal"}
    async with make_manager(store, tmp_path / "journal", policy=policy) as manager:
        for _ in range(2):
            await manager.dispatch("ann", "hi")
        left = kill(tmp_path / "journal")  # all that was on the disk
        await manager.dispatch("ann", "hi")
    assert (store.read("ann") or {})["n"] == 3

    async with make_manager(store, left, policy=policy, on_conflict=lambda *lost: given.append(lost)) as heir:
        assert await heir.peek("ann") == {"n": 3}
        assert await heir.dispatch("ann", "hi") == 4
        await heir.flush()

        assert heir.stats().conflicts == 0
        assert heir.conflicts() == given == []
    assert (store.read("ann") or {})["n"] == 4


async def test_what_came_on_top_of_a_journal_that_was_set_back_is_handed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class ComesAndGoes(Server):
        def init(self) -> Self:
            self.restore()
            super().init()
            self.outage()
            return self

    store, given = ComesAndGoes(), []
    async with make_manager(store, tmp_path / "journal") as manager:
        store.restore()
        for _ in range(2):
            await manager.dispatch("ann", "hi")
        left = kill(tmp_path / "journal")
        await manager.dispatch("ann", "hi")
    policy = {"sync": "normal", "max_delay": 3600.0, "retry": Retry(attempts=1)}
    with caplog.at_level(logging.CRITICAL):
        async with make_manager(store, left, policy=policy, on_conflict=lambda *lost: given.append(lost)) as heir:
            assert await heir.dispatch("ann", "hi") == 3  # so the journal says, and the store cannot be asked
            store.restore()
            with pytest.raises(errors.ConflictError, match="which the journal had lost"):
                await heir.flush()

            assert await heir.dispatch("ann", "hi") == 4
    assert given == [("ann", {"n": 3})]
    assert (store.read("ann") or {})["n"] == 4


async def test_what_was_lost_to_a_conflict_is_kept_in_the_journal_for_the_next_bot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Server()
    with caplog.at_level(logging.CRITICAL):
        async with make_manager(store, tmp_path / "journal") as manager:
            await manager.dispatch("ann", "hi")
            async with SessionManager(store) as other, other.turn("ann") as turn:
                turn.session["n"] = 100
            with pytest.raises(errors.ConflictError):
                await manager.flush()
            assert await manager.peek("ann") == {"n": 100}

    async with make_manager(store, tmp_path / "journal") as heir:
        assert [(each.session_id, each.state) for each in heir.conflicts()] == [("ann", {"n": 1})]
        assert await heir.dispatch("ann", "hi") == 101
