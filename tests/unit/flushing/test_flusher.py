"""What becomes of a write that failed, and of those beside and behind it."""

from __future__ import annotations

import ast
import asyncio
import gc
import inspect
import textwrap
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import Any

import pytest

from actorbot import FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot._flushing.dirty import DirtySessions
from actorbot._flushing.write import Flushable
from actorbot.stores.base import Write
from actorbot.testing import FaultyStore, ManualClock, RecordingStore
from tests.backends import DictStore
from tests.handlers import count, count_plainly
from tests.waiting import SOON, soon, until


async def test_write_through_tries_once_while_the_store_is_known_to_be_down() -> None:
    clock, store = ManualClock(), FaultyStore()
    policy = FlushPolicy.parse("write-through:retry.attempts=3")
    async with SessionManager(store, handler=count, flush=policy, clock=clock) as manager:
        store.outage()
        first = asyncio.create_task(manager.dispatch("ann", "hi"))
        await until(lambda: manager.stats().running == 0 and manager.stats().store_reads == 1)
        with pytest.raises(errors.StoreUnavailableError):
            await soon(first)  # its session could not be read
        store.restore()
        await manager.dispatch("ann", "hi")
        store.outage()
        first = asyncio.create_task(manager.dispatch("ann", "hi"))
        async with asyncio.timeout(SOON):
            while not first.done():
                await clock.advance(0.1)
                await asyncio.sleep(0)
        with pytest.raises(errors.StoreUnavailableError):
            await soon(first)
        for _ in range(3):  # the clock stands still: nobody waits for a pause
            calls = store.write_calls
            with pytest.raises(errors.StoreUnavailableError):
                await soon(manager.dispatch("ann", "hi"))
            assert store.write_calls == calls + 1
        store.restore()
        assert await soon(manager.dispatch("ann", "hi")) == 2
        assert manager.health().status == "ready"


class Stepping(DictStore):
    """Each write waits for a step; `done` has what was asked, in order."""

    def __init__(self) -> None:
        super().__init__()
        self.steps = threading.Semaphore(0)
        self.entered = 0
        self.done: list[tuple[str, str]] = []

    def read(self, session_id: str) -> dict[str, Any] | None:
        self.done.append(("read", session_id))
        return super().read(session_id)

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        self.entered += 1
        self.steps.acquire(timeout=SOON)
        self.done.append(("write", session_id))
        super().write(session_id, data)


async def test_a_cold_read_does_not_wait_for_a_whole_flush_of_a_plain_driver() -> None:
    store = Stepping()
    async with SessionManager(store, handler=count, flush=FlushPolicy.write_behind(max_delay=60)) as manager:
        for user in range(10):
            await manager.dispatch(f"user:{user}", "hi")
        flushing = asyncio.create_task(manager.flush())
        await until(lambda: store.entered == 1)
        store.done.clear()
        peeking = asyncio.create_task(manager.peek("ann"))
        await asyncio.sleep(0)
        store.steps.release(10)
        await soon(asyncio.gather(flushing, peeking))
        assert store.done[1] == ("read", "ann")


async def test_a_session_that_the_store_refuses_is_answered_from_memory_past_max_events() -> None:
    class Refusing(DictStore):
        tries = 0

        def write(self, session_id: str, data: dict[str, Any]) -> None:
            self.tries += 1
            raise ValueError("document too large")

    clock, store = ManualClock(), Refusing()
    policy = FlushPolicy.write_behind(max_delay=60.0, max_events=2)
    async with SessionManager(store, handler=count, flush=policy, clock=clock, close_timeout=0.2) as manager:
        for expected in range(1, 20):
            assert await soon(manager.dispatch("bad", "hi")) == expected
        assert store.tries <= 3
        assert manager.health().status == "degraded"


async def test_a_session_that_began_again_after_a_destroy_is_flushed_in_time() -> None:
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        for user in ("bob", "ann"):
            await manager.dispatch(user, "hi")
        store.hold()
        calls = store.write_calls
        advancing = asyncio.create_task(clock.advance(1.0))
        await until(lambda: store.write_calls > calls)
        await manager.dispatch("ann", "hi")  # marked again while it is being written
        destroying = asyncio.create_task(manager.destroy("ann"))
        await asyncio.sleep(0)
        store.release()
        await soon(asyncio.gather(advancing, destroying))
        assert manager.stats().dirty_bytes == 0
        assert await manager.dispatch("ann", "hi") == 1
        await clock.advance(1.0)
        assert store.read("ann") is not None
        assert manager.stats().oldest_dirty == 0.0


