"""Where two things happen at once: failures, destroys, closes and time-outs that cross."""

from __future__ import annotations

import asyncio
import threading
from contextvars import Context as Variables
from enum import StrEnum
from typing import Any

import pytest

from actorbot import Context, FileSessionStore, FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot._state.record import Record
from actorbot._turns.session_actor import BUSY
from actorbot.stores.base import Write
from actorbot.testing import FaultyStore, ManualClock
from tests import inside
from tests.handlers import count, count_plainly
from tests.waiting import until


async def test_a_session_whose_read_failed_can_never_be_entered_by_its_old_actor() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.hold()
        store.fail_reads(1)
        waiting = asyncio.create_task(manager.dispatch("ann", "hi"))
        await asyncio.sleep(0)
        old = inside.resident(manager, "ann")
        store.release()
        with pytest.raises(errors.StoreUnavailableError):
            await waiting

        assert not old.turn.acquire(False)
        assert await manager.dispatch("ann", "hi") == 1
        assert inside.resident(manager, "ann") is not old


async def test_a_destroy_after_a_failed_flush_writes_the_tombstone_and_not_the_old_state() -> None:
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        store.fail_writes(1)
        await clock.advance(1.0)
        destroying = asyncio.create_task(manager.destroy("ann"))
        await asyncio.sleep(0)
        await clock.advance(1.0)
        await destroying

        assert store.read("ann") is None


async def test_destroying_a_dirty_session_gives_its_bytes_back() -> None:
    clock = ManualClock()
    async with SessionManager(handler=count, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        await manager.destroy("ann")
        await clock.advance(2.0)

        assert manager.stats().dirty_bytes == 0


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
            await asyncio.wait_for(second, 3.0)
        await asyncio.wait_for(asking, 3.0)


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


def test_a_receipt_gives_its_result_to_threads_after_the_close() -> None:
    with SessionManager(handler=count_plainly) as manager:
        receipt = manager.submit_sync("ann", "hi")
    assert receipt.result_sync(timeout=1.0) == 1
    with pytest.raises(errors.ManagerClosedError):
        receipt.durable_sync(timeout=1.0)


async def test_a_destroy_behind_an_event_that_meets_the_broken_record_destroys_it() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.corrupt("ann")
        store.hold()
        event = asyncio.create_task(manager.dispatch("ann", "hi"))
        await asyncio.sleep(0)
        destroying = asyncio.create_task(manager.destroy("ann"))
        await asyncio.sleep(0)
        store.release()
        with pytest.raises(errors.CorruptSessionError):
            await event
        await destroying

        assert await manager.dispatch("ann", "hi") == 1


async def test_the_error_of_a_broken_record_does_not_grow_with_each_who_is_told() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        store.corrupt("ann")
        depths = []
        for _ in range(5):
            with pytest.raises(errors.CorruptSessionError) as caught:
                await manager.dispatch("ann", "hi")
            depths.append(len(caught.traceback))
        assert depths[4] == depths[1]


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
        async with asyncio.timeout(5):
            while not entered.is_set():
                await asyncio.sleep(0)
        await clock.advance(6.0)
        with pytest.raises(errors.StoreUnavailableError, match="no answer within 5 s"):
            await first
        with pytest.raises(errors.StoreUnavailableError, match="has not come back"):
            await manager.dispatch("ann", "hi")
        assert await asyncio.wait_for(manager.dispatch("bob", "hi"), 5.0) == 1
        go_on.set()
        assert back.wait(5.0)
        await until(lambda: not inside.reads(manager))

        assert await manager.dispatch("ann", "hi") == 1


async def test_a_store_that_takes_a_write_after_a_failed_read_is_well_again() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        await manager.dispatch("ann", "hi")
        store.fail_reads(1)
        with pytest.raises(errors.StoreUnavailableError):
            await manager.peek("bob")
        assert manager.health().status == "degraded"
        assert "told to fail" in manager.health().reason
        await manager.flush()
        assert manager.health().status == "ready"


async def test_each_life_of_a_session_has_an_end_of_its_own_that_is_told() -> None:
    clock = ManualClock()
    ended: list[Any] = []
    async with SessionManager(
        MemorySessionStore(expires_in=10.0), handler=count, clock=clock, idle_timeout=3.0,
        on_session_expire=lambda *each: ended.append(each),
    ) as manager:  # fmt: skip
        for _ in range(3):
            assert await manager.dispatch("ann", "hi") == 1
            await clock.advance(30.0)
    assert ended == [("ann", {"n": 1})] * 3


async def test_a_close_logs_every_session_that_it_could_not_flush(caplog: pytest.LogCaptureFixture) -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count).start()
    for user in range(30):
        await manager.dispatch(f"user:{user}", "hi")
    store.outage()
    report = await manager.close(timeout=0.1)

    assert len(report.unflushed) == 30
    assert all(repr(session_id) in caplog.text for session_id in report.unflushed)


