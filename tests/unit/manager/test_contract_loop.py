"""The contract of `SessionManager` at home on an event loop, measured through its public verbs alone."""

from __future__ import annotations

import asyncio
import os
import random
import threading
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from actorbot import DUPLICATE, Context, FileSessionStore, FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot.testing import FaultyStore, ManualClock, RecordingStore
from tests import inside
from tests.backends import DictStore
from tests.handlers import OddError, count
from tests.programs import run_program
from tests.waiting import SOON, breathe, soon, until


def other(session_id: str) -> str:
    return {"ann": "bob", "bob": "ann"}[session_id]


class StuckOnce(DictStore):
    """Its first write hangs until `go_on`; reads fail when told to."""

    def __init__(self) -> None:
        super().__init__()
        self.stuck = True
        self.failing_reads = 0
        self.go_on = threading.Event()
        self.landed = threading.Event()

    def read(self, session_id: str) -> dict[str, Any] | None:
        if self.failing_reads:
            self.failing_reads -= 1
            raise ConnectionError("told to fail")
        return super().read(session_id)

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        if self.stuck:
            self.stuck = False
            self.go_on.wait(SOON)
            super().write(session_id, data)
            self.landed.set()
        else:
            super().write(session_id, data)


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


class Hanging(DictStore):
    """Calls about the session `bad` hang while `hung` names their verb, until `go_on`."""

    def __init__(self, *hung: str) -> None:
        super().__init__()
        self.hung = set(hung)
        self.go_on = threading.Event()

    def read(self, session_id: str) -> dict[str, Any] | None:
        if session_id == "bad" and "read" in self.hung:
            self.go_on.wait(SOON)
        return super().read(session_id)

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        if session_id == "bad" and "write" in self.hung:
            self.go_on.wait(SOON)
        super().write(session_id, data)


# --- turns: all or nothing --------------------------------------------------------------------------------------------


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


async def test_a_handler_cancelled_by_wait_for_is_rolled_back() -> None:
    async def handle(context: Context) -> int:
        n = await count(context)
        if context.event == "stay":
            await asyncio.Event().wait()
        return n

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(manager.dispatch("ann", "stay", event_id="1"), 0.02)
        assert await manager.dispatch("ann", "hi", event_id="1") == 1


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


async def test_peek_shows_what_was_committed_while_a_turn_runs() -> None:
    async with SessionManager(handler=count) as manager:
        await manager.dispatch("ann", "hi")
        async with manager.turn("ann") as turn:
            turn.session["n"] = 50
            assert await manager.peek("ann") == {"n": 1}
        assert await manager.peek("ann") == {"n": 50}


# --- time-outs and withdrawals ----------------------------------------------------------------------------------------


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


async def test_a_read_that_is_cancelled_by_its_first_caller_serves_the_next() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.hold()
        first = asyncio.create_task(manager.dispatch("ann", 1))
        await until(lambda: store.read_calls == 1)
        second = asyncio.create_task(manager.dispatch("ann", 2))
        await asyncio.sleep(0)
        first.cancel()
        await asyncio.sleep(0)
        store.release()
        assert await soon(second) == 1


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


@pytest.mark.parametrize("what", ["handler", "deliver"])
async def test_plain_code_that_never_returns_takes_the_threads_of_nobody_else(what: str) -> None:
    clock, go_on = ManualClock(), threading.Event()
    entered: list[int] = []

    def stay() -> None:
        entered.append(1)
        go_on.wait(SOON)

    def handle(context: Context) -> str:
        if context.event == "stay":
            if what == "handler":
                stay()
            else:
                context.send_text("stay")
        return "done"

    def deliver(_: str, __: str) -> None:
        stay()

    async with SessionManager(
        handler=handle, deliver=deliver, clock=clock, handler_timeout=5.0, close_timeout=0.2
    ) as manager:
        try:
            staying = [asyncio.create_task(manager.dispatch(f"user:{n}", "stay")) for n in range(32)]
            await until(lambda: len(entered) == 32)
            await clock.advance(5.1)
            await soon(asyncio.gather(*staying, return_exceptions=True))
            assert await asyncio.wait_for(manager.dispatch("ann", "hi"), 2.0) == "done"
        finally:
            go_on.set()


async def test_a_reply_that_waits_for_a_thread_gets_one_when_those_before_it_are_lost() -> None:
    clock, go_on = ManualClock(), threading.Event()
    said: list[str] = []

    async def handle(context: Context) -> None:
        context.send_text(context.event)

    def deliver(_: str, text: str) -> None:
        said.append(text)
        if text == "stay":
            go_on.wait(SOON)

    async with SessionManager(handler=handle, deliver=deliver, clock=clock, handler_timeout=5.0) as manager:
        try:
            for number in range(32):
                await manager.dispatch(f"user:{number}", "stay")
            await until(lambda: len(said) == 32)
            await manager.dispatch("ann", "hi")
            await breathe()
            assert "hi" not in said
            await clock.advance(5.1)
            await until(lambda: "hi" in said)
        finally:
            go_on.set()


async def test_an_error_hook_that_never_ends_does_not_hold_its_caller() -> None:
    async def handle(context: Context) -> None:
        raise ValueError("no")

    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    async with SessionManager(handler=handle, on_error=hang, handler_timeout=0.1, close_timeout=0.1) as manager:
        with pytest.raises(ValueError):
            await asyncio.wait_for(manager.dispatch("ann", "hi"), 3.0)


async def test_an_odd_error_of_an_error_hook_is_not_its_callers() -> None:
    async def handle(context: Context) -> None:
        raise ValueError("no")

    async def refuse(*_: Any) -> None:
        raise OddError

    async with SessionManager(handler=handle, on_error=refuse) as manager:
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "hi")


# --- replies: the gate, the order, the delivery -----------------------------------------------------------------------


async def test_replies_go_to_deliver_in_order_and_a_dispatch_does_not_wait_for_them() -> None:
    hold = asyncio.Event()
    said: list[Any] = []
    failed: list[Any] = []

    async def deliver(_: str, message: Any) -> None:
        await hold.wait()
        if message == "1a":
            raise ConnectionError("gone")
        said.append(message)

    async def handle(context: Context) -> None:
        context.send_text(f"{context.event}a")
        context.send({"b": context.event})

    async def note(context: Context, error: BaseException) -> None:
        failed.append((context.session_id, type(error)))

    async with SessionManager(handler=handle, deliver=deliver, on_error=note) as manager:
        for number in range(3):
            await soon(manager.dispatch("ann", number))
        assert manager.stats().replies_waiting == 1
        assert said == []
        hold.set()
    assert said == ["0a", {"b": 0}, {"b": 1}, "2a", {"b": 2}]
    assert failed == [("ann", ConnectionError)]


async def test_a_reply_without_anywhere_to_go_fails_the_event() -> None:
    async def handle(context: Context) -> None:
        context.session["n"] = 1
        context.send_text("hello")

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(errors.ConfigError, match="deliver"):
            await manager.dispatch("ann", "hi")
        assert await manager.peek("ann") is None


async def test_a_failed_ungated_reply_does_not_open_the_gate_for_the_gated_ones_of_its_turn() -> None:
    said: list[str] = []
    reported = asyncio.Event()

    async def deliver(_: str, text: str) -> None:
        if text == "now":
            raise ConnectionError("gone")
        said.append(text)

    async def note(_: Context, __: BaseException) -> None:
        reported.set()

    async def handle(context: Context) -> None:
        context.send_text("now", gated=False)
        await reported.wait()
        context.send_text("gated")
        await asyncio.sleep(0)
        raise ValueError("no")

    async with SessionManager(handler=handle, deliver=deliver, on_error=note) as manager:
        with pytest.raises(ValueError):
            await soon(manager.dispatch("ann", "hi"))
    assert said == []


@pytest.mark.parametrize("how", ["time-out", "cancel"])
async def test_a_plain_handler_that_lost_its_turn_cannot_send_any_more(how: str) -> None:
    clock = ManualClock()
    entered, release, over = threading.Event(), threading.Event(), threading.Event()
    said: list[str] = []
    raised: list[BaseException] = []

    def handle(context: Context) -> None:
        entered.set()
        release.wait(SOON)
        for gated in (True, False):
            try:
                context.send_text(f"gated={gated}", gated=gated)
            except errors.TurnEndedError as error:
                raised.append(error)
        over.set()

    async with SessionManager(
        handler=handle, deliver=lambda _, text: said.append(text), on_error=lambda *_: None, clock=clock,
        handler_timeout=5.0,
    ) as manager:  # fmt: skip
        staying = asyncio.create_task(manager.dispatch("ann", "hi"))
        await until(entered.is_set)
        if how == "cancel":
            staying.cancel()
        else:
            await clock.advance(5.1)
        with pytest.raises((errors.HandlerTimeoutError, asyncio.CancelledError)):
            await soon(staying)
        release.set()
        await until(over.is_set)
    assert said == []
    assert len(raised) == 2


