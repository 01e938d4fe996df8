"""What a threaded bot relies on, and one that mixes threads with a loop: circles, bounds, time-outs, interrupts, closes."""

from __future__ import annotations

import asyncio
import itertools
import signal
import threading
from concurrent.futures import ThreadPoolExecutor
from contextvars import ContextVar
from time import monotonic
from typing import Any

import pytest

from actorbot import Context, FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot.testing import FaultyStore, ManualClock, RecordingStore
from tests import inside
from tests.handlers import count, count_plainly
from tests.homes import both_homes, on_threads, tiny_switch_interval
from tests.waiting import HANGS, Call, until_sync

# --- circles ----------------------------------------------------------------------------------------------------------


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


# --- the private loop of a threaded manager ---------------------------------------------------------------------------


def test_a_sync_verb_on_the_private_loop_is_refused_as_on_any_home_loop() -> None:
    async def handle(context: Context) -> Any:
        if context.session_id == "ann":
            with pytest.raises(errors.WrongLoopError):
                manager.dispatch_sync("bob", "hi", timeout=1.0)
            with pytest.raises(errors.WrongLoopError):
                manager.peek_sync("bob")
            return await asyncio.to_thread(manager.dispatch_sync, "bob", "hi")
        return "served"

    manager = SessionManager(handler=handle, close_timeout=0.5).start_sync()
    try:
        assert Call(manager.dispatch_sync, "ann", "hi").result(5.0) == "served"
    finally:
        manager.close_sync()


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


# --- time-outs --------------------------------------------------------------------------------------------------------


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


@both_homes
def test_a_time_out_stops_a_coroutine_and_rolls_it_back(home: Any) -> None:
    async def handle(context: Context) -> int:
        n = await count(context)
        if context.event == "stay":
            await asyncio.Event().wait()
        return n

    with home(handler=handle, close_timeout=0.5) as manager:
        assert isinstance(Call(manager.dispatch_sync, "ann", "stay", timeout=0.1).error(), errors.TurnTimeoutError)
        assert manager.dispatch_sync("ann", "hi") == 1


@both_homes
def test_a_time_out_error_of_the_handlers_own_is_not_taken_for_ours(home: Any) -> None:
    def handle(_: Context) -> None:
        raise TimeoutError("the handler's own")

    with home(handler=handle) as manager:
        for wait in (
            lambda: manager.dispatch_sync("ann", "hi", timeout=HANGS),
            lambda: manager.submit_sync("ann", "hi").result_sync(),
            lambda: manager.submit_sync("ann", "hi").result_sync(HANGS),
        ):
            with pytest.raises(TimeoutError, match="the handler's own") as caught:
                wait()
            assert type(caught.value) is TimeoutError


# --- bounds -----------------------------------------------------------------------------------------------------------


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


# --- interrupts -------------------------------------------------------------------------------------------------------


@both_homes
def test_ctrl_c_in_a_thread_that_waits_withdraws_its_event(home: Any) -> None:
    within, leave = threading.Event(), threading.Event()

    def stay() -> None:
        with manager.turn_sync("ann"):
            within.set()
            leave.wait(HANGS)

    with home(handler=count_plainly) as manager:
        staying = Call(stay)
        within.wait(HANGS)

        def interrupt() -> None:
            until_sync(lambda: next(manager.resident())[1].waiting == 1)
            # To the thread that waits: sent to another one, it is heard when the wait is over, in whatever line comes next.
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)

        interrupting = Call(interrupt)
        with pytest.raises(KeyboardInterrupt):
            manager.dispatch_sync("ann", "hi", timeout=HANGS)
        interrupting.result()
        leave.set()
        staying.result()

        assert manager.dispatch_sync("ann", "hi") == 1


@both_homes
@pytest.mark.parametrize("leaving", [KeyboardInterrupt(), SystemExit(3)])
def test_a_program_told_to_end_inside_a_borrowed_turn_ends(home: Any, leaving: BaseException) -> None:
    with home() as manager:
        with pytest.raises(type(leaving)) as caught, manager.turn_sync("ann") as turn:
            turn.session["n"] = 1
            raise leaving

        assert caught.value is leaving
        assert manager.peek_sync("ann") is None


@both_homes
def test_what_a_plain_handler_raises_arrives_unchanged(home: Any) -> None:
    class OddError(Exception):
        pass

    odd = OddError("x")

    def handle(context: Context) -> None:
        context.session["n"] = 1
        raise odd

    with home(handler=handle) as manager:
        with pytest.raises(OddError) as caught:
            manager.dispatch_sync("ann", "hi")
        assert caught.value is odd
        with pytest.raises(OddError) as caught:
            manager.submit_sync("ann", "hi").result_sync(HANGS)
        assert caught.value is odd
        assert manager.peek_sync("ann") is None


# --- what a handler sees ----------------------------------------------------------------------------------------------

request: ContextVar[str] = ContextVar("request", default="unset")


async def see(_: Context) -> str:
    return request.get()


def see_plainly(_: Context) -> str:
    return request.get()


@both_homes
@pytest.mark.parametrize("handler", [see, see_plainly])
def test_the_calling_threads_context_variables_reach_the_handler(home: Any, handler: Any) -> None:
    with home(handler=handler) as manager:
        token = request.set("r1")
        try:
            assert manager.dispatch_sync("ann", "hi") == "r1"
            receipt = manager.submit_sync("ann", "hi")
        finally:
            request.reset(token)
        assert receipt.result_sync(HANGS) == "r1"
        assert manager.dispatch_sync("ann", "hi") == "unset"


# --- closing ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("verb", ["dispatch", "submit", "turn"])
def test_what_was_acknowledged_while_the_manager_closed_is_in_the_store(verb: str) -> None:
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
        for _ in range(60):
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
    while not store.write_calls:
        await asyncio.sleep(0)
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


# --- leaving memory ---------------------------------------------------------------------------------------------------


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