async def test_a_store_that_finds_too_little_fails_whoever_waits() -> None:
    class ReadsNothing(MemorySessionStore):
        def read_many(self, session_ids: Any) -> Any:
            return []

    async with SessionManager(ReadsNothing(), handler=count, close_timeout=0.2) as manager:
        with pytest.raises(errors.StoreUnavailableError, match="0 answers for 1 session"):
            await soon(manager.dispatch("ann", "hi"))


async def test_a_store_that_answers_too_little_fails_whoever_waits() -> None:
    class Mute(MemorySessionStore):
        def write_many(self, writes: Any) -> Any:
            return []

    policy = FlushPolicy.parse("write-through:retry.attempts=1")
    async with SessionManager(Mute(), handler=count, flush=policy) as manager:
        with pytest.raises(errors.OutcomeUnknownError):
            await soon(manager.dispatch("ann", "hi"))


class Going(FaultyStore):
    """Loses the reply of the first write, and is down from then on."""

    def write_many(self, writes: Sequence[Write]) -> Sequence[errors.ActorbotError | None]:
        self.lose_replies(self.write_calls == 0)
        try:
            return super().write_many(writes)
        finally:
            if self.write_calls == 1:
                self.outage()


async def test_what_is_committed_while_an_older_state_is_sent_again_is_flushed_too() -> None:
    clock, store = ManualClock(), Going()
    policy = FlushPolicy.write_behind(max_delay=1.0)
    async with SessionManager(store, handler=count, flush=policy, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        await clock.advance(1.0)  # nobody knows what of the first state was done: it is what is sent again
        await manager.dispatch("ann", "hi")
        await clock.advance(5.0)  # the second is due, and waits behind it
        assert manager.health().status == "degraded"
        store.restore()
        await clock.advance(60.0)
        assert manager.health().status == "ready"
        assert manager.stats().oldest_dirty == 0.0
        assert (store.read("ann") or {})["n"] == 2


class NotBob(RecordingStore):
    """Refuses what is bob's."""

    def write_many(self, writes: Sequence[Write]) -> Sequence[errors.ActorbotError | None]:
        refused = errors.StoreUnavailableError("test", "not his")
        taken = iter(super().write_many([each for each in writes if each.record.session_id != "bob"]))
        return [refused if each.record.session_id == "bob" else next(taken) for each in writes]


async def test_a_flush_that_left_something_behind_says_so_whatever_conflicts_it_met() -> None:
    clock, store = ManualClock(), NotBob()
    policy = FlushPolicy.parse("write-behind:retry.attempts=1")
    async with SessionManager(store, handler=count, flush=policy, clock=clock, close_timeout=0.1) as manager:
        for user in ("ann", "bob"):
            await manager.dispatch(user, "hi")
        store.inner.write("ann", {"n": 7})  # somebody else
        with pytest.raises(errors.StoreUnavailableError, match="not his"):
            await soon(manager.flush())
        assert manager.stats().conflicts == 1


async def test_the_events_at_risk_are_those_that_the_store_does_not_have() -> None:
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        assert manager.stats().events_at_risk == 0
        await manager.dispatch("bob", "hi")
        await manager.flush()
        for user in ("ann", "ann", "bob", "cid"):
            await manager.dispatch(user, "hi")
        assert manager.stats().events_at_risk == 4
        await manager.flush("ann")
        assert manager.stats().events_at_risk == 2
        store.outage()
        await clock.advance(1.0)
        assert manager.stats().events_at_risk == 2
        store.restore()
        await clock.advance(60.0)
        assert manager.stats().events_at_risk == 0


@pytest.mark.parametrize("enabled", [True, False])
async def test_what_turns_leave_behind_is_looked_at_before_it_piles_up_unless_the_bot_wants_no_collector(
    enabled: bool,
) -> None:
    calls: list[int] = []

    def note(phase: str, info: dict[str, int]) -> None:
        if phase == "start":
            calls.append(info["generation"])

    before = gc.get_threshold()
    async with SessionManager(MemorySessionStore(), handler=count, max_resident=3_000) as manager:
        gc.collect()
        gc.set_threshold(1_000_000)  # it does not come by itself
        gc.callbacks.append(note)
        (gc.enable if enabled else gc.disable)()
        try:
            for user in range(2_500):
                await manager.dispatch(f"user:{user}", "hi")
            await manager.flush()
        finally:
            gc.callbacks.remove(note)
            gc.enable()
            gc.set_threshold(*before)
    assert calls == ([0, 0] if enabled else [])


@pytest.mark.parametrize("function", [DirtySessions.mark, DirtySessions.unmark, DirtySessions.uncharge])
def test_no_thread_can_lose_the_interpreter_with_the_lock_of_the_books_in_its_hands(
    function: Callable[..., Any],
) -> None:
    """CPython takes it at calls and at the ends of loops: there are none under that lock where
    every event comes by.
    """
    tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    blocks = [node for node in ast.walk(tree) if isinstance(node, ast.With)]
    each_event, *once_a_batch = sorted(blocks, key=lambda block: "_look_for_room" in ast.unparse(block))

    assert len(once_a_batch) <= 1
    assert not [node for node in ast.walk(each_event) if isinstance(node, ast.Call | ast.For | ast.While)]


def test_who_is_marked_while_others_are_taken_delays_nobody_before_him() -> None:
    clock = ManualClock()
    start, told = clock.monotonic(), []

    def announce(done: Future[None] | None) -> bool:
        told.append(clock.monotonic() - start)
        return False

    dirty = DirtySessions(FlushPolicy.write_behind(max_delay=1.0), clock, announce)
    first, second, third = Flushable("first"), Flushable("second"), Flushable("third")
    dirty.mark(first)
    clock.advance_sync(0.5)
    dirty.mark(second)
    clock.advance_sync(0.5)
    taken = dirty.take_due()
    assert next(taken) is first
    dirty.mark(third)
    assert list(taken) == []
    clock.advance_sync(0.5)

    assert told == [1.0, 1.5]
    assert list(dirty.take_due()) == [second]
    clock.advance_sync(0.5)
    assert told == [1.0, 1.5, 2.0]


def test_who_is_in_a_hurry_is_due_at_once_and_leaves_the_others_their_time() -> None:
    clock = ManualClock()
    start, told = clock.monotonic(), []

    def announce(done: Future[None] | None) -> bool:
        told.append(clock.monotonic() - start)
        return False

    dirty = DirtySessions(FlushPolicy.write_behind(max_delay=1.0), clock, announce)
    first, second = Flushable("first"), Flushable("second")
    dirty.mark(first)
    clock.advance_sync(0.5)
    dirty.mark(second)
    dirty.hurry(second)
    dirty.hurry(second)  # the flusher knows
    assert told == [0.5]
    assert list(dirty.take_due()) == [second, second]
    clock.advance_sync(0.5)
    assert told == [0.5, 1.0]  # one timer
    assert list(dirty.take_due()) == [first]
    clock.advance_sync(0.5)
    assert told == [0.5, 1.0, 1.5]
    assert list(dirty.take_due()) == [second]


def test_callers_give_way_while_sessions_are_flushed_late_and_not_because_the_store_is_down(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    naps: list[float] = []
    monkeypatch.setattr("actorbot._runtime.thread_home.time.sleep", naps.append)
    monkeypatch.setattr("actorbot.testing._manual_clock.PATIENCE", 0.05)
    clock, store = ManualClock(), FaultyStore()
    policy = FlushPolicy.write_behind(max_delay=1.0)
    with SessionManager(store, handler=count_plainly, clock=clock, flush=policy) as manager:
        for user in ("ann", "bob", "cid"):
            manager.dispatch_sync(user, 1)
        manager.flush_sync()
        manager.dispatch_sync("ann", 2)
        store.hold()
        clock.advance_sync(1.0)
        calls = store.write_calls
        manager.dispatch_sync("bob", 2)
        clock.advance_sync(1.5)  # the write of ann keeps that of bob from the store
        assert naps == []
        store.release()
        store.hold()
        for _ in range(5_000):
            if store.write_calls > calls:
                break
            threading.Event().wait(0.001)
        manager.dispatch_sync("cid", 2)
        assert len(naps) == 1
        store.release()
        manager.flush_sync()
        manager.dispatch_sync("cid", 3)
        assert len(naps) == 1

        store.outage()
        clock.advance_sync(10.0)
        calls = store.write_calls
        store.hold()
        for _ in range(60):
            if store.write_calls > calls:
                break  # another try is on its way
            clock.advance_sync(1.0)
        manager.dispatch_sync("ann", 3)
        assert len(naps) == 1
        store.restore()
        store.release()
        clock.advance_sync(60.0)
