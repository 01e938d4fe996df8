"""G5: no write goes over what somebody else has written."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

import pytest

from actorbot import (
    Context,
    FlushPolicy,
    MemorySessionStore,
    SessionManager,
    errors,
)
from actorbot._turns.session_actor import BUSY
from actorbot.testing import FaultyStore, ManualClock
from tests import inside
from tests.backends import DictStore
from tests.handlers import count
from tests.waiting import SOON, soon, until


async def test_two_managers_on_one_session_lose_nothing_with_write_through() -> None:
    store = MemorySessionStore()
    policy = FlushPolicy.write_through()
    async with (
        SessionManager(store, handler=count, flush=policy) as a,
        SessionManager(store, handler=count, flush=policy) as b,
    ):
        for _ in range(20):
            await a.dispatch("ann", "hi")
            await b.dispatch("ann", "hi")

        assert await b.peek("ann") == {"n": 40}


async def test_a_conflict_behind_the_conversation_overwrites_nothing_and_is_handed_over() -> None:
    store = MemorySessionStore()
    handed: list[Any] = []
    done = asyncio.Event()

    async def keep(session_id: str, state: Any) -> None:
        handed.append((session_id, state))
        done.set()

    async with SessionManager(store, handler=count) as a, SessionManager(store, handler=count, on_conflict=keep) as b:
        await a.dispatch("ann", "hi")
        await b.dispatch("ann", "hi")
        await b.dispatch("ann", "hi")
        await a.flush()
        with pytest.raises(errors.ConflictError):
            await b.flush()
        await done.wait()

        assert handed == [("ann", {"n": 2})]
        assert await b.dispatch("ann", "hi") == 2


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
