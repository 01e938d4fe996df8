"""G2: every accepted event ends in exactly one of: acknowledged, an error for its caller, a dead
letter.
"""

from __future__ import annotations

import asyncio
import itertools
import random
from collections import Counter
from time import monotonic
from typing import Any

import pytest

from actorbot import (
    Context,
    FlushPolicy,
    SessionManager,
    errors,
)
from actorbot.testing import FaultyStore, ManualClock
from tests import inside
from tests.handlers import count, count_plainly
from tests.homes import tiny_switch_interval
from tests.waiting import HANGS, SOON, Call, breathe, soon, until


async def test_a_told_event_gives_a_receipt_and_a_failed_one_a_dead_letter() -> None:
    buried: list[Any] = []

    async def handle(context: Context) -> int:
        if context.event == "fail":
            raise ValueError("no")
        return await count(context)

    async with SessionManager(handler=handle, on_dead_letter=lambda *letter: buried.append(letter)) as manager:
        receipt = await manager.submit("ann", "hi")
        assert await receipt.result() == 1
        await receipt.durable(timeout=10.0)
        assert receipt.version == 1
        await manager.submit("ann", "fail")
    assert buried == [("ann", "fail", "ValueError: no")]


async def test_an_event_that_fails_in_the_breath_in_which_its_sender_is_cancelled_becomes_a_dead_letter() -> None:
    buried: list[Any] = []

    async def handle(context: Context) -> None:
        await asyncio.sleep(0)
        raise ValueError("no")

    async with SessionManager(handler=handle, on_dead_letter=lambda *letter: buried.append(letter)) as manager:
        receipt = await manager.submit("ann", "hi")
        inside.outcome(receipt).add_done_callback(lambda _: waiting.cancel())
        waiting = asyncio.create_task(receipt.result())
        with pytest.raises(asyncio.CancelledError):
            await waiting
    assert buried == [("ann", "hi", "ValueError: no")]


async def test_a_failure_that_somebody_has_heard_of_is_no_dead_letter() -> None:
    async def handle(context: Context) -> None:
        await asyncio.sleep(0)
        raise TimeoutError("no")

    async with SessionManager(handler=handle) as manager:
        receipt = await manager.submit("ann", "hi")
        with pytest.raises(TimeoutError, match=r"^no$"):
            await receipt.result(timeout=5.0)
        with pytest.raises(TimeoutError, match=r"^no$"):
            await receipt.result(timeout=5.0)
        assert manager.stats().dead_letters == 0


@pytest.mark.parametrize("policy", ["write-behind:max_delay=0.002,retry.base=0.001,retry.cap=0.01",
                                    "write-through:retry.base=0.001,retry.cap=0.01"])  # fmt: skip
