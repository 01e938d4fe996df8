"""G4: a turn that ends badly leaves no trace, and what a handler keeps of a session changes nothing
later.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from typing import Any

import pytest

from actorbot import (
    Context,
    SessionManager,
    errors,
)
from actorbot.testing import ManualClock
from tests import inside
from tests.handlers import OddError, count, count_plainly
from tests.homes import both_homes
from tests.waiting import HANGS, Call, soon, until, until_sync


@pytest.mark.parametrize(
    ("failure", "arrives"),
    [
        (ValueError("no"), ValueError),
        (SystemExit(1), errors.HandlerExitError),
        (KeyboardInterrupt(), errors.HandlerExitError),
    ],
)
@pytest.mark.parametrize("plain", [False, True])
async def test_a_failing_handler_leaves_no_trace(failure: BaseException, arrives: type, plain: bool) -> None:
    said: list[str] = []

    def handle_plainly(context: Context) -> None:
        context.session["n"] = context.session.get("n", 0) + 1
        context.session.setdefault("list", []).append(1)
        context.send_text("hello")
        if context.event == "fail":
            raise failure

    async def handle(context: Context) -> None:
        handle_plainly(context)

    handler = handle_plainly if plain else handle
    async with SessionManager(handler=handler, deliver=lambda _, text: said.append(text)) as manager:
        await manager.dispatch("ann", "ok")
        with pytest.raises(arrives):
            await manager.dispatch("ann", "fail")
        await manager.dispatch("ann", "ok")

        assert await manager.peek("ann") == {"n": 2, "list": [1, 1]}
    assert said == ["hello", "hello"]


async def test_state_that_cannot_be_kept_fails_the_event_and_names_the_place() -> None:
    async def handle(context: Context) -> None:
        context.session["cart"] = [1, 2, object()]

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(errors.NotEncodableError) as caught:
            await manager.dispatch("ann", "hi")

        assert (caught.value.session_id, caught.value.path) == ("ann", "session['cart'][2]")
        assert str(caught.value).startswith("session 'ann': session['cart'][2]: is of type object")
        assert await manager.peek("ann") is None


async def test_a_cancelled_handler_is_rolled_back_and_the_next_event_runs() -> None:
    started = asyncio.Event()

    async def handle(context: Context) -> int:
        context.session["n"] = context.session.get("n", 0) + 1
        if context.event == "stay":
            started.set()
            await asyncio.Event().wait()
        return int(context.session["n"])

    async with SessionManager(handler=handle) as manager:
        staying = asyncio.create_task(manager.dispatch("ann", "stay", event_id="1"))
        await started.wait()
        waiting = asyncio.create_task(manager.dispatch("ann", "withdrawn"))
        await asyncio.sleep(0)
        waiting.cancel()
        staying.cancel()

        assert await manager.dispatch("ann", "go", event_id="1") == 1


@pytest.mark.parametrize("plain", [False, True])
async def test_a_handler_that_takes_too_long_loses_its_turn(plain: bool) -> None:
    clock = ManualClock()
    started, release = threading.Event(), threading.Event()
    late: list[BaseException] = []

    def stay_plainly(context: Context) -> None:
        context.session["n"] = 1
        if context.event == "stay":
            started.set()
            release.wait(20)
            try:
                context.session["n"] = 2
            except errors.TurnEndedError as error:
                late.append(error)

    async def stay(context: Context) -> None:
        context.session["n"] = 1
        if context.event == "stay":
            started.set()
            await asyncio.Event().wait()

    handler = stay_plainly if plain else stay
    async with SessionManager(handler=handler, handler_timeout=5.0, clock=clock) as manager:
        staying = asyncio.create_task(manager.dispatch("ann", "stay"))
        await until(started.is_set)
        await clock.advance(5.1)
        with pytest.raises(errors.HandlerTimeoutError):
            await staying

        assert await manager.peek("ann") is None
        await manager.dispatch("ann", "go")
        assert await manager.peek("ann") == {"n": 1}
        release.set()
    await until(lambda: len(late) == plain)  # by its own thread, which nobody waits for


async def test_a_borrowed_turn_commits_at_its_end_or_not_at_all() -> None:
    said: list[str] = []
    async with SessionManager(deliver=lambda _, text: said.append(text)) as manager:
        async with manager.turn("ann") as turn:
            turn.session["n"] = 1
            turn.send_text("hello")
        with pytest.raises(ValueError):
            async with manager.turn("ann") as turn:
                turn.session["n"] = 2
                turn.send_text("never")
                raise ValueError

        assert await manager.peek("ann") == {"n": 1}
    assert said == ["hello"]


async def test_a_borrowed_turn_that_took_too_long_says_that_and_nothing_else() -> None:
    clock = ManualClock()
    async with SessionManager(clock=clock, handler_timeout=5.0) as manager:
        with pytest.raises(errors.HandlerTimeoutError) as raised:
            async with manager.turn("ann"):
                await clock.advance(6.0)
        assert raised.value.__cause__ is None


async def test_a_handler_that_will_not_be_cancelled_loses_its_session_in_the_end() -> None:
    clock = ManualClock()
    release = asyncio.Event()

    async def handle(context: Context) -> int:
        if context.event == "stubborn":
            while not release.is_set():
                try:
                    await release.wait()
                except asyncio.CancelledError:
                    continue
        return await count(context)

    async with SessionManager(handler=handle, handler_timeout=10.0, clock=clock) as manager:
        stubborn = asyncio.create_task(manager.dispatch("ann", "stubborn"))
        await asyncio.sleep(0)
        await until(lambda: manager.stats().running)
        await clock.advance(30.0)

        assert await asyncio.wait_for(manager.dispatch("ann", "hi"), 10) == 1
        release.set()
        with pytest.raises(errors.HandlerTimeoutError):
            await stubborn
        assert await manager.peek("ann") == {"n": 1}


def test_a_thread_interrupted_while_it_waits_leaves_its_session_free(monkeypatch: pytest.MonkeyPatch) -> None:
    entered, release = threading.Event(), threading.Event()

    def handle(context: Context) -> int:
        if context.event == "stay":
            entered.set()
            release.wait(20)
        return count_plainly(context)

    with SessionManager(handler=handle) as manager:
        staying = threading.Thread(target=manager.dispatch_sync, args=("ann", "stay"))
        staying.start()
        entered.wait(20)

        def interrupted() -> Any:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(inside.home(manager).pool, "blocking", interrupted)
            with pytest.raises(KeyboardInterrupt):
                manager.dispatch_sync("ann", "hi")
        release.set()
        staying.join()

        assert manager.dispatch_sync("ann", "hi", timeout=5.0) == 2


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("how", ["dispatch", "submit", "turn"])
async def test_whatever_ends_a_turn_badly_leaves_the_state_and_the_next_event_alone(how: str, plain: bool) -> None:
    said: list[str] = []
    bad: list[BaseException] = [
        ValueError(),
        SystemExit(2),
        KeyboardInterrupt(),
        GeneratorExit(),
        asyncio.CancelledError(),
    ]

    def spoil(context: Context) -> None:
        context.session["list"].append("spoiled")
        context.session["more"] = 1
        context.send_text("spoiled")

    def handle_plainly(context: Context) -> int:
        context.session.setdefault("list", [])
        if isinstance(context.event, BaseException):
            spoil(context)
            raise context.event
        return len(context.session["list"])

    async def handle(context: Context) -> int:
        await asyncio.sleep(0)
        return handle_plainly(context)

    async with SessionManager(
        handler=handle_plainly if plain else handle, deliver=lambda _, text: said.append(text)
    ) as manager:
        await manager.dispatch("ann", "hi")
        for failure in bad:
            with pytest.raises(BaseException) as caught:
                if how == "dispatch":
                    await manager.dispatch("ann", failure, event_id="x")
                elif how == "submit":
                    await (await manager.submit("ann", failure, event_id="x")).result(timeout=5.0)
                else:
                    async with manager.turn("ann", event_id="x") as turn:
                        spoil(turn)
                        raise failure
            # In a borrowed turn it is the program that is told to end, not a handler.
            exits = isinstance(failure, SystemExit | KeyboardInterrupt) and how != "turn"
            expected = errors.HandlerExitError if exits else type(failure)
            assert type(caught.value) is expected
            assert await manager.peek("ann") == {"list": []}
            assert await soon(manager.dispatch("bob", "hi")) == 0
        assert await soon(manager.dispatch("ann", "hi", event_id="x")) == 0
    assert said == []


@pytest.mark.parametrize("failure", [ValueError("no"), RuntimeError("no"), TimeoutError("no")])
async def test_what_a_handler_raises_arrives_unchanged(failure: Exception) -> None:
    async def handle(context: Context) -> None:
        raise failure from LookupError("why")

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(type(failure)) as caught:
            await manager.dispatch("ann", "hi")
        assert caught.value is failure
        assert isinstance(failure.__cause__, LookupError)
        with pytest.raises(type(failure)) as caught:
            async with manager.turn("ann"):
                raise failure
        assert caught.value is failure
        assert isinstance(failure.__cause__, LookupError)
        with pytest.raises(type(failure)) as caught:
            await (await manager.submit("ann", "hi")).result()
        assert caught.value is failure


@pytest.mark.parametrize("plain", [False, True])
async def test_an_odd_error_of_a_handler_is_its_callers(plain: bool) -> None:
    def refuse(context: Context) -> None:
        context.session["n"] = 1
        raise OddError

    async def refuse_too(context: Context) -> None:
        refuse(context)

    async with SessionManager(handler=refuse if plain else refuse_too) as manager:
        for _ in range(2):
            with pytest.raises(OddError):
                await soon(manager.dispatch("ann", "hi"))
        with pytest.raises(OddError):
            await soon((await manager.submit("ann", "hi")).result())
        assert await manager.peek("ann") is None


async def test_kept_references_change_nothing() -> None:
    kept: list[Any] = []

    async def handle(context: Context) -> None:
        kept.append(context.session)
        kept.append(context.session.setdefault("list", []))
        kept.append(context.session.setdefault("dict", {"a": [1]}))
        kept.append(context)

    async with SessionManager(handler=handle) as manager:
        await manager.dispatch("ann", "hi")
        with pytest.raises(errors.TurnEndedError):
            kept[3].session["x"] = 1
        with pytest.raises(errors.TurnEndedError):
            kept[3].send_text("late")
        kept[0]["late"] = 1
        kept[1].append("late")
        kept[2]["a"].append("late")
        state = await manager.peek("ann")
        assert state == {"list": [], "dict": {"a": [1]}}
        assert state is not None
        state["list"].append("late")
        await manager.flush()
        await manager.dispatch("ann", "hi")
        assert await manager.peek("ann") == {"list": [], "dict": {"a": [1]}}


async def test_a_borrowed_turn_that_takes_too_long_is_taken_back() -> None:
    clock = ManualClock()
    async with SessionManager(handler=count, clock=clock, handler_timeout=5.0) as manager:
        with pytest.raises(errors.HandlerTimeoutError):
            async with manager.turn("ann") as turn:
                turn.session["n"] = 50
                await clock.advance(5.1)
                assert await soon(manager.dispatch("ann", "hi")) == 1
                with pytest.raises(errors.TurnEndedError):
                    turn.session["n"] = 51
        assert await manager.peek("ann") == {"n": 1}


async def test_a_handler_that_swallows_its_cancellation_leaves_no_mark_on_its_callers_task() -> None:
    clock = ManualClock()

    async def handle(context: Context) -> None:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            pass

    async def call() -> int:
        with pytest.raises(errors.HandlerTimeoutError):
            await manager.dispatch("ann", "hi")
        task = asyncio.current_task()
        assert task is not None
        return task.cancelling()

    async with SessionManager(handler=handle, handler_timeout=5.0, clock=clock) as manager:
        calling = asyncio.create_task(call())
        await until(lambda: manager.stats().running == 1)
        await clock.advance(5.1)
        assert await soon(calling) == 0


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
            # To the thread that waits: sent to another one, it is heard when the wait is over, in
            # whatever line comes next.
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
