"""What a handler sees and does in its turn, and what becomes of those who wait for it."""

from __future__ import annotations

import asyncio
import gc
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from contextvars import Context as ContextVars
from contextvars import ContextVar
from functools import partial
from typing import Any

import pytest

from actorbot import (
    DUPLICATE,
    Context,
    FlushPolicy,
    MemorySessionStore,
    SessionManager,
    errors,
)
from actorbot.testing import FaultyStore, ManualClock
from tests import inside
from tests.handlers import count, count_plainly
from tests.waiting import SOON, breathe, soon, until


async def test_a_handler_may_end_its_session() -> None:
    async def handle(context: Context) -> bool:
        context.session["n"] = 1
        if context.event == "/reset":
            context.end_session()
        return context.is_new

    async with SessionManager(handler=handle) as manager:
        assert [await manager.dispatch("ann", each) for each in ("hi", "hi", "/reset", "hi")] == [
            True,
            False,
            False,
            True,
        ]


async def test_a_task_keeps_no_more_than_the_last_of_its_turns() -> None:
    turns: list[weakref.ref[Context]] = []

    async def handle(context: Context) -> None:
        turns.append(weakref.ref(context))

    async with SessionManager(handler=handle) as manager:
        for _ in range(20):
            await manager.dispatch("ann", "hi")
        gc.collect()

        assert sum(turn() is not None for turn in turns) <= 1


async def test_an_event_that_fails_leaves_nothing_to_the_garbage_collector() -> None:
    async def fail(context: Context) -> None:
        raise ValueError(context.event)

    async def say() -> None:
        with suppress(ValueError):
            await manager.dispatch("ann", "hi")

    async with SessionManager(handler=fail) as manager:
        await say()
        gc.collect()
        gc.disable()
        try:
            for _ in range(100):
                await say()
            assert gc.collect() < 100
        finally:
            gc.enable()


def test_a_time_out_while_a_session_is_read_is_its_callers_alone() -> None:
    store = FaultyStore()
    with SessionManager(store, handler=count_plainly) as manager:
        store.hold()
        answers: list[Any] = []
        started = threading.Event()

        def impatient() -> None:
            started.set()
            try:
                manager.dispatch_sync("ann", "hi", timeout=0.3)
            except errors.TurnTimeoutError as error:
                answers.append(error)

        first = threading.Thread(target=impatient)
        first.start()
        started.wait(5.0)
        while not any(info.busy for _, info in manager.resident()):
            pass
        second = threading.Thread(target=lambda: answers.append(manager.dispatch_sync("ann", "hi")))
        second.start()
        first.join(5.0)
        store.release()
        second.join(5.0)

        assert [type(answers[0]), answers[1]] == [errors.TurnTimeoutError, 1]


def test_a_receipt_that_is_answered_while_the_manager_closes_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    with SessionManager(MemorySessionStore(), handler=count_plainly) as manager:
        receipt = manager.submit_sync("ann", "hi")
        outcome = inside.outcome(receipt)
        inside.set_outcome(receipt, Future())

        def close_meanwhile(*_: Any, **__: Any) -> None:
            outcome.result(timeout=5.0)
            inside.set_outcome(receipt, outcome)
            raise errors.ManagerClosedError("closed")

        with monkeypatch.context() as patch:
            inside.replace_wait(patch, manager, close_meanwhile)
            assert receipt.result_sync() == 1


async def test_a_session_may_be_updated_with_an_operator() -> None:
    async def handle(context: Context) -> None:
        context.session |= {"a": 1}

    async with SessionManager(handler=handle) as manager:
        await manager.dispatch("ann", "hi")
        assert await manager.peek("ann") == {"a": 1}


async def test_a_session_is_not_replaced_by_an_assignment() -> None:
    async def handle(context: Context) -> None:
        context.session = {"a": 1}

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(AttributeError, match="in place"):
            await manager.dispatch("ann", "hi")
        assert await manager.peek("ann") is None