async def test_a_turn_that_is_over_sends_nothing_through_a_kept_context() -> None:
    kept: list[Context] = []
    said: list[str] = []

    async def handle(context: Context) -> None:
        kept.append(context)

    async with SessionManager(handler=handle, deliver=lambda _, text: said.append(text)) as manager:
        await manager.dispatch("ann", "hi")
        with pytest.raises(errors.TurnEndedError):
            kept[0].send_text("late")
        with pytest.raises(errors.TurnEndedError):
            kept[0].send_text("late", gated=False)
    assert said == []


async def test_an_apology_that_cannot_be_delivered_is_not_apologised_for_without_end() -> None:
    delivered: list[str] = []

    async def deliver(_: str, text: str) -> None:
        delivered.append(text)
        if len(delivered) > 100:
            await asyncio.Event().wait()
        raise ConnectionError("gone")

    async def apologise(context: Context, _: BaseException) -> None:
        context.send_text("sorry")

    async def handle(context: Context) -> None:
        raise ValueError("no")

    async with SessionManager(handler=handle, deliver=deliver, on_error=apologise, close_timeout=0.2) as manager:
        with pytest.raises(ValueError):
            await soon(manager.dispatch("ann", "hi"))
        await breathe()
    assert len(delivered) <= 2


async def test_an_apology_comes_after_the_replies_that_were_sent_before() -> None:
    said: list[str] = []

    async def deliver(_: str, text: str) -> None:
        if text == "slow":
            await breathe()
        said.append(text)

    async def apologise(context: Context, _: BaseException) -> None:
        context.send_text("sorry")

    async def handle(context: Context) -> None:
        context.send_text(context.event)
        if context.event == "fail":
            raise ValueError("no")

    async with SessionManager(handler=handle, deliver=deliver, on_error=apologise) as manager:
        await manager.dispatch("ann", "slow")
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "fail")
        await breathe()
    assert said == ["slow", "sorry"]


async def test_a_reply_that_is_relayed_to_the_session_whose_turn_asked_waits_for_that_turn() -> None:
    failed: list[BaseException] = []
    relayed = asyncio.Event()

    async def deliver(session_id: str, _: Any) -> None:
        if session_id == "bob":
            await manager.dispatch("ann", "relayed")
            relayed.set()

    async def handle(context: Context) -> None:
        if context.event == "first":
            await manager.dispatch("bob", "second")
            await breathe()
        elif context.event == "second":
            context.send_text("to ann")

    async def note(_: Context, error: BaseException) -> None:
        failed.append(error)

    async with SessionManager(handler=handle, deliver=deliver, on_error=note) as manager:
        await soon(manager.dispatch("ann", "first"))
        async with asyncio.timeout(1):
            while not (relayed.is_set() or failed):
                await asyncio.sleep(0)
    assert failed == []


@pytest.mark.parametrize("plain", [False, True])
async def test_a_delivery_that_hangs_is_reported_and_stops_no_later_reply(plain: bool) -> None:
    loop = asyncio.get_running_loop()
    said, go_on, failed = asyncio.Event(), threading.Event(), asyncio.Event()

    async def deliver(_: str, text: str) -> None:
        if text == "stay":
            await asyncio.Event().wait()
        said.set()

    def deliver_plainly(_: str, text: str) -> None:
        if text == "stay":
            go_on.wait(SOON)
        else:
            loop.call_soon_threadsafe(said.set)

    async def handle(context: Context) -> None:
        context.send_text(context.event)

    async def note(context: Context, error: BaseException) -> None:
        if isinstance(error, TimeoutError) and context.event == "stay":
            failed.set()

    async with SessionManager(
        handler=handle, deliver=deliver_plainly if plain else deliver, on_error=note, handler_timeout=0.1
    ) as manager:
        try:
            await manager.dispatch("ann", "stay")
            await manager.dispatch("ann", "hi")
            await soon(said.wait())
            await soon(failed.wait())
        finally:
            go_on.set()


async def test_a_reply_that_fails_with_nobody_to_tell_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def deliver(_: str, __: str) -> None:
        raise ConnectionError("gone")

    async def handle(context: Context) -> None:
        context.send_text("hello")

    async with SessionManager(handler=handle, deliver=deliver) as manager:
        await manager.dispatch("ann", "hi")
    assert ["ann" in record.getMessage() for record in caplog.records] == [True]


async def test_a_turn_that_awaits_a_reply_which_waits_for_that_turn_is_refused_at_once() -> None:
    async def deliver(session_id: str, _: Any) -> None:
        await manager.dispatch(session_id, "relayed")

    async def handle(context: Context) -> None:
        await context.send_text("now", gated=False)

    async with SessionManager(handler=handle, deliver=deliver) as manager:
        with pytest.raises(errors.DeadlockError):
            await soon(manager.dispatch("ann", "hi"))


async def test_an_odd_error_of_deliver_stops_no_later_reply() -> None:
    said: list[str] = []

    async def deliver(_: str, text: str) -> None:
        if text == "0":
            raise OddError
        said.append(text)

    async def handle(context: Context) -> None:
        context.send_text(str(context.event))

    async with SessionManager(handler=handle, deliver=deliver, close_timeout=0.3) as manager:
        for number in range(3):
            await manager.dispatch("ann", number)
            await breathe()
    assert said == ["1", "2"]


@pytest.mark.parametrize("closes", [True, False])
def test_a_delivery_that_never_ends_does_not_keep_the_process_from_ending(closes: bool) -> None:
    done = run_program(f"""
        import asyncio
        from actorbot import SessionManager

        async def deliver(_, text):
            await asyncio.Event().wait()

        async def handle(context):
            context.send_text("one")
            context.send_text("two")

        async def main():
            manager = await SessionManager(handler=handle, deliver=deliver, close_timeout=0.2).start()
            await manager.dispatch("ann", "hi")
            await asyncio.sleep(0)
            if {closes}:
                await manager.close()

        asyncio.run(main())
    """)
    assert done.returncode == 0, done.stderr


# --- hooks ------------------------------------------------------------------------------------------------------------


async def test_a_plain_deliver_and_plain_hooks_serve_as_well() -> None:
    said: list[str] = []
    told: list[Any] = []

    def handle(context: Context) -> str:
        context.send_text("hello")
        if context.event == "fail":
            raise ValueError("no")
        return "done"

    async with SessionManager(
        handler=handle, deliver=lambda _, text: said.append(text),
        on_error=lambda context, error: told.append((context.event, str(error))),
        on_session_start=lambda context: told.append(("start", context.session_id)),
    ) as manager:  # fmt: skip
        assert await manager.dispatch("ann", "hi") == "done"
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "fail")
    assert said == ["hello"]
    assert told == [("start", "ann"), ("fail", "no")]


async def test_a_hook_that_fails_at_the_start_fails_the_event_and_comes_again() -> None:
    started: list[bool] = []

    async def start(context: Context) -> None:
        started.append(context.is_new)
        context.session["welcome"] = True
        if len(started) == 1:
            raise ValueError("no")

    async with SessionManager(handler=count, on_session_start=start) as manager:
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "hi", event_id="1")
        assert await manager.peek("ann") is None
        assert await manager.dispatch("ann", "hi", event_id="1") == 1
        assert await manager.peek("ann") == {"welcome": True, "n": 1}
    assert started == [True, True]


async def test_failing_hooks_harm_nobody() -> None:
    clock = ManualClock()

    def fail(*_: Any) -> None:
        raise RuntimeError("hook")

    async def handle(context: Context) -> int:
        if context.event == "fail":
            raise ValueError("no")
        return await count(context)

    async with SessionManager(
        MemorySessionStore(expires_in=10.0), handler=handle, clock=clock, on_error=fail, on_dead_letter=fail,
        on_session_expire=fail, on_conflict=fail,
    ) as manager:  # fmt: skip
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "fail")
        await manager.submit("ann", "fail")
        await manager.dispatch("ann", "hi")
        clock.jump_wall(11.0)
        assert await manager.dispatch("ann", "hi") == 1
        assert manager.health().status == "ready"