async def test_closing_finishes_events_that_were_accepted_in_the_same_breath(tmp_path: Any) -> None:
    store = FileSessionStore(tmp_path / "s")
    manager = await SessionManager(store, handler=count).start()
    for user in range(20):
        await manager.submit(f"user:{user}", "hi")
    report = await manager.close()

    assert report.clean
    store.init()
    assert all((store.read(f"user:{user}") or {}).get("n") == 1 for user in range(20))
    store.close()


async def test_closing_finishes_what_waits_in_a_full_mailbox() -> None:
    store = MemorySessionStore()

    async def handle(context: Context) -> int:
        await asyncio.sleep(0)
        return await count(context)

    manager = await SessionManager(store, handler=handle, max_mailbox=5).start()
    tasks = [asyncio.create_task(manager.dispatch("ann", number)) for number in range(6)]
    while not tasks[0].done() and sum(info.waiting for _, info in manager.resident()) < 5:
        await asyncio.sleep(0)
    report = await manager.close()

    assert report.clean
    assert sorted(await asyncio.gather(*tasks)) == [1, 2, 3, 4, 5, 6]


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
        while not manager.stats().running:
            await asyncio.sleep(0)
        await clock.advance(30.0)

        assert await asyncio.wait_for(manager.dispatch("ann", "hi"), 10) == 1
        release.set()
        with pytest.raises(errors.HandlerTimeoutError):
            await stubborn
        assert await manager.peek("ann") == {"n": 1}


async def test_a_session_id_of_a_type_derived_from_str_is_that_string() -> None:
    class User(StrEnum):
        ANN = "ann"

    store = MemorySessionStore()
    async with SessionManager(store, handler=count) as manager:
        assert await manager.dispatch(User.ANN, "hi") == 1
        assert await manager.dispatch("ann", "hi") == 2
        await manager.flush()
        assert [type(session_id) for session_id, _ in manager.resident()] == [str]
    assert (store.read("ann") or {})["n"] == 2


@pytest.mark.parametrize(("expires_at", "found"), [(1_500.0, None), (4e9, {"n": 1})])
async def test_the_records_own_stamp_decides_whether_it_has_ended(expires_at: float, found: Any) -> None:
    store = MemorySessionStore(expires_in=10.0)
    record = Record("ann", 1, b"\x81\xa1n\x01", b"", b"", 1_000.0, expires_at).next_write()
    store.write_many([Write(record, b"")])
    async with SessionManager(store, handler=count) as manager:
        assert await manager.peek("ann") == found
        assert await manager.dispatch("ann", "hi") == (2 if found else 1)


async def test_an_ungated_reply_that_fails_tells_who_awaits_it() -> None:
    failed: list[BaseException] = []

    async def deliver(_: str, text: str) -> None:
        raise ConnectionError("gone")

    async def handle(context: Context) -> str:
        with pytest.raises(ConnectionError):
            await context.send_text("now", gated=False)
        return "told"

    async def note(_: Context, error: BaseException) -> None:
        failed.append(error)

    async with SessionManager(handler=handle, deliver=deliver, on_error=note) as manager:
        assert await manager.dispatch("ann", "hi") == "told"
    assert [type(error) for error in failed] == [ConnectionError]


async def test_hooks_that_exit_end_nothing() -> None:
    async def refuse(*_: Any) -> None:
        raise SystemExit(3)

    async def handle(context: Context) -> None:
        raise ValueError

    async with SessionManager(handler=handle, on_error=refuse, on_dead_letter=refuse) as manager:
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "hi")
        await manager.submit("ann", "hi")


