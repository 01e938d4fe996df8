"""G8: what a manager holds is bounded; at the bound the caller waits, or is refused at once."""

from __future__ import annotations

import asyncio
import random
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from actorbot import (
    Context,
    FlushPolicy,
    MemorySessionStore,
    SessionManager,
    errors,
)
from actorbot._residents.room import Room
from actorbot.testing import FaultyStore, ManualClock, RecordingStore
from tests import inside
from tests.handlers import count, count_plainly
from tests.homes import both_homes
from tests.waiting import HANGS, breathe, soon, until


async def test_a_newcomer_is_refused_at_once_while_all_who_are_in_memory_are_busy() -> None:
    busy, go_on = asyncio.Event(), asyncio.Event()

    async def handle(context: Context) -> None:
        if context.event == "wait":
            busy.set()
            await go_on.wait()

    async with SessionManager(handler=handle, max_resident=1) as manager:
        talking = asyncio.create_task(manager.dispatch("ann", "wait"))
        await busy.wait()
        with pytest.raises(errors.OverloadedError, match="none can leave"):
            await soon(manager.dispatch("bob", "hi"))
        go_on.set()
        await talking
        await manager.dispatch("bob", "hi")
        assert manager.stats().resident == 1


async def test_many_more_users_than_fit_into_memory_are_all_served() -> None:
    store = MemorySessionStore(max_sessions=2_000)
    users = iter([f"user:{number}" for number in random.Random(7).choices(range(2_000), k=4_000)])
    sent: Counter[str] = Counter()
    async with SessionManager(store, handler=count, max_resident=200) as manager:

        async def talk() -> None:
            for user in users:
                await manager.dispatch(user, "hi")
                sent[user] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(64):
                group.create_task(talk())
        assert manager.stats().resident <= 200
        await manager.flush()

    assert sent.total() == 4_000
    assert {user: (store.read(user) or {"n": 0})["n"] for user in sent} == sent


async def test_nobody_is_refused_when_what_was_unflushed_is_stored_between_two_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin_clearing = Room._begin_clearing

    def late(self: Room) -> Any:
        self._shared.flusher.flush(list(self._table.resident())).result(5.0)  # on its own thread: this one stands still
        return begin_clearing(self)

    monkeypatch.setattr(Room, "_begin_clearing", late)
    async with SessionManager(handler=count, max_resident=10) as manager:
        for user in range(30):
            assert await manager.dispatch(f"user:{user}", "hi") == 1


async def test_residents_are_bounded_and_the_idle_make_room() -> None:
    async with SessionManager(handler=count, max_resident=10) as manager:
        for user in range(50):
            await manager.dispatch(f"user:{user}", "hi")

        assert len(list(manager.resident())) <= 10
        assert await manager.dispatch("user:0", "hi") == 2


async def test_what_has_left_to_make_room_is_not_remembered() -> None:
    async with SessionManager(handler=count, max_resident=10) as manager:
        for user in range(500):
            await manager.dispatch(f"user:{user}", "hi")

        assert inside.watched(manager) <= 200


async def test_a_full_mailbox_and_full_memory_say_so_at_once() -> None:
    release = asyncio.Event()

    async def handle(context: Context) -> None:
        await release.wait()

    async with SessionManager(handler=handle, max_mailbox=2, max_resident=3, clock=ManualClock()) as manager:
        tasks = [asyncio.create_task(manager.dispatch("ann", number)) for number in range(3)]
        tasks += [asyncio.create_task(manager.dispatch(user, "hi")) for user in ("bob", "cat")]
        await until(lambda: manager.stats().running == 3)
        for call in (
            lambda: manager.dispatch("ann", 4), lambda: manager.submit("ann", 4), lambda: manager.dispatch("dan", 1),
            lambda: manager.submit("dan", 1),
        ):  # fmt: skip
            with pytest.raises(errors.OverloadedError):
                await soon(call())  # while nothing moves, not even the time
        release.set()
        await asyncio.gather(*tasks)