async def test_the_event_is_passed_unchanged_and_a_borrowed_turn_has_none() -> None:
    event = object()

    async def handle(context: Context) -> Any:
        return context.event

    async with SessionManager(handler=handle) as manager:
        assert await manager.dispatch("ann", event) is event
        assert await (await manager.submit("ann", event)).result() is event
        assert await manager.dispatch("ann", None) is None
        async with manager.turn("ann") as turn:
            assert turn.event is None
            assert turn.session_id == "ann"
            assert not turn.is_new
            assert turn.last_activity is not None


async def test_two_turns_may_be_borrowed_at_once_and_end_alike() -> None:
    async with SessionManager() as manager:
        async with manager.turn("ann") as ann, manager.turn("bob") as bob:
            ann.session["n"], bob.session["n"] = 1, 2
        with pytest.raises(ValueError):
            async with manager.turn("ann") as ann, manager.turn("bob") as bob:
                ann.session["n"], bob.session["n"] = 3, 4
                raise ValueError
        assert [await manager.peek("ann"), await manager.peek("bob")] == [{"n": 1}, {"n": 2}]


async def test_functions_that_return_a_coroutine_are_as_good_as_async_def() -> None:
    said: list[str] = []

    async def send(_: str, text: str) -> None:
        said.append(text)

    async def handle(context: Context) -> str:
        context.send_text("hello")
        return "done"

    made: list[Any] = []

    def call(function: Callable[..., Any], *args: Any) -> Any:  # as many a decorator is written
        made.append(function(*args))
        return made[-1]

    try:
        async with SessionManager(handler=partial(call, handle), deliver=partial(call, send)) as manager:
            assert await soon(manager.dispatch("ann", "hi")) == "done"
        assert said == ["hello"]
    finally:
        for each in made:
            each.close()


@pytest.mark.parametrize("plain", [False, True])
async def test_the_callers_variables_are_seen_by_the_handler_however_it_is_called(plain: bool) -> None:
    request: ContextVar[str] = ContextVar("request", default="none")

    def look(context: Context) -> str:
        return request.get()

    async def look_there(context: Context) -> str:
        return request.get()

    async with SessionManager(handler=look if plain else look_there) as manager:
        request.set("r1")
        assert await manager.dispatch("ann", "hi") == "r1"
        receipt = await manager.submit("ann", "hi")
        request.set("r2")
        assert await receipt.result() == "r1"
        assert await asyncio.to_thread(manager.dispatch_sync, "ann", "hi") == "r2"


@pytest.mark.parametrize("plain", [False, True])
@pytest.mark.parametrize("told", [False, True])
async def test_the_callers_variables_reach_the_handler_and_deliver_also_after_a_wait_in_line(
    told: bool, plain: bool
) -> None:
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[tuple[str, str]] = []

    def answer(context: Context) -> None:
        seen.append((context.event, request.get()))
        context.send_text("hello")

    async def answer_there(context: Context) -> None:
        answer(context)

    async def deliver(_: str, text: str) -> None:
        seen.append((text, request.get()))

    async def call(name: str) -> None:
        request.set(name)
        if told:
            await (await manager.submit("ann", name)).result()
        else:
            await manager.dispatch("ann", name)
        await manager.delivered("ann")

    async with SessionManager(handler=answer if plain else answer_there, deliver=deliver) as manager:
        async with manager.turn("ann"):
            callers = [asyncio.create_task(call(name), context=ContextVars()) for name in ("r1", "r2")]
            await breathe()
        await soon(asyncio.gather(*callers))
    assert sorted(seen) == sorted([("r1", "r1"), ("r2", "r2"), ("hello", "r1"), ("hello", "r2")])


async def test_peek_shows_what_was_committed_while_a_turn_runs() -> None:
    async with SessionManager(handler=count) as manager:
        await manager.dispatch("ann", "hi")
        async with manager.turn("ann") as turn:
            turn.session["n"] = 50
            assert await manager.peek("ann") == {"n": 1}
        assert await manager.peek("ann") == {"n": 50}


