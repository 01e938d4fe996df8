"""G13: no call waits without a bound, and a circle of sessions is refused at once."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextvars import Context as Variables
from typing import Any

import pytest

from actorbot import (
    Context,
    FlushPolicy,
    MemorySessionStore,
    SessionManager,
    errors,
)
from actorbot.stores.base import Record, Write
from actorbot.testing import FaultyStore, ManualClock
from tests import inside
from tests.backends import DictStore
from tests.handlers import count, count_plainly
from tests.programs import run_program
from tests.waiting import SOON, breathe, soon, until


async def test_a_circle_of_two_sessions_is_refused_at_once() -> None:
    both = asyncio.Barrier(2)

    async def handle(context: Context) -> None:
        if context.event == "first":
            await both.wait()
            await manager.dispatch({"ann": "bob", "bob": "ann"}[context.session_id], "second")

    async with SessionManager(handler=handle) as manager:
        outcomes = await asyncio.gather(
            manager.dispatch("ann", "first"), manager.dispatch("bob", "first"), return_exceptions=True
        )

    assert any(isinstance(outcome, errors.DeadlockError) for outcome in outcomes)


def test_a_thread_that_waits_too_long_for_a_turn_withdraws_its_event() -> None:
    entered, release = threading.Event(), threading.Event()

    def handle(context: Context) -> None:
        count_plainly(context)
        if context.event == "stay":
            entered.set()
            release.wait(20)

    with SessionManager(handler=handle) as manager:
        staying = threading.Thread(target=manager.dispatch_sync, args=("ann", "stay"))
        staying.start()
        entered.wait(20)
        with pytest.raises(errors.TurnTimeoutError, match="'ann'"):
            manager.dispatch_sync("ann", "late", timeout=0.01)
        release.set()
        staying.join()

        assert manager.peek_sync("ann") == {"n": 1}


async def test_a_foreign_thread_that_waits_too_long_withdraws_its_event() -> None:
    release = asyncio.Event()

    async def handle(context: Context) -> None:
        await count(context)
        if context.event == "stay":
            await release.wait()

    async with SessionManager(handler=handle) as manager:
        staying = asyncio.create_task(manager.dispatch("ann", "stay"))
        await asyncio.sleep(0)
        with pytest.raises(errors.TurnTimeoutError, match="'ann'"):
            await asyncio.to_thread(manager.dispatch_sync, "ann", "late", timeout=0.01)
        release.set()
        await staying

        assert await manager.peek("ann") == {"n": 1}


async def test_a_driver_that_never_answers_releases_its_callers_and_stops_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("actorbot.testing._manual_clock.PATIENCE", 0.1)  # what is held up goes on by itself
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        await manager.dispatch("bob", "hi")
        store.hold()
        waiting = asyncio.create_task(manager.dispatch("ann", "hi"))
        await asyncio.sleep(0)
        await until(lambda: manager.stats().store_reads > 1)
        await clock.advance(5.1)
        with pytest.raises(errors.StoreUnavailableError):
            await waiting

        assert await manager.dispatch("bob", "hi") == 2
        store.release()


async def test_a_turn_that_waits_twice_for_a_session_is_guarded_until_both_waits_are_over() -> None:
    asked_once, ask_again = asyncio.Event(), asyncio.Event()

    async def handle(context: Context) -> None:
        if context.event == "ask twice":
            first = asyncio.create_task(manager.dispatch("bob", "first"))
            await asyncio.sleep(0)
            asked_once.set()
            await ask_again.wait()
            await asyncio.gather(first, manager.dispatch("bob", "third"))
        elif context.event == "second":
            await manager.dispatch("ann", "hi")

    async with SessionManager(handler=handle, close_timeout=0.1) as manager:
        async with manager.turn("bob"):
            asking = asyncio.create_task(manager.dispatch("ann", "ask twice"), context=Variables())
            await asked_once.wait()
            second = asyncio.create_task(manager.dispatch("bob", "second"), context=Variables())
            await asyncio.sleep(0)
            ask_again.set()
            await asyncio.sleep(0)
        with pytest.raises(errors.DeadlockError):
            await soon(second)
        await soon(asking)


async def test_a_session_is_read_again_once_its_stuck_read_has_come_back() -> None:
    entered, go_on, back = threading.Event(), threading.Event(), threading.Event()

    class StuckOnce(FaultyStore):
        def read_many(self, session_ids: Any) -> Any:
            if not entered.is_set():
                entered.set()
                go_on.wait(5.0)
                back.set()
            return super().read_many(session_ids)

    clock = ManualClock()
    async with SessionManager(StuckOnce(), handler=count, clock=clock) as manager:
        first = asyncio.create_task(manager.dispatch("ann", "hi"))
        await until(entered.is_set)
        await clock.advance(6.0)
        with pytest.raises(errors.StoreUnavailableError, match="no answer within 5 s"):
            await first
        with pytest.raises(errors.StoreUnavailableError, match="has not come back"):
            await manager.dispatch("ann", "hi")
        assert await soon(manager.dispatch("bob", "hi")) == 1
        go_on.set()
        assert back.wait(5.0)
        await until(lambda: not inside.reads(manager))

        assert await manager.dispatch("ann", "hi") == 1


def test_an_error_hook_that_never_ends_does_not_hold_its_calling_thread() -> None:
    def handle(context: Context) -> None:
        raise ValueError("no")

    async def hang(*_: Any) -> None:
        await asyncio.Event().wait()

    with SessionManager(handler=handle, on_error=hang, handler_timeout=0.1) as manager, pytest.raises(ValueError):
        manager.dispatch_sync("ann", "hi")


def test_handlers_that_never_return_take_the_threads_of_no_told_event() -> None:
    clock, go_on, last = ManualClock(), threading.Event(), threading.Event()
    entered = threading.Semaphore(0)

    def handle(context: Context) -> None:
        if context.event == "last":
            last.set()
        else:
            entered.release()
            go_on.wait(20)

    with SessionManager(handler=handle, clock=clock, handler_timeout=5.0) as manager:
        try:
            for number in range(32):
                manager.submit_sync(f"user:{number}", "stay")
            assert all(entered.acquire(timeout=20) for _ in range(32))
            manager.submit_sync("ann", "last")
            assert not last.is_set()
            clock.advance_sync(5.1)
            assert last.wait(20)
        finally:
            go_on.set()


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
            assert await soon(manager.dispatch("ann", "hi")) == "done"
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
            await soon(manager.dispatch("ann", "hi"))


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


async def test_a_turn_that_awaits_a_reply_which_waits_for_that_turn_is_refused_at_once() -> None:
    async def deliver(session_id: str, _: Any) -> None:
        await manager.dispatch(session_id, "relayed")

    async def handle(context: Context) -> None:
        await context.send_text("now", gated=False)

    async with SessionManager(handler=handle, deliver=deliver) as manager:
        with pytest.raises(errors.DeadlockError):
            await soon(manager.dispatch("ann", "hi"))


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
                await soon(way())
            except errors.DeadlockError:
                refused.append(name)
        receipt = await manager.submit("ann", "told")
        for wait in (receipt.result, receipt.durable):
            try:
                await soon(wait())
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
        outcomes = await soon(asyncio.gather(*calls, return_exceptions=True))
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


def other(session_id: str) -> str:
    return {"ann": "bob", "bob": "ann"}[session_id]


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
            await soon(manager.dispatch("bob", "hi"))
        await bob.__aexit__(None, None, None)
        assert await soon(manager.dispatch("bob", "hi")) == 1
        assert await soon(manager.dispatch("ann", "hi")) == 1


async def test_a_hung_store_releases_a_write_through_dispatch_within_the_deadline() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-through:store_deadline=0.1,retry.base=0.01,retry.cap=0.01")
    async with SessionManager(store, handler=count, flush=policy, close_timeout=0.2) as manager:
        await manager.dispatch("ann", "hi")
        store.hold()
        try:
            with pytest.raises(errors.StoreUnavailableError):
                await soon(manager.dispatch("ann", "hi"))
        finally:
            store.release()


class Overtaken(FaultyStore):
    """Answers no write once, when it is told to; then another process writes.

    The flusher looks at what is there now. The next look, which is the turn's, is held.
    """

    overtaking: Write | None = None
    looks = 0

    def write_many(self, writes: Sequence[Write]) -> Sequence[errors.ActorbotError | None]:
        if self.overtaking is None:
            return super().write_many(writes)
        self.inner.write_many([self.overtaking])
        self.overtaking = None
        raise errors.OutcomeUnknownError(self.name, "told to give no answer")

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | errors.ActorbotError | None]:
        if self.write_calls > 1:
            self.looks += 1
            if self.looks > 1:
                self.hold()
        return super().read_many(session_ids)


async def test_a_borrower_cancelled_while_it_looks_what_became_of_its_write_leaves_the_turn() -> None:
    store = Overtaken()

    async def borrow() -> None:
        async with manager.turn("ann") as turn:
            turn.session["n"] = 10

    async with SessionManager(store, handler=count, flush=FlushPolicy.write_through()) as manager:
        await manager.dispatch("ann", "hi")
        (stored,) = store.inner.read_many(["ann"])
        assert isinstance(stored, Record)
        store.overtaking = Write(stored.next_write(), stored.write_id)
        borrowing = asyncio.create_task(borrow())
        await until(lambda: not store._open.is_set())
        borrowing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await borrowing
        store.write_calls = 0
        store.release()
        assert await soon(manager.dispatch("ann", "hi")) == 2


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
                await soon(calls[verb]())
        finally:
            store.release()


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
            async with asyncio.timeout(SOON):
                while "good" not in store.data:
                    await breathe()
        finally:
            store.go_on.set()
        await asyncio.gather(flushing, return_exceptions=True)


async def test_a_store_that_hangs_at_the_start_is_unavailable_within_its_deadline() -> None:
    go_on = threading.Event()

    class Hung(MemorySessionStore):
        def init(self) -> Any:
            go_on.wait(SOON)
            return self

    manager = SessionManager(Hung(), handler=count, flush=FlushPolicy.write_behind(store_deadline=0.1))
    try:
        with pytest.raises(errors.StoreUnavailableError):
            await soon(manager.start())
    finally:
        go_on.set()


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