# --- every accepted event ends in one way; duplicates -----------------------------------------------------------------


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


async def test_ids_are_remembered_up_to_the_last_sixty_four_through_passivation_and_restart(tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path / "sessions")
    clock = ManualClock()
    async with SessionManager(store, handler=count, clock=clock, idle_timeout=5.0) as manager:
        for number in range(65):
            await manager.dispatch("ann", "hi", event_id=f"update-{number}")
        await clock.advance(30.0)
        assert list(manager.resident()) == []
        assert await manager.dispatch("ann", "hi", event_id="update-64") is DUPLICATE
    async with SessionManager(store, handler=count, clock=clock) as manager:
        assert await manager.dispatch("ann", "hi", event_id="update-1") is DUPLICATE
        with pytest.raises(errors.DuplicateEventError):
            async with manager.turn("ann", event_id="update-2"):
                raise AssertionError("entered")
        assert await manager.dispatch("ann", "hi", event_id="update-0") == 66


async def test_the_id_of_a_reset_is_remembered() -> None:
    async def handle(context: Context) -> bool:
        if context.event == "/reset":
            context.end_session()
        return context.is_new

    store = MemorySessionStore()
    async with SessionManager(store, handler=handle) as manager:
        await manager.dispatch("ann", "hi", event_id="1")
        await manager.dispatch("ann", "/reset", event_id="2")
        assert await manager.dispatch("ann", "/reset", event_id="2") is DUPLICATE
        assert await manager.peek("ann") is None
    async with SessionManager(store, handler=handle) as manager:
        assert await manager.dispatch("ann", "/reset", event_id="2") is DUPLICATE
        assert await manager.dispatch("ann", "hi", event_id="3") is True


async def test_a_failed_borrowed_turn_does_not_record_its_id() -> None:
    async with SessionManager() as manager:
        with pytest.raises(ValueError):
            async with manager.turn("ann", event_id="1"):
                raise ValueError
        async with manager.turn("ann", event_id="1") as turn:
            assert turn.is_new


async def test_a_duplicate_of_an_event_that_is_not_in_the_store_yet_waits_for_it_when_it_is_to_be_durable() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:max_delay=60,retry.base=0.001,retry.cap=0.001,retry.attempts=2")
    async with SessionManager(store, handler=count, flush=policy, close_timeout=0.5) as manager:
        await manager.dispatch("ann", "hi", durable=True)
        store.outage()
        with pytest.raises(errors.StoreUnavailableError):
            await soon(manager.dispatch("ann", "hi", event_id="one", durable=True))
        with pytest.raises(errors.StoreUnavailableError):
            await soon(manager.dispatch("ann", "hi", event_id="one", durable=True))
        store.restore()
        assert await soon(manager.dispatch("ann", "hi", event_id="one", durable=True)) is DUPLICATE
        assert (store.inner.read("ann") or {})["n"] == 2


# --- deadlocks --------------------------------------------------------------------------------------------------------


async def test_every_way_of_waiting_for_ones_own_turn_is_refused_at_once() -> None:
    refused: list[str] = []

    async def borrow() -> None:
        async with manager.turn("ann"):
            pass

    async def handle(context: Context) -> None:
        ways: dict[str, Callable[[], Any]] = {
            "dispatch": lambda: manager.dispatch("ann", "again"),
            "turn": borrow,
            "destroy": lambda: manager.destroy("ann"),
            "spawned": lambda: asyncio.create_task(manager.dispatch("ann", "again")),
            "thread": lambda: asyncio.to_thread(manager.dispatch_sync, "ann", "again"),
        }
        for name, way in ways.items():
            try:
                await asyncio.wait_for(way(), 2.0)
            except errors.DeadlockError:
                refused.append(name)
        receipt = await manager.submit("ann", "told")
        for wait in (receipt.result, receipt.durable):
            try:
                await asyncio.wait_for(wait(), 2.0)
            except errors.DeadlockError:
                refused.append(wait.__name__)

    async def quiet(context: Context) -> None:
        if context.event == "first":
            await handle(context)

    async with SessionManager(handler=quiet) as manager:
        await soon(manager.dispatch("ann", "first"))
        async with manager.turn("ann"):
            with pytest.raises(errors.DeadlockError):
                await soon(manager.dispatch("ann", "again"))
    assert refused == ["dispatch", "turn", "destroy", "spawned", "thread", "result", "durable"]


async def test_a_circle_of_three_is_refused_at_once_and_nobody_hangs() -> None:
    all_three = asyncio.Barrier(3)
    following = {"ann": "bob", "bob": "cat", "cat": "ann"}

    async def handle(context: Context) -> None:
        if context.event == "first":
            await all_three.wait()
            await manager.dispatch(following[context.session_id], "second")

    async with SessionManager(handler=handle) as manager:
        calls = [manager.dispatch(user, "first") for user in following]
        outcomes = await asyncio.wait_for(asyncio.gather(*calls, return_exceptions=True), 3.0)
    kinds = [type(outcome) for outcome in outcomes]
    assert errors.DeadlockError in kinds
    assert set(kinds) <= {errors.DeadlockError, type(None)}


async def test_a_task_spawned_in_a_turn_may_wait_for_the_session_once_the_turn_is_over() -> None:
    over = asyncio.Event()
    spawned: list[asyncio.Task[Any]] = []

    async def later() -> Any:
        await over.wait()
        async with manager.turn("ann") as turn:
            turn.session["later"] = 1
        receipt = await manager.submit("ann", "third")
        return await receipt.result(), await manager.dispatch("ann", "fourth")

    async def handle(context: Context) -> int:
        if context.event == "first":
            spawned.append(asyncio.create_task(later()))
        return await count(context)

    async with SessionManager(handler=handle) as manager:
        await manager.dispatch("ann", "first")
        over.set()
        assert await soon(spawned[0]) == (2, 3)


async def test_a_circle_of_two_sessions_through_receipts_is_refused_at_once() -> None:
    both = asyncio.Barrier(2)

    async def handle(context: Context) -> None:
        if context.event == "first":
            await both.wait()
            receipt = await manager.submit(other(context.session_id), "second")
            await receipt.result()

    async with SessionManager(handler=handle, close_timeout=0.1) as manager:
        outcomes = await soon(
            asyncio.gather(manager.dispatch("ann", "first"), manager.dispatch("bob", "first"), return_exceptions=True)
        )
    assert any(isinstance(outcome, errors.DeadlockError) for outcome in outcomes)


async def test_a_circle_of_a_dispatch_and_a_receipt_is_refused_at_once() -> None:
    async def handle(context: Context) -> None:
        if context.event == "first":
            await manager.dispatch("bob", "second")
        elif context.event == "second":
            await (await manager.submit("ann", "third")).result()

    async with SessionManager(handler=handle, close_timeout=0.1) as manager:
        with pytest.raises(errors.DeadlockError):
            await soon(manager.dispatch("ann", "first"))


async def test_a_told_event_that_waits_for_the_session_whose_turn_waits_for_it_is_refused_at_once() -> None:
    async def handle(context: Context) -> None:
        if context.event == "first":
            await (await manager.submit("bob", "second")).result()
        elif context.event == "second":
            await manager.dispatch("ann", "third")

    async with SessionManager(handler=handle, close_timeout=0.1) as manager:
        with pytest.raises(errors.DeadlockError):
            await soon(manager.dispatch("ann", "first"))


async def test_a_turn_left_before_another_that_it_encloses_keeps_the_other_guarded() -> None:
    async with SessionManager(handler=count) as manager:
        ann, bob = manager.turn("ann"), manager.turn("bob")
        await ann.__aenter__()
        await bob.__aenter__()
        await ann.__aexit__(None, None, None)
        with pytest.raises(errors.DeadlockError):
            await asyncio.wait_for(manager.dispatch("bob", "hi"), 2.0)
        await bob.__aexit__(None, None, None)
        assert await soon(manager.dispatch("bob", "hi")) == 1
        assert await soon(manager.dispatch("ann", "hi")) == 1


# --- the store: outages, lost replies, hung calls ---------------------------------------------------------------------


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