async def test_a_handler_that_times_out_while_it_waits_for_another_session_withdraws() -> None:
    clock, release = ManualClock(), asyncio.Event()
    seen: list[Any] = []

    async def handle(context: Context) -> None:
        seen.append((context.session_id, context.event))
        if context.event == "stay":
            await release.wait()
        if context.session_id == "ann":
            await manager.dispatch("bob", "from ann")

    async with SessionManager(clock=clock, handler=handle, handler_timeout=10.0) as manager:
        ann = bob = None
        bob = asyncio.create_task(manager.dispatch("bob", "stay"))
        await until(lambda: manager.stats().running == 1)
        ann = asyncio.create_task(manager.dispatch("ann", "hi"))
        await until(lambda: manager.stats().running == 2)
        await until(lambda: dict(manager.resident())["bob"].waiting == 1)
        ann.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(ann)
        assert dict(manager.resident())["bob"].waiting == 0
        release.set()
        await soon(bob)
    assert seen == [("bob", "stay"), ("ann", "hi")]


async def test_what_was_withdrawn_leaves_its_place_in_the_mailbox() -> None:
    release = asyncio.Event()

    async def handle(context: Context) -> Any:
        await release.wait()
        return context.event

    async with SessionManager(handler=handle, max_mailbox=2) as manager:
        running = asyncio.create_task(manager.dispatch("ann", 0))
        await until(lambda: manager.stats().running == 1)
        waiting = [asyncio.create_task(manager.dispatch("ann", number)) for number in (1, 2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.sleep(0)
        another = asyncio.create_task(manager.dispatch("ann", 3))
        await asyncio.sleep(0)
        release.set()
        assert await soon(asyncio.gather(running, waiting[1], another)) == [0, 2, 3]


async def test_a_cancelled_dispatch_whose_plain_handler_had_no_thread_yet_never_runs() -> None:
    release = threading.Event()
    ran: list[Any] = []

    def handle(context: Context) -> None:
        ran.append(context.event)
        release.wait(SOON)

    async with SessionManager(handler=handle) as manager:
        blockers = [asyncio.create_task(manager.dispatch(f"user:{n}", n)) for n in range(32)]
        await until(lambda: len(ran) == 32)
        late = asyncio.create_task(manager.dispatch("ann", "withdrawn"))
        await until(lambda: manager.stats().running == 33)
        late.cancel()
        await asyncio.gather(late, return_exceptions=True)
        release.set()
        await soon(asyncio.gather(*blockers))
        await soon(manager.dispatch("bob", "last"))
    assert "withdrawn" not in ran


async def test_a_cancel_never_interrupts_a_write_through_commit() -> None:
    store = FaultyStore()
    said: list[str] = []

    async def handle(context: Context) -> int:
        context.send_text("hello")
        return await count(context)

    async with SessionManager(
        store, handler=handle, flush=FlushPolicy.write_through(), deliver=lambda _, text: said.append(text)
    ) as manager:
        assert await manager.dispatch("ann", "hi") == 1
        store.hold()
        calls = store.write_calls
        sending = asyncio.create_task(manager.dispatch("ann", "hi", event_id="1"))
        await until(lambda: store.write_calls > calls)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(sending)
        waiting = asyncio.create_task(manager.dispatch("ann", "hi", event_id="2"))
        await breathe()
        assert not waiting.done()
        store.release()
        assert await soon(waiting) == 3
        assert await manager.dispatch("ann", "hi", event_id="1") is DUPLICATE
    assert said == ["hello"] * 3


async def test_a_cancelled_durable_dispatch_keeps_what_it_committed() -> None:
    store = FaultyStore()
    said: list[str] = []

    async def handle(context: Context) -> int:
        context.send_text("hello")
        return await count(context)

    async with SessionManager(store, handler=handle, deliver=lambda _, text: said.append(text)) as manager:
        await manager.dispatch("ann", "hi", durable=True)
        await manager.delivered("ann")
        store.hold()
        calls = store.write_calls
        sending = asyncio.create_task(manager.dispatch("ann", "hi", event_id="1", durable=True))
        await until(lambda: store.write_calls > calls)
        sending.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(sending)
        assert said == ["hello"]
        store.release()
        assert await soon(manager.dispatch("ann", "hi", event_id="1")) is DUPLICATE
        assert await manager.peek("ann") == {"n": 2}
    assert said == ["hello", "hello"]
