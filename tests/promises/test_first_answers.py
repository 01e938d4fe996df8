"""G9: whoever sends an event again may ask for the first answer."""

from __future__ import annotations

import asyncio
import threading
from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from actorbot import DUPLICATE, Context, FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot._turns import answers
from actorbot.testing import FaultyStore, ManualClock
from tests.handlers import count, count_plainly
from tests.homes import both_homes
from tests.waiting import Call, breathe, soon, until, until_sync

POLICIES = {
    "write-behind": lambda _: FlushPolicy.write_behind(max_delay=3600.0),
    "write-through": lambda _: FlushPolicy.write_through(),
    "journaled": lambda folder: FlushPolicy.journaled(folder / "journal"),
}
each_policy = pytest.mark.parametrize("policy", POLICIES)
AGAIN: dict[str, Any] = {"event_id": "e1", "on_duplicate": "result"}


@each_policy
@both_homes
def test_a_duplicate_gets_the_first_answer_if_it_asks_for_it_and_its_handler_does_not_run(
    home: Any, policy: str, tmp_path: Path
) -> None:
    with home(handler=count_plainly, flush=POLICIES[policy](tmp_path)) as manager:
        assert manager.dispatch_sync("ann", "hi", **AGAIN) == 1
        assert manager.dispatch_sync("ann", "hi", event_id="e2", on_duplicate="result", timeout=5.0) == 2
        assert manager.dispatch_sync("ann", "hi", **AGAIN) == 1
        assert manager.dispatch_sync("ann", "hi", event_id="e2", on_duplicate="result", timeout=5.0) == 2
        assert manager.dispatch_sync("bob", "hi", **AGAIN) == 1
        assert manager.dispatch_sync("bob", "hi", **AGAIN, durable=True) == 1
        assert manager.dispatch_sync("ann", "hi", event_id="e1") is DUPLICATE
        assert manager.dispatch_sync("ann", "hi", event_id="e1", on_duplicate="duplicate") is DUPLICATE
        assert manager.peek_sync("ann") == {"n": 2}
        assert manager.stats().duplicates == 5
        assert manager.dispatch_sync("ann", "hi", on_duplicate="result") == 3  # without an id nothing comes twice
        assert manager.dispatch_sync("ann", "hi", event_id=7, on_duplicate="result") == 4
        assert manager.dispatch_sync("ann", "hi", event_id="7", on_duplicate="result") == 4


async def test_the_answer_of_an_event_that_was_dispatched_without_asking_is_not_kept() -> None:
    async with SessionManager(handler=count) as manager:
        assert await manager.dispatch("ann", "hi", event_id="e1") == 1
        assert await manager.dispatch("ann", "hi", **AGAIN) is DUPLICATE


async def test_each_duplicate_gets_a_copy_of_its_own_of_the_same_types() -> None:
    value = {"when": datetime(2026, 1, 2, tzinfo=UTC), "sum": Decimal("1.50"), "ids": ({1, 2}, b"x"), "none": None}

    async def handle(context: Context) -> Any:
        return value if context.event == "value" else None

    async with SessionManager(handler=handle) as manager:
        assert await manager.dispatch("ann", "value", **AGAIN) is value
        first, second = [await manager.dispatch("ann", "value", **AGAIN) for _ in range(2)]
        assert first == second == value
        assert first is not second
        first["ids"][0].clear()
        assert await manager.dispatch("ann", "value", **AGAIN) == value
        assert await manager.dispatch("bob", "nothing", **AGAIN) is None
        assert await manager.dispatch("bob", "nothing", **AGAIN) is None


@pytest.mark.parametrize("value", [object(), float("nan"), {1: 2}, "x" * 300_000, lambda: 1])
async def test_an_answer_that_no_session_keeps_is_not_remembered(value: Any) -> None:
    async def handle(_: Context) -> Any:
        return value

    async with SessionManager(handler=handle) as manager:
        assert await manager.dispatch("ann", "hi", **AGAIN) is value
        assert await manager.dispatch("ann", "hi", **AGAIN) is DUPLICATE


@each_policy
@both_homes
def test_a_duplicate_that_comes_while_the_first_runs_gets_its_answer(home: Any, policy: str, tmp_path: Path) -> None:
    entered, go_on = threading.Event(), threading.Event()

    def handle(context: Context) -> int:
        entered.set()
        assert go_on.wait(20.0)
        return count_plainly(context)

    with home(handler=handle, flush=POLICIES[policy](tmp_path)) as manager:
        calls = [Call(manager.dispatch_sync, "ann", "hi", **AGAIN) for _ in range(5)]
        assert entered.wait(20.0)
        until_sync(lambda: dict(manager.resident())["ann"].waiting == 4)
        go_on.set()
        assert [call.result() for call in calls] == [1] * 5
        assert manager.stats().handled == 1


