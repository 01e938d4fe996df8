"""Several managers with the same store object: the last of them closes it."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actorbot import FileSessionStore, MemorySessionStore, SessionManager, errors, stores
from tests.backends import DictStore, each_store
from tests.handlers import count, count_plainly
from tests.homes import both_homes
from tests.waiting import HANGS, Call, until_sync


class Closable(DictStore):
    """Writes down when it is opened and closed; an operation on a closed one fails."""

    def __init__(self) -> None:
        super().__init__()
        self.life: list[str] = []
        self.closes = threading.Event()
        self.may_close = threading.Event()
        self.may_close.set()

    def init(self) -> None:
        self.life.append("opened")

    def read(self, session_id: str) -> dict[str, Any] | None:
        assert self.life[-1] == "opened"
        return super().read(session_id)

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        assert self.life[-1] == "opened"
        super().write(session_id, data)

    def ids(self) -> list[str]:
        return list(self.data)

    def close(self) -> None:
        self.closes.set()
        assert self.may_close.wait(HANGS)
        self.life.append("closed")


@each_store
async def test_a_manager_goes_on_when_another_one_with_its_store_is_closed(
    make_store: Callable[[Path], Any], tmp_path: Path
) -> None:
    store = make_store(tmp_path)
    first = await SessionManager(store, handler=count).start()
    second = await SessionManager(store, handler=count).start()
    await first.dispatch("ann", "hi")
    await second.dispatch("bob", "hi")
    assert (await first.close()).clean

    assert await second.dispatch("bob", "hi") == 2
    assert await second.dispatch("ann", "hi") == 2
    await second.flush()
    assert (await second.close()).clean
    async with SessionManager(store, handler=count) as third:
        assert await third.dispatch("ann", "hi") == 3


@both_homes
def test_no_other_process_gets_the_folder_until_its_last_manager_is_closed(home: Any, tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path / "sessions")
    last = SessionManager(store, handler=count_plainly).start_sync()
    with home(store=store, handler=count_plainly) as manager:
        manager.dispatch_sync("ann", "hi")
    with pytest.raises(errors.StoreLockedError):
        FileSessionStore(tmp_path / "sessions").init()
    assert last.dispatch_sync("ann", "hi") == 2
    last.close_sync()

    FileSessionStore(tmp_path / "sessions").init().close()


def test_a_manager_that_starts_while_the_last_one_closes_its_store_opens_it_again() -> None:
    store = Closable()
    first = SessionManager(store, handler=count_plainly).start_sync()
    store.may_close.clear()
    closing = Call(first.close_sync)
    assert store.closes.wait(HANGS)
    second = SessionManager(store, handler=count_plainly)
    starting = Call(second.start_sync)
    store.may_close.set()
    closing.result()
    starting.result()

    assert store.life == ["opened", "closed", "opened"]
    assert second.dispatch_sync("ann", "hi") == 1
    second.close_sync()
    assert store.life == ["opened", "closed", "opened", "closed"]


@pytest.fixture
def a_close_soon_counts_as_hanging(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actorbot.stores._users.HANGS", 0.1)


@pytest.mark.usefixtures("a_close_soon_counts_as_hanging")
def test_a_store_whose_close_hangs_can_be_opened_again() -> None:
    store = Closable()
    store.may_close.clear()
    with SessionManager(store, handler=count_plainly, close_timeout=0.1) as first:
        first.dispatch_sync("ann", "hi")
    with SessionManager(store, handler=count_plainly) as second:
        assert second.dispatch_sync("ann", "hi") == 2
        store.may_close.set()


@pytest.mark.usefixtures("a_close_soon_counts_as_hanging")
def test_a_close_that_comes_back_late_does_not_take_the_store_from_who_has_opened_it_since() -> None:
    store = Closable()
    store.may_close.clear()
    with SessionManager(store, handler=count_plainly, close_timeout=0.1) as first:
        first.dispatch_sync("ann", "hi")
    with SessionManager(store, handler=count_plainly) as second:
        store.may_close.set()
        until_sync(lambda: "closed" in store.life and store.life[-1] == "opened")

        assert second.dispatch_sync("ann", "hi") == 2
        second.flush_sync()
    assert store.life[-2:] == ["opened", "closed"]


async def test_a_start_that_fails_or_is_cancelled_uses_the_store_no_more() -> None:
    class Slow(Closable):
        fails = False
        entered, go_on = threading.Event(), threading.Event()

        def init(self) -> None:
            super().init()
            if self.fails:
                raise ConnectionError("refused")
            self.entered.set()
            self.go_on.wait(HANGS)

    store = Slow()
    starting = asyncio.ensure_future(SessionManager(store, handler=count).start())
    await asyncio.to_thread(store.entered.wait, HANGS)
    starting.cancel()
    await asyncio.wait([starting])
    store.go_on.set()
    await asyncio.to_thread(until_sync, lambda: store.life == ["opened", "closed"])
    store.fails = True
    with pytest.raises(errors.StoreUnavailableError):
        await SessionManager(store, handler=count).start()
    store.fails = False
    async with SessionManager(store, handler=count) as manager:
        assert await manager.dispatch("ann", "hi") == 1
    assert store.life == ["opened", "closed", "opened", "opened", "closed"]


def test_a_copy_does_not_close_the_driver_of_a_running_bot() -> None:
    store, target = Closable(), MemorySessionStore()
    with SessionManager(store, handler=count_plainly) as manager:
        manager.dispatch_sync("ann", "hi")
        manager.flush_sync()

        assert stores.copy(store, target).copied == 1
        assert "closed" not in store.life
        assert manager.dispatch_sync("ann", "hi") == 2
    stores.copy(store, target)
    assert store.life.count("closed") == 2


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_is_not_taken_for_its_parent() -> None:
    store = Closable()
    with SessionManager(store, handler=count_plainly) as manager:
        manager.dispatch_sync("ann", "hi")
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with SessionManager(store, handler=count_plainly) as own:
                    own.dispatch_sync("bob", "hi")
                code = 7 if store.life == ["opened", "opened", "closed"] else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
    assert os.waitstatus_to_exitcode(status) == 7
