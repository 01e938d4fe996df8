"""G14: sessions are handed over to another process, finished or as they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest

from actorbot import Context, FlushPolicy, SessionManager, errors
from actorbot.stores.base import Write
from actorbot.testing import FaultyStore, ManualClock
from tests import inside
from tests.backends import each_store
from tests.handlers import count, count_plainly
from tests.homes import both_homes, on_threads
from tests.journals import Server, advancing, idle
from tests.waiting import SOON, Call, breathe, soon, until, until_sync

POLICIES = {
    "write-behind": lambda _: FlushPolicy.write_behind(max_delay=3600.0, max_events=10**6),
    "write-through": lambda _: FlushPolicy.write_through(),
    "journaled": lambda folder: FlushPolicy.journaled(folder / "journal", max_delay=3600.0, max_events=10**6),
}
each_policy = pytest.mark.parametrize("policy", POLICIES)


class Slow:
    """A handler that stays in the turn of a "stay" until it may `go_on`, whatever cancels it."""

    def __init__(self) -> None:
        self.entered, self.go_on = threading.Event(), threading.Event()
        self.ended: list[BaseException | None] = []

    def __call__(self, context: Context) -> int:
        if context.event == "stay":
            self.entered.set()
            assert self.go_on.wait(20.0)
        try:
            n = count_plainly(context)
        except errors.TurnEndedError as error:
            self.ended.append(error)
            raise
        context.send_text(f"{n}")
        return n


def told(conflicts: list[Any]) -> list[tuple[str, Any]]:
    return [(each.session_id, each.state) for each in conflicts]


async def go_by(manager: SessionManager, clock: ManualClock, seconds: float) -> None:
    """Let time pass when the journal, if there is one, has nothing on its way."""
    if inside.has_journal(manager):
        await idle(manager)
    await clock.advance(seconds)


# --- abandon --------------------------------------------------------------------------------------


@each_store
@each_policy
@both_homes
def test_an_abandoned_session_is_gone_and_nothing_of_it_is_written_any_more(
    home: Any, policy: str, make_store: Callable[[Path], Any], tmp_path: Path
) -> None:
    handed: list[Any] = []
    options: dict[str, Any] = {
        "store": make_store(tmp_path),
        "handler": count_plainly,
        "flush": POLICIES[policy](tmp_path),
        "on_conflict": lambda session_id, state: handed.append((session_id, state)),
    }
    with home(**options) as manager:
        for _ in range(2):
            manager.dispatch_sync("ann", "hi")
            manager.dispatch_sync("bob", "hi")
        manager.flush_sync("ann")
        manager.dispatch_sync("ann", "hi")

        assert manager.abandon(["ann", "eve", "ann"]) is None

        assert [session_id for session_id, _ in manager.resident()] == ["bob"]
        kept = 3 if policy == "write-through" else 2
        until_sync(lambda: policy == "write-through" or manager.conflicts())
        unflushed = [("ann", {"n": 3})] if kept == 2 else []
        assert told(manager.conflicts()) == unflushed
        assert manager.peek_sync("ann") == {"n": kept}
        assert manager.dispatch_sync("ann", "hi") == kept + 1  # it goes on from what the store has
        manager.flush_sync()
        assert manager.peek_sync("bob") == {"n": 2}
        until_sync(lambda: handed == unflushed)
        assert inside.events_at_risk(manager)[1] == 0
        assert manager.stats().dirty_bytes == 0
        assert manager.stats().conflicts == 0
    with on_threads(**options | {"flush": None}) as later:
        assert later.peek_sync("ann") == {"n": kept + 1}


async def test_what_was_not_flushed_is_in_conflicts_when_abandon_returns_and_no_longer_at_risk() -> None:
    async with SessionManager(handler=count, flush=POLICIES["write-behind"](None)) as manager:
        for number in range(3):
            for _ in range(number + 1):
                await manager.dispatch(f"user:{number}", "hi")

        manager.abandon(f"user:{number}" for number in range(3))

        assert told(manager.conflicts()) == [(f"user:{number}", {"n": number + 1}) for number in range(3)]
        assert inside.events_at_risk(manager) == (0, 0)
        assert list(manager.resident()) == []
        assert (await manager.close()).unflushed == ()


@each_policy
@both_homes
def test_a_turn_under_way_and_those_in_line_get_an_error_and_leave_nothing(
    home: Any, policy: str, tmp_path: Path
) -> None:
    handle, said, buried = Slow(), [], []
    with home(
        handler=handle,
        deliver=lambda _, text: said.append(text),
        flush=POLICIES[policy](tmp_path),
        on_dead_letter=lambda *letter: buried.append(letter[:2]),
    ) as manager:
        manager.dispatch_sync("ann", "hi")
        manager.flush_sync()
        running = Call(manager.dispatch_sync, "ann", "stay", event_id="e1")
        assert handle.entered.wait(20.0)
        waiting = Call(manager.dispatch_sync, "ann", "hi")
        until_sync(lambda: dict(manager.resident())["ann"].waiting == 1)
        manager.submit_sync("ann", "told")

        manager.abandon("ann")

        assert isinstance(waiting.error(), errors.OwnershipLostError)
        until_sync(lambda: buried == [("ann", "told")])
        handle.go_on.set()
        assert isinstance(running.error(), errors.OwnershipLostError)
        until_sync(lambda: handle.ended)
        assert "abandoned" in str(handle.ended[0])
        assert manager.dispatch_sync("ann", "hi", event_id="e1") == 2
        manager.flush_sync()
        until_sync(lambda: said == ["1", "2"])
        assert manager.conflicts() == []


async def test_a_handler_that_abandons_its_own_session_does_not_hang() -> None:
    async def handle(context: Context) -> None:
        context.session["n"] = 1
        manager.abandon([context.session_id])
        await asyncio.Event().wait()

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(errors.OwnershipLostError):
            await soon(manager.dispatch("ann", "hi"))
        with pytest.raises(errors.OwnershipLostError):
            async with manager.turn("bob") as turn:
                turn.session["n"] = 1
                manager.abandon("bob")
        assert await manager.peek("ann") is await manager.peek("bob") is None


async def test_a_write_that_is_at_the_store_counts_and_is_waited_for_by_the_next_reader() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count, flush=POLICIES["write-behind"](None)) as manager:
        await manager.dispatch("ann", "hi")
        store.hold()
        flushing = asyncio.create_task(manager.flush())
        await until(lambda: store.write_calls == 1)
        await manager.dispatch("ann", "hi")
        manager.abandon("ann")
        assert list(manager.resident()) == []
        going_on = asyncio.create_task(manager.dispatch("ann", "hi"))
        await breathe()
        assert store.read_calls == 1
        store.release()
        await soon(flushing)
        assert await soon(going_on) == 2  # after the 1 that the store has got meanwhile
        await manager.flush()
        assert told(manager.conflicts()) == [("ann", {"n": 2})]
        assert manager.stats().conflicts == 0


@each_policy
async def test_what_the_store_has_refused_is_handed_over_and_never_sent_again(policy: str, tmp_path: Path) -> None:
    clock, store = ManualClock(), Server()
    async with SessionManager(store, handler=count, flush=POLICIES[policy](tmp_path), clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        store.outage()
        running = asyncio.create_task(manager.dispatch("ann", "hi"))
        await until(lambda: running.done() or store.write_calls == 2)
        flushing = asyncio.create_task(manager.flush())
        await until(lambda: manager.stats().store_retries)

        manager.abandon("ann")

        if policy == "write-through":
            with pytest.raises(errors.OwnershipLostError):
                await soon(running)
            await soon(flushing)
        else:
            assert await soon(running) == 2
            with pytest.raises(errors.OwnershipLostError):
                await soon(flushing)
            assert told(manager.conflicts()) == [("ann", {"n": 2})]
        store.restore()
        for _ in range(3):
            await go_by(manager, clock, 3600.0)
        await manager.flush()
        assert await manager.peek("ann") == {"n": 1}
        assert store.write_calls <= 3
        assert (await manager.close()).clean


async def test_an_event_whose_write_had_no_answer_is_said_to_be_open_when_its_session_is_abandoned() -> None:
    clock, store = ManualClock(), Server()
    async with SessionManager(store, handler=count, flush=FlushPolicy.write_through(), clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        store.lose_replies(1)
        running = asyncio.create_task(manager.dispatch("ann", "hi"))
        await until(lambda: manager.stats().store_retries)
        store.outage()
        manager.abandon("ann")
        with pytest.raises(errors.OutcomeUnknownError):
            await soon(running)
        store.restore()
        await advancing(clock, manager.dispatch("ann", "hi"))
        assert await manager.peek("ann") == {"n": 3}


@pytest.mark.parametrize("journaled", [False, True])
async def test_a_session_that_is_being_read_is_abandoned_too(journaled: bool, tmp_path: Path) -> None:
    store = Server()
    policy = POLICIES["journaled" if journaled else "write-behind"](tmp_path)
    async with SessionManager(store, handler=count, flush=policy) as manager:
        store.hold()
        reading = asyncio.create_task(manager.dispatch("ann", "hi"))
        await until(lambda: store.read_calls)
        waiting = asyncio.create_task(manager.dispatch("ann", "hi"))
        await breathe()
        manager.abandon("ann")
        with pytest.raises(errors.OwnershipLostError):
            await soon(waiting)
        store.release()
        with pytest.raises(errors.OwnershipLostError):
            await soon(reading)
        assert await soon(manager.dispatch("ann", "hi")) == 1
        assert manager.conflicts() == []


@pytest.mark.parametrize("resident", [True, False])
async def test_what_only_the_journal_has_of_an_abandoned_session_is_not_brought_to_the_store(
    resident: bool, tmp_path: Path
) -> None:
    clock, store, policy = ManualClock(), Server(), POLICIES["journaled"](tmp_path)
    options: dict[str, Any] = {"handler": count, "flush": policy, "clock": clock, "idle_timeout": 10.0}
    async with SessionManager(store, **options) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        await manager.dispatch("ann", "hi")
        await manager.dispatch("bob", "hi")
        if not resident:
            store.outage()
            for _ in range(10):
                await go_by(manager, clock, 20.0)
            assert list(manager.resident()) == []

        manager.abandon(["ann"])

        await until(manager.conflicts)
        assert told(manager.conflicts()) == [("ann", {"n": 2})]
        store.restore()
        for _ in range(3):
            await go_by(manager, clock, 20.0)
        await manager.flush()
        assert await manager.peek("ann") == {"n": 1}
        assert await manager.peek("bob") == {"n": 1}
        assert await manager.dispatch("ann", "hi") == 2
    async with SessionManager(store, **options) as later:
        assert await later.peek("ann") == {"n": 2}
        assert told(later.conflicts()) == [("ann", {"n": 2})]


class LateServer(Server):
    """While it is `slow`, writes come to it later, and have no answer."""

    def __init__(self) -> None:
        super().__init__()
        self.slow, self.late = False, list[Write]()

    def write_many(self, writes: Sequence[Write]) -> Sequence[errors.ActorbotError | None]:
        if not self.slow:
            return super().write_many(writes)
        self.late += writes
        raise errors.OutcomeUnknownError(self.name, "told to be slow")


async def test_a_write_of_an_abandoned_session_that_comes_late_is_not_taken_for_one_of_later_events(
    tmp_path: Path,
) -> None:
    clock, store = ManualClock(), LateServer()
    async with SessionManager(store, handler=count, flush=POLICIES["journaled"](tmp_path), clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        await manager.dispatch("ann", "hi")
        store.slow = True
        flushing = asyncio.create_task(manager.flush())
        await until(lambda: store.late)
        manager.abandon("ann")
        with pytest.raises(errors.OwnershipLostError):
            await soon(flushing)
        store.slow = False
        await manager.dispatch("ann", "again")
        store.inner.write_many(store.late[:1])
        with pytest.raises(errors.ConflictError):  # each made the second version of ann
            await advancing(clock, manager.flush())
        assert told(manager.conflicts()) == [("ann", {"n": 2})] * 2


@pytest.mark.parametrize("policy", ["write-behind", "journaled"])
async def test_a_destroy_that_has_not_reached_the_store_is_abandoned_with_its_session(
    policy: str, tmp_path: Path
) -> None:
    clock, store = ManualClock(), Server()
    async with SessionManager(store, handler=count, flush=POLICIES[policy](tmp_path), clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        store.outage()
        destroying = asyncio.create_task(manager.destroy("ann"))
        await until(lambda: manager.stats().store_retries)
        await breathe()
        manager.abandon("ann")
        with pytest.raises(errors.StoreError):
            await soon(destroying)
        store.restore()
        await go_by(manager, clock, 3600.0)
        await manager.flush()
        assert await manager.peek("ann") == {"n": 1}
        assert told(manager.conflicts()) == ([] if policy == "write-behind" else [("ann", None)])


async def test_a_write_that_comes_to_the_flusher_after_its_session_was_abandoned_is_refused() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count, flush=FlushPolicy.write_through()) as manager:
        await manager.dispatch("bob", "hi")
        await manager.dispatch("ann", "hi")
        store.hold()
        first = asyncio.create_task(manager.dispatch("bob", "hi"))
        await until(lambda: store.write_calls == 3)  # the flusher is at the store
        second = asyncio.create_task(manager.dispatch("ann", "hi"))
        await breathe()
        manager.abandon("ann")
        store.release()
        assert await soon(first) == 2
        with pytest.raises(errors.OwnershipLostError):
            await soon(second)
        actor = inside.resident(manager, "bob")
        manager.abandon("bob")  # and its turn was on the way here
        with pytest.raises(errors.OwnershipLostError):
            inside.flusher(manager).write(actor, (3, b"", b"", 0.0, 0.0)).result(SOON)
        assert await manager.peek("ann") == {"n": 1}
        assert await manager.peek("bob") == {"n": 2}


@pytest.mark.parametrize("bad", ["", 7, None, b"ann", {"$ne": 1}, ["ann", ""], ["ann", 7]])
async def test_bad_ids_are_refused_and_nothing_is_touched(bad: Any) -> None:
    async with SessionManager(handler=count) as manager:
        await manager.dispatch("ann", "hi")
        with pytest.raises(errors.InvalidSessionIdError):
            manager.abandon(bad)
        assert len(list(manager.resident())) == 1
    with pytest.raises(errors.ManagerClosedError):
        manager.abandon("ann")