async def test_a_duplicate_waits_until_the_first_is_acknowledged() -> None:
    store = FaultyStore()
    policy = FlushPolicy.write_behind(max_delay=3600.0)
    async with SessionManager(store, handler=count, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        store.hold()
        first = asyncio.create_task(manager.dispatch("ann", "hi", **AGAIN, durable=True))
        await until(lambda: store.write_calls == 1)
        second = asyncio.create_task(manager.dispatch("ann", "hi", **AGAIN))
        await breathe()
        assert not second.done()
        store.release()
        assert (await soon(first), await soon(second)) == (2, 2)


@pytest.mark.parametrize("how", ["fails", "is cancelled"])
async def test_if_the_first_is_rolled_back_the_duplicate_runs_and_its_answer_is_the_first(how: str) -> None:
    runs = 0
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def handle(context: Context) -> int:
        nonlocal runs
        runs += 1
        if runs == 1:
            entered.set()
            await go_on.wait()
            raise ValueError("the first")
        return await count(context)

    async with SessionManager(handler=handle) as manager:
        first = asyncio.create_task(manager.dispatch("ann", "hi", **AGAIN))
        await entered.wait()
        others = [asyncio.create_task(manager.dispatch("ann", "hi", **AGAIN)) for _ in range(3)]
        await breathe()
        if how == "fails":
            go_on.set()
        else:
            first.cancel()
        with pytest.raises((ValueError, asyncio.CancelledError)):
            await soon(first)
        assert [await soon(other) for other in others] == [1, 1, 1]
        assert runs == 2


async def test_an_answer_is_forgotten_with_its_session_and_the_event_runs_again() -> None:
    clock = ManualClock()

    async def handle(context: Context) -> int:
        if context.event == "/reset":
            context.end_session()
        return await count(context)

    async with SessionManager(MemorySessionStore(expires_in=100.0), handler=handle, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        assert await manager.dispatch("ann", "hi", **AGAIN) == 2
        await manager.destroy("ann")
        assert await manager.dispatch("ann", "hi", event_id="e1") == 1
        assert await manager.dispatch("ann", "hi", **AGAIN) is DUPLICATE  # not the 2 of the session before
        assert await manager.dispatch("ann", "hi", event_id="e2", on_duplicate="result") == 2
        assert await manager.dispatch("ann", "/reset", event_id="e3", on_duplicate="result") == 3
        assert await manager.dispatch("ann", "hi", event_id="e2", on_duplicate="result") is DUPLICATE
        assert await manager.dispatch("ann", "/reset", event_id="e3", on_duplicate="result") == 3
        assert await manager.dispatch("bob", "hi", **AGAIN) == 1
        clock.jump_wall(101.0)
        assert await manager.dispatch("bob", "hi", event_id="e1") == 1
        assert await manager.dispatch("bob", "hi", **AGAIN) is DUPLICATE
        assert await manager.dispatch("eve", "hi", **AGAIN) == 1
        manager.abandon("eve")
        assert await manager.dispatch("eve", "hi", event_id="e1") == 1
        assert await manager.dispatch("eve", "hi", **AGAIN) is DUPLICATE


async def test_answers_outlast_the_stay_of_their_session_in_memory() -> None:
    async with SessionManager(handler=count) as manager:
        assert await manager.dispatch("ann", "hi", **AGAIN) == 1
        await manager.release("ann")
        assert await manager.dispatch("ann", "hi", **AGAIN) == 1


@pytest.mark.parametrize(("most", "most_bytes"), [(10, 1 << 20), (10_000, 10_000)])
async def test_the_answers_of_all_sessions_are_bounded_and_the_oldest_go_first(
    most: int, most_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(answers, "MOST", most)
    monkeypatch.setattr(answers, "MOST_BYTES", most_bytes)

    async def handle(_: Context) -> str:
        return "x" * 950

    async with SessionManager(handler=handle) as manager:
        users = [f"user:{number}" for number in range(30)]
        for user in users:
            await manager.dispatch(user, "hi", **AGAIN)
        again = [await manager.dispatch(user, "hi", **AGAIN) for user in users]
        assert [answer is not DUPLICATE for answer in again] == [False] * 20 + [True] * 10


@pytest.mark.parametrize("bad", ["sentinel", None, True, 1, ["result"], ""])
async def test_another_word_is_refused_before_anything_happens(bad: Any) -> None:
    async with SessionManager(handler=count) as manager:
        await manager.dispatch("ann", "hi")
        for event_id in (None, "e1"):
            with pytest.raises(errors.ConfigError, match="on_duplicate"):
                await manager.dispatch("ann", "hi", event_id=event_id, on_duplicate=bad)
            with pytest.raises(errors.ConfigError, match="on_duplicate"):
                await asyncio.to_thread(manager.dispatch_sync, "ann", "hi", event_id=event_id, on_duplicate=bad)
        assert await manager.peek("ann") == {"n": 1}