async def test_nobody_waits_for_a_flush_that_a_close_has_overtaken() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count, close_timeout=0.2).start()
    await manager.dispatch("ann", "hi")
    store.hold()
    destroying = asyncio.create_task(manager.destroy("ann"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(manager.close())
    with pytest.raises(errors.ActorbotError):
        await asyncio.wait_for(destroying, 10)
    store.release()
    await closing


def test_a_lambda_may_pass_on_a_coroutine_in_threads_too() -> None:
    said = threading.Event()

    async def send(text: str) -> None:
        said.set()

    async def handle(context: Context, answer: str) -> str:
        context.send_text("hello")
        return answer

    with SessionManager(handler=lambda context: handle(context, "done"), deliver=lambda _, text: send(text)) as manager:
        assert manager.dispatch_sync("ann", "hi") == "done"
        assert said.wait(20)


def test_a_reply_that_a_lambda_passes_on_needs_no_loop() -> None:
    said: list[str] = []
    told = threading.Event()

    def deliver(_: str, text: str) -> None:
        said.append(text)
        told.set()

    with SessionManager(handler=lambda context: context.send_text("hello"), deliver=deliver) as manager:
        manager.dispatch_sync("ann", "hi")
        assert told.wait(20)
        assert inside.private_loop(manager) is None
    assert said == ["hello"]


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


async def test_a_broken_record_is_left_alone_for_a_while_by_told_events_too() -> None:
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        store.corrupt("ann")
        for _ in range(3):
            with pytest.raises(errors.CorruptSessionError):
                await (await manager.submit("ann", "hi")).result()

        assert manager.stats().store_reads == 1


async def test_a_dispatch_while_the_manager_starts_is_told_so() -> None:
    store = FaultyStore()
    store.hold()

    class Slow(MemorySessionStore):
        def init(self) -> Any:
            store._open.wait(20)
            return super().init()

    manager = SessionManager(Slow(), handler=count, flush=FlushPolicy.write_behind())
    starting = asyncio.create_task(manager.start())
    await asyncio.sleep(0)
    with pytest.raises(errors.ManagerClosedError):
        await manager.dispatch("ann", "hi")
    store.release()
    await starting
    await manager.close()


async def test_a_turn_that_runs_while_its_session_meets_a_conflict_overwrites_nothing() -> None:
    store = MemorySessionStore()
    entered, go_on = asyncio.Event(), asyncio.Event()

    async def handle(context: Context) -> int:
        if context.event == "stay":
            entered.set()
            await go_on.wait()
        return await count(context)

    async with SessionManager(store, handler=handle) as ours:
        await ours.dispatch("ann", "hi")
        async with SessionManager(store, handler=count) as theirs:
            await ours.flush()
            await theirs.dispatch("ann", "hi")
            await theirs.flush()
        await ours.dispatch("ann", "hi")
        staying = asyncio.create_task(ours.dispatch("ann", "stay"))
        await entered.wait()
        with pytest.raises(errors.ConflictError):
            await ours.flush()
        go_on.set()
        with pytest.raises(errors.ConflictError):
            await staying

        assert await ours.dispatch("ann", "hi") == 3


@pytest.mark.parametrize("at", ["its commit", "its expiry"])
async def test_a_conflict_in_the_middle_of_a_turn_is_not_overwritten(at: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store, clock = MemorySessionStore(), ManualClock()
    async with SessionManager(store, handler=count, clock=clock) as ours:
        for _ in range(BUSY + 2):
            await ours.dispatch("ann", "hi")
        store.write("ann", {"n": 100})  # somebody else

        def met(value: object) -> bool:
            monkeypatch.undo()
            with pytest.raises(errors.ConflictError):  # on its own thread: this one stands still
                inside.flusher(ours).flush([inside.resident(ours, "ann")]).result(5.0)
            return bool(value)

        if at == "its commit":
            monkeypatch.setattr("actorbot._turns.session_actor.is_nobody_elses", met)
        else:
            monkeypatch.setattr(inside.shared(ours), "wall", lambda: 1e12 if met(True) else 0.0)
        with pytest.raises(errors.ConflictError):
            await ours.dispatch("ann", "hi")
        assert ours.stats().events_at_risk == 0
        assert await ours.dispatch("ann", "hi") == 101


async def test_the_event_ids_of_an_ended_session_end_with_it() -> None:
    clock = ManualClock()
    async with SessionManager(MemorySessionStore(expires_in=10.0), handler=count, clock=clock) as manager:
        assert await manager.dispatch("ann", "hi", event_id="one") == 1
        clock.jump_wall(11.0)

        assert await manager.dispatch("ann", "hi", event_id="one") == 1
