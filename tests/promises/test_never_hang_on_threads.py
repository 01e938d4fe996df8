"""G13, for managers on threads, and for threads beside a loop."""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from actorbot import Context, SessionManager, errors
from actorbot.testing import FaultyStore, ManualClock
from tests.handlers import count, count_plainly
from tests.homes import both_homes, on_a_loop
from tests.waiting import HANGS, Call, until_sync


@both_homes
def test_every_way_to_wait_for_ones_own_turn_is_refused_at_once(home: Any) -> None:
    with home(handler=count_plainly, clock=ManualClock()) as manager, manager.turn_sync("ann") as turn:
        turn.session["mine"] = 1  # on a clock that stands still, only a refusal at once ends a wait
        for wait in (
            lambda: manager.dispatch_sync("ann", "hi"),
            lambda: manager.turn_sync("ann").__enter__(),
            lambda: manager.destroy_sync("ann"),
            lambda: manager.submit_sync("ann", "hi").result_sync(timeout=HANGS),
            lambda: manager.submit_sync("ann", "hi").durable_sync(timeout=HANGS),
        ):
            with pytest.raises(errors.DeadlockError, match="'ann'"):
                wait()


@both_homes
@pytest.mark.parametrize("sessions", [2, 3, 8])
def test_a_circle_of_threads_that_close_it_at_the_same_moment_is_refused(home: Any, sessions: int) -> None:
    barrier = threading.Barrier(sessions)

    def handle(context: Context) -> str:
        if context.event == "first":
            barrier.wait(HANGS)
            following = (int(context.session_id) + 1) % sessions
            manager.dispatch_sync(str(following), "second")
        return "served"

    with home(handler=handle) as manager:
        calls = [Call(manager.dispatch_sync, str(number), "first") for number in range(sessions)]
        ended = [call.error() for call in calls]

        assert any(isinstance(error, errors.DeadlockError) for error in ended)
        assert all(error is None or isinstance(error, errors.DeadlockError) for error in ended)
        assert [manager.dispatch_sync(str(number), "next") for number in range(sessions)] == ["served"] * sessions


@pytest.mark.parametrize("passes", range(5))  # of the loop, from the turn's end until the loop is busy
def test_a_thread_that_has_given_up_gets_no_turn_from_a_loop_that_was_busy_meanwhile(passes: int) -> None:
    held, busy, go_on, decided = (threading.Event() for _ in range(4))
    free = asyncio.Event()

    async def handle(context: Context) -> None:
        if context.event == "hold":
            held.set()
            await free.wait()
        if context.event == "block":
            free.set()
            for _ in range(passes):
                await asyncio.sleep(0)
            busy.set()
            go_on.wait(HANGS)

    def borrow() -> None:
        try:
            with manager.turn_sync("ann", timeout=0.2):
                decided.set()
        except errors.TurnTimeoutError:
            decided.set()

    with on_a_loop(handler=handle, clock=ManualClock()) as manager:  # no `handler_timeout` ends a turn
        holding = Call(manager.dispatch_sync, "ann", "hold")
        held.wait(HANGS)
        borrowing = Call(borrow)
        until_sync(lambda: decided.is_set() or dict(manager.resident())["ann"].waiting)
        blocked = Call(manager.dispatch_sync, "bob", "block")
        busy.wait(HANGS)
        decided.wait(HANGS)
        go_on.set()
        borrowing.result()
        blocked.result()
        holding.result()
        Call(manager.dispatch_sync, "ann", "hi").result()


@both_homes
def test_a_circle_through_receipts_is_refused_too(home: Any) -> None:
    barrier = threading.Barrier(2)

    def handle(context: Context) -> None:
        if context.event == "first":
            barrier.wait(HANGS)
            other = {"ann": "bob", "bob": "ann"}[context.session_id]
            manager.submit_sync(other, "second").result_sync(timeout=5.0)

    with home(handler=handle, close_timeout=1.0, clock=ManualClock()) as manager:
        calls = [Call(manager.dispatch_sync, session_id, "first") for session_id in ("ann", "bob")]

        ended = [call.error() for call in calls]
        assert any(isinstance(error, errors.DeadlockError) for error in ended)


@both_homes
def test_a_told_event_that_waits_for_the_turn_which_waits_for_its_receipt_is_refused(home: Any) -> None:
    def handle(context: Context) -> None:
        if context.session_id == "ann":
            manager.submit_sync("bob", "hi").result_sync(timeout=5.0)
        else:
            manager.dispatch_sync("ann", "again", timeout=5.0)

    with home(handler=handle, close_timeout=1.0, clock=ManualClock()) as manager:
        call = Call(manager.dispatch_sync, "ann", "hi")

        assert isinstance(call.error(), errors.DeadlockError)


async def test_a_thread_that_a_handler_waits_for_may_not_wait_for_its_turn() -> None:
    async def handle(context: Context) -> None:
        await asyncio.to_thread(manager.dispatch_sync, context.session_id, "again")

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(errors.DeadlockError):
            await asyncio.wait_for(manager.dispatch("ann", "hi"), HANGS)