async def test_a_lost_reply_followed_by_an_outage_is_an_unknown_outcome() -> None:
    class GoesDownWithTheReply(FaultyStore):
        def write_many(self, writes: Any) -> Any:
            try:
                return super().write_many(writes)
            except errors.OutcomeUnknownError:
                self.outage()
                raise

    store = GoesDownWithTheReply()
    policy = FlushPolicy.parse("write-through:retry.base=0.01,retry.cap=0.01,retry.attempts=3")
    async with SessionManager(store, handler=count, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        store.lose_replies(1)
        with pytest.raises(errors.OutcomeUnknownError):
            await soon(manager.dispatch("ann", "hi", event_id="two"))
        store.restore()

        assert await soon(manager.dispatch("ann", "hi", event_id="two")) is DUPLICATE


async def test_a_hung_store_releases_a_write_through_dispatch_within_the_deadline() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-through:store_deadline=0.1,retry.base=0.01,retry.cap=0.01")
    async with SessionManager(store, handler=count, flush=policy, close_timeout=0.2) as manager:
        await manager.dispatch("ann", "hi")
        store.hold()
        try:
            with pytest.raises(errors.StoreUnavailableError):
                await asyncio.wait_for(manager.dispatch("ann", "hi"), 3.0)
        finally:
            store.release()


@pytest.mark.parametrize("verb", ["flush", "destroy", "durable"])
async def test_a_hung_store_releases_who_waits_for_it(verb: str) -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:store_deadline=0.1,retry.base=0.01,retry.cap=0.01")
    async with SessionManager(store, handler=count, flush=policy, close_timeout=0.2) as manager:
        await manager.dispatch("ann", "hi")
        store.hold()
        calls: dict[str, Callable[[], Any]] = {
            "flush": manager.flush,
            "destroy": lambda: manager.destroy("ann"),
            "durable": lambda: manager.dispatch("ann", "hi", durable=True),
        }
        try:
            with pytest.raises(errors.StoreUnavailableError):
                await asyncio.wait_for(calls[verb](), 3.0)
        finally:
            store.release()


async def test_a_write_that_comes_late_overwrites_nothing_newer() -> None:
    store = StuckOnce()
    policy = FlushPolicy.parse("write-through:store_deadline=0.1,retry.attempts=1")
    async with SessionManager(store, handler=count, flush=policy, close_timeout=0.5) as manager:
        try:
            with pytest.raises(errors.OutcomeUnknownError):
                await soon(manager.dispatch("ann", "hi"))
            store.failing_reads = 1
            with pytest.raises(errors.StoreUnavailableError):
                await soon(manager.dispatch("ann", "hi"))
            acknowledged = 0
            for _ in range(2):
                try:
                    acknowledged = await soon(manager.dispatch("ann", "hi"))
                except errors.StoreUnavailableError:
                    continue  # refused while the outcome of the first write is open: fine
        finally:
            store.go_on.set()
        await until(store.landed.is_set)
        assert acknowledged <= store.data["ann"]["n"]


async def test_a_session_whose_read_hangs_stops_no_other_however_often_it_is_tried() -> None:
    store = Hanging("read")
    policy = FlushPolicy.parse("write-behind:store_deadline=0.05")
    async with SessionManager(store, handler=count, flush=policy, close_timeout=0.3) as manager:
        try:
            for number in range(10):
                with pytest.raises(errors.StoreUnavailableError):
                    await soon(manager.dispatch("bad", "hi"))
                assert await soon(manager.dispatch(f"user:{number}", "hi")) == 1
        finally:
            store.go_on.set()


async def test_a_session_whose_write_hangs_does_not_keep_those_of_its_batch_from_the_store() -> None:
    store = Hanging("write")
    policy = FlushPolicy.parse("write-behind:max_delay=60,store_deadline=0.1,retry.base=0.01,retry.cap=0.02")
    async with SessionManager(store, handler=count, flush=policy, close_timeout=0.3) as manager:
        try:
            await manager.dispatch("bad", "hi")
            await manager.dispatch("good", "hi")
            flushing = asyncio.create_task(manager.flush())
            async with asyncio.timeout(3):
                while "good" not in store.data:
                    await breathe()
        finally:
            store.go_on.set()
        await asyncio.gather(flushing, return_exceptions=True)


async def test_a_session_that_the_store_refuses_does_not_hold_up_the_others() -> None:
    class Picky(DictStore):
        def write(self, session_id: str, data: dict[str, Any]) -> None:
            if session_id == "bad":
                raise ValueError("document too large")
            super().write(session_id, data)

    clock, store = ManualClock(), Picky()
    async with SessionManager(store, handler=count, clock=clock, close_timeout=0.2) as manager:
        await manager.dispatch("bad", "hi")
        await clock.advance(60.0)
        await manager.dispatch("good", "hi")
        await clock.advance(1.5)
        assert "good" in store.data
        assert manager.health().status != "ready"


async def test_a_failing_store_of_one_session_fails_no_dispatch_of_another() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Picky(DictStore):
        tries = 0

        def write(self, session_id: str, data: dict[str, Any]) -> None:
            if session_id == "bad":
                self.tries += 1
                if self.tries == 2:
                    entered.set()
                    go_on.wait(SOON)
                raise ValueError("document too large")
            super().write(session_id, data)

    store = Picky()
    policy = FlushPolicy.parse("write-through:retry.attempts=2,retry.base=0.01,retry.cap=0.01")
    async with SessionManager(store, handler=count, flush=policy) as manager:
        await manager.dispatch("good", "hi")
        bad = asyncio.create_task(manager.dispatch("bad", "hi"))
        await until(entered.is_set)
        good = asyncio.create_task(manager.dispatch("good", "hi"))
        await breathe()
        go_on.set()
        with pytest.raises(errors.StoreUnavailableError):
            await soon(bad)
        assert await soon(good) == 2


async def test_a_flush_in_an_outage_says_so_in_bounded_time_and_loses_nothing() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:max_delay=60,retry.base=0.01,retry.cap=0.02")
    async with SessionManager(store, handler=count, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        store.outage()
        for _ in range(3):
            with pytest.raises(errors.StoreUnavailableError):
                await soon(manager.flush())
        store.restore()
        await soon(manager.flush())
        assert (store.read("ann") or {})["n"] == 1


async def test_a_store_that_hangs_at_the_start_is_unavailable_within_its_deadline() -> None:
    go_on = threading.Event()

    class Hung(MemorySessionStore):
        def init(self) -> Any:
            go_on.wait(SOON)
            return self

    manager = SessionManager(Hung(), handler=count, flush=FlushPolicy.write_behind(store_deadline=0.1))
    try:
        with pytest.raises(errors.StoreUnavailableError):
            await asyncio.wait_for(manager.start(), 2.0)
    finally:
        go_on.set()


async def test_a_cold_crowd_with_one_broken_record_is_served() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.corrupt("user:7")
        outcomes = await soon(
            asyncio.gather(*(manager.dispatch(f"user:{user}", "hi") for user in range(300)), return_exceptions=True)
        )
        assert [type(each) for each in outcomes if each != 1] == [errors.CorruptSessionError]
        assert store.read_calls < 20


async def test_a_broken_record_can_be_destroyed_as_its_error_says() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.corrupt("ann")
        with pytest.raises(errors.CorruptSessionError, match="destroy"):
            await manager.dispatch("ann", "hi")
        await soon(manager.destroy("ann"))

        assert await soon(manager.dispatch("ann", "hi")) == 1


# --- two processes on one session -------------------------------------------------------------------------------------


async def test_write_through_runs_a_handler_at_most_three_times_again() -> None:
    runs: list[int] = []
    store = MemorySessionStore()
    said: list[str] = []

    async def theirs_too(context: Context) -> None:
        context.session["theirs"] = context.session.get("theirs", 0) + 1

    async def bump() -> None:
        await theirs.dispatch("ann", "hi")

    async def handle(context: Context) -> int:
        runs.append(1)
        context.send_text("hello")
        if context.event == "fight" or (context.event == "once" and len(runs) == 1):
            await bump()
        return await count(context)

    policy = FlushPolicy.write_through()
    async with (
        SessionManager(store, handler=theirs_too, flush=policy) as theirs,
        SessionManager(store, handler=handle, flush=policy, deliver=lambda _, text: said.append(text)) as ours,
    ):
        await ours.dispatch("ann", "hi")
        runs.clear()
        assert await ours.dispatch("ann", "once") == 2
        assert len(runs) == 2
        runs.clear()
        with pytest.raises(errors.ConflictError):
            await soon(ours.dispatch("ann", "fight", event_id="x"))
        assert len(runs) == 4
        assert await ours.dispatch("ann", "hi", event_id="x") == 3
        with pytest.raises(errors.ConflictError):
            async with ours.turn("ann") as turn:
                turn.session["n"] = 100
                await bump()
        assert await soon(ours.dispatch("ann", "hi")) == 4
    assert said == ["hello"] * 4


async def test_a_conflict_hands_over_the_newest_unflushed_state() -> None:
    store = FaultyStore()
    handed: list[Any] = []
    async with (
        SessionManager(store, handler=count) as theirs,
        SessionManager(store, handler=count, on_conflict=lambda *each: handed.append(each)) as ours,
    ):
        await ours.dispatch("ann", "hi")
        await theirs.dispatch("ann", "hi")
        await theirs.flush()
        store.hold()
        calls = store.write_calls
        flushing = asyncio.create_task(ours.flush())
        await until(lambda: store.write_calls > calls)
        for _ in range(3):
            await ours.dispatch("ann", "hi")
        store.release()
        with pytest.raises(errors.ConflictError):
            await soon(flushing)
        await until(lambda: bool(handed))
    assert handed == [("ann", {"n": 4})]


async def test_a_receipt_is_not_durable_when_its_event_was_lost_to_a_conflict() -> None:
    store = MemorySessionStore()
    async with SessionManager(store, handler=count) as theirs, SessionManager(store, handler=count) as ours:
        await (await theirs.submit("ann", "hi")).result()
        receipt = await ours.submit("ann", "hi")
        await receipt.result()
        await theirs.flush()
        with pytest.raises(errors.ConflictError):
            await ours.flush()
        with pytest.raises(errors.ConflictError):
            await soon(receipt.durable())


async def test_what_another_process_destroyed_does_not_come_back_by_a_flush() -> None:
    store = MemorySessionStore()
    async with SessionManager(store, handler=count) as theirs, SessionManager(store, handler=count) as ours:
        await ours.dispatch("ann", "hi")
        await ours.flush()
        await ours.dispatch("ann", "hi")
        await theirs.destroy("ann")
        with pytest.raises(errors.ConflictError):
            await ours.flush()
        assert store.read("ann") is None
        assert await ours.dispatch("ann", "hi") == 1


async def test_a_record_that_the_store_evicted_is_written_again_by_its_resident() -> None:
    store = MemorySessionStore(max_sessions=1)
    async with SessionManager(store, handler=count) as manager:
        for expected in (1, 2, 3):
            for user in ("ann", "bob"):
                assert await manager.dispatch(user, "hi") == expected
                await manager.flush()
        assert (store.read("bob") or {})["n"] == 3


# --- destroy ----------------------------------------------------------------------------------------------------------


async def test_a_destroy_takes_its_place_in_line() -> None:
    go_on = asyncio.Event()
    new: list[tuple[Any, bool]] = []

    async def handle(context: Context) -> int:
        new.append((context.event, context.is_new))
        await go_on.wait()
        return await count(context)

    async with SessionManager(handler=handle) as manager:
        calls = [asyncio.create_task(manager.dispatch("ann", 1)), asyncio.create_task(manager.dispatch("ann", 2))]
        await until(lambda: manager.stats().running == 1)
        await asyncio.sleep(0)
        calls.append(asyncio.create_task(manager.destroy("ann")))
        await asyncio.sleep(0)
        calls.append(asyncio.create_task(manager.dispatch("ann", 3)))
        await asyncio.sleep(0)
        go_on.set()
        assert await soon(asyncio.gather(*calls)) == [1, 2, None, 1]
    assert new == [(1, True), (2, False), (3, True)]


async def test_a_destroy_waits_for_the_write_in_flight_and_nothing_comes_back() -> None:
    entered, go_on = threading.Event(), threading.Event()

    class Slow(DictStore):
        def write(self, session_id: str, data: dict[str, Any]) -> None:
            entered.set()
            go_on.wait(SOON)
            super().write(session_id, data)

    store = Slow()
    async with SessionManager(store, handler=count, flush=FlushPolicy.write_behind(max_delay=0.01)) as manager:
        await manager.dispatch("ann", "hi")
        await until(entered.is_set)
        destroying = asyncio.create_task(manager.destroy("ann"))
        await breathe()
        assert not destroying.done()
        go_on.set()
        await soon(destroying)
        assert await manager.peek("ann") is None
        await manager.flush()
        assert store.data == {}


async def test_a_wait_for_a_held_destroy_is_bounded_and_the_session_stays_when_it_failed() -> None:
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        store.outage()
        destroying = asyncio.create_task(manager.destroy("ann"))
        await asyncio.sleep(0)
        for _ in range(20):
            await clock.advance(1.0)
        with pytest.raises(errors.StoreUnavailableError):
            await soon(destroying)
        assert await manager.peek("ann") == {"n": 1}
        assert await manager.dispatch("ann", "hi") == 2
        store.restore()
        await clock.advance(10.0)
        await manager.flush()
        assert (store.read("ann") or {})["n"] == 2


async def test_a_destroy_that_was_refused_is_not_done_later() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:max_delay=60,batch_size=1,retry.attempts=2,retry.base=0.01,retry.cap=0.01")
    async with SessionManager(store, handler=count, flush=policy, close_timeout=0.5) as manager:
        for user in ("ann", "bob"):
            await manager.dispatch(user, "hi")
            await manager.flush()
        store.outage()
        refused = await soon(asyncio.gather(manager.destroy("ann"), manager.destroy("bob"), return_exceptions=True))
        assert [isinstance(each, errors.StoreUnavailableError) for each in refused] == [True, True]
        store.restore()
        for user in ("ann", "bob"):
            assert await soon(manager.dispatch(user, "hi")) == 2
        await soon(manager.flush())
        assert [(store.read(user) or {}).get("n") for user in ("ann", "bob")] == [2, 2]


# --- expiry and idleness ----------------------------------------------------------------------------------------------


async def test_peek_neither_activates_nor_slides_the_expiry() -> None:
    clock = ManualClock()
    async with SessionManager(MemorySessionStore(expires_in=100.0), handler=count, clock=clock, idle_timeout=5.0) as m:
        await m.dispatch("ann", "hi")
        await clock.advance(30.0)
        activations = m.stats().activations
        assert await m.peek("ann") == {"n": 1}
        assert await m.peek("nobody") is None
        assert m.stats().activations == activations
        assert list(m.resident()) == []
        clock.jump_wall(69.0)
        assert await m.peek("ann") == {"n": 1}
        clock.jump_wall(2.0)
        assert await m.peek("ann") is None
        copy = await m.peek("ann")
        assert copy is None


async def test_an_event_that_changes_nothing_slides_the_expiry() -> None:
    clock, store = ManualClock(), MemorySessionStore(expires_in=10.0)

    async def handle(context: Context) -> int:
        if context.event == "touch":
            return 0
        return await count(context)

    async with SessionManager(store, handler=handle, clock=clock, idle_timeout=2.0) as manager:
        await manager.dispatch("ann", "hi")
        for _ in range(5):
            await clock.advance(8.0)
            await manager.dispatch("ann", "touch")
        await clock.advance(8.0)
        assert await manager.dispatch("ann", "hi") == 2


async def test_swept_and_read_expiries_are_told(tmp_path: Path) -> None:
    clock = ManualClock()
    ended: list[Any] = []
    store = FileSessionStore(tmp_path / "s", expires_in=50.0)
    async with SessionManager(store, handler=count, clock=clock, idle_timeout=2.0) as manager:
        await manager.dispatch("read", "hi")
        await manager.dispatch("swept", "hi")
    clock.jump_wall(60.0)
    async with SessionManager(
        store, handler=count, clock=clock, idle_timeout=20.0, on_session_expire=lambda *each: ended.append(each)
    ) as manager:
        assert await manager.dispatch("read", "hi") == 1
        await until(lambda: len(ended) == 1)
        assert ended == [("read", {"n": 1})]
        await clock.advance(20.0)
        await until(lambda: len(ended) == 2)
        assert ended[1] == ("swept", {"n": 1})


async def test_a_clock_set_back_ends_nothing_early_and_hangs_nothing() -> None:
    clock = ManualClock()
    async with SessionManager(
        MemorySessionStore(expires_in=100.0), handler=count, clock=clock, idle_timeout=30.0
    ) as manager:
        await manager.dispatch("ann", "hi")
        clock.jump_wall(-1_000_000.0)
        assert await manager.dispatch("ann", "hi") == 2
        await clock.advance(60.0)
        assert list(manager.resident()) == []
        assert await manager.dispatch("ann", "hi") == 3


@pytest.mark.parametrize("idle_timeout", [20.0, 100.0, 200.0])
async def test_one_expiry_is_told_once(idle_timeout: float) -> None:
    clock = ManualClock()
    ended: list[Any] = []
    async with SessionManager(
        MemorySessionStore(expires_in=100.0),
        handler=count,
        clock=clock,
        idle_timeout=idle_timeout,
        on_session_expire=lambda *each: ended.append(each),
    ) as manager:
        await clock.advance(1.0)  # out of step with the sweeps of the store
        await manager.dispatch("ann", "hi")
        await clock.advance(400.0)
    assert ended == [("ann", {"n": 1})]


async def test_a_resident_session_leaves_memory_when_it_expires_long_before_it_counts_as_idle() -> None:
    clock = ManualClock()
    ended: list[Any] = []
    async with SessionManager(
        MemorySessionStore(expires_in=10.0), handler=count, clock=clock, idle_timeout=3_600.0,
        on_session_expire=lambda *each: ended.append(each),
    ) as manager:  # fmt: skip
        await manager.dispatch("ann", "hi")
        await clock.advance(300.0)

        assert list(manager.resident()) == []
        assert ended == [("ann", {"n": 1})]


async def test_one_expiry_is_told_once_when_the_event_that_met_it_fails() -> None:
    clock = ManualClock()
    ended: list[Any] = []

    async def handle(context: Context) -> int:
        if context.event == "fail":
            raise ValueError("no")
        return await count(context)

    async with SessionManager(
        MemorySessionStore(expires_in=100.0), handler=handle, clock=clock, idle_timeout=2.0,
        on_session_expire=lambda *each: ended.append(each),
    ) as manager:  # fmt: skip
        await manager.dispatch("ann", "hi")
        await clock.advance(5.0)
        clock.jump_wall(200.0)
        for _ in range(2):
            with pytest.raises(ValueError):
                await manager.dispatch("ann", "fail")
        await clock.advance(60.0)
    assert ended == [("ann", {"n": 1})]


async def test_a_goodbye_may_be_said_to_the_session_whose_turn_met_the_expiry() -> None:
    clock = ManualClock()
    outcomes: list[Any] = []

    async def goodbye(session_id: str, _: Any) -> None:
        outcomes.extend(await asyncio.gather(manager.dispatch("ann", "bob ended"), return_exceptions=True))

    async def handle(context: Context) -> str:
        if context.event == "ask bob":
            await manager.dispatch("bob", "hi")
            await breathe()
        return "done"

    async with SessionManager(
        MemorySessionStore(expires_in=10.0), handler=handle, clock=clock, on_session_expire=goodbye
    ) as manager:
        await manager.dispatch("bob", "hi")
        clock.jump_wall(11.0)
        await manager.dispatch("ann", "ask bob")
        async with asyncio.timeout(2):
            while not outcomes:
                await asyncio.sleep(0)
    assert outcomes == ["done"]


async def test_what_comes_after_an_expiry_during_an_outage_is_not_lost_to_an_old_write() -> None:
    clock, store = ManualClock(), FaultyStore(MemorySessionStore(expires_in=10.0))
    conflicts: list[Any] = []
    async with SessionManager(
        store, handler=count, clock=clock, idle_timeout=4.0, on_conflict=lambda *each: conflicts.append(each)
    ) as manager:
        await manager.dispatch("ann", "hi")
        store.outage()
        await clock.advance(30.0)
        store.restore()
        assert await manager.dispatch("ann", "hi") == 1
        await clock.advance(6.0)
        await soon(manager.flush())

        assert conflicts == []
        assert await manager.dispatch("ann", "hi") == 2


# --- bounds and figures -----------------------------------------------------------------------------------------------


async def test_a_full_mailbox_and_full_memory_say_so_at_once() -> None:
    release = asyncio.Event()

    async def handle(context: Context) -> None:
        await release.wait()

    async with SessionManager(handler=handle, max_mailbox=2, max_resident=3, clock=ManualClock()) as manager:
        tasks = [asyncio.create_task(manager.dispatch("ann", number)) for number in range(3)]
        tasks += [asyncio.create_task(manager.dispatch(user, "hi")) for user in ("bob", "cat")]
        await until(lambda: manager.stats().running == 3)
        for call in (
            lambda: manager.dispatch("ann", 4), lambda: manager.submit("ann", 4), lambda: manager.dispatch("dan", 1),
            lambda: manager.submit("dan", 1),
        ):  # fmt: skip
            with pytest.raises(errors.OverloadedError):
                await soon(call())  # while nothing moves, not even the time
        release.set()
        await asyncio.gather(*tasks)


async def test_a_full_bound_on_unflushed_state_refuses_quickly_when_told_to() -> None:
    store = FaultyStore()
    policy = FlushPolicy.write_behind(max_delay=60, max_dirty_bytes=64 * 1024, when_full="reject")

    async def grow(context: Context) -> None:
        context.session["text"] = "x" * 40_000

    async with SessionManager(store, handler=grow, flush=policy, close_timeout=0.2) as manager:
        await manager.dispatch("cat", "hi")
        await manager.flush()
        store.outage()
        await manager.dispatch("cat", "hi")
        with pytest.raises(errors.StoreUnavailableError):
            await manager.dispatch("ann", "hi")
        store.restore()
        async with manager.turn("bob") as turn:
            store.outage()
            turn.session["text"] = "x" * 40_000
        with pytest.raises(errors.OverloadedError) as caught:
            await soon(manager.dispatch("cat", "hi"))  # the outage lasts
        assert caught.value.retry_after > 0
        assert manager.health().status == "degraded"
        store.restore()
        await soon(manager.flush())
        await soon(manager.dispatch("cat", "hi"))


async def test_a_full_bound_on_unflushed_state_lets_events_wait_for_the_store() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:max_delay=60,max_dirty_bytes=65536,retry.base=0.01,retry.cap=0.02")

    async def grow(context: Context) -> None:
        context.session["text"] = "x" * 70_000

    async with SessionManager(store, handler=grow, flush=policy) as manager:
        for user in ("ann", "bob"):
            await manager.dispatch(user, "hi")
            await manager.flush()
        store.hold()
        await manager.dispatch("ann", "hi")
        waiting = asyncio.create_task(manager.dispatch("bob", "hi"))
        await breathe()
        assert not waiting.done()
        store.release()
        await soon(waiting)
        assert manager.stats().dirty_bytes < 2 * 70_656


async def test_sessions_that_grow_to_the_bound_on_unflushed_state_are_flushed_rather_than_refused() -> None:
    clock, store = ManualClock(), RecordingStore()
    policy = FlushPolicy.write_behind(max_delay=600.0, max_dirty_bytes=64 * 1024, store_deadline=0.5)

    async def grow(context: Context) -> None:
        context.session["text"] = "x" * context.event

    async with SessionManager(store, handler=grow, clock=clock, flush=policy) as manager:
        for size in (100, 20_000):
            for user in range(10):
                await soon(manager.dispatch(f"user:{user}", size))

        assert manager.stats().dirty_bytes < 64 * 1024 + 20_480


async def test_the_wait_for_a_flush_at_max_events_is_suspended_in_an_outage() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:max_events=5,max_delay=60,retry.base=0.01,retry.cap=0.02")
    async with SessionManager(store, handler=count, flush=policy) as manager:
        for expected in range(1, 31):
            assert await soon(manager.dispatch("ann", "hi")) == expected
            assert dict(manager.resident())["ann"].version - dict(manager.resident())["ann"].flushed <= 5
        store.outage()
        for expected in range(31, 61):
            assert await soon(manager.dispatch("ann", "hi")) == expected
        store.restore()
        await breathe()
        await soon(manager.flush())
        assert (store.read("ann") or {})["n"] == 60


async def test_figures_mean_what_they_say() -> None:
    clock = ManualClock()

    async def handle(context: Context) -> int:
        if context.event == "fail":
            raise ValueError("no")
        return await count(context)

    async with SessionManager(handler=handle, clock=clock, idle_timeout=60.0) as manager:
        for number in (1, 1, 2):
            await manager.dispatch("ann", "hi", event_id=str(number))
        with pytest.raises(ValueError):
            await manager.dispatch("bob", "fail")
        await manager.submit("bob", "fail")
        await until(lambda: manager.stats().dead_letters == 1)
        await clock.advance(0.5)
        stats = manager.stats()
        assert (stats.handled, stats.failed, stats.duplicates, stats.resident) == (2, 2, 1, 2)
        assert stats.oldest_dirty == pytest.approx(0.5)
        assert stats.dirty_bytes > 0
        info = dict(manager.resident())["ann"]
        assert (info.version, info.flushed, info.idle, info.waiting, info.busy) == (2, 0, pytest.approx(0.5), 0, False)
        await manager.flush("bob")
        assert dict(manager.resident())["ann"].flushed == 0
        await manager.flush("ann")
        assert dict(manager.resident())["ann"].flushed == 2
        stats = manager.stats()
        assert (stats.dirty_bytes, stats.oldest_dirty, stats.store_writes, stats.running) == (0, 0.0, 1, 0)
        await clock.advance(120.0)
        assert manager.stats().resident == 0
        assert manager.stats().passivations == 2


async def test_the_oldest_unflushed_state_is_told_during_an_outage_too() -> None:
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock, close_timeout=0.2) as manager:
        await manager.dispatch("ann", "hi")
        store.outage()
        await clock.advance(30.0)
        assert manager.stats().dirty_bytes > 0
        assert manager.stats().oldest_dirty == pytest.approx(30.0)


async def test_the_oldest_unflushed_state_is_not_that_of_a_session_flushed_meanwhile() -> None:
    clock = ManualClock()
    policy = FlushPolicy.write_behind(max_delay=60.0)
    async with SessionManager(handler=count, clock=clock, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        await clock.advance(30.0)
        await manager.flush("ann")
        await manager.dispatch("bob", "hi")
        assert manager.stats().oldest_dirty == pytest.approx(0.0)


async def test_health_knows_of_a_store_that_cannot_be_read() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.outage()
        for user in range(3):
            with pytest.raises(errors.StoreUnavailableError):
                await manager.dispatch(f"user:{user}", "hi")
        assert manager.health().status == "degraded"
        store.restore()
        await manager.dispatch("ann", "hi")
        assert manager.health().status == "ready"


# --- life and end -----------------------------------------------------------------------------------------------------


async def test_a_manager_lives_once() -> None:
    manager = SessionManager(handler=count)
    async with manager:
        with pytest.raises(errors.ManagerClosedError):
            await manager.start()
        with pytest.raises(errors.ManagerClosedError):
            manager.start_sync()
        assert await manager.dispatch("ann", "hi") == 1
    assert await manager.close() == await manager.close()
    with pytest.raises(errors.ManagerClosedError):
        async with manager:
            pass
    receipts: list[Any] = [manager.dispatch("ann", 1), manager.submit("ann", 1), manager.peek("ann"), manager.flush(),
                           manager.destroy("ann"), manager.turn("ann").__aenter__()]  # fmt: skip
    for call in receipts:
        with pytest.raises(errors.ManagerClosedError):
            await call


async def test_a_receipt_belongs_to_its_managers_loop() -> None:
    async with SessionManager(handler=count) as manager:
        receipt = await manager.submit("ann", "hi")

        def elsewhere() -> None:
            with pytest.raises(errors.WrongLoopError):
                asyncio.run(receipt.result())
            assert receipt.result_sync(timeout=5.0) == 1

        await asyncio.to_thread(elsewhere)
        with pytest.raises(errors.WrongLoopError):
            receipt.result_sync()
        with pytest.raises(errors.WrongLoopError), manager.turn_sync("ann"):
            pass
        for verb in (manager.flush_sync, lambda: manager.peek_sync("ann"), lambda: manager.destroy_sync("ann"),
                     lambda: manager.submit_sync("ann", 1), manager.close_sync):  # fmt: skip
            with pytest.raises(errors.WrongLoopError):
                verb()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
async def test_a_forked_child_of_a_loop_is_told_so() -> None:
    async with SessionManager(handler=count) as manager:
        await manager.dispatch("ann", "hi")
        receipt = await manager.submit("ann", "hi")
        await receipt.result()
        child = os.fork()
        if child == 0:
            code = 1
            try:

                def told(call: Callable[[], Any]) -> bool:
                    coroutine = call()
                    try:
                        coroutine.send(None)
                    except errors.ForkedError:
                        return True
                    return False

                verbs = (
                    lambda: manager.dispatch("ann", "hi"), lambda: manager.submit("ann", "hi"),
                    lambda: manager.peek("ann"), lambda: manager.destroy("ann"), manager.flush, receipt.result,
                    receipt.durable, manager.close,
                )  # fmt: skip
                code = 7 if all(map(told, verbs)) else 2
            finally:
                os._exit(code)
        _, status = await asyncio.to_thread(os.waitpid, child, 0)
    assert os.waitstatus_to_exitcode(status) == 7


async def test_a_close_waits_for_a_borrowed_turn_and_refuses_new_events() -> None:
    store = MemorySessionStore()
    manager = await SessionManager(store, handler=count).start()
    async with manager.turn("ann") as turn:
        closing = asyncio.create_task(manager.close())
        await breathe()
        assert not closing.done()
        with pytest.raises(errors.ManagerClosedError):
            await manager.dispatch("bob", "hi")
        turn.session["n"] = 7
    assert (await soon(closing)).clean
    assert (store.read("ann") or {})["n"] == 7


async def test_a_close_in_an_outage_keeps_to_its_time_and_names_who_was_left() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count, close_timeout=600.0).start()
    for user in ("ann", "bob"):
        await manager.dispatch(user, "hi")
    store.hold()
    report = await soon(manager.close(timeout=0.2))
    store.release()
    assert set(report.unflushed) == {"ann", "bob"}


async def test_a_handler_may_close_its_manager() -> None:
    reports: list[Any] = []

    async def handle(context: Context) -> None:
        reports.append(await manager.close(timeout=0.2))

    manager = await SessionManager(handler=handle).start()
    outcome = await soon(asyncio.gather(manager.dispatch("ann", "/shutdown"), return_exceptions=True))
    report = await soon(manager.close())
    assert reports == [report], outcome


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


def test_a_process_that_forgets_to_close_ends() -> None:
    done = run_program("""
        import asyncio
        from actorbot import SessionManager

        async def handle(context):
            context.session["n"] = 1

        async def main():
            manager = await SessionManager(handler=handle).start()
            await manager.dispatch("ann", "hi")

        asyncio.run(main())
    """)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


async def test_two_closes_at_once_both_return_the_report() -> None:
    go_on = asyncio.Event()

    async def handle(context: Context) -> int:
        await go_on.wait()
        return await count(context)

    manager = await SessionManager(handler=handle).start()
    await manager.submit("ann", "hi")
    closes = [asyncio.create_task(manager.close()) for _ in range(2)]
    await asyncio.sleep(0)
    go_on.set()
    first, second = await soon(asyncio.gather(*closes, return_exceptions=True))
    assert first.clean
    assert second == first


async def test_a_close_that_was_cancelled_can_be_made_again() -> None:
    go_on = asyncio.Event()

    async def handle(context: Context) -> int:
        await go_on.wait()
        return await count(context)

    manager = await SessionManager(handler=handle).start()
    await manager.submit("ann", "hi")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(manager.close(), 0.05)
    go_on.set()
    report = await soon(manager.close())
    assert report.unflushed == ()


async def test_a_close_goes_on_trying_until_its_time_is_up() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:retry.attempts=2,retry.base=0.05,retry.cap=0.05")
    manager = await SessionManager(store, handler=count, flush=policy).start()
    await manager.dispatch("ann", "hi")
    store.outage()
    closing = asyncio.create_task(manager.close(timeout=5.0))
    await until(lambda: store.write_calls == 2)
    await breathe()
    store.restore()
    report = await soon(closing)
    assert report.unflushed == ()
    assert (store.read("ann") or {}).get("n") == 1


async def test_one_conflict_at_a_close_keeps_no_other_session_from_being_flushed() -> None:
    store = MemorySessionStore()
    policy = FlushPolicy.write_behind(batch_size=1, max_delay=60)
    theirs = await SessionManager(store, handler=count).start()
    ours = await SessionManager(store, handler=count, flush=policy).start()
    for user in range(200):
        await ours.dispatch(f"user:{user}", "hi")
    await theirs.dispatch("user:0", "hi")
    await theirs.flush()
    report = await soon(ours.close())
    await theirs.close()
    assert [session_id for session_id in report.unflushed if session_id != "user:0"] == []
    assert sum(store.read(f"user:{user}") is not None for user in range(200)) == 200


@pytest.mark.parametrize("what", ["apology", "ungated"])
async def test_a_close_waits_for_every_reply_that_is_on_its_way(what: str) -> None:
    said: list[str] = []

    async def deliver(_: str, text: str) -> None:
        await breathe()
        said.append(text)

    async def apologise(context: Context, _: BaseException) -> None:
        context.send_text("apology")

    async def handle(context: Context) -> None:
        if context.event == "apology":
            raise ValueError("no")
        context.send_text("ungated", gated=False)

    manager = await SessionManager(handler=handle, deliver=deliver, on_error=apologise).start()
    await asyncio.gather(manager.dispatch("ann", what), return_exceptions=True)
    report = await manager.close()
    assert said == [what]
    assert report.clean


async def test_a_reply_that_a_close_did_not_wait_for_is_cancelled() -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def deliver(_: str, __: str) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def handle(context: Context) -> None:
        context.send_text("hello")

    manager = await SessionManager(handler=handle, deliver=deliver).start()
    await manager.dispatch("ann", "hi")
    await entered.wait()
    report = await manager.close(timeout=0.05)
    assert report.undelivered == 1
    await soon(cancelled.wait())


async def test_a_handler_that_is_ended_by_a_close_is_not_told_that_it_took_too_long() -> None:
    async def handle(context: Context) -> None:
        await asyncio.Event().wait()

    manager = await SessionManager(handler=handle, handler_timeout=300.0).start()
    dispatching = asyncio.create_task(manager.dispatch("ann", "hi"))
    await until(lambda: manager.stats().running == 1)
    report = await manager.close(timeout=0.05)
    assert report.unfinished == 1
    with pytest.raises(errors.ManagerClosedError):
        await soon(dispatching)


async def test_a_receipt_can_be_awaited_while_the_manager_closes() -> None:
    go_on = asyncio.Event()

    async def handle(context: Context) -> int:
        await go_on.wait()
        return await count(context)

    manager = await SessionManager(handler=handle).start()
    receipt = await manager.submit("ann", "hi")
    closing = asyncio.create_task(manager.close())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(receipt.result())
    await asyncio.sleep(0)
    go_on.set()
    assert await soon(waiting) == 1
    await closing


async def test_a_receipt_gives_its_result_also_after_the_close() -> None:
    manager = await SessionManager(handler=count).start()
    receipt = await manager.submit("ann", "hi")
    await manager.close()
    assert await soon(receipt.result()) == 1
    assert receipt.version == 1


async def test_an_event_that_waits_for_room_at_a_close_is_refused_or_reaches_the_store() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count, max_resident=1).start()
    await manager.dispatch("ann", "hi")
    store.hold()
    waiting = asyncio.create_task(manager.dispatch("bob", "hi"))
    await breathe()
    closing = asyncio.create_task(manager.close(timeout=2.0))
    await breathe()
    store.release()
    await soon(closing)
    (outcome,) = await soon(asyncio.gather(waiting, return_exceptions=True))
    assert isinstance(outcome, errors.ActorbotError) or store.read("bob") is not None


