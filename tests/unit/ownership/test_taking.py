"""How a manager comes to own its store: at once, after a wait, or not."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
from typing import Any

import pytest

from actorbot import FlushPolicy, SessionManager, errors
from actorbot._ownership.lease import Lease
from tests.handlers import count, count_plainly
from tests.unit.ownership.owners import LEASE
from tests.unit.ownership.places import STRANGER, Place, Reached
from tests.waiting import Call, soon, until, until_sync

LATER = FlushPolicy.write_behind(max_delay=3600.0)


def manager_of(store: Any, **options: Any) -> SessionManager:
    return SessionManager(store, **{"handler": count, "flush": LATER, **options})


async def waits(manager: SessionManager, reason: str = "unless it renews it") -> None:
    await until(lambda: reason in manager.health().reason)


async def test_a_store_that_nobody_has_is_owned_at_once(place: Place) -> None:
    async with manager_of(Reached(place)) as manager:
        ownership = manager.stats().ownership
        assert ownership is not None
        assert f"process {os.getpid()} on " in ownership.owner
        assert (ownership.mode, ownership.epoch, ownership.remaining) == ("exclusive", 1, LEASE)
        await place.clock.advance(1.0)
        assert (after := manager.stats().ownership) is not None
        assert after.remaining == LEASE - 1.0
    assert place.lease == Lease(1, {}, {})


async def test_the_second_of_two_starts_when_the_first_has_closed_and_finds_all_that_it_acknowledged(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "actorbot")
    first = await manager_of(Reached(place)).start()
    await first.dispatch("ann", "hi")
    second = manager_of(Reached(place))
    starting = asyncio.create_task(second.start())
    await waits(second, f"process {os.getpid()}")
    assert second.health().status == "failing"
    assert any("waits for its owner: process" in each for each in caplog.messages)
    with pytest.raises(errors.ManagerClosedError, match="starting"):
        await second.dispatch("ann", "hi")
    assert (await first.close()).clean

    await soon(starting)
    assert await second.dispatch("ann", "hi") == 2
    assert (ownership := second.stats().ownership) is not None
    assert ownership.epoch == 2
    assert place.holder is not None
    assert not place.holder.claims
    await second.close()


async def test_a_wait_that_is_over_says_who_has_the_store_and_what_to_do(place: Place) -> None:
    async with manager_of(Reached(place)) as first:
        before = place.text
        with pytest.raises(errors.StoreLockedError) as told:
            await manager_of(Reached(place), takeover_timeout=0.0).start()
        for part in ("memory: this process owns it already", "exclusive, epoch 1", "10.0 s", "the same store object"):
            assert part in str(told.value)
        assert f"process {os.getpid()}" in (told.value.owner or "")
        assert place.text == before
        assert await first.dispatch("ann", "hi") == 1

        second = manager_of(Reached(place), takeover_timeout=5.0)
        starting = asyncio.create_task(second.start())
        await waits(second)
        await place.clock.advance(4.9)
        await waits(second)
        await place.clock.advance(0.2)
        with pytest.raises(errors.StoreLockedError, match=r"Waited 5\.1 s"):
            await soon(starting)
    place.take_over()
    with pytest.raises(errors.StoreLockedError) as told:
        await manager_of(Reached(place), takeover_timeout=0.0).start()
    for part in (f"memory: somebody else owns it: {STRANGER}, exclusive, epoch 2", "Close that", "write_through"):
        assert part in str(told.value)
    assert STRANGER in (told.value.owner or "")


async def test_an_owner_that_says_no_more_is_taken_over_when_its_lease_has_run_out(place: Place) -> None:
    place.take_over()
    second = manager_of(Reached(place), takeover_timeout=12.0)
    starting = asyncio.create_task(second.start())
    await waits(second, STRANGER)
    await place.watched(LEASE - 0.1, starting)
    await waits(second, "for 0.1 s")
    await place.clock.advance(0.2)

    await soon(starting)
    assert place.holder is not None
    assert place.holder.claims
    assert [*place.lease.away] == ["stranger"]
    await second.close()


async def test_nobody_is_taken_over_whose_server_was_away_or_has_another_time(place: Place) -> None:
    owner = Reached(place)
    async with manager_of(owner) as first:
        owner.outage()  # of this process alone
        place.skew = 3_600.0
        store = Reached(place)
        second = manager_of(store)
        starting = asyncio.create_task(second.start())
        await until(lambda: place.looks > 2)
        await place.watched(3.0, starting)
        store.outage()
        await waits(second, "does not answer")
        store.restore()
        await place.watched(3.9, starting)  # since it answers again
        assert (place.lease.epoch, starting.done()) == (1, False)
        owner.restore()
        await place.clock.advance(0.3)
        await until(lambda: place.holder is not None and place.holder.until > place.now())
        await waits(second, "unless it renews it")
        assert await first.dispatch("ann", "hi") == 1
    await soon(starting)
    assert await second.dispatch("ann", "hi") == 2
    await second.close()


async def test_a_clock_that_was_set_back_keeps_a_store_from_nobody_for_longer_than_a_lease(place: Place) -> None:
    place.take_over()
    place.skew = -3_600.0
    second = manager_of(Reached(place))
    starting = asyncio.create_task(second.start())
    await waits(second, "for 3610.0 s unless")
    await place.watched(LEASE, starting)
    await waits(second, "for 3600.0 s unless")
    await place.watched(0.4 * LEASE, starting)  # it has looked whether the server takes writes

    await soon(starting)
    await second.close()


@pytest.mark.parametrize("up", [0.5, None])
async def test_a_server_that_was_just_started_may_have_forgotten_an_owner_that_is_about_to_come_back(
    place: Place, up: float | None
) -> None:
    place.up = up
    manager = manager_of(Reached(place), takeover_timeout=0.0)
    starting = asyncio.create_task(manager.start())
    await until(lambda: place.looks > 1)
    assert not starting.done()
    await place.clock.advance(0.4 * LEASE)

    await soon(starting)
    await manager.close()


async def test_those_who_write_through_own_a_store_together(place: Place) -> None:
    policy = FlushPolicy.write_through()
    async with (
        manager_of(Reached(place), flush=policy) as first,
        manager_of(Reached(place), flush=policy) as second,
    ):
        assert await first.dispatch("ann", "hi") == 1
        assert await second.dispatch("ann", "hi") == 2
        assert {each.mode for each in place.lease.holders.values()} == {"shared"}
        assert len(place.lease.holders) == 2
        with pytest.raises(errors.StoreLockedError, match=r"shared, epoch 1.*; .*shared, epoch 2"):
            await manager_of(Reached(place), takeover_timeout=0.0).start()
    assert place.lease == Lease(2, {}, {})


async def test_a_start_that_is_cancelled_while_it_waits_takes_nothing(place: Place) -> None:
    first = await manager_of(Reached(place)).start()
    second = manager_of(Reached(place))
    starting = asyncio.create_task(second.start())
    await waits(second)
    starting.cancel()
    await asyncio.wait([starting])
    assert starting.cancelled()
    before = place.lease.holders.keys()
    assert len(before) == 1
    await first.close()

    assert place.lease == Lease(1, {}, {})
    assert second.health().reason == "the manager is closed"


@pytest.mark.parametrize("where", ["read", "-read", "swap", "-swap"])
async def test_what_a_start_that_is_cancelled_has_taken_is_given_back(place: Place, where: str) -> None:
    store = Reached(place)
    gate = store.pause(where)
    starting = asyncio.create_task(manager_of(store).start())
    await until(gate.reached.is_set)
    starting.cancel()
    gate.open()
    await asyncio.wait([starting])

    await until(lambda: not place.lease.holders)
    async with manager_of(Reached(place), takeover_timeout=0.0):
        pass


@pytest.mark.parametrize("where", ["read", "-read"])
async def test_a_start_that_was_given_up_takes_nothing_when_its_answer_comes_at_last(place: Place, where: str) -> None:
    store = Reached(place)
    gate = store.pause(where)
    starting = asyncio.create_task(manager_of(store).start())
    await until(gate.reached.is_set)
    await place.clock.advance(5.0)  # `store_deadline`: the call is left behind
    with pytest.raises(errors.OutcomeUnknownError):
        await soon(starting)
    before = place.text
    gate.open()
    await until(lambda: not any(each.name.startswith("actorbot-lease") for each in threading.enumerate()))

    async with manager_of(Reached(place), takeover_timeout=0.0) as second:
        assert before is None
        assert (ownership := second.stats().ownership) is not None
        assert ownership.epoch == 1


async def test_a_start_that_cannot_reach_its_lease_says_so_at_once(place: Place) -> None:
    class Refusing(Reached):
        def read_lease(self) -> Any:
            raise errors.StoreError("memory", "this user may not")

    with pytest.raises(errors.StoreError, match="may not"):
        await manager_of(Refusing(place)).start()
    place.text = "hello"
    with pytest.raises(errors.StoreError, match="cannot be read"):
        await manager_of(Reached(place)).start()
    assert place.text == "hello"


async def test_a_wait_for_a_server_that_has_gone_ends_with_what_it_said(place: Place) -> None:
    place.take_over()
    store = Reached(place)
    manager = manager_of(store, takeover_timeout=3.0)
    starting = asyncio.create_task(manager.start())
    await waits(manager, STRANGER)
    store.outage()
    await waits(manager, "does not answer")
    await place.clock.advance(3.0)

    with pytest.raises(errors.StoreUnavailableError, match="told to be out"):
        await soon(starting)


async def test_what_starts_again_in_the_same_process_after_a_close_that_left_something_does_not_wait(
    place: Place,
) -> None:
    store = Reached(place)
    first = await manager_of(store, close_timeout=0.2).start()
    await first.dispatch("ann", "hi")
    store.fail_writes(10**6)
    assert not (await first.close()).clean
    assert len(place.lease.holders) == 1  # a late write may come: it is not given back

    async with manager_of(Reached(place), takeover_timeout=0.0):
        assert place.holder is not None
        assert place.holder.claims
        assert not place.lease.away


@pytest.mark.long  # the clock waits for what is held up
@pytest.mark.parametrize("flush", [LATER, FlushPolicy.write_through()], ids=["destroy", "write-through"])
async def test_a_close_after_a_write_that_has_not_come_back_does_not_give_the_lease_back(
    place: Place, flush: FlushPolicy
) -> None:
    store = Reached(place)
    manager = await manager_of(store, flush=flush, ownership="exclusive").start()
    await manager.dispatch("ann", "hi")
    await manager.flush("ann")
    gate = store.pause("write")
    writing = asyncio.create_task(manager.destroy("ann") if flush is LATER else manager.dispatch("ann", "hi"))
    try:
        await until(gate.reached.is_set)
        await place.clock.advance(flush.store_deadline)
        with pytest.raises(errors.OutcomeUnknownError):
            await soon(writing)
        assert (await manager.close(1.0)).clean
    finally:
        gate.open()

    assert len(place.lease.holders) == 1  # else it may come when the next owner has acknowledged something


async def test_two_managers_of_one_store_object_have_one_lease_and_the_last_gives_it_back(place: Place) -> None:
    store = Reached(place)
    first = await manager_of(store).start()
    second = await manager_of(store).start()
    assert len(place.lease.holders) == 1
    assert first.stats().ownership == second.stats().ownership
    await first.close()
    assert len(place.lease.holders) == 1
    await place.clock.advance(3.0)
    await until(lambda: place.holder is not None and place.holder.until == place.now() + LEASE)
    assert await second.dispatch("ann", "hi") == 1
    await second.close()

    assert place.lease == Lease(1, {}, {})


async def test_what_the_first_manager_of_a_store_object_has_left_keeps_the_last_from_giving_it_back(
    place: Place,
) -> None:
    store = Reached(place)
    first = await manager_of(store, close_timeout=0.2).start()
    second = await manager_of(store).start()
    await first.dispatch("ann", "hi")
    store.fail_writes(10**6)
    assert not (await first.close()).clean
    store.fail_writes(0)
    assert (await second.close()).clean

    assert len(place.lease.holders) == 1


async def test_a_manager_that_shares_and_one_that_does_not_have_a_store_object_for_themselves(place: Place) -> None:
    store = Reached(place)
    async with manager_of(store, flush=FlushPolicy.write_through()) as first, manager_of(store):
        assert place.holder is not None
        assert (place.holder.mode, place.holder.epoch) == ("exclusive", 1)
        await place.clock.advance(3.0)
        await until(lambda: place.holder is not None and place.holder.until == place.now() + LEASE)
        assert place.holder.mode == "exclusive"
        assert await first.dispatch("ann", "hi") == 1
        with pytest.raises(errors.StoreLockedError):
            await manager_of(Reached(place), flush=FlushPolicy.write_through(), takeover_timeout=0.0).start()


async def test_without_ownership_no_lease_is_taken_and_a_warning_says_so(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    async with manager_of(Reached(place), ownership="none") as manager:
        assert manager.stats().ownership is None
        assert place.text is None
        assert await manager.dispatch("ann", "hi") == 1
    assert any("no lease is taken" in each for each in caplog.messages)


def test_a_wait_on_threads_is_the_same(place: Place) -> None:
    options = {"handler": count_plainly}
    first = manager_of(Reached(place), **options).start_sync()
    first.dispatch_sync("ann", "hi")
    second = manager_of(Reached(place), **options)
    starting = Call(second.start_sync)
    until_sync(lambda: "unless it renews it" in second.health().reason)
    first.close_sync()
    starting.result()

    assert second.dispatch_sync("ann", "hi") == 2
    second.close_sync()
    assert place.lease == Lease(2, {}, {})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
def test_a_forked_child_neither_has_its_parents_lease_nor_gives_it_back(place: Place) -> None:
    options = {"handler": count_plainly}
    store = Reached(place)
    with manager_of(store, **options) as manager:
        before = place.text
        child = os.fork()
        if child == 0:
            code = 1
            try:
                with pytest.raises(errors.ForkedError):
                    manager.dispatch_sync("ann", "hi")
                with pytest.raises(errors.ForkedError):
                    manager.close_sync()
                with pytest.raises(errors.StoreLockedError, match=f"process {os.getppid()} "):
                    manager_of(Reached(place), takeover_timeout=0.0, **options).start_sync()
                with pytest.raises(errors.StoreLockedError, match=f"process {os.getppid()} "):  # the same store object
                    manager_of(store, takeover_timeout=0.0, **options).start_sync()
                code = 7 if place.text == before else 2
            finally:
                os._exit(code)
        _, status = os.waitpid(child, 0)
        assert os.waitstatus_to_exitcode(status) == 7
        assert manager.dispatch_sync("ann", "hi") == 1