async def test_a_circle_of_a_task_and_a_thread_is_refused() -> None:
    within, tried = threading.Event(), asyncio.Event()

    def borrow() -> str:
        with manager.turn_sync("bob"):
            within.set()
            loop.call_soon_threadsafe(tried.set)
            return str(manager.dispatch_sync("ann", "hi"))

    async def handle(context: Context) -> str:
        if context.event == "first":
            await tried.wait()
            async with manager.turn("bob"):
                return "first"
        return "hi"

    loop = asyncio.get_running_loop()
    async with SessionManager(handler=handle) as manager:
        outcomes = await asyncio.wait_for(
            asyncio.gather(manager.dispatch("ann", "first"), asyncio.to_thread(borrow), return_exceptions=True),
            HANGS,
        )
    assert any(isinstance(outcome, errors.DeadlockError) for outcome in outcomes)


def test_diamonds_are_not_circles() -> None:
    def handle(context: Context) -> Any:
        if context.session_id == "hub":
            return count_plainly(context)
        return manager.dispatch_sync("hub" if context.session_id.startswith("leaf") else f"leaf:{context.event}", "hi")

    with SessionManager(handler=handle) as manager:
        calls = [Call(manager.dispatch_sync, f"root:{number}", number % 3) for number in range(12)]

        assert sorted(call.result() for call in calls) == list(range(1, 13))


def test_a_coroutine_that_blocks_the_private_loop_releases_its_caller_at_the_time_out() -> None:
    clock, started, release = ManualClock(), threading.Event(), threading.Event()

    async def handle(context: Context) -> int:
        if context.event == "block":
            context.session["n"] = 100
            started.set()
            release.wait(20)
        return count_plainly(context)

    with SessionManager(handler=handle, handler_timeout=5.0, clock=clock) as manager:
        blocked = Call(manager.dispatch_sync, "ann", "block")
        started.wait(HANGS)
        clock.advance_sync(5.1)
        try:
            assert isinstance(blocked.error(3.0), errors.HandlerTimeoutError)
        finally:
            release.set()

        assert manager.dispatch_sync("ann", "hi") == 1


def test_who_waits_behind_a_handler_that_takes_too_long_is_served_from_the_committed_state() -> None:
    clock, started, release = ManualClock(), threading.Event(), threading.Event()
    late: list[str] = []

    def handle(context: Context) -> int:
        if context.event != "stay":
            return count_plainly(context)
        session = context.session
        session["n"] = 100
        started.set()
        release.wait(20)
        session["n"] = 200
        for use in (lambda: context.session, lambda: context.send_text("late"), context.end_session):
            try:
                use()
            except errors.TurnEndedError as error:
                late.append(error.session_id)
        return 200

    with SessionManager(handler=handle, handler_timeout=5.0, clock=clock, deliver=lambda *_: None) as manager:
        assert manager.dispatch_sync("ann", "hi") == 1
        staying = Call(manager.dispatch_sync, "ann", "stay", event_id="one")
        started.wait(HANGS)
        waiting = Call(manager.dispatch_sync, "ann", "hi")
        until_sync(lambda: next(manager.resident())[1].waiting == 1)
        clock.advance_sync(5.1)

        assert waiting.result() == 2
        assert manager.dispatch_sync("ann", "hi") == 3
        release.set()
        assert isinstance(staying.error(), errors.HandlerTimeoutError)
        assert manager.dispatch_sync("ann", "hi", event_id="one") == 4
        assert late == ["ann"] * 3


@pytest.mark.parametrize("handler", [count, count_plainly])
@both_homes
def test_a_time_out_of_a_call_that_waits_for_its_turn_withdraws_it(home: Any, handler: Any) -> None:
    with home(handler=handler) as manager:
        with ThreadPoolExecutor(1) as elsewhere, manager.turn_sync("ann"):
            for wait in (
                lambda: manager.dispatch_sync("ann", "hi", timeout=0.05),
                lambda: manager.turn_sync("ann", timeout=0.05).__enter__(),
            ):
                with pytest.raises(errors.TurnTimeoutError, match="'ann'"):
                    elsewhere.submit(wait).result(HANGS)
            receipt = manager.submit_sync("ann", "hi")
            with pytest.raises(errors.TurnTimeoutError, match="'ann'"):
                elsewhere.submit(receipt.result_sync, 0.05).result(HANGS)

        assert receipt.result_sync(HANGS) == 1
        receipt.durable_sync(HANGS)
        assert manager.peek_sync("ann") == {"n": 1}


@both_homes
def test_a_time_out_holds_while_the_session_is_being_read(home: Any) -> None:
    store = FaultyStore()
    with home(store=store, handler=count_plainly) as manager:
        store.hold()
        call = Call(manager.dispatch_sync, "ann", "hi", timeout=0.1)
        try:
            assert isinstance(call.error(), errors.TurnTimeoutError)
        finally:
            store.release()

        assert manager.dispatch_sync("ann", "hi") == 1


@pytest.mark.parametrize("handlers", [40, 300])
async def test_more_handlers_than_the_pool_has_threads_may_wait_for_one_another(handlers: int) -> None:
    def handle(context: Context) -> Any:
        if context.session_id == "hub":
            return count_plainly(context)
        if context.event % 2:
            return manager.dispatch_sync("hub", "hi")
        return manager.submit_sync("hub", "hi").result_sync(HANGS)

    async with SessionManager(handler=handle, max_mailbox=1_000) as manager:
        calls = [manager.dispatch(f"user:{number}", number) for number in range(handlers)]
        answers = await asyncio.wait_for(asyncio.gather(*calls), 20)

    assert sorted(answers) == list(range(1, handlers + 1))