async def test_a_full_bound_on_unflushed_state_refuses_quickly_when_told_to() -> None:
    store = FaultyStore()
    policy = FlushPolicy.write_behind(max_delay=60, max_dirty_bytes=64 * 1024, when_full="reject")

    async def grow(context: Context) -> None:
        context.session["text"] = "x" * 40_000

    async with SessionManager(store, handler=grow, flush=policy, close_timeout=0.2) as manager:
        await manager.dispatch("cat", "hi")
        await manager.flush()
        store.outage()
        await manager.dispatch("cat", "hi")
        with pytest.raises(errors.StoreUnavailableError):
            await manager.dispatch("ann", "hi")
        store.restore()
        async with manager.turn("bob") as turn:
            store.outage()
            turn.session["text"] = "x" * 40_000
        with pytest.raises(errors.OverloadedError) as caught:
            await soon(manager.dispatch("cat", "hi"))  # the outage lasts
        assert caught.value.retry_after > 0
        assert manager.health().status == "degraded"
        store.restore()
        await soon(manager.flush())
        await soon(manager.dispatch("cat", "hi"))


async def test_a_full_bound_on_unflushed_state_lets_events_wait_for_the_store() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:max_delay=60,max_dirty_bytes=65536,retry.base=0.01,retry.cap=0.02")

    async def grow(context: Context) -> None:
        context.session["text"] = "x" * 70_000

    async with SessionManager(store, handler=grow, flush=policy) as manager:
        for user in ("ann", "bob"):
            await manager.dispatch(user, "hi")
            await manager.flush()
        store.hold()
        await manager.dispatch("ann", "hi")
        waiting = asyncio.create_task(manager.dispatch("bob", "hi"))
        await breathe()
        assert not waiting.done()
        store.release()
        await soon(waiting)
        assert manager.stats().dirty_bytes < 2 * 70_656


async def test_sessions_that_grow_to_the_bound_on_unflushed_state_are_flushed_rather_than_refused() -> None:
    clock, store = ManualClock(), RecordingStore()
    policy = FlushPolicy.write_behind(max_delay=600.0, max_dirty_bytes=64 * 1024, store_deadline=0.5)

    async def grow(context: Context) -> None:
        context.session["text"] = "x" * context.event

    async with SessionManager(store, handler=grow, clock=clock, flush=policy) as manager:
        for size in (100, 20_000):
            for user in range(10):
                await soon(manager.dispatch(f"user:{user}", size))

        assert manager.stats().dirty_bytes < 64 * 1024 + 20_480


async def test_hostile_depth_and_size_are_refused() -> None:
    async def handle(context: Context) -> None:
        if context.event == "deep":
            deep: Any = []
            for _ in range(200_000):
                deep = [deep]
            context.session["v"] = deep
        else:
            context.session["v"] = "x" * 300_000

    async with SessionManager(handler=handle) as manager:
        for event in ("deep", "large"):
            with pytest.raises(errors.SessionTooLargeError) as caught:
                await soon(manager.dispatch("ann", event))
            assert caught.value.session_id == "ann"
        assert await manager.peek("ann") is None


@both_homes
def test_a_full_mailbox_says_so_at_once(home: Any) -> None:
    with home(handler=count_plainly, max_mailbox=3, clock=ManualClock()) as manager:
        with manager.turn_sync("ann"):
            receipts = [manager.submit_sync("ann", number) for number in range(3)]
            with ThreadPoolExecutor(1) as elsewhere:

                def knock() -> None:
                    with pytest.raises(errors.OverloadedError, match="mailbox"):
                        manager.dispatch_sync("ann", "hi")
                    with pytest.raises(errors.OverloadedError, match="mailbox"):
                        manager.submit_sync("ann", "hi")

                elsewhere.submit(knock).result(HANGS)  # while nothing moves, not even the time

        assert sorted(receipt.result_sync(HANGS) for receipt in receipts) == [1, 2, 3]