@pytest.mark.parametrize("plain", [False, True])
async def test_in_a_storm_of_failures_every_event_ends_in_one_way(policy: str, plain: bool) -> None:
    dice = random.Random(20)
    store = FaultyStore()
    inside: set[str] = set()
    overlaps: list[str] = []
    acknowledged: Counter[str] = Counter()
    unknown: Counter[str] = Counter()
    buried: list[Any] = []
    failed_told = 0

    def body(context: Context) -> int:
        context.session["n"] = context.session.get("n", 0) + 1
        if context.event == "fail":
            raise ValueError("no")
        return int(context.session["n"])

    async def handle(context: Context) -> int:
        if context.session_id in inside:
            overlaps.append(context.session_id)
        inside.add(context.session_id)
        try:
            if dice.random() < 0.3:
                await asyncio.sleep(0)
            return body(context)
        finally:
            inside.discard(context.session_id)

    async with SessionManager(
        store, handler=body if plain else handle, flush=FlushPolicy.parse(policy), idle_timeout=0.0, max_resident=6,
        on_dead_letter=lambda *letter: buried.append(letter), on_error=lambda *_: None,
    ) as manager:  # fmt: skip

        async def call(number: int) -> None:
            nonlocal failed_told
            user = f"user:{dice.randrange(8)}"
            event = "fail" if dice.random() < 0.1 else "count"
            roll = dice.random()
            try:
                if roll < 0.15:
                    receipt = await manager.submit(user, event)
                    if event == "fail":
                        failed_told += 1  # whether it failed or was refused by the store: nobody awaits it
                        return
                    try:
                        await receipt.result()
                    except errors.StoreUnavailableError:
                        unknown[user] += 1
                        return
                    acknowledged[user] += 1
                elif roll < 0.3:
                    task = asyncio.create_task(manager.dispatch(user, event))
                    for _ in range(dice.randrange(4)):
                        await asyncio.sleep(0)
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)
                    if event == "count":
                        unknown[user] += 1
                else:
                    await manager.dispatch(user, event, durable=dice.random() < 0.1)
                    acknowledged[user] += 1
            except (ValueError, errors.OverloadedError):
                pass
            except (errors.StoreUnavailableError, errors.ConflictError):
                unknown[user] += 1

        for round_ in range(40):
            if round_ % 8 == 3:
                (store.outage, lambda: store.lose_replies(3), lambda: store.fail_reads(2))[round_ // 8 % 3]()
            if round_ % 8 == 5:
                store.restore()
            await asyncio.wait_for(asyncio.gather(*(call(n) for n in range(30))), SOON)
        store.restore()
        store.lose_replies(0)
        store.fail_reads(0)
        await breathe()
        await soon(manager.flush())
        await until(lambda: len(buried) == failed_told)
        states = {f"user:{n}": (await manager.peek(f"user:{n}") or {}).get("n", 0) for n in range(8)}
    assert overlaps == []
    for user, n in states.items():
        assert acknowledged[user] <= n <= acknowledged[user] + unknown[user]


async def test_a_told_event_that_no_store_or_time_allows_becomes_one_dead_letter() -> None:
    clock, store = ManualClock(), FaultyStore()
    buried: list[Any] = []

    async def handle(context: Context) -> None:
        await asyncio.Event().wait()

    async with SessionManager(
        store, handler=handle, clock=clock, handler_timeout=5.0, max_mailbox=1,
        on_dead_letter=lambda *letter: buried.append(letter),
    ) as manager:  # fmt: skip
        store.fail_reads(1)
        await manager.submit("ann", "unread")
        await until(lambda: len(buried) == 1)
        await manager.submit("ann", "slow")
        await until(lambda: manager.stats().running == 1)
        await manager.submit("ann", "second")
        with pytest.raises(errors.OverloadedError):
            await manager.submit("ann", "refused")
        await clock.advance(5.1)
        await until(lambda: len(buried) == 2)
        await until(lambda: manager.stats().running == 1)
        await clock.advance(5.1)
        await until(lambda: len(buried) == 3)
    assert [(session_id, event) for session_id, event, _ in buried] == [
        ("ann", "unread"), ("ann", "slow"), ("ann", "second"),
    ]  # fmt: skip
    assert [reason.partition(":")[0] for *_, reason in buried] == [
        "StoreUnavailableError", "HandlerTimeoutError", "HandlerTimeoutError",
    ]  # fmt: skip


async def test_an_event_that_fails_after_its_sender_stopped_waiting_becomes_a_dead_letter() -> None:
    go_on = asyncio.Event()
    buried: list[Any] = []

    async def handle(context: Context) -> None:
        await go_on.wait()
        raise ValueError("no")

    async with SessionManager(handler=handle, on_dead_letter=lambda *letter: buried.append(letter)) as manager:
        receipt = await manager.submit("ann", "hi")
        with pytest.raises(errors.TurnTimeoutError):
            await soon(receipt.result(timeout=0.01))
        go_on.set()
    assert buried == [("ann", "hi", "ValueError: no")]


async def test_an_event_whose_waiting_sender_was_cancelled_becomes_a_dead_letter() -> None:
    go_on = asyncio.Event()
    buried: list[Any] = []

    async def handle(context: Context) -> None:
        await go_on.wait()
        raise ValueError("no")

    async with SessionManager(handler=handle, on_dead_letter=lambda *letter: buried.append(letter)) as manager:
        receipt = await manager.submit("ann", "hi")
        waiting = asyncio.create_task(receipt.result())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        go_on.set()
    assert buried == [("ann", "hi", "ValueError: no")]


async def test_a_dead_letter_of_the_close_is_told_before_the_close_returns() -> None:
    buried: list[Any] = []

    async def handle(context: Context) -> None:
        await asyncio.Event().wait()

    async def bury(*letter: Any) -> None:
        await asyncio.sleep(0)
        buried.append(letter[:2])

    manager = await SessionManager(handler=handle, on_dead_letter=bury).start()
    for number in range(3):
        await manager.submit("ann", number)
    await asyncio.sleep(0)
    await manager.close(timeout=0.05)
    assert sorted(buried) == [("ann", 0), ("ann", 1), ("ann", 2)]


def test_nothing_is_lost_or_kept_twice_while_handlers_time_out_fail_and_finish_at_the_same_moments() -> None:
    numbers = itertools.count()

    def handle(context: Context) -> None:
        if context.event % 3 == 0:
            ends = monotonic() + 0.002 + (context.event % 7) * 0.0004
            while monotonic() < ends:
                pass
        count_plainly(context)
        if context.event % 5 == 0:
            raise ValueError

    def caller() -> dict[str, int]:
        acknowledged: dict[str, int] = {}
        while (number := next(numbers)) < 3_000:
            session_id = f"user:{number % 2}"
            try:
                manager.dispatch_sync(session_id, number, timeout=HANGS)
                acknowledged[session_id] = acknowledged.get(session_id, 0) + 1
            except (ValueError, errors.HandlerTimeoutError, errors.TurnEndedError):
                pass
        return acknowledged

    with tiny_switch_interval(), SessionManager(handler=handle, handler_timeout=0.003) as manager:
        counted = [call.result(30.0) for call in [Call(caller) for _ in range(6)]]
        stored = [(manager.peek_sync(f"user:{user}") or {"n": 0})["n"] for user in range(2)]

    assert stored == [sum(each.get(f"user:{user}", 0) for each in counted) for user in range(2)]
