"""G1: the turns of one session never overlap, and run in the order in which their events were
accepted; no update is lost.
"""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from actorbot import (
    Context,
    MemorySessionStore,
    SessionManager,
    errors,
)
from actorbot.testing import ManualClock
from tests.faults._scale import scaled
from tests.handlers import count, count_plainly
from tests.tiers import tiers
from tests.waiting import soon, until


@pytest.mark.parametrize("handler", [count, count_plainly])
@pytest.mark.parametrize("users", [1, 100, 1_000])
async def test_no_increment_of_many_callers_is_lost(handler: Any, users: int) -> None:
    events = 10_000 if handler is count else 2_000
    numbers = iter(range(events))
    async with SessionManager(handler=handler) as manager:

        async def caller() -> None:
            for number in numbers:
                await manager.dispatch(f"user:{number % users}", number)

        await asyncio.gather(*(caller() for _ in range(64)))
        states = [await manager.peek(f"user:{user}") for user in range(min(users, events))]

    assert sum(state["n"] for state in states if state) == events


@pytest.mark.parametrize("users", [1, 100])
def test_no_increment_of_many_threads_is_lost_and_turns_never_overlap(users: int) -> None:
    numbers = iter(range(5_000))
    inside: set[str] = set()
    overlaps: list[str] = []

    def handle(context: Context) -> None:
        if context.session_id in inside:
            overlaps.append(context.session_id)
        inside.add(context.session_id)
        count_plainly(context)
        inside.discard(context.session_id)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with SessionManager(handler=handle) as manager:

            def caller() -> None:
                for number in numbers:
                    manager.dispatch_sync(f"user:{number % users}", number)

            threads = [threading.Thread(target=caller) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            states = [manager.peek_sync(f"user:{user}") for user in range(users)]
    finally:
        sys.setswitchinterval(before)

    assert sum(state["n"] for state in states if state) == 5_000
    assert overlaps == []


async def test_events_of_one_session_run_in_the_order_they_were_accepted() -> None:
    seen: list[int] = []

    async def handle(context: Context) -> None:
        await asyncio.sleep(0)
        seen.append(context.event)

    async with SessionManager(handler=handle) as manager:
        for number in range(0, 100, 2):
            await manager.submit("ann", number)
            asyncio.get_running_loop().create_task(manager.dispatch("ann", number + 1))
            await asyncio.sleep(0)

    assert seen == list(range(100))


async def test_a_stubborn_handler_ends_before_the_next_turn_begins() -> None:
    clock = ManualClock()
    inside: list[str] = []
    cleanup = asyncio.Event()

    async def handle(context: Context) -> None:
        inside.append(f"in {context.event}")
        if context.event == "slow":
            try:
                await asyncio.Event().wait()
            finally:
                await cleanup.wait()
        inside.append(f"out {context.event}")

    async with SessionManager(handler=handle, clock=clock, handler_timeout=5.0) as manager:
        slow = asyncio.create_task(manager.dispatch("ann", "slow"))
        await until(lambda: manager.stats().running == 1)
        following = asyncio.create_task(manager.dispatch("ann", "next"))
        await clock.advance(5.1)
        await asyncio.sleep(0)
        assert inside == ["in slow"]
        cleanup.set()
        with pytest.raises(errors.HandlerTimeoutError):
            await soon(slow)
        await soon(following)
    assert inside == ["in slow", "in next", "out next"]


CALLERS = 64


EVENTS = scaled(1_000, 10_000)  # of each caller


each_crowd = pytest.mark.parametrize(
    ("users", "kind"),
    tiers(product([1, 100, 1_000], ["plain", "awaiting"]), (100, "awaiting")),
)


class Watch:
    """Handlers that add one, and note a turn that overlaps another or an event of a caller that
    overtakes an earlier one.
    """

    def __init__(self) -> None:
        self.inside: set[str] = set()
        self.faults: list[str] = []

    def enter(self, context: Context) -> None:
        if context.session_id in self.inside:
            self.faults.append(f"two turns of {context.session_id} at once")
        self.inside.add(context.session_id)

    def leave(self, context: Context) -> None:
        caller, number = context.event
        session, key = context.session, f"last of {caller}"
        if session.get(key, -1) >= number:
            self.faults.append(f"event {number} of caller {caller} out of order")
        session[key] = number
        session["n"] = session.get("n", 0) + 1
        self.inside.discard(context.session_id)

    def plain(self, context: Context) -> None:
        self.enter(context)
        self.leave(context)

    async def awaiting(self, context: Context) -> None:
        self.enter(context)
        if context.event[1] % 8 == 0:
            await asyncio.sleep(0)
        self.leave(context)


def user(caller: int, number: int, users: int) -> str:
    return f"user:{(caller * 7919 + number) % users}"


def check(watch: Watch, store: MemorySessionStore, users: int) -> None:
    counted = [(store.read(f"user:{each}") or {}).get("n", 0) for each in range(users)]
    assert watch.faults == []
    assert sum(counted) == CALLERS * EVENTS


def check_counts(manager: SessionManager) -> None:
    stats = manager.stats()
    assert (stats.handled, stats.events_at_risk) == (CALLERS * EVENTS, 0)


@each_crowd
async def test_no_event_of_64_tasks_is_lost_or_out_of_order(users: int, kind: str) -> None:
    watch, store = Watch(), MemorySessionStore()

    async def caller(number: int) -> None:
        for each in range(EVENTS):
            await manager.dispatch(user(number, each, users), (number, each))

    async with SessionManager(store, handler=getattr(watch, kind)) as manager:
        await asyncio.gather(*(caller(number) for number in range(CALLERS)))
        await manager.flush()
        check_counts(manager)

    check(watch, store, users)


TIMEOUT = 600

pytestmark = pytest.mark.timeout(TIMEOUT)


def side_by_side(functions: list[Callable[[], Any]]) -> None:
    """Run each in a thread of its own, and raise what one of them raised."""
    failures: list[BaseException] = []

    def run(function: Callable[[], Any]) -> None:
        try:
            function()
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(TIMEOUT)
    if failures:
        raise failures[0]


@each_crowd
def test_no_event_of_64_threads_is_lost_or_out_of_order(users: int, kind: str) -> None:
    watch, store = Watch(), MemorySessionStore()

    def caller(number: int) -> None:
        for each in range(EVENTS):
            manager.dispatch_sync(user(number, each, users), (number, each))

    with SessionManager(store, handler=getattr(watch, kind)) as manager:
        side_by_side([lambda number=number: caller(number) for number in range(CALLERS)])
        manager.flush_sync()
        check_counts(manager)

    check(watch, store, users)
