"""At the sizes that bots meet: 64 callers at once, nothing lost, each user's events in order, turns never side by side.

Each caller sends 1,000 events, and with `make torture` 10,000.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from itertools import product
from typing import Any

import pytest

from actorbot import Context, MemorySessionStore, SessionManager
from tests.faults._scale import scaled
from tests.tiers import tiers

CALLERS = 64
EVENTS = scaled(1_000, 10_000)  # of each caller
TIMEOUT = 600

pytestmark = pytest.mark.timeout(TIMEOUT)

each_crowd = pytest.mark.parametrize(
    ("users", "kind"),
    tiers(product([1, 100, 1_000], ["plain", "awaiting"]), (1, "plain"), (1_000, "plain"), (100, "awaiting")),
)


class Watch:
    """Handlers that add one, and note a turn that overlaps another or an event of a caller that overtakes an earlier one."""

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
