"""What a bot author relies on, over every store: order, atomic turns, flushes, errors, close."""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from actorbot import DUPLICATE, Context, Event, FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot._residents.room import Room
from actorbot.testing import FaultyStore, ManualClock, RecordingStore
from tests import inside
from tests.backends import each_store
from tests.handlers import count, count_plainly
from tests.waiting import until


async def greet(context: Context) -> None:
    if context.session.get("asking"):
        context.session["nickname"] = context.event.message.text
        context.session["asking"] = False
        await context.send_text(f"Hello {context.session['nickname']}")
    else:
        context.session["asking"] = True
        await asyncio.sleep(0)
        await context.send_text("Hi, what's your nickname?")


DIALOGUE = ["Hi, what's your nickname?", "Hello Tim"]


@each_store
async def test_the_dialogue_of_the_first_page(make_store: Callable[[Path], Any], tmp_path: Path) -> None:
    said: list[str] = []
    store = make_store(tmp_path)
    async with SessionManager(store, handler=greet, deliver=lambda _, text: said.append(text)) as manager:
        await manager.dispatch("console:1", Event.from_text("Hi"))
        await manager.dispatch("console:1", Event.from_text("Tim"))

    assert said == DIALOGUE


@each_store
async def test_the_dialogue_holds_when_both_lines_come_at_once(
    make_store: Callable[[Path], Any], tmp_path: Path
) -> None:
    said: list[str] = []
    store = make_store(tmp_path)
    async with SessionManager(store, handler=greet, deliver=lambda _, text: said.append(text)) as manager:
        both = [manager.dispatch("console:1", Event.from_text(text)) for text in ("Hi", "Tim")]
        await asyncio.gather(*both)

    assert said == DIALOGUE


