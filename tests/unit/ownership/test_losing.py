"""What becomes of a manager that was frozen for longer than its lease, and taken over."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actorbot import DUPLICATE, Context, FlushPolicy, SessionManager, errors
from tests import inside
from tests.handlers import count, count_plainly
from tests.homes import on_a_loop, on_threads
from tests.unit.ownership.owners import LEASE
from tests.unit.ownership.places import STRANGER, Place, Reached
from tests.unit.ownership.test_taking import LATER, manager_of
from tests.waiting import HANGS, Call, breathe, soon, until, until_sync

LOST = r"memory: it was taken over by process 4711 on db-2 \(bot.py\).*Restart"


async def is_lost(manager: SessionManager, place: Place) -> None:
    """Have *manager* find out at its next renewal that it was taken over."""
    place.take_over()
    await place.clock.advance(3.0)
    await until(lambda: not inside.is_open(manager))
    assert STRANGER in manager.health().reason


def is_lost_sync(manager: SessionManager, place: Place) -> None:
    place.take_over()
    place.clock.advance_sync(3.0)
    until_sync(lambda: STRANGER in manager.health().reason)


async def lend(manager: SessionManager) -> None:
    async with manager.turn("ann"):
        pass


VERBS: dict[str, Callable[[SessionManager], Any]] = {
    "dispatch": lambda manager: manager.dispatch("ann", "hi"),
    "dispatch of a new one": lambda manager: manager.dispatch("bob", "hi", event_id="1", durable=True),
    "submit": lambda manager: manager.submit("ann", "hi"),
    "turn": lend,
    "flush": lambda manager: manager.flush(),
    "flush of one": lambda manager: manager.flush("ann"),
    "release": lambda manager: manager.release("ann"),
    "peek": lambda manager: manager.peek("ann"),
    "destroy": lambda manager: manager.destroy("ann"),
    "delivered": lambda manager: manager.delivered("ann"),
}


async def test_who_was_taken_over_says_so_at_every_verb_and_hands_over_what_it_had_not_flushed(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    told: list[tuple[str, Any]] = []
    manager = await manager_of(Reached(place), on_conflict=lambda *its: told.append(its)).start()
    for _ in range(3):
        await manager.dispatch("ann", "hi")
    await is_lost(manager, place)

    assert manager.health().status == "failing"
    for verb in VERBS.values():
        with pytest.raises(errors.OwnershipLostError, match=LOST):
            await soon(verb(manager))
    with pytest.raises(errors.OwnershipLostError, match=LOST):
        manager.abandon("ann")
    with pytest.raises(errors.OwnershipLostError, match=LOST):
        await asyncio.to_thread(manager.dispatch_sync, "ann", "hi")
    assert [(each.session_id, each.state) for each in manager.conflicts()] == [("ann", {"n": 3})]
    assert list(manager.resident()) == []
    assert (ownership := manager.stats().ownership) is not None
    assert ownership.remaining == 0.0
    assert manager.stats().events_at_risk == 0
    assert caplog.text.count(STRANGER) == 1
    report = await soon(manager.close())
    assert report.unflushed == ()
    assert await manager.close() is report
    assert told == [("ann", {"n": 3})]
    assert place.read("ann") is None
    assert place.holder is not None
    assert place.holder.process.host == "db-2"
    assert not place.lease.away  # it has said with its close that it writes no more


@pytest.mark.parametrize("home", [on_threads, on_a_loop])
def test_on_threads_it_says_the_same(place: Place, home: Any) -> None:
    told: list[tuple[str, Any]] = []
    options = {"on_conflict": lambda *its: told.append(its), "handler": count_plainly, "flush": LATER}
    with home(store=Reached(place), **options) as manager:
        manager.dispatch_sync("ann", "hi")
        is_lost_sync(manager, place)
        until_sync(lambda: told)
        for verb in (
            lambda: manager.dispatch_sync("ann", "hi"),
            lambda: manager.dispatch_sync("ann", "hi", timeout=5.0),
            lambda: manager.submit_sync("ann", "hi"),
            lambda: manager.turn_sync("ann").__enter__(),
            manager.flush_sync,
            lambda: manager.peek_sync("ann"),
            lambda: manager.destroy_sync("ann"),
        ):
            assert isinstance(Call(verb).error(), errors.OwnershipLostError)
        assert [each.session_id for each in manager.conflicts()] == ["ann"]
        assert Call(manager.close_sync).result().unflushed == ()
    assert told == [("ann", {"n": 1})]
    assert place.read("ann") is None


async def test_turns_in_hand_and_in_line_end_with_it(place: Place) -> None:
    started, go_on = asyncio.Event(), asyncio.Event()
    failed: list[BaseException] = []

    async def handle(context: Context) -> str:
        context.session["n"] = 1
        started.set()
        try:
            await go_on.wait()
        except asyncio.CancelledError:
            return "I was cancelled, and say that all is well"
        return "handled"

    manager = await manager_of(
        Reached(place), handler=handle, on_error=lambda _, error: failed.append(error), close_timeout=0.5
    ).start()
    running = asyncio.create_task(manager.dispatch("ann", "hi"))
    await started.wait()
    in_line = asyncio.create_task(manager.dispatch("ann", "there"))
    receipt = await manager.submit("ann", "more")
    result, durable = asyncio.create_task(receipt.result()), asyncio.create_task(receipt.durable())

    async def borrow() -> None:
        async with manager.turn("bob") as turn:
            turn.session["n"] = 1
            lent.set()
            await go_on.wait()

    lent = asyncio.Event()
    lending = asyncio.create_task(borrow())
    await lent.wait()
    await is_lost(manager, place)
    go_on.set()

    for each in (running, in_line, result, durable, lending):
        with pytest.raises(errors.OwnershipLostError, match=LOST):
            await soon(each)
    assert manager.conflicts() == []
    assert manager.stats().handled == 0
    assert any(isinstance(each, errors.OwnershipLostError) for each in failed)
    await manager.close()
    assert place.count() == 0


async def test_a_borrowed_turn_cannot_be_used_any_more(place: Place) -> None:
    manager = await manager_of(Reached(place)).start()
    with pytest.raises(errors.OwnershipLostError, match=LOST):
        async with manager.turn("ann") as turn:
            await is_lost(manager, place)
            with pytest.raises(errors.TurnEndedError, match="taken over the store"):
                turn.session["n"] = 1
    await manager.close()


@pytest.mark.parametrize("verb", ["dispatch", "duplicate"])
async def test_nothing_is_acknowledged_before_an_owner_that_was_frozen_has_asked_who_it_is(
    place: Place, verb: str
) -> None:
    async def run() -> Any:
        return await manager.dispatch("ann", "hi", event_id="1" if verb == "duplicate" else None)

    store = Reached(place)
    manager = await manager_of(store).start()
    assert await manager.dispatch("ann", "hi", event_id="1") == 1
    asking = store.pause("read")
    place.clock._now += LEASE  # it was frozen: no timer has run
    waiting = asyncio.create_task(run())
    await until(asking.reached.is_set)
    await breathe()
    assert not waiting.done()
    asking.open()
    assert await soon(waiting) == (DUPLICATE if verb == "duplicate" else 2)

    asking = store.pause("read")
    place.clock._now += LEASE
    waiting = asyncio.create_task(run())
    await until(asking.reached.is_set)
    place.take_over()
    asking.open()
    with pytest.raises(errors.OwnershipLostError, match=LOST):
        await soon(waiting)
    assert [each.state for each in manager.conflicts()] == [{"n": 1 if verb == "duplicate" else 3}]
    await manager.close()


async def test_a_turn_that_was_borrowed_before_an_owner_that_was_frozen_lost_its_store_ends_with_that(
    place: Place,
) -> None:
    store = Reached(place)
    manager = await manager_of(store).start()
    with pytest.raises(errors.OwnershipLostError, match=LOST):
        async with manager.turn("ann") as turn:
            count_plainly(turn)
            place.clock._now += LEASE
            place.take_over()
    await manager.close()
    assert place.count() == 0


@pytest.mark.parametrize("policy", [FlushPolicy.write_through(), LATER], ids=["write-through", "durable"])
@pytest.mark.parametrize("verb", ["dispatch", "turn", "flush", "destroy"])
async def test_what_was_stored_late_is_not_acknowledged_by_who_was_taken_over_meanwhile(
    place: Place, policy: FlushPolicy, verb: str
) -> None:
    store = Reached(place)
    manager = await manager_of(store, flush=policy, ownership="exclusive").start()
    await manager.dispatch("ann", "hi")
    written = store.pause("-write")

    async def run() -> None:
        if verb == "dispatch":
            await manager.dispatch("ann", "hi", durable=True)
        elif verb == "turn":
            async with manager.turn("ann") as turn:
                count_plainly(turn)
            await manager.flush()
        elif verb == "flush":
            await manager.dispatch("ann", "hi")
            await manager.flush()
        else:
            await manager.destroy("ann")

    waiting = asyncio.create_task(run())
    await until(written.reached.is_set)
    place.clock._now += LEASE
    place.take_over()
    written.open()

    with pytest.raises(errors.OwnershipLostError, match=LOST):
        await soon(waiting)
    await manager.close()


async def test_a_lease_counts_from_before_its_server_was_asked(place: Place) -> None:
    store = Reached(place)
    async with manager_of(store) as manager:
        answered = store.pause("-swap")
        await place.clock.advance(3.0)
        await until(answered.reached.is_set)
        place.clock._now += 0.5  # so long its answer is on the way
        answered.open()
        await until(lambda: manager.stats().ownership.remaining > 7.0)  # type: ignore[union-attr]

        assert (ownership := manager.stats().ownership) is not None
        assert ownership.remaining == LEASE - 0.5


async def test_while_its_server_is_away_an_owner_goes_on_and_has_it_still_when_it_is_back(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    store = Reached(place)
    async with manager_of(store) as manager:
        await manager.dispatch("ann", "hi")
        store.outage()
        for n in range(2, 12):
            await place.clock.advance(3.0)  # three leases
            assert await soon(manager.dispatch("ann", "hi")) == n
        await until(lambda: "lease cannot be renewed" in manager.health().reason)
        assert manager.health().status == "degraded"
        store.restore()
        await place.clock.advance(1.0)
        await until(lambda: manager.health().status == "ready")
        assert (ownership := manager.stats().ownership) is not None
        assert ownership.epoch == 1
    assert place.lease.epoch == 1
    assert caplog.text.count("the lease cannot be renewed") == 1
    assert [record.levelname for record in caplog.records if "cannot be renewed" in record.message] == ["WARNING"]


async def test_a_lease_that_somebody_has_removed_or_spoilt_is_put_back_as_it_was(place: Place) -> None:
    async with manager_of(Reached(place)) as manager:
        place.text = None
        await place.clock.advance(3.0)
        await until(lambda: place.text is not None)
        assert place.holder is not None
        assert place.holder.epoch == 1
        place.text = "hello"
        await place.clock.advance(3.0)
        await until(lambda: "cannot be read" in manager.health().reason)
        assert await manager.dispatch("ann", "hi") == 1
        place.text = None
        await place.clock.advance(1.0)
        await until(lambda: manager.health().status == "ready")


async def test_replies_that_wait_are_not_sent_by_who_was_taken_over(place: Place) -> None:
    sent: list[str] = []
    first, go_on = asyncio.Event(), asyncio.Event()
    undelivered: list[BaseException] = []

    async def deliver(_: str, text: str) -> None:
        sent.append(text)
        first.set()
        await go_on.wait()

    async def handle(context: Context) -> None:
        context.send_text(f"{context.event} 1")
        context.send_text(f"{context.event} 2")

    manager = await manager_of(
        Reached(place), handler=handle, deliver=deliver, on_error=lambda _, error: undelivered.append(error)
    ).start()
    await manager.dispatch("ann", "a")
    await manager.dispatch("ann", "b")
    await first.wait()
    await is_lost(manager, place)
    go_on.set()
    await until(lambda: len(undelivered) == 3)

    assert sent == ["a 1"]
    assert all(isinstance(each, errors.OwnershipLostError) for each in undelivered)
    await manager.close()


async def test_a_reply_that_waits_for_nothing_is_asked_about_too(place: Place) -> None:
    sent: list[str] = []
    store = Reached(place)

    async def handle(context: Context) -> None:
        place.clock._now += LEASE  # it is frozen in the midst of its turn
        place.take_over()
        await context.send_text("at once", gated=False)

    manager = await manager_of(store, handler=handle, deliver=lambda _, text: sent.append(text)).start()
    with pytest.raises(errors.OwnershipLostError, match=LOST):
        await soon(manager.dispatch("ann", "hi"))

    assert sent == []
    await manager.close()


@pytest.mark.parametrize("what", ["read", "flush", "release", "durable"])
async def test_who_waits_for_the_store_is_told_at_once(place: Place, what: str) -> None:
    store = Reached(place)
    manager = await manager_of(store, close_timeout=1.0).start()
    await manager.dispatch("ann", "hi")
    store.fail_writes(10**6)
    reading = store.pause("read sessions")
    waits_for: dict[str, Callable[[], Any]] = {
        "read": lambda: manager.dispatch("bob", "hi"),
        "flush": manager.flush,
        "release": lambda: manager.release("ann"),
        "durable": lambda: manager.dispatch("ann", "hi", durable=True),
    }
    waiting = asyncio.create_task(waits_for[what]())
    await until(lambda: reading.reached.is_set() or store.write_calls)
    await is_lost(manager, place)
    try:
        with pytest.raises(errors.OwnershipLostError, match=LOST):
            await soon(waiting)
    finally:
        reading.open()
        await manager.close()


async def test_a_duplicate_that_waits_for_the_first_answer_is_not_told_that_it_was_handled(place: Place) -> None:
    manager = await manager_of(Reached(place)).start()
    await manager.dispatch("ann", "hi", event_id="1")
    with inside.shared(manager).answers.run("ann", "1"):  # the first time is not acknowledged yet
        again = asyncio.create_task(manager.dispatch("ann", "hi", event_id="1", on_duplicate="result"))
        await until(lambda: manager.stats().duplicates == 1)
        await is_lost(manager, place)

    with pytest.raises(errors.OwnershipLostError, match=LOST):
        await soon(again)
    await manager.close()


async def test_who_loses_its_store_while_it_closes_hands_over_what_it_has(place: Place) -> None:
    store = Reached(place)
    manager = await manager_of(store, close_timeout=5.0).start()
    await manager.dispatch("ann", "hi")
    store.fail_writes(10**6)
    closing = asyncio.create_task(manager.close())
    await until(lambda: store.write_calls > 1)
    place.take_over()
    await place.clock.advance(3.0)
    report = await soon(closing)

    assert place.read("ann") is None
    assert report.unflushed == ()
    assert report.seconds < 5.0 * 0.9


async def test_who_loses_its_store_while_it_starts_does_not_start(place: Place, tmp_path: Path) -> None:
    policy = FlushPolicy.journaled(tmp_path / "journal", max_delay=3600.0)
    store = Reached(place)
    first = await manager_of(store, flush=policy, close_timeout=0.2).start()
    await first.dispatch("ann", "hi")
    store.fail_writes(10**6)
    await first.close()
    store = Reached(place)
    reading = store.pause("write")
    manager = manager_of(store, flush=policy)
    starting = asyncio.create_task(manager.start())
    await until(reading.reached.is_set)
    place.take_over()
    await place.clock.advance(3.0)
    await until(lambda: STRANGER in manager.health().reason)
    reading.open()

    with pytest.raises(errors.OwnershipLostError, match=LOST):
        await soon(starting)
    async with manager_of(Reached(Place()), flush=policy, ownership="none"):
        pass  # its journal is free


@pytest.mark.parametrize("mode", ["exclusive", "shared"])
async def test_a_renewal_that_comes_back_after_the_close_does_not_take_the_lease_again(place: Place, mode: str) -> None:
    store = Reached(place)
    manager = await manager_of(store, ownership=mode).start()
    renewing = store.pause("read")
    await place.clock.advance(3.0)
    await until(renewing.reached.is_set)
    await place.clock.advance(5.0)  # `store_deadline`: it is left behind
    await manager.close()
    assert place.lease.holders == {}
    renewing.open()
    await until(lambda: not any(each.name.startswith("actorbot-lease") for each in threading.enumerate()))

    assert place.lease.holders == {}


async def test_a_manager_that_its_handler_closes_gives_its_lease_back(place: Place) -> None:
    async def handle(context: Context) -> None:
        context.session["n"] = 1
        await manager.close()

    manager = await manager_of(Reached(place), handler=handle).start()
    with pytest.raises(errors.ManagerClosedError):
        await soon(manager.dispatch("ann", "hi"))

    await until(lambda: not place.lease.holders)


def test_a_manager_whose_loop_has_ended_gives_its_lease_back_at_its_close(place: Place) -> None:
    manager = manager_of(Reached(place))

    async def run() -> None:
        await manager.start()
        await manager.dispatch("ann", "hi")

    asyncio.run(run())
    assert len(place.lease.holders) == 1
    assert Call(manager.close_sync).result().clean
    assert place.lease.holders == {}
    assert place.read("ann") is not None


def test_a_manager_whose_loop_has_ended_can_lose_its_store_and_be_closed(place: Place) -> None:
    manager = manager_of(Reached(place), close_timeout=10 * HANGS)

    async def run() -> None:
        await manager.start()
        await manager.dispatch("ann", "hi")

    asyncio.run(run())
    is_lost_sync(manager, place)
    assert Call(manager.close_sync).result().unflushed == ("ann",)

    assert manager.health().reason.count(STRANGER) == 1
    assert place.read("ann") is None


def test_a_store_that_is_lost_while_a_handler_blocks_the_loop_gets_no_further_write(place: Place) -> None:
    blocked, go_on = threading.Event(), threading.Event()

    async def handle(context: Context) -> int:
        if context.event == "block":
            blocked.set()
            go_on.wait(HANGS)
        return count_plainly(context)

    store = Reached(place)
    with on_a_loop(store=store, handler=handle, flush=LATER) as manager:
        assert manager.dispatch_sync("ann", "hi") == 1
        blocking = Call(manager.dispatch_sync, "bob", "block")
        assert blocked.wait(HANGS)
        is_lost_sync(manager, place)  # health says so, though the loop is blocked
        writes = store.write_calls
        flushing = Call(manager.flush_sync)
        go_on.set()
        assert isinstance(blocking.error(), errors.OwnershipLostError)
        assert isinstance(flushing.error(), errors.OwnershipLostError)
        assert store.write_calls == writes
        assert {each.session_id for each in manager.conflicts()} == {"ann", "bob"}


async def test_of_two_managers_of_a_lost_store_object_both_have_lost_it(place: Place) -> None:
    store = Reached(place)
    first, second = await manager_of(store).start(), await manager_of(store).start()
    place.take_over()
    await place.clock.advance(3.0)
    await until(lambda: all(STRANGER in each.health().reason for each in (first, second)))
    await first.close()
    await second.close()
    assert not place.lease.away


async def test_after_a_loss_a_new_manager_waits_for_the_new_owner(place: Place, caplog: Any) -> None:
    caplog.set_level(logging.INFO, "actorbot")
    store = Reached(place)
    lost = await manager_of(store, handler=count).start()
    await is_lost(lost, place)
    with pytest.raises(errors.StoreLockedError, match="db-2"):
        await manager_of(store, takeover_timeout=0.0).start()
    await lost.close()
    with pytest.raises(errors.StoreLockedError, match="db-2"):
        await manager_of(store, takeover_timeout=0.0).start()
