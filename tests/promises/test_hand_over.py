"""G14: sessions are handed over to another process, finished or as they are."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from actorbot import Context, FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot.stores.base import Write
from actorbot.testing import FaultyStore, ManualClock, RecordingStore
from tests import inside
from tests.backends import each_store
from tests.handlers import count, count_plainly
from tests.homes import both_homes, on_threads, tiny_switch_interval
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
        assert "does not own its session any more" in str(handle.ended[0])
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
        assert manager.conflicts() == []  # its caller knows


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


@each_policy
@both_homes
def test_whenever_a_session_is_abandoned_each_acknowledged_event_is_stored_or_handed_over(
    home: Any, policy: str, tmp_path: Path
) -> None:
    with home(handler=count_plainly, flush=POLICIES[policy](tmp_path), store=Server()) as manager:
        stop = threading.Event()

        def talk() -> int:
            acknowledged = 0
            while not stop.is_set():
                with suppress(errors.OwnershipLostError):
                    manager.dispatch_sync("ann", "hi")
                    acknowledged += 1
            return acknowledged

        with tiny_switch_interval():
            talking = [Call(talk) for _ in range(4)]
            for number in range(200):
                if number % 10 == 0:
                    handled = manager.stats().handled
                    until_sync(lambda handled=handled: manager.stats().handled > handled + 3)
                manager.abandon("ann")
            stop.set()
        acknowledged = sum(each.result() for each in talking)
        manager.flush_sync()
        stored = manager.peek_sync("ann") or {"n": 0}
        handed_over = sum(each.state["n"] for each in manager.conflicts() if each.state)
        assert stored["n"] + handed_over >= acknowledged
        if policy != "journaled":  # which may have an event that was refused as it was committed
            assert stored["n"] + handed_over == acknowledged
        if policy != "journaled":
            assert inside.events_at_risk(manager) == (0, 0)
        assert manager.dispatch_sync("ann", "hi") == stored["n"] + 1


@pytest.mark.parametrize("bad", ["", 7, None, b"ann", {"$ne": 1}, ["ann", ""], ["ann", 7]])
async def test_bad_ids_are_refused_and_nothing_is_touched(bad: Any) -> None:
    async with SessionManager(handler=count) as manager:
        await manager.dispatch("ann", "hi")
        with pytest.raises(errors.InvalidSessionIdError):
            manager.abandon(bad)
        with pytest.raises(errors.InvalidSessionIdError):
            await manager.release(bad)
        if bad is not None:
            with pytest.raises(errors.InvalidSessionIdError):
                await manager.flush(bad)
        assert len(list(manager.resident())) == 1
    with pytest.raises(errors.ManagerClosedError):
        manager.abandon("ann")
    with pytest.raises(errors.ManagerClosedError):
        await manager.release("ann")


# --- release --------------------------------------------------------------------------------------


@each_store
@each_policy
@both_homes
def test_released_sessions_are_stored_and_out_of_memory_and_the_next_event_reads_them_again(
    home: Any, policy: str, make_store: Callable[[Path], Any], tmp_path: Path
) -> None:
    options: dict[str, Any] = {
        "store": make_store(tmp_path),
        "handler": count_plainly,
        "flush": POLICIES[policy](tmp_path),
    }
    with home(**options) as manager:
        for _ in range(3):
            for session_id in ("ann", "bob", "eve"):
                manager.dispatch_sync(session_id, "hi")
        report = manager.release_sync(["ann", "bob", "nobody", "ann"])

        assert (report.unflushed, report.unfinished, report.undelivered, report.clean) == ((), 0, 0, True)
        assert [session_id for session_id, _ in manager.resident()] == ["eve"]
        n = 3
        if not (policy == "journaled" and isinstance(options["store"], MemorySessionStore)):  # where the journal lasts
            with SessionManager(options["store"], handler=count_plainly, flush=FlushPolicy.write_through()) as other:
                n = other.dispatch_sync("ann", "hi")
        assert manager.dispatch_sync("ann", "hi") == n + 1
        assert manager.release_sync(("ann", "bob", "eve")).clean
        assert list(manager.resident()) == []
        assert [manager.peek_sync(each) for each in ("ann", "bob", "eve")] == [{"n": n + 1}, {"n": 3}, {"n": 3}]
        assert manager.conflicts() == []


async def test_what_is_released_goes_to_the_store_in_one_call() -> None:
    store = RecordingStore()
    ids = [f"user:{number}" for number in range(100)]
    async with SessionManager(store, handler=count, flush=POLICIES["write-behind"](None)) as manager:
        for session_id in ids:
            await manager.dispatch(session_id, "hi")
        assert (await manager.release(each for each in ids)).clean
        assert list(map(len, store.write_batches)) == [100]
        assert (await manager.release([])).clean


@each_policy
@both_homes
def test_what_a_released_session_has_accepted_is_finished_and_its_replies_are_delivered(
    home: Any, policy: str, tmp_path: Path
) -> None:
    handle, said = Slow(), []
    hold = threading.Event()

    def deliver(_: str, text: str) -> None:
        assert hold.wait(20.0)
        said.append(text)

    with home(handler=handle, deliver=deliver, flush=POLICIES[policy](tmp_path)) as manager:
        running = Call(manager.dispatch_sync, "ann", "stay")
        assert handle.entered.wait(20.0)
        waiting = [Call(manager.dispatch_sync, "ann", "hi")]
        until_sync(lambda: dict(manager.resident())["ann"].waiting == 1)
        told_one = manager.submit_sync("ann", "hi")
        releasing = Call(manager.release_sync, ["ann"])
        until_sync(lambda: dict(manager.resident())["ann"].waiting == 3)
        handle.go_on.set()
        assert [running.result(), waiting[0].result(), told_one.result_sync()] == [1, 2, 3]
        until_sync(lambda: not list(manager.resident()))
        assert said == []
        hold.set()
        assert releasing.result().clean
        assert said == ["1", "2", "3"]
        assert manager.peek_sync("ann") == {"n": 3}


@both_homes
def test_a_release_keeps_to_its_time_and_says_what_it_left_behind(home: Any) -> None:
    store, handle, hold = FaultyStore(), Slow(), threading.Event()
    policy = FlushPolicy.write_behind(max_delay=3600.0, store_deadline=5.0)
    with home(store=store, handler=handle, deliver=lambda *_: hold.wait(20.0), flush=policy) as manager:
        for session_id in ("ann", "bob", "eve"):
            manager.dispatch_sync(session_id, "hi")
        manager.flush_sync("bob")
        staying = Call(manager.dispatch_sync, "bob", "stay")
        assert handle.entered.wait(20.0)
        store.outage()
        report = manager.release_sync(["ann", "bob", "nobody"], timeout=0.2)
        assert sorted(report.unflushed) == ["ann"]
        assert (report.unfinished, report.undelivered) == (1, 2)
        assert 0.2 <= report.seconds < SOON
        assert sorted(session_id for session_id, _ in manager.resident()) == ["ann", "bob", "eve"]
        store.restore()
        handle.go_on.set()
        hold.set()
        assert staying.result() == 2
        assert manager.release_sync(["ann", "bob"]).clean
        assert manager.peek_sync("ann") == {"n": 1}
        assert manager.peek_sync("bob") == {"n": 2}


async def test_a_release_without_time_lets_those_go_that_can_go_at_once() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count, flush=POLICIES["write-behind"](None)) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        await manager.dispatch("bob", "hi")
        store.hold()
        report = await soon(manager.release(["ann", "bob"], timeout=0))
        assert report.unflushed == ("bob",)
        assert [session_id for session_id, _ in manager.resident()] == ["bob"]
        store.release()


@pytest.mark.parametrize("how", ["itself", "a task of its own", "another session", "a circle", "a thread"])
async def test_a_turn_that_releases_its_own_session_is_refused_at_once(how: str) -> None:
    entered = asyncio.Event()

    async def handle(context: Context) -> Any:
        if context.event == "hi":
            return "hi"
        if context.event == "wait for ann":
            entered.set()
            await until(lambda: inside.is_busy(manager, "ann"))
            return await manager.dispatch("ann", "hi")
        if how == "a circle":
            await entered.wait()
            await until(lambda: dict(manager.resident())["ann"].waiting == 1)
            return await manager.release(["bob"])
        ids = ["eve", "ann"]
        if how == "itself":
            return await manager.release(ids)
        if how == "a thread":
            return await asyncio.to_thread(manager.release_sync, ids)
        if how == "another session" and context.session_id == "ann":
            return await manager.dispatch("bob", "release")
        return await asyncio.create_task(manager.release(ids))

    async with SessionManager(handler=handle) as manager:
        await manager.dispatch("eve", "hi")
        other = asyncio.create_task(manager.dispatch("bob", "wait for ann")) if how == "a circle" else None
        if other is not None:
            await entered.wait()
        with pytest.raises(errors.DeadlockError):
            await soon(manager.dispatch("ann", "release"))
        if other is not None:
            assert await soon(other) == "hi"
        assert (await soon(manager.release(["ann", "bob", "eve"]))).clean


async def test_a_handler_may_release_another_session_and_deliver_its_own() -> None:
    reports: list[Any] = []

    async def handle(context: Context) -> None:
        context.session["n"] = 1
        if context.session_id == "ann":
            reports.append(await manager.release("bob"))
        context.send_text("hello")

    async def deliver(session_id: str, _: str) -> None:
        if session_id == "ann":
            reports.append(await manager.release("ann"))

    async with SessionManager(handler=handle, deliver=deliver) as manager:
        await manager.dispatch("bob", "hi")
        await soon(manager.dispatch("ann", "hi"))
        await until(lambda: len(reports) == 2)
        assert reports[0].clean
        assert (reports[1].unflushed, reports[1].undelivered) == ((), 1)  # the reply that it was called for
        assert list(manager.resident()) == []
        assert reports[1].seconds < SOON / 2


async def test_what_only_the_journal_has_of_a_released_session_is_brought_to_the_store(tmp_path: Path) -> None:
    clock, store = ManualClock(), Server()
    options: dict[str, Any] = {
        "handler": count,
        "flush": POLICIES["journaled"](tmp_path),
        "clock": clock,
        "idle_timeout": 10.0,
    }
    async with SessionManager(store, **options) as manager:
        await manager.dispatch("ann", "hi")
        await manager.dispatch("bob", "hi")
        store.outage()
        for _ in range(10):
            await go_by(manager, clock, 20.0)
        assert list(manager.resident()) == []
        report = await soon(manager.release(["ann"], timeout=0.2))
        assert report.unflushed == ("ann",)
        store.restore()
        await soon(advancing(clock, manager.release(["ann"])))
        assert [session_id for session_id, _ in manager.resident() if session_id == "ann"] == []
        assert store.inner.read_many(["ann"])[0].version == 1


async def test_a_released_session_is_not_left_to_the_journal_while_the_store_is_down(tmp_path: Path) -> None:
    store = Server()
    async with SessionManager(store, handler=count, flush=POLICIES["journaled"](tmp_path)) as manager:
        await manager.dispatch("ann", "hi")
        store.outage()
        report = await soon(manager.release("ann", timeout=0.5))
        assert report.unflushed == ("ann",)
        assert [session_id for session_id, _ in manager.resident()] == ["ann"]
        store.restore()
        assert (await soon(manager.release("ann"))).clean


async def test_a_conflict_of_a_released_session_is_handed_over_and_it_leaves() -> None:
    store = MemorySessionStore()
    async with SessionManager(store, handler=count) as ours, SessionManager(store, handler=count) as theirs:
        await ours.dispatch("ann", "hi")
        await theirs.dispatch("ann", "hi")
        await theirs.dispatch("ann", "hi")
        assert (await ours.release("ann")).clean
        assert (await theirs.release("ann")).clean
        assert list(theirs.resident()) == []
        assert told(theirs.conflicts()) == [("ann", {"n": 2})]
        assert await theirs.dispatch("ann", "hi") == 2


async def test_a_release_that_is_cancelled_leaves_nothing_waiting() -> None:
    handle = Slow()
    async with SessionManager(handler=handle, deliver=lambda *_: None) as manager:
        running = asyncio.create_task(manager.dispatch("ann", "stay"))
        await until(handle.entered.is_set)
        releasing = asyncio.create_task(manager.release("ann"))
        await until(lambda: dict(manager.resident())["ann"].waiting == 1)
        releasing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(releasing)
        assert dict(manager.resident())["ann"].waiting == 0
        handle.go_on.set()
        assert await soon(running) == 1
        assert await manager.dispatch("ann", "hi") == 2


@both_homes
def test_events_that_come_while_their_session_is_released_are_all_counted(home: Any) -> None:
    with home(handler=count_plainly, flush=POLICIES["write-behind"](None), max_mailbox=1000) as manager:
        stop = threading.Event()

        def talk() -> int:
            events = 0
            while not stop.is_set():
                manager.dispatch_sync("ann", "hi")
                events += 1
            return events

        with tiny_switch_interval():
            talking = [Call(talk) for _ in range(4)]
            for _ in range(30):
                manager.release_sync("ann", timeout=0.02)
            stop.set()
        events = sum(each.result() for each in talking)
        manager.flush_sync()
        assert manager.peek_sync("ann") == {"n": events}
        assert manager.conflicts() == []


@pytest.mark.parametrize("timeout", [-1.0, float("nan"), float("inf"), "1", True])
async def test_a_time_that_is_none_is_refused_and_nothing_is_released(timeout: Any) -> None:
    async with SessionManager(handler=count) as manager:
        await manager.dispatch("ann", "hi")
        with pytest.raises(errors.ConfigError):
            await manager.release("ann", timeout=timeout)
        with pytest.raises(errors.ConfigError):
            await asyncio.to_thread(manager.release_sync, "ann", timeout=timeout)
        assert len(list(manager.resident())) == 1


# --- flush ----------------------------------------------------------------------------------------


@both_homes
def test_several_sessions_are_flushed_in_one_call_and_no_others(home: Any) -> None:
    store = RecordingStore()
    with home(store=store, handler=count_plainly, flush=POLICIES["write-behind"](None)) as manager:
        for session_id in ("ann", "bob", "eve"):
            manager.dispatch_sync(session_id, "hi")
        manager.flush_sync([])
        assert store.write_batches == []
        manager.flush_sync({"ann", "bob", "nobody"})
        assert [{record.session_id for record in batch} for batch in store.write_batches] == [{"ann", "bob"}]
        manager.flush_sync("eve")
        assert [record.session_id for record in store.write_batches[1]] == ["eve"]
        manager.flush_sync(["ann", "eve"])
        assert len(store.write_batches) == 2


async def test_a_flush_of_several_sessions_raises_the_error_of_one() -> None:
    clock, store = ManualClock(), FaultyStore()
    policy = FlushPolicy.parse("write-behind:max_delay=3600,retry.attempts=1")
    async with SessionManager(store, handler=count, flush=policy, clock=clock) as manager:
        for session_id in ("ann", "bob"):
            await manager.dispatch(session_id, "hi")
        store.outage()
        with pytest.raises(errors.StoreUnavailableError):
            await soon(manager.flush(["ann", "bob"]))
        store.restore()
        await advancing(clock, manager.flush(["ann", "bob"]))
        assert (await manager.peek("ann"), await manager.peek("bob")) == ({"n": 1}, {"n": 1})