async def test_a_call_that_is_refused_because_too_many_wait_does_not_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actorbot._runtime.threads.MAX_AWAY", 0)

    def handle(context: Context) -> Any:
        return manager.dispatch_sync("bob", "hi") if context.session_id == "ann" else count_plainly(context)

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(errors.OverloadedError):
            await manager.dispatch("ann", "hi")
        await asyncio.to_thread(manager.flush_sync)

        assert await manager.peek("bob") is None


@both_homes
def test_the_number_of_threads_does_not_grow_with_the_sessions(home: Any) -> None:
    with home(handler=count_plainly) as manager:
        for user in range(10):
            manager.dispatch_sync(f"user:{user}", "hi")
        few = threading.active_count()
        for user in range(3_000):
            manager.dispatch_sync(f"user:{user}", "hi")

        assert manager.stats().resident == 3_000
        assert threading.active_count() <= few + 3  # of a pool of 32; how many of them came up is a matter of chance


async def test_a_turn_that_waits_at_the_bound_goes_on_as_soon_as_the_store_is_known_to_be_down() -> None:
    clock, store = ManualClock(), FaultyStore()
    policy = FlushPolicy.write_behind(max_events=2)
    async with SessionManager(store, handler=count, flush=policy, clock=clock, close_timeout=1.0) as manager:
        await manager.dispatch("ann", "hi")
        store.hold()
        await manager.dispatch("ann", "hi")  # half-way to the bound before it, the session is being flushed
        await until(lambda: store.write_calls == 1)
        third = asyncio.create_task(manager.dispatch("ann", "hi"))
        await asyncio.sleep(0)
        store.outage()
        store.release()

        assert await soon(third) == 3
        assert store.write_calls == 1
        store.restore()
        await clock.advance(5.0)


def say(context: Context) -> int:
    history: list[str] = context.session.setdefault("history", [])
    history.append("x" * 500)
    if context.event == "forget":
        history.clear()
    return len(history)


@both_homes
@pytest.mark.parametrize("policy", ["write-behind", "write-through", "journaled"])
def test_a_session_that_is_nearly_full_is_named_once_before_its_events_fail(
    home: Any, policy: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    flush = FlushPolicy.journaled(tmp_path / "journal") if policy == "journaled" else FlushPolicy.parse(policy)

    def warnings() -> list[Any]:
        return [record.session_id for record in caplog.records if "max_session_bytes" in record.getMessage()]  # type: ignore[attr-defined]

    with home(handler=say, flush=flush, max_session_bytes=20_000) as manager:
        manager.dispatch_sync("bob", "hi")
        while manager.dispatch_sync("ann", "hi") < 31:
            assert warnings() == []
        assert manager.stats().nearly_full == 0
        while manager.dispatch_sync("ann", "hi") < 38:
            pass
        assert warnings() == ["ann"]
        assert manager.stats().nearly_full == 1
        with pytest.raises(errors.SessionTooLargeError):
            for _ in range(3):
                manager.dispatch_sync("ann", "hi")
        manager.dispatch_sync("ann", "forget")
        assert manager.stats().nearly_full == 0
        while manager.dispatch_sync("ann", "hi") < 38:
            pass
        assert warnings() == ["ann"]
        assert manager.stats().nearly_full == 1
        manager.destroy_sync("ann")
        assert manager.stats().nearly_full == 0


async def test_a_session_that_left_memory_nearly_full_is_named_again_when_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    clock = ManualClock()
    async with SessionManager(handler=say, clock=clock, idle_timeout=60.0, max_session_bytes=20_000) as manager:
        for _ in range(2):
            for _ in range(18):
                await manager.dispatch("ann", "hi")
            await clock.advance(120.0)
            assert manager.stats().nearly_full == manager.stats().resident == 0
        await manager.dispatch("ann", "hi")
        assert manager.stats().nearly_full == 1
    assert caplog.text.count("max_session_bytes") == 2