async def test_an_event_whose_session_is_being_read_at_a_close_ends_within_its_time() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count).start()
    store.hold()
    waiting = asyncio.create_task(manager.dispatch("bob", "hi"))
    peeking = asyncio.create_task(manager.peek("ann"))
    await breathe()
    await soon(manager.close(timeout=0.1))
    try:
        outcomes = await soon(asyncio.gather(waiting, peeking, return_exceptions=True))
    finally:
        store.release()
    assert all(isinstance(outcome, errors.ActorbotError) for outcome in outcomes)


async def test_a_durable_dispatch_or_a_flush_that_waits_at_a_close_ends_within_its_time() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count).start()
    await manager.dispatch("ann", "hi")
    store.hold()
    calls = [manager.dispatch("ann", "hi", durable=True), manager.flush(), manager.destroy("ann")]
    waiting = [asyncio.create_task(call) for call in calls]
    await breathe()
    await soon(manager.close(timeout=0.1))
    try:
        outcomes = await soon(asyncio.gather(*waiting, return_exceptions=True))
    finally:
        store.release()
    assert all(isinstance(outcome, errors.ActorbotError) for outcome in outcomes)


async def test_a_bad_time_out_of_a_close_changes_nothing() -> None:
    manager = await SessionManager(handler=count).start()
    try:
        with pytest.raises(errors.ConfigError):
            await manager.close(timeout="soon")  # type: ignore[arg-type]
        assert await manager.dispatch("ann", "hi") == 1
    finally:
        await manager.close()


