"""What nobody would notice at once if it broke: what a task keeps, what is flushed together, whose time-out it is."""

from __future__ import annotations

import gc
import threading
import weakref
from concurrent.futures import Future
from typing import Any

import pytest

from actorbot import Context, FlushPolicy, MemorySessionStore, Retry, SessionManager, errors
from actorbot._state.codec import encode_state
from actorbot.testing import FaultyStore, ManualClock, RecordingStore
from tests import inside
from tests.handlers import count, count_plainly


async def test_a_task_keeps_no_more_than_the_last_of_its_turns() -> None:
    turns: list[weakref.ref[Context]] = []

    async def handle(context: Context) -> None:
        turns.append(weakref.ref(context))

    async with SessionManager(handler=handle) as manager:
        for _ in range(20):
            await manager.dispatch("ann", "hi")
        gc.collect()

        assert sum(turn() is not None for turn in turns) <= 1


async def test_sessions_that_are_due_at_about_the_same_time_share_a_write() -> None:
    clock, store = ManualClock(), RecordingStore()
    policy = FlushPolicy.write_behind(max_delay=8.0)
    async with SessionManager(store, handler=count, flush=policy, clock=clock) as manager:
        for user in ("ann", "bob", "cyd"):
            await manager.dispatch(user, "hi")
            await clock.advance(0.4)
        await clock.advance(6.8)

        assert [sorted(record.session_id for record in batch) for batch in store.write_batches] == [
            ["ann", "bob", "cyd"]
        ]


async def test_who_is_told_that_a_flush_succeeded_finds_the_manager_well() -> None:
    clock, store = ManualClock(), FaultyStore()
    policy = FlushPolicy.write_behind(max_delay=1.0, retry=Retry(base=1.0))
    async with SessionManager(store, handler=count, flush=policy, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        store.fail_writes(1)
        await clock.advance(1.0)
        assert manager.health().status == "degraded"
        seen: Future[str] = Future()
        flushed = inside.flusher(manager).flush(inside.table(manager).resident())
        flushed.add_done_callback(lambda _: seen.set_result(manager.health().status))
        await clock.advance(5.0)

        assert seen.result(timeout=5.0) == "ready"


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
            patch.setattr(manager, "_run_sync", close_meanwhile)
            assert receipt.result_sync() == 1


@pytest.mark.parametrize("value", [2**63, [2**64 - 1], -(2**63) - 1])
def test_an_integer_beyond_64_bits_is_refused_by_every_way_through_the_check(value: Any) -> None:
    with pytest.raises(errors.NotEncodableError):
        encode_state({"n": value}, 1_000)
