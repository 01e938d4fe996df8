"""What a manager says of who owns its store: in `stats()`, in `health()` and in the log."""

from __future__ import annotations

import asyncio
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace
from math import inf, nan
from pathlib import Path
from typing import Any

import pytest

from actorbot import Bot, ConsoleBot, FileSessionStore, FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot._ownership.lease import Lease
from tests.backends import DictStore, LeasedMemoryStore, LeasedStore
from tests.handlers import count
from tests.unit.ownership.owners import holder
from tests.waiting import soon, until

ME = f"process {os.getpid()} on {socket.gethostname()} ("
SHARING = FlushPolicy.write_through()


def of_same_place(store: LeasedMemoryStore) -> LeasedMemoryStore:
    """Make a second store object for the same server."""
    other = LeasedMemoryStore()
    other.driver = store.driver
    return other


def take_over(store: LeasedMemoryStore) -> None:
    """Let another machine take the lease, as if its holder had been frozen for long."""
    old = store.driver.lease
    found = Lease.parse(old, "a store")
    taken = replace(holder(epoch=found.epoch + 1), since=time.time(), until=time.time() + 10.0)
    assert store.driver.swap_lease(old, Lease(found.epoch + 1, {"other": taken}, dict(found.holders)).to_text())


# --- stats --------------------------------------------------------------------------------------


@pytest.mark.parametrize(("policy", "mode"), [(None, "exclusive"), (SHARING, "shared")])
async def test_stats_name_the_owner_its_mode_its_epoch_and_the_time_it_has(
    policy: FlushPolicy | None, mode: str
) -> None:
    store = LeasedMemoryStore()
    for epoch in (1, 2):
        async with SessionManager(store, handler=count, flush=policy) as manager:
            mine = manager.stats().ownership
            assert mine is not None
            assert mine.owner.startswith(ME)
            assert (mine.mode, mine.epoch) == (mode, epoch)
            assert 0.0 < mine.remaining <= 10.0
            assert manager.health().status == "ready"


async def test_each_of_those_who_share_a_store_names_itself() -> None:
    store = LeasedMemoryStore()
    async with (
        SessionManager(store, handler=count, flush=SHARING) as first,
        SessionManager(of_same_place(store), handler=count, flush=SHARING) as second,
    ):
        mine, other = first.stats().ownership, second.stats().ownership
        assert mine is not None
        assert other is not None
        assert (mine.epoch, other.epoch) == (1, 2)
        assert mine.mode == other.mode == "shared"
        assert first.health().status == second.health().status == "ready"


STORES: dict[str, Callable[[Path], Any]] = {
    "memory": lambda _: MemorySessionStore(),
    "file": lambda folder: FileSessionStore(folder / "sessions"),
    "driver": lambda _: DictStore(),
}


@pytest.mark.parametrize("store", STORES.values(), ids=STORES)
def test_a_store_without_a_lease_has_no_owner_in_stats(store: Callable[[Path], Any], tmp_path: Path) -> None:
    with SessionManager(store(tmp_path), handler=count) as manager:
        assert manager.stats().ownership is None


async def test_who_asks_for_no_lease_takes_none_and_is_warned(caplog: pytest.LogCaptureFixture) -> None:
    store = LeasedMemoryStore()
    async with SessionManager(store, handler=count, ownership="none") as manager:
        assert manager.stats().ownership is None
    assert store.driver.lease is None
    assert "no lease is taken (ownership='none')" in caplog.text


# --- waiting, trouble, loss ---------------------------------------------------------------------


async def test_a_start_that_waits_says_for_whom_in_health_and_in_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "actorbot")
    store = LeasedMemoryStore()
    waiting = SessionManager(of_same_place(store), handler=count)
    async with SessionManager(store, handler=count) as owner:
        starting = asyncio.ensure_future(waiting.start())
        await until(lambda: ME in waiting.health().reason)
        health = waiting.health()
        assert owner.health().status == "ready"
    await soon(starting)
    assert health.status == "failing"
    for said in (health.reason, caplog.text):
        assert ", exclusive, epoch 1, since 20" in said
        assert " s unless it renews it" in said
    assert waiting.health().status == "ready"
    mine = waiting.stats().ownership
    assert mine is not None
    assert mine.epoch == 2
    assert f"owned by this process, exclusive, epoch {mine.epoch}" in caplog.text
    await waiting.close()


async def test_a_start_that_may_not_wait_names_the_owner_and_the_ways_on() -> None:
    store = LeasedMemoryStore()
    async with SessionManager(store, handler=count):
        with pytest.raises(errors.StoreLockedError) as told:
            await SessionManager(of_same_place(store), handler=count, takeover_timeout=0.0).start()
    assert told.value.owner is not None
    assert told.value.owner.startswith(ME)
    for said in ("this process owns it already", told.value.owner, "takeover_timeout", "Close the other manager"):
        assert said in str(told.value)