# --- bad input --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({1: 2}, "session['v']"), ([0, object()], "session['v'][1]"), (CYCLE, "session['v']"), (2**63, "session['v']"),
        (-(2**63) - 1, "session['v']"), (float("nan"), "session['v']"), ([float("inf")], "session['v'][0]"),
        ("\ud800", "session['v']"), ({"a": {"b": (1, {2, object})}}, "session['v']['a']['b'][1]"),
        ({"\udfff": 1}, "session['v']"),
    ],
)  # fmt: skip
async def test_what_cannot_be_kept_is_named_by_its_path(value: Any, path: str) -> None:
    async def handle(context: Context) -> None:
        context.session["v"] = context.event

    async with SessionManager(handler=handle) as manager:
        await manager.dispatch("ann", 1)
        with pytest.raises((errors.NotEncodableError, errors.SessionTooLargeError)) as caught:
            await soon(manager.dispatch("ann", value))
        assert await manager.peek("ann") == {"v": 1}
    assert type(caught.value) is errors.NotEncodableError
    assert caught.value.path.startswith(path)


async def test_hostile_depth_and_size_are_refused() -> None:
    async def handle(context: Context) -> None:
        if context.event == "deep":
            deep: Any = []
            for _ in range(200_000):
                deep = [deep]
            context.session["v"] = deep
        else:
            context.session["v"] = "x" * 300_000

    async with SessionManager(handler=handle) as manager:
        for event in ("deep", "large"):
            with pytest.raises(errors.SessionTooLargeError):
                await soon(manager.dispatch("ann", event))
        assert await manager.peek("ann") is None