@each_store
async def test_a_session_is_there_again_after_a_restart(make_store: Callable[[Path], Any], tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for expected in (1, 2):
        async with SessionManager(store, handler=count) as manager:
            assert await manager.dispatch("ann", "hi") == expected


@pytest.mark.parametrize("handler", [count, count_plainly])
@pytest.mark.parametrize("users", [1, 100, 1_000])
async def test_no_increment_of_many_callers_is_lost(handler: Any, users: int) -> None:
    events = 10_000 if handler is count else 2_000
    numbers = iter(range(events))
    async with SessionManager(handler=handler) as manager:

        async def caller() -> None:
            for number in numbers:
                await manager.dispatch(f"user:{number % users}", number)

        await asyncio.gather(*(caller() for _ in range(64)))
        states = [await manager.peek(f"user:{user}") for user in range(min(users, events))]

    assert sum(state["n"] for state in states if state) == events


@pytest.mark.parametrize("users", [1, 100])
def test_no_increment_of_many_threads_is_lost_and_turns_never_overlap(users: int) -> None:
    numbers = iter(range(5_000))
    inside: set[str] = set()
    overlaps: list[str] = []

    def handle(context: Context) -> None:
        if context.session_id in inside:
            overlaps.append(context.session_id)
        inside.add(context.session_id)
        count_plainly(context)
        inside.discard(context.session_id)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with SessionManager(handler=handle) as manager:

            def caller() -> None:
                for number in numbers:
                    manager.dispatch_sync(f"user:{number % users}", number)

            threads = [threading.Thread(target=caller) for _ in range(16)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            states = [manager.peek_sync(f"user:{user}") for user in range(users)]
    finally:
        sys.setswitchinterval(before)

    assert sum(state["n"] for state in states if state) == 5_000
    assert overlaps == []


@pytest.mark.parametrize("handler", [count, count_plainly])
def test_a_threaded_manager_runs_both_kinds_of_handler(handler: Any) -> None:
    with SessionManager(handler=handler) as manager:
        assert [manager.dispatch_sync("ann", "hi") for _ in range(3)] == [1, 2, 3]
        assert manager.submit_sync("ann", "hi").result_sync(timeout=10) == 4


async def test_events_of_one_session_run_in_the_order_they_were_accepted() -> None:
    seen: list[int] = []

    async def handle(context: Context) -> None:
        await asyncio.sleep(0)
        seen.append(context.event)

    async with SessionManager(handler=handle) as manager:
        for number in range(0, 100, 2):
            await manager.submit("ann", number)
            asyncio.get_running_loop().create_task(manager.dispatch("ann", number + 1))
            await asyncio.sleep(0)

    assert seen == list(range(100))


def test_everybody_is_served_while_sessions_leave_memory_as_fast_as_they_can() -> None:
    users, wanted = 1_000, 1_000
    rounds = itertools.count()
    acknowledged: list[tuple[int, int]] = []
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with SessionManager(
            handler=count_plainly, idle_timeout=0.0, flush=FlushPolicy.write_behind(max_delay=0.001)
        ) as manager:

            def caller() -> None:
                # The more the callers get of the interpreter, the less do the threads that flush and sweep.
                while (n := next(rounds)) < 50 or (n < 1_000 and manager.stats().passivations < wanted):
                    for number in range(users):
                        user = (125 * n + number) % users
                        acknowledged.append((user, manager.dispatch_sync(f"user:{user}", number)))

            threads = [threading.Thread(target=caller) for _ in range(8)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            passivations = manager.stats().passivations
    finally:
        sys.setswitchinterval(before)

    turns = len(acknowledged) // users
    assert sorted(acknowledged) == [(user, 1 + turn) for user in range(users) for turn in range(turns)]
    assert passivations >= wanted


async def test_a_session_that_waited_only_for_its_flush_leaves_memory_as_soon_as_that_is_confirmed() -> None:
    clock, store = ManualClock(), FaultyStore()
    policy = FlushPolicy.write_behind(max_delay=60.0)
    async with SessionManager(store, handler=count, clock=clock, idle_timeout=16.0, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        store.hold()
        await clock.advance(18.0)  # past the sweep that finds it idle, and unflushed
        async with asyncio.timeout(5):
            while not store.write_calls:
                await asyncio.sleep(0)
        assert manager.stats().resident == 1
        store.release()
        async with asyncio.timeout(5):  # in real time: no other sweep comes
            while manager.stats().resident:
                await asyncio.sleep(0)

        assert await manager.dispatch("ann", "hi") == 2


async def test_a_session_that_has_an_event_during_its_last_flush_stays() -> None:
    clock, store = ManualClock(), FaultyStore()
    policy = FlushPolicy.write_behind(max_delay=60.0)
    async with SessionManager(store, handler=count, clock=clock, idle_timeout=16.0, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        store.hold()
        await clock.advance(18.0)
        assert await manager.dispatch("ann", "hi") == 2
        store.release()
        await manager.flush()
        assert manager.stats().resident == 1
        await clock.advance(18.0)
        async with asyncio.timeout(5):
            while manager.stats().resident:
                await asyncio.sleep(0)
        assert (store.read("ann") or {})["n"] == 2


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

        assert caught.value.path == "session['cart'][2]"
        assert await manager.peek("ann") is None


async def test_a_kept_reference_changes_nothing_after_the_turn() -> None:
    kept: list[Any] = []

    async def handle(context: Context) -> None:
        kept.append(context)
        kept.append(context.session.setdefault("list", []))

    async with SessionManager(handler=handle) as manager:
        await manager.dispatch("ann", "hi")
        kept[1].append("late")

        assert await manager.peek("ann") == {"list": []}
        with pytest.raises(errors.TurnEndedError):
            kept[0].session["x"] = 1
        with pytest.raises(errors.TurnEndedError):
            kept[0].send_text("late")


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
        while not started.is_set():
            await asyncio.sleep(0)
        await clock.advance(5.1)
        with pytest.raises(errors.HandlerTimeoutError):
            await staying

        assert await manager.peek("ann") is None
        await manager.dispatch("ann", "go")
        assert await manager.peek("ann") == {"n": 1}
        release.set()
    await until(lambda: len(late) == plain)  # by its own thread, which nobody waits for


async def test_an_event_delivered_twice_counts_once() -> None:
    async with SessionManager(handler=count) as manager:
        assert await manager.dispatch("ann", "hi", event_id="update-1") == 1
        assert await manager.dispatch("ann", "hi", event_id="update-1") is DUPLICATE
        with pytest.raises(errors.DuplicateEventError):
            async with manager.turn("ann", event_id="update-1"):
                pass


async def test_the_id_of_a_failed_event_may_come_again() -> None:
    fail = True

    async def handle(context: Context) -> str:
        if fail:
            raise ValueError
        return "done"

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "hi", event_id="update-1")
        fail = False

        assert await manager.dispatch("ann", "hi", event_id="update-1") == "done"


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


async def test_waiting_for_ones_own_turn_is_refused_at_once() -> None:
    async def handle(context: Context) -> None:
        await asyncio.create_task(manager.dispatch(context.session_id, "again"))

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(errors.DeadlockError):
            await manager.dispatch("ann", "hi")
        async with manager.turn("ann"):
            with pytest.raises(errors.DeadlockError):
                await manager.dispatch("ann", "hi")


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


async def test_a_full_mailbox_says_so() -> None:
    release = asyncio.Event()

    async def handle(context: Context) -> None:
        await release.wait()

    async with SessionManager(handler=handle, max_mailbox=2) as manager:
        tasks = [asyncio.create_task(manager.dispatch("ann", number)) for number in range(3)]
        await asyncio.sleep(0.0)
        while len(list(manager.resident())) == 0 or next(manager.resident())[1].waiting < 2:
            await asyncio.sleep(0)
        with pytest.raises(errors.OverloadedError):
            await manager.dispatch("ann", 4)
        release.set()
        await asyncio.gather(*tasks)


async def test_a_failed_read_is_an_error_and_never_a_new_session() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count) as manager:
        await manager.dispatch("ann", "hi")
    async with SessionManager(store, handler=count) as manager:
        store.fail_reads(1)
        with pytest.raises(errors.StoreUnavailableError):
            await manager.dispatch("ann", "hi")

        assert await manager.dispatch("ann", "hi") == 2


async def test_a_damaged_record_is_reported_and_left_alone() -> None:
    clock = ManualClock()
    store = FaultyStore(RecordingStore())
    async with SessionManager(store, handler=count, clock=clock) as manager:
        store.corrupt("ann")
        for _ in range(2):
            with pytest.raises(errors.CorruptSessionError):
                await manager.dispatch("ann", "hi")
        assert await manager.dispatch("bob", "hi") == 1
        store.mend("ann")
        await clock.advance(2.0)

        assert await manager.dispatch("ann", "hi") == 1
    assert isinstance(store.inner, RecordingStore)
    assert [each.session_id for each in store.inner.writes] == ["bob", "ann"]


async def test_events_within_the_delay_cost_one_write() -> None:
    clock, store = ManualClock(), RecordingStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        for _ in range(5):
            await manager.dispatch("ann", "hi")
        assert store.writes == []
        await clock.advance(1.0)

        assert [each.version for each in store.writes] == [5]
        assert manager.stats().dirty_bytes == 0


async def test_the_bot_goes_on_through_an_outage_and_everything_arrives() -> None:
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        store.outage()
        for expected in range(2, 300):
            assert await manager.dispatch("ann", "hi") == expected
            if expected % 50 == 0:
                await clock.advance(2.0)
        assert manager.health().status == "degraded"
        store.restore()
        await clock.advance(10.0)

        assert manager.health().status == "ready"
        assert next(manager.resident())[1].flushed == 299


async def test_write_through_acknowledges_only_what_is_stored() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-through:retry.attempts=1")
    said: list[str] = []

    async def handle(context: Context) -> int:
        context.send_text("hello")
        return await count(context)

    async with SessionManager(store, handler=handle, flush=policy, deliver=lambda _, t: said.append(t)) as manager:
        assert await manager.dispatch("ann", "hi") == 1
        store.fail_writes(1)
        with pytest.raises(errors.StoreUnavailableError):
            await manager.dispatch("ann", "hi", event_id="again")

        assert await manager.dispatch("ann", "hi", event_id="again") == 2
    assert said == ["hello", "hello"]


async def test_a_lost_reply_of_the_store_is_resolved_by_the_write_id() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-through:retry.base=0.001")
    async with SessionManager(store, handler=count, flush=policy) as manager:
        store.lose_replies(2)

        assert [await manager.dispatch("ann", "hi") for _ in range(3)] == [1, 2, 3]


async def test_an_unknown_outcome_is_said_and_the_session_is_read_again() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-through:retry.attempts=1")
    async with SessionManager(store, handler=count, flush=policy) as manager:
        store.lose_replies(1)
        with pytest.raises(errors.OutcomeUnknownError):
            await manager.dispatch("ann", "hi", event_id="one")

        assert await manager.dispatch("ann", "hi", event_id="one") is DUPLICATE


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


@each_store
async def test_a_destroyed_session_is_gone_and_does_not_come_back(
    make_store: Callable[[Path], Any], tmp_path: Path
) -> None:
    store = make_store(tmp_path)
    async with SessionManager(store, handler=count) as manager:
        await manager.dispatch("ann", "hi")
        await manager.destroy("ann")
        assert await manager.peek("ann") is None
        await manager.flush()
    async with SessionManager(store, handler=count) as manager:
        assert await manager.peek("ann") is None
        assert await manager.dispatch("ann", "hi") == 1


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


async def test_a_session_expires_by_its_last_event_and_says_goodbye() -> None:
    clock = ManualClock()
    ended: list[Any] = []
    store = MemorySessionStore(expires_in=10)
    starts: list[str] = []
    async with SessionManager(
        store, handler=count, clock=clock, idle_timeout=1000.0,
        on_session_expire=lambda session_id, state: ended.append((session_id, state)),
        on_session_start=lambda context: starts.append(context.session_id),
    ) as manager:  # fmt: skip
        for _ in range(3):
            await manager.dispatch("ann", "hi")
            await clock.advance(9.0)
        assert await manager.peek("ann") == {"n": 3}
        clock.jump_wall(2.0)
        assert await manager.peek("ann") is None
        assert await manager.dispatch("ann", "hi") == 1
    assert ended == [("ann", {"n": 3})]
    assert starts == ["ann", "ann"]


async def test_an_idle_session_leaves_memory_and_keeps_its_data() -> None:
    clock = ManualClock()
    async with SessionManager(handler=count, clock=clock, idle_timeout=60.0) as manager:
        await manager.dispatch("ann", "hi")
        await clock.advance(59.0)
        assert len(list(manager.resident())) == 1
        await clock.advance(10.0)

        assert list(manager.resident()) == []
        assert await manager.dispatch("ann", "hi") == 2


async def test_a_newcomer_is_refused_at_once_while_all_who_are_in_memory_are_busy() -> None:
    busy, go_on = asyncio.Event(), asyncio.Event()

    async def handle(context: Context) -> None:
        if context.event == "wait":
            busy.set()
            await go_on.wait()

    async with SessionManager(handler=handle, max_resident=1) as manager:
        talking = asyncio.create_task(manager.dispatch("ann", "wait"))
        await busy.wait()
        with pytest.raises(errors.OverloadedError, match="none can leave"):
            await asyncio.wait_for(manager.dispatch("bob", "hi"), 2.0)
        go_on.set()
        await talking
        await manager.dispatch("bob", "hi")
        assert manager.stats().resident == 1


async def test_many_more_users_than_fit_into_memory_are_all_served() -> None:
    store = MemorySessionStore(max_sessions=2_000)
    users = iter([f"user:{number}" for number in random.Random(7).choices(range(2_000), k=4_000)])
    sent: Counter[str] = Counter()
    async with SessionManager(store, handler=count, max_resident=200) as manager:

        async def talk() -> None:
            for user in users:
                await manager.dispatch(user, "hi")
                sent[user] += 1

        async with asyncio.TaskGroup() as group:
            for _ in range(64):
                group.create_task(talk())
        assert manager.stats().resident <= 200
        await manager.flush()

    assert sent.total() == 4_000
    assert {user: (store.read(user) or {"n": 0})["n"] for user in sent} == sent


async def test_a_borrowed_turn_that_took_too_long_says_that_and_nothing_else() -> None:
    clock = ManualClock()
    async with SessionManager(clock=clock, handler_timeout=5.0) as manager:
        with pytest.raises(errors.HandlerTimeoutError) as raised:
            async with manager.turn("ann"):
                await clock.advance(6.0)
        assert raised.value.__cause__ is None


async def test_nobody_is_refused_when_what_was_unflushed_is_stored_between_two_looks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    begin_clearing = Room._begin_clearing

    def late(self: Room) -> Any:
        self._shared.flusher.flush(list(self._table.resident())).result(5.0)  # on its own thread: this one stands still
        return begin_clearing(self)

    monkeypatch.setattr(Room, "_begin_clearing", late)
    async with SessionManager(handler=count, max_resident=10) as manager:
        for user in range(30):
            assert await manager.dispatch(f"user:{user}", "hi") == 1


async def test_residents_are_bounded_and_the_idle_make_room() -> None:
    async with SessionManager(handler=count, max_resident=10) as manager:
        for user in range(50):
            await manager.dispatch(f"user:{user}", "hi")

        assert len(list(manager.resident())) <= 10
        assert await manager.dispatch("user:0", "hi") == 2


async def test_a_told_event_gives_a_receipt_and_a_failed_one_a_dead_letter() -> None:
    buried: list[Any] = []

    async def handle(context: Context) -> int:
        if context.event == "fail":
            raise ValueError("no")
        return await count(context)

    async with SessionManager(handler=handle, on_dead_letter=lambda *letter: buried.append(letter)) as manager:
        receipt = await manager.submit("ann", "hi")
        assert await receipt.result() == 1
        await receipt.durable(timeout=10.0)
        assert receipt.version == 1
        await manager.submit("ann", "fail")
    assert buried == [("ann", "fail", "ValueError: no")]


async def test_replies_go_out_in_order_and_failed_ones_are_reported() -> None:
    said, failed = [], []

    async def deliver(_: str, text: str) -> str:
        await asyncio.sleep(0)
        if text == "1":
            raise ConnectionError("gone")
        said.append(text)
        return f"sent {text}"

    async def handle(context: Context) -> Any:
        context.send_text(str(context.event))
        return await context.send_text("now", gated=False) if context.event == 3 else None

    async def note(context: Context, error: BaseException) -> None:
        failed.append((context.session_id, type(error)))

    async with SessionManager(handler=handle, deliver=deliver, on_error=note) as manager:
        for number in range(4):
            answer = await manager.dispatch("ann", number)
        assert answer == "sent now"
    assert [each for each in said if each != "now"] == ["0", "2", "3"]
    assert failed == [("ann", ConnectionError)]


@pytest.mark.parametrize("bad", [None, 7, b"x", {"$gt": ""}, ["x"], "", "x" * 513, "a\x00b", "a\nb", "\ud800"])
async def test_a_bad_session_id_touches_nothing(bad: Any) -> None:
    store = RecordingStore()
    async with SessionManager(store, handler=count) as manager:
        for verb in (manager.peek, manager.destroy, manager.flush):
            if bad is None and verb == manager.flush:
                continue
            with pytest.raises(errors.InvalidSessionIdError):
                await verb(bad)
        with pytest.raises(errors.InvalidSessionIdError):
            await manager.dispatch(bad, "hi")
        with pytest.raises(errors.InvalidSessionIdError):
            await manager.submit(bad, "hi")
    assert store.reads == []


@pytest.mark.parametrize(
    ("option", "value"),
    [("idle_timeout", -1), ("handler_timeout", 0), ("close_timeout", float("nan")), ("max_resident", 0),
     ("max_mailbox", "many"), ("flush", "fast"), ("handler", 7), ("session_type", int), ("store", object()),
     ("clock", 7), ("idle_timeout", float("inf")), pytest.param("idle_timeout", 10**400, id="more than a float")],
)  # fmt: skip
def test_a_bad_option_is_named(option: str, value: Any) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        SessionManager(**{option: value})

    assert caught.value.field == option


async def test_a_closed_manager_says_so_and_its_report_says_what_was_left() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count, close_timeout=0.2).start()
    await manager.dispatch("ann", "hi")
    store.outage()
    report = await manager.close()

    assert report.unflushed == ("ann",)
    assert not report.clean
    with pytest.raises(errors.ManagerClosedError):
        await manager.dispatch("ann", "hi")
    with pytest.raises(errors.ManagerClosedError):
        await SessionManager(handler=count).dispatch("ann", "hi")


async def test_sync_verbs_work_from_other_threads_and_not_on_the_loop() -> None:
    async with SessionManager(handler=count) as manager:
        assert await asyncio.to_thread(manager.dispatch_sync, "ann", "hi") == 1
        with pytest.raises(errors.WrongLoopError):
            manager.dispatch_sync("ann", "hi")

        def elsewhere() -> None:
            async def wrong() -> None:
                await manager.dispatch("ann", "hi")

            with pytest.raises(errors.WrongLoopError):
                asyncio.run(wrong())

        await asyncio.to_thread(elsewhere)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_is_told_to_start_its_own_manager() -> None:
    with SessionManager(handler=count_plainly) as manager:
        manager.dispatch_sync("ann", "hi")
        child = os.fork()
        if child == 0:
            try:
                manager.dispatch_sync("ann", "hi")
            except errors.ForkedError:
                os._exit(7)
            os._exit(1)
        _, status = os.waitpid(child, 0)

    assert os.waitstatus_to_exitcode(status) == 7


async def test_sessions_may_be_dataclasses() -> None:
    @dataclass
    class Cart:
        owner: str | None = None
        items: list[str] = field(default_factory=list)

    async def handle(context: Context) -> int:
        context.session.items.append(context.event)
        return len(context.session.items)

    async with SessionManager(handler=handle, session_type=Cart) as manager:
        assert [await manager.dispatch("ann", each) for each in "ab"] == [1, 2]
        assert await manager.peek("ann") == {"owner": None, "items": ["a", "b"]}


async def test_the_callers_context_variables_reach_the_handler() -> None:
    request: ContextVar[str] = ContextVar("request")

    def handle(context: Context) -> str:
        return request.get()

    async with SessionManager(handler=handle) as manager:
        request.set("r1")
        assert await manager.dispatch("ann", "hi") == "r1"
        receipt = await manager.submit("ann", "hi")
        assert await receipt.result() == "r1"


async def test_what_has_left_to_make_room_is_not_remembered() -> None:
    async with SessionManager(handler=count, max_resident=10) as manager:
        for user in range(500):
            await manager.dispatch(f"user:{user}", "hi")

        assert inside.watched(manager) <= 200


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


async def test_a_durable_dispatch_returns_when_the_store_has_it_whatever_the_policy() -> None:
    store = RecordingStore()
    async with SessionManager(store, handler=count, flush=FlushPolicy.write_behind(max_delay=600.0)) as manager:
        await manager.dispatch("ann", "hi", durable=True)

        assert [each.version for each in store.writes] == [1]


async def test_a_driver_that_never_answers_releases_its_callers_and_stops_nobody_else() -> None:
    clock, store = ManualClock(), FaultyStore()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        await manager.dispatch("bob", "hi")
        store.hold()
        waiting = asyncio.create_task(manager.dispatch("ann", "hi"))
        await asyncio.sleep(0)
        while not manager.stats().store_reads > 1:
            await asyncio.sleep(0)
        await clock.advance(5.1)
        with pytest.raises(errors.StoreUnavailableError):
            await waiting

        assert await manager.dispatch("bob", "hi") == 2
        store.release()
