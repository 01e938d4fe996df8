"""How sessions leave memory and come back."""

from __future__ import annotations

import itertools
import sys
import threading

import pytest

from actorbot import FlushPolicy, SessionManager
from actorbot.testing import FaultyStore, ManualClock, RecordingStore
from tests.handlers import count, count_plainly
from tests.homes import tiny_switch_interval
from tests.waiting import HANGS, Call, until, until_sync


def test_everybody_is_served_while_sessions_leave_memory_as_fast_as_they_can() -> None:
    users, wanted = 1_000, 1_000
    rounds = itertools.count()
    acknowledged: list[tuple[int, int]] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with SessionManager(
            handler=count_plainly, idle_timeout=0.0, flush=FlushPolicy.write_behind(max_delay=0.001)
        ) as manager:

            def caller() -> None:
                # The more the callers get of the interpreter, the less do the threads that flush
                # and sweep.
                while (n := next(rounds)) < 50 or (n < 1_000 and manager.stats().passivations < wanted):
                    for number in range(users):
                        user = (125 * n + number) % users
                        counted = manager.dispatch_sync(f"user:{user}", number, timeout=HANGS)
                        acknowledged.append((user, counted))

            threads = [threading.Thread(target=caller) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            passivations = manager.stats().passivations
    finally:
        sys.setswitchinterval(before)

    turns = len(acknowledged) // users
    assert sorted(acknowledged) == [(user, 1 + turn) for user in range(users) for turn in range(turns)]
    assert passivations >= wanted


async def test_a_session_that_waited_only_for_its_flush_leaves_memory_as_soon_as_that_is_confirmed() -> None:
    clock, store = ManualClock(), FaultyStore()
    policy = FlushPolicy.write_behind(max_delay=60.0)
    async with SessionManager(store, handler=count, clock=clock, idle_timeout=16.0, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        store.hold()
        await clock.advance(18.0)  # past the sweep that finds it idle, and unflushed
        await until(lambda: store.write_calls)
        assert manager.stats().resident == 1
        store.release()
        await until(lambda: not manager.stats().resident)

        assert await manager.dispatch("ann", "hi") == 2


async def test_a_session_that_has_an_event_during_its_last_flush_stays() -> None:
    clock, store = ManualClock(), FaultyStore()
    policy = FlushPolicy.write_behind(max_delay=60.0)
    async with SessionManager(store, handler=count, clock=clock, idle_timeout=16.0, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        store.hold()
        await clock.advance(18.0)
        assert await manager.dispatch("ann", "hi") == 2
        store.release()
        await manager.flush()
        assert manager.stats().resident == 1
        await clock.advance(18.0)
        await until(lambda: not manager.stats().resident)
        assert (store.read("ann") or {})["n"] == 2


async def test_an_idle_session_leaves_memory_and_keeps_its_data() -> None:
    clock = ManualClock()
    async with SessionManager(handler=count, clock=clock, idle_timeout=60.0) as manager:
        await manager.dispatch("ann", "hi")
        await clock.advance(59.0)
        assert len(list(manager.resident())) == 1
        await clock.advance(10.0)

        assert list(manager.resident()) == []
        assert await manager.dispatch("ann", "hi") == 2


@pytest.mark.parametrize("policy", ["write-behind", "write-behind:max_delay=600", "write-through"])
def test_without_idle_time_a_session_leaves_memory_as_soon_as_it_is_clean(policy: str) -> None:
    with SessionManager(handler=count_plainly, idle_timeout=0.0, flush=FlushPolicy.parse(policy)) as manager:
        for expected in range(1, 11):
            assert manager.dispatch_sync("ann", "hi") == expected
            until_sync(lambda: not list(manager.resident()))

        assert manager.stats().passivations == 10


def test_busy_sessions_leave_memory_again_and_again_and_nobody_is_lost() -> None:
    numbers, store = itertools.count(), RecordingStore()
    policy = FlushPolicy.write_behind(max_delay=0.001)

    def caller() -> None:
        while (number := next(numbers)) < 20_000:
            manager.dispatch_sync(f"user:{number % 50}", number)

    with (
        tiny_switch_interval(),
        SessionManager(store, handler=count_plainly, idle_timeout=0.0, flush=policy) as manager,
    ):
        for call in [Call(caller) for _ in range(8)]:
            call.result(30.0)
        total = sum((manager.peek_sync(f"user:{user}") or {"n": 0})["n"] for user in range(50))

        assert total == 20_000
        assert manager.stats().passivations >= 10