@pytest.mark.parametrize(
    "bad", [None, 7, b"x", {"$gt": ""}, ["x"], "", "x" * 513, "é" * 257, "a\x00b", "a\nb", "a\x7f", "a\x85b", "\ud800"]
)
async def test_a_bad_id_is_refused_by_every_verb(bad: Any) -> None:
    store = RecordingStore()
    async with SessionManager(store, handler=count) as manager:
        for call in (lambda: manager.dispatch(bad, 1), lambda: manager.submit(bad, 1), lambda: manager.peek(bad),
                     lambda: manager.destroy(bad), lambda: manager.turn(bad).__aenter__()):  # fmt: skip
            with pytest.raises(errors.InvalidSessionIdError):
                await call()
        if bad is not None:  # which means all
            with pytest.raises(errors.InvalidSessionIdError):
                await manager.flush(bad)
        assert list(manager.resident()) == []
    assert store.reads == []
    assert store.writes == []


async def test_odd_ids_are_distinct_sessions(tmp_path: Path) -> None:
    ids = ["../../etc/passwd", "CON", "a/b", "a", "A", "\u00e9", "e\u0301", "{}", "*", ":", " ", ".", "x" * 512]
    store = FileSessionStore(tmp_path / "s")
    async with SessionManager(store, handler=count) as manager:
        for session_id in ids:
            assert await manager.dispatch(session_id, "hi") == 1
    async with SessionManager(store, handler=count) as manager:
        for session_id in ids:
            assert await manager.dispatch(session_id, "hi") == 2


