"""A driver's call that does not come back, or not soon, costs its own session and nobody else."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actorbot import FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot.testing import ManualClock
from tests.backends import AsyncDictStore, DictStore
from tests.handlers import count_plainly
from tests.waiting import SOON


class Stuck(DictStore):
    """Its writes of "bad" hang until `free` is set."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        if session_id == "bad":
            self.free.wait(30.0)
        super().write(session_id, data)


class AsyncStuck(AsyncDictStore):
    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    async def write(self, session_id: str, data: dict[str, Any]) -> None:
        while session_id == "bad" and not self.free.is_set():
            await asyncio.sleep(0.01)
        await super().write(session_id, data)


@pytest.fixture(params=[Stuck, AsyncStuck])
def stuck(request: pytest.FixtureRequest) -> Iterator[Any]:
    driver = request.param()
    yield driver
    driver.free.set()


def behind(store_deadline: float = 0.3) -> FlushPolicy:
    return FlushPolicy.write_behind(max_delay=60.0, store_deadline=store_deadline)


async def test_a_session_whose_write_hangs_does_not_keep_the_others_of_its_batch_from_the_store(stuck: Any) -> None:
    async with SessionManager(stuck, handler=count_plainly, flush=behind(), close_timeout=0.5) as manager:
        for session_id in ("bad", "ann", "bob"):
            await manager.dispatch(session_id, "hi")
        everything = asyncio.create_task(manager.flush())
        try:
            await asyncio.sleep(0)
            async with asyncio.timeout(SOON):
                await manager.flush("ann")
                await manager.flush("bob")
        finally:
            stuck.free.set()
            await asyncio.wait([everything], timeout=SOON)


@pytest.mark.parametrize(
    "verb",
    [lambda m: m.flush("bad"), lambda m: m.flush(), lambda m: m.dispatch("bad", "hi", durable=True)],
    ids=["flush", "flush all", "durable dispatch"],
)  # fmt: skip
async def test_whoever_waits_for_a_write_that_hangs_is_told(stuck: Any, verb: Callable[[SessionManager], Any]) -> None:
    async with SessionManager(stuck, handler=count_plainly, flush=behind(0.05), close_timeout=0.5) as manager:
        await manager.dispatch("bad", "hi")
        first = asyncio.create_task(manager.flush())
        try:
            await asyncio.sleep(0)
            with pytest.raises(errors.StoreUnavailableError):
                async with asyncio.timeout(SOON):
                    await verb(manager)
        finally:
            stuck.free.set()
            await asyncio.wait([first], timeout=SOON)


@pytest.mark.parametrize("kind", [Stuck, AsyncStuck])
async def test_a_destroy_goes_past_a_hanging_write_that_could_be_cancelled_and_is_refused_beside_one_that_could_not(
    kind: Any,
) -> None:
    driver = kind()
    async with SessionManager(driver, handler=count_plainly, flush=behind(), close_timeout=0.5) as manager:
        await manager.dispatch("bad", "hi")
        first = asyncio.create_task(manager.flush())
        try:
            await asyncio.sleep(0)
            async with asyncio.timeout(SOON):
                if kind is AsyncStuck:
                    await manager.destroy("bad")
                    assert await manager.peek("bad") is None
                else:
                    with pytest.raises(errors.StoreUnavailableError):
                        await manager.destroy("bad")
        finally:
            driver.free.set()
            await asyncio.gather(first, return_exceptions=True)


async def test_write_through_tells_within_its_deadlines_that_the_outcome_is_unknown(stuck: Any) -> None:
    policy = FlushPolicy.write_through(store_deadline=0.05)
    async with SessionManager(stuck, handler=count_plainly, flush=policy, close_timeout=0.5) as manager:
        try:
            with pytest.raises(errors.StoreUnavailableError):
                async with asyncio.timeout(SOON):
                    await manager.dispatch("bad", "hi")
        finally:
            stuck.free.set()


class Slow(DictStore):
    """Takes its time for each session, and far less than the deadline."""

    def read(self, session_id: str) -> dict[str, Any] | None:
        threading.Event().wait(0.02)
        return super().read(session_id)

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        threading.Event().wait(0.02)
        super().write(session_id, data)


async def test_a_driver_that_answers_each_call_in_time_is_not_down_because_a_batch_is_long() -> None:
    policy = FlushPolicy.write_behind(max_delay=60.0, store_deadline=0.3)  # a batch of 40 takes 0.8 s
    async with SessionManager(Slow(), handler=count_plainly, flush=policy, close_timeout=2.0) as manager:
        await asyncio.gather(*(manager.dispatch(f"user:{n}", "hi") for n in range(40)))
        async with asyncio.timeout(SOON):
            await manager.flush()
        assert (manager.stats().store_retries, manager.health().status) == (0, "ready")


class ThreadBound:
    """The client of sqlite3 that everybody writes first."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.held = threading.Event()
        self.held.set()

    def init(self) -> None:
        self.db = sqlite3.connect(self.path)
        self.db.execute("create table if not exists sessions (id text primary key, data text)")

    def read(self, session_id: str) -> Any:
        row = self.db.execute("select data from sessions where id = ?", (session_id,)).fetchone()
        return None if row is None else json.loads(row[0])

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        self.held.wait(30.0)
        with self.db:
            self.db.execute("replace into sessions values (?, ?)", (session_id, json.dumps(data)))

    def destroy(self, session_id: str) -> None:
        with self.db:
            self.db.execute("delete from sessions where id = ?", (session_id,))

    def close(self) -> None:
        self.db.close()


async def test_a_driver_whose_client_is_bound_to_its_thread_works_again_after_one_call_was_late(tmp_path: Path) -> None:
    driver = ThreadBound(tmp_path / "s.db")
    async with SessionManager(driver, handler=count_plainly, flush=behind(), close_timeout=1.0) as manager:
        await manager.dispatch("ann", "hi")
        driver.held.clear()
        with pytest.raises(errors.OutcomeUnknownError):
            await asyncio.wait_for(manager.flush(), SOON)
        driver.held.set()

        async with asyncio.timeout(SOON):
            while True:
                try:
                    assert await manager.dispatch("bob", "hi") == 1
                    break
                except errors.StoreUnavailableError:
                    await asyncio.sleep(0)  # asked from another thread, as long as the late call is not back


async def test_a_resident_session_is_seen_to_expire_long_before_it_has_been_idle_for_long() -> None:
    clock = ManualClock(start_wall=time.time())
    seen: list[str] = []
    manager = SessionManager(
        MemorySessionStore(expires_in=10.0),
        handler=count_plainly,
        clock=clock,
        on_session_expire=lambda session_id, _: seen.append(session_id),
    )
    async with manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        await clock.advance(60.0)  # idle_timeout is 900 s

        assert manager.stats().resident == 0
    assert seen == ["ann"]


async def test_a_broken_record_can_be_destroyed_also_while_its_session_is_backed_off() -> None:
    driver = DictStore()
    driver.data["ann"] = {"$actorbot": "broken"}
    async with SessionManager(driver, handler=count_plainly) as manager:
        with pytest.raises(errors.CorruptSessionError, match="remove it with destroy"):
            await manager.dispatch("ann", "hi")
        await manager.destroy("ann")

        assert driver.data == {}
        assert await manager.dispatch("ann", "hi") == 1
