"""How a start takes a lease, from a server that has its moods."""

from __future__ import annotations

import asyncio
import threading
import time
from dataclasses import replace
from typing import Any

import pytest

from actorbot import FlushPolicy, SessionManager, errors
from actorbot._ownership.lease import Lease
from tests.backends import LeasedMemoryStore
from tests.handlers import count
from tests.unit.ownership.owners import holder
from tests.waiting import soon, until

LEASE = 1.0


@pytest.fixture(autouse=True)
def leases_are_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actorbot._ownership.keeper.LEASE", LEASE)


class Moody(LeasedMemoryStore):
    """A store that answers, and takes no lease while it refuses; or loses the answer to one."""

    def __init__(self) -> None:
        super().__init__()
        self.refuses = self.loses = False
        self.refused = 0
        self.swaps: list[tuple[str | None, str]] = []
        self.answers = threading.Event()
        self.answers.set()

    def read_lease(self) -> Any:
        self.answers.wait()
        return super().read_lease()

    def swap_lease(self, old: str | None, new: str) -> bool:
        if self.refuses:
            self.refused += 1
            raise errors.StoreUnavailableError(self.name, "it takes no writes")
        self.swaps.append((old, new))
        swapped = super().swap_lease(old, new)
        if self.loses:
            self.loses = False
            raise errors.OutcomeUnknownError(self.name, "the answer is lost")
        return swapped


def held(*, epoch: int = 1) -> str:
    """The lease of a bot on another machine, which has just renewed it."""
    now = time.time()
    other = replace(holder(epoch=epoch), lease=LEASE, since=now, until=now + LEASE)
    return Lease(epoch, {"other": other}, {}).to_text()


async def waiting(store: Moody, **options: Any) -> tuple[SessionManager, asyncio.Task[Any]]:
    manager = SessionManager(store, handler=count, **options)
    starting = asyncio.create_task(manager.start())
    await until(lambda: "waits for the owner" in manager.health().reason)
    return manager, starting


async def test_a_server_that_has_refused_writes_lets_its_owner_renew_first() -> None:
    store = Moody()
    store.driver.lease = before = held()
    manager, starting = await waiting(store)
    store.refuses = True
    await until(lambda: store.refused > 3)
    ran_out = time.time() + LEASE
    await until(lambda: time.time() > ran_out)
    store.refuses = False
    await until(lambda: store.swaps)
    assert store.swaps[0] == (before, before)  # it takes writes again; whether the owner comes is to be seen
    store.driver.swap_lease(before, renewed := held())
    await until(lambda: len(store.swaps) > 1)
    assert store.swaps[1] == (renewed, renewed)
    await soon(starting)
    assert manager.stats().ownership.epoch == 2  # type: ignore[union-attr]
    await manager.close()


@pytest.mark.parametrize("lost", [None, Lease(1, {}, {}).to_text()])
async def test_who_has_seen_an_owner_lets_it_come_back_after_a_server_has_lost_its_lease(lost: str | None) -> None:
    store = Moody()
    store.driver.lease = owners = held(epoch=7)
    manager, starting = await waiting(store)
    store.driver.lease = lost
    await until(lambda: "an owner may be about to renew it" in manager.health().reason)
    assert not store.swaps or store.swaps[-1] == (owners, owners)
    await soon(starting)  # it did not come
    assert manager.stats().ownership.epoch == 8  # type: ignore[union-attr]
    await manager.close()


async def test_who_was_given_a_lease_and_not_told_so_has_it() -> None:
    store = Moody()
    store.loses = True
    async with SessionManager(store, handler=count) as manager:
        assert manager.stats().ownership.epoch == 1  # type: ignore[union-attr]


async def test_a_server_that_takes_no_lease_is_told_at_once_and_at_the_end_of_the_wait() -> None:
    store = Moody()
    store.refuses = True
    with pytest.raises(errors.StoreUnavailableError, match="it takes no writes"):
        await soon(SessionManager(store).start())
    store.driver.lease = held()
    _, starting = await waiting(store, takeover_timeout=2 * LEASE)
    with pytest.raises(errors.StoreUnavailableError, match="it takes no writes") as caught:
        await soon(starting)
    assert not isinstance(caught.value, errors.StoreLockedError)


async def test_a_server_that_says_nothing_is_known_to_be_away_before_the_lease_runs_out() -> None:
    store = Moody()
    policy = FlushPolicy.write_behind(store_deadline=600.0)
    async with SessionManager(store, handler=count, flush=policy) as manager:
        store.answers.clear()
        await until(lambda: manager.health().status == "degraded")
        assert await soon(manager.dispatch("ann", "hi")) == 1
        store.answers.set()
        await until(lambda: manager.health().status == "ready")