async def test_a_record_that_does_not_fit_the_dataclass_is_broken_and_stays() -> None:
    @dataclass
    class Shape:
        n: int = 0

    store = MemorySessionStore()

    async def text(context: Context) -> None:
        context.session["n"] = "text"

    async def wrong(context: Context) -> None:
        context.session.n = context.event

    async with SessionManager(store, handler=text) as manager:
        await manager.dispatch("ann", "hi")
    async with SessionManager(store, handler=wrong, session_type=Shape) as manager:
        with pytest.raises(errors.CorruptSessionError, match="n"):
            await manager.dispatch("ann", 1)
        await manager.dispatch("bob", 1)
        with pytest.raises(errors.NotEncodableError) as caught:
            await manager.dispatch("bob", "text")
        assert caught.value.path == "session.n"
        assert await manager.peek("bob") == {"n": 1}
        assert await manager.peek("ann") == {"n": "text"}


async def test_only_the_first_argument_of_a_memory_store_is_positional() -> None:
    with pytest.raises(TypeError):
        MemorySessionStore(10, 5.0)  # type: ignore[misc]


async def test_a_closed_manager_looks_no_longer_at_how_busy_the_loop_is() -> None:
    manager = await SessionManager(handler=count).start()
    look = inside.next_look(manager)
    assert look is not None
    assert not look.cancelled()

    await manager.close()
    assert inside.next_look(manager) is look  # no other was begun meanwhile
    assert look.cancelled()
