"""G12, for managers on threads, and for threads beside a loop."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from actorbot import Context, MemorySessionStore, SessionManager, errors
from actorbot.testing import FaultyStore
from tests import inside
from tests.handlers import count, count_plainly
from tests.homes import both_homes, on_threads, tiny_switch_interval
from tests.tiers import tiers
from tests.waiting import HANGS, Call, until, until_sync


@pytest.mark.parametrize("times", tiers([20, 60]))
@pytest.mark.parametrize("verb", ["dispatch", "submit", "turn"])
def test_what_was_acknowledged_while_the_manager_closed_is_in_the_store(verb: str, times: int) -> None:
    def work(manager: SessionManager, session_id: str) -> int:
        acknowledged = 0
        receipts = []
        try:
            while True:
                if verb == "dispatch":
                    manager.dispatch_sync(session_id, "hi")
                    acknowledged += 1
                elif verb == "turn":
                    with manager.turn_sync(session_id) as turn:
                        count_plainly(turn)
                    acknowledged += 1
                else:
                    receipts.append(manager.submit_sync(session_id, "hi"))
        except (errors.ManagerClosedError, errors.OverloadedError):
            pass
        for receipt in receipts:  # each is answered, whatever the close has made of it
            try:
                receipt.result_sync(HANGS)
                acknowledged += 1
            except errors.ManagerClosedError:
                pass
        return acknowledged

    with tiny_switch_interval():
        for _ in range(times):
            store = MemorySessionStore()
            manager = SessionManager(store, handler=count_plainly).start_sync()
            calls = [Call(work, manager, f"user:{number}") for number in range(6)]
            threading.Event().wait(0.003)
            report = manager.close_sync()
            acknowledged = [call.result() for call in calls]
            stored = [(store.read(f"user:{number}") or {"n": 0})["n"] for number in range(6)]

            assert (stored, report.unflushed) == (acknowledged, ())


async def test_a_foreign_threads_event_that_reaches_the_loop_during_the_close_is_refused_or_kept() -> None:
    store = MemorySessionStore()
    manager = await SessionManager(store, handler=count).start()
    call = Call(manager.dispatch_sync, "ann", "hi")
    threading.Event().wait(0.1)  # the loop is held on purpose: the call waits in front of it
    await manager.close()
    error = await asyncio.to_thread(call.error)

    stored = (store.read("ann") or {"n": 0})["n"]
    assert stored == (1 if error is None else 0)
    assert error is None or isinstance(error, errors.ManagerClosedError)


@both_homes
def test_a_borrowed_turn_that_was_there_before_the_close_is_committed(home: Any) -> None:
    store, within, leave = MemorySessionStore(), threading.Event(), threading.Event()

    def borrow() -> None:
        with manager.turn_sync("ann") as turn:
            turn.session["n"] = 1
            within.set()
            leave.wait(HANGS)

    with home(store=store, close_timeout=3.0) as manager:
        borrowing = Call(borrow)
        within.wait(HANGS)
        if home is on_threads:
            closing = Call(manager.close_sync)
            until_sync(lambda: manager.health().reason == "the manager is closing")
        else:
            closing = Call(
                lambda: asyncio.run_coroutine_threadsafe(manager.close(), inside.home(manager).loop).result(HANGS)
            )
            until_sync(lambda: manager.health().reason == "the manager is closing")
        leave.set()

        assert borrowing.error() is None
        assert closing.result().clean
    assert (store.read("ann") or {}).get("n") == 1


def test_a_receipt_tells_its_outcome_during_and_after_the_close() -> None:
    go_on = threading.Event()

    def handle(context: Context) -> int:
        go_on.wait(HANGS)
        return count_plainly(context)

    manager = SessionManager(handler=handle).start_sync()
    receipt = manager.submit_sync("ann", "hi")
    closing = Call(manager.close_sync)
    until_sync(lambda: manager.health().reason == "the manager is closing")
    waiting = Call(receipt.result_sync, HANGS)
    go_on.set()

    assert closing.result().clean
    assert waiting.result() == 1
    assert receipt.result_sync() == 1


def test_two_threads_that_close_at_once_get_the_same_report() -> None:
    store = FaultyStore()
    manager = SessionManager(store, handler=count_plainly).start_sync()
    manager.dispatch_sync("ann", "hi")
    store.hold()
    calls = [Call(manager.close_sync) for _ in range(2)]
    until_sync(lambda: store.write_calls == 1)
    store.release()

    first, second = (call.result() for call in calls)
    assert first is second
    assert first.clean


async def test_a_close_that_was_cancelled_may_be_called_again() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count, close_timeout=5.0).start()
    await manager.dispatch("ann", "hi")
    store.hold()
    closing = asyncio.create_task(manager.close())
    await until(lambda: store.write_calls)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    store.release()

    assert (await asyncio.wait_for(manager.close(), HANGS)).clean
    assert (store.read("ann") or {}).get("n") == 1


def test_a_close_whose_store_does_not_answer_ends_in_time_and_says_what_is_left() -> None:
    store = FaultyStore()
    manager = SessionManager(store, handler=count_plainly, close_timeout=600.0).start_sync()
    for user in ("ann", "bob"):
        manager.dispatch_sync(user, "hi")
    store.hold()
    try:
        report = Call(manager.close_sync, timeout=0.3).result()
    finally:
        store.release()

    assert sorted(report.unflushed) == ["ann", "bob"]


def test_every_verb_of_a_closed_manager_says_so() -> None:
    manager = SessionManager(handler=count_plainly).start_sync()
    manager.close_sync()
    for verb in (
        lambda: manager.dispatch_sync("ann", "hi"), lambda: manager.submit_sync("ann", "hi"),
        lambda: manager.turn_sync("ann").__enter__(), manager.flush_sync, lambda: manager.peek_sync("ann"),
        lambda: manager.destroy_sync("ann"), manager.stats, lambda: list(manager.resident()), manager.start_sync,
    ):  # fmt: skip
        with pytest.raises(errors.ManagerClosedError):
            verb()
    assert manager.health().status == "failing"
    assert manager.close_sync() is manager.close_sync()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")
def test_a_manager_whose_loop_has_gone_says_so() -> None:
    loop = asyncio.new_event_loop()
    manager = loop.run_until_complete(SessionManager(handler=count).start())
    loop.close()
    try:
        with pytest.raises(errors.ManagerClosedError, match="loop"):
            Call(manager.dispatch_sync, "ann", "hi").result()
    finally:
        inside.end_threads(manager)