class Away(LeasedMemoryStore):
    """A store whose lease cannot be reached now and then."""

    is_away = False

    def read_lease(self) -> Any:
        if self.is_away:
            raise errors.StoreUnavailableError(self.name, "the line is cut")
        return super().read_lease()


async def test_a_lease_that_cannot_be_renewed_is_trouble_until_it_can(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "actorbot")
    monkeypatch.setattr("actorbot._ownership.keeper.LEASE", 0.2)
    store = Away()
    async with SessionManager(store, handler=count) as manager:
        store.is_away = True
        await until(lambda: manager.health().status == "degraded")
        assert "the lease cannot be renewed: memory: the line is cut" in manager.health().reason
        assert caplog.text.count("the lease cannot be renewed") == 1
        assert "(exclusive, epoch 1, for 0." in caplog.text
        await until(lambda: _remaining(manager) == 0.0)  # by the server's clock, though nobody has taken it
        assert await manager.dispatch("ann", "hi") == 1
        store.is_away = False
        await until(lambda: manager.health().status == "ready")
        await until(lambda: _remaining(manager) > 0.0)
        assert "memory: the lease is renewed again (exclusive, epoch 1)" in caplog.text


def _remaining(manager: SessionManager) -> float:
    mine = manager.stats().ownership
    assert mine is not None
    assert (mine.mode, mine.epoch) == ("exclusive", 1)
    return mine.remaining


async def test_an_owner_that_was_taken_over_says_by_whom(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("actorbot._ownership.keeper.LEASE", 0.2)
    store = LeasedMemoryStore()
    manager = await SessionManager(store, handler=count).start()
    take_over(store)
    await until(lambda: manager.health().status == "failing")
    await until(lambda: "taken over" in caplog.text)
    for said in (manager.health().reason, caplog.text):
        assert "taken over by process 4711 on web-1 (bot.py), exclusive, epoch 2" in said
    assert _remaining(manager) == 0.0
    with pytest.raises(errors.OwnershipLostError, match="epoch 2"):
        await manager.dispatch("ann", "hi")
    await manager.close()


# --- options that are none ----------------------------------------------------------------------


def make_manager(store: Any, **options: Any) -> Any:
    return SessionManager(store, **options)


def make_bot(store: Any, **options: Any) -> Any:
    return Bot(store, **options)


def make_console_bot(store: Any, **options: Any) -> Any:
    return ConsoleBot(session_store=store, **options)


each_maker = pytest.mark.parametrize("make", [make_manager, make_bot, make_console_bot])


@each_maker
@pytest.mark.parametrize("value", [-1, -0.001, nan, inf, -inf, "15", b"15", True, None, [15], 1e10], ids=repr)
def test_a_time_to_wait_for_the_owner_that_is_none_is_refused(make: Callable[..., Any], value: Any) -> None:
    with pytest.raises(errors.ConfigError) as told:
        make(LeasedStore(), takeover_timeout=value)

    assert str(told.value) == f"takeover_timeout={value!r}: expected seconds, at least 0, up to 1,000,000,000"


@each_maker
@pytest.mark.parametrize(
    "value", ["", "alone", "Exclusive", "write_through", b"shared", True, 1, ["shared"], {}, object], ids=repr
)
def test_an_ownership_that_is_none_is_refused(make: Callable[..., Any], value: Any) -> None:
    with pytest.raises(errors.ConfigError) as told:
        make(LeasedStore(), ownership=value)

    assert str(told.value) == f"ownership={value!r}: expected exclusive or shared or none"


@each_maker
def test_a_folder_of_files_cannot_be_shared(make: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match=r"ownership='shared': .*one process at a time has a folder of files"):
        make(FileSessionStore(tmp_path / "sessions"), ownership="shared")


class OfOnesOwn(MemorySessionStore):
    """A store of records that other processes could reach, and that keeps no lease."""

    outlives_process = True


@each_maker
@pytest.mark.parametrize("ownership", ["exclusive", "shared"])
def test_a_store_that_keeps_no_lease_cannot_be_owned(make: Callable[..., Any], ownership: str) -> None:
    for store in (DictStore(), OfOnesOwn()):
        with pytest.raises(errors.ConfigError, match='"none", or a store with the methods read_lease and swap_lease'):
            make(store, ownership=ownership)
        make(store, ownership="none")


@each_maker
@pytest.mark.parametrize("ownership", [None, "exclusive", "none"])
def test_a_store_that_nobody_else_can_have_may_be_said_to_be_had_alone(
    make: Callable[..., Any], ownership: str | None, tmp_path: Path
) -> None:
    for store in (FileSessionStore(tmp_path / "sessions"), MemorySessionStore(), None):
        make(store, ownership=ownership)
