"""The testing kit: time that stands still, stores that record and fail, and that they can be put
into each other.
"""

from __future__ import annotations

import asyncio
import threading
from concurrent.futures import Future
from pathlib import Path

import pytest

from actorbot import FileSessionStore, errors
from actorbot._state.codec import encode_state
from actorbot._state.record import Record
from actorbot.stores.base import Write
from actorbot.testing import FaultyStore, ManualClock, RecordingStore, _manual_clock
from tests.backends import DictStore, LeasedMemoryStore


def record(session_id: str) -> Record:
    return Record(session_id, 1, encode_state({"n": 1}, 1000), b"", b"", 1.5e9, 4e9).next_write()


# --- the clock ----------------------------------------------------------------------------------


def test_both_clocks_stand_still_until_they_are_told_to_go_on():
    clock = ManualClock(start_wall=1_000_000.0)
    before = clock.monotonic()
    clock.advance_sync(2.5)

    assert (clock.monotonic() - before, clock.wall()) == (2.5, 1_000_002.5)


def test_the_wall_clock_jumps_alone():
    clock = ManualClock(start_wall=1_000_000.0)
    before = clock.monotonic()
    clock.jump_wall(-3600.0)

    assert (clock.monotonic(), clock.wall()) == (before, 1_000_000.0 - 3600.0)


async def test_timers_run_in_the_order_of_time_each_at_its_instant():
    clock, seen = ManualClock(), []
    start = clock.monotonic()

    def note(name: str):
        return lambda: seen.append((name, clock.monotonic() - start))

    for name, seconds in [("late", 3.0), ("early", 1.0), ("also early", 1.0), ("too late", 3.5)]:
        clock.call_at(start + seconds, note(name))
    await clock.advance(3.0)

    assert seen == [("early", 1.0), ("also early", 1.0), ("late", 3.0)]
    assert clock.monotonic() == start + 3.0


def test_a_timer_set_by_a_timer_runs_in_the_same_stretch():
    clock, seen = ManualClock(), []
    start = clock.monotonic()

    def again() -> None:
        seen.append(clock.monotonic() - start)
        clock.call_at(clock.monotonic() + 1.0, again)

    clock.call_at(start + 1.0, again)
    clock.advance_sync(3.0)

    assert seen == [1.0, 2.0, 3.0]


def test_a_cancelled_timer_does_not_run():
    clock = ManualClock()
    timer = clock.call_at(clock.monotonic() + 1.0, lambda: pytest.fail("ran"))
    timer.cancel()
    timer.cancel()

    clock.advance_sync(2.0)


def test_steps_that_add_up_to_an_instant_reach_it():
    clock, seen = ManualClock(), []
    clock.advance_sync(0.3)
    clock.call_at(clock.monotonic() + 1.0, lambda: seen.append(True))
    for _ in range(10):
        clock.advance_sync(0.1)

    assert seen == [True]


def test_time_does_not_go_back():
    for seconds in (-1.0, float("nan")):
        with pytest.raises(ValueError):
            ManualClock().advance_sync(seconds)


async def test_advance_waits_for_what_a_timer_set_off_while_the_loop_runs():
    clock, seen = ManualClock(), []
    loop = asyncio.get_running_loop()

    def work() -> Future[None]:
        done: Future[None] = Future()

        async def finish() -> None:
            await asyncio.sleep(0)
            seen.append("worked")
            done.set_result(None)

        loop.create_task(finish())  # noqa: RUF006  # it ends before the test does
        return done

    clock.call_at(clock.monotonic() + 1.0, work)
    clock.call_at(clock.monotonic() + 1.0, lambda: seen.append("next"))
    await clock.advance(1.0)

    assert seen == ["worked", "next"]


def test_threads_wait_for_what_a_timer_set_off():
    clock, done = ManualClock(), Future()
    worker = threading.Thread(target=lambda: done.set_result(None))

    def work() -> Future[None]:
        worker.start()
        return done

    clock.call_at(clock.monotonic() + 1.0, work)
    clock.advance_sync(1.0)

    assert done.done()
    worker.join()


async def test_what_a_timer_sets_off_may_fail_and_then_says_so():
    clock = ManualClock()
    failed: Future[None] = Future()
    failed.set_exception(RuntimeError("no"))

    for _ in range(2):
        clock.call_at(clock.monotonic(), lambda: failed)
    with pytest.raises(RuntimeError, match="no"):
        await clock.advance(1.0)
    with pytest.raises(RuntimeError, match="no"):
        clock.advance_sync(1.0)


async def test_work_that_is_held_up_does_not_hold_up_time(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(_manual_clock, "PATIENCE", 0.01)
    clock = ManualClock()
    before = clock.monotonic()
    clock.call_at(before + 1.0, Future)
    await clock.advance(1.0)
    clock.call_at(before + 2.0, Future)
    clock.advance_sync(1.0)

    assert clock.monotonic() == before + 2.0


# --- the stores ---------------------------------------------------------------------------------


def test_a_recording_store_writes_down_what_it_is_asked():
    store = RecordingStore().init()
    ann, bob = record("ann"), record("bob")
    store.write_many([Write(ann, b""), Write(bob, b"")])
    store.read_many(["ann"])
    store.read("nobody")

    assert store.writes == [ann, bob]
    assert store.write_batches == [[ann, bob]]
    assert store.reads == ["ann", "nobody"]
    assert store.read_batches == [["ann"], ["nobody"]]


def test_the_stores_can_be_put_into_each_other(tmp_path: Path):
    inner = RecordingStore(FileSessionStore(tmp_path / "sessions", expires_in=5))
    store = FaultyStore(inner).init()
    ann = record("ann")
    store.write_many([Write(ann, b"")])
    store.fail_writes(1)
    with pytest.raises(errors.StoreUnavailableError):
        store.write_many([Write(record("bob"), b"")])

    assert (store.name, store.expires_in) == ("file", 5.0)
    assert inner.writes == [ann]
    assert list(store.sweep(5e9)) == [ann]
    store.close()
    FileSessionStore(tmp_path / "sessions").init().close()  # it was really closed


@pytest.mark.parametrize("around", [FaultyStore, RecordingStore])
def test_a_driver_inside_is_refused_at_once(around):
    with pytest.raises(errors.ConfigError, match="DictStore"):
        around(DictStore())


@pytest.mark.parametrize("around", [FaultyStore, RecordingStore])
def test_the_lease_of_the_store_inside_is_kept_by_the_one_around_it(
    around: type[FaultyStore | RecordingStore],
) -> None:
    store, other = around(LeasedMemoryStore()), around()

    assert (store.keeps_lease, other.keeps_lease) == (True, False)
    assert store.swap_lease(None, "ours")
    assert store.read_lease().text == store.inner.read_lease().text == "ours"


def test_a_store_that_is_out_is_out_for_its_lease_too() -> None:
    store = FaultyStore(LeasedMemoryStore())
    store.outage()
    for call in (store.read_lease, lambda: store.swap_lease(None, "ours")):
        with pytest.raises(errors.StoreUnavailableError):
            call()
    store.restore()

    assert store.read_lease().text is None


def test_a_lease_waits_with_the_calls_that_are_held() -> None:
    store = FaultyStore(LeasedMemoryStore())
    store.hold()
    caller = threading.Thread(target=store.swap_lease, args=(None, "ours"))
    caller.start()
    assert store.inner.read_lease().text is None
    store.release()
    caller.join(timeout=10)

    assert store.read_lease().text == "ours"


@pytest.mark.parametrize("around", [FaultyStore, RecordingStore])
def test_what_a_store_says_of_itself_is_said_by_the_one_around_it_too(
    around: type[FaultyStore | RecordingStore], tmp_path: Path
) -> None:
    inner = FileSessionStore(tmp_path / "none")
    inner.compares, inner.reads_at_once, inner.writes_at_once = False, 25, 10
    store = around(inner)

    assert (store.compares, store.reads_at_once, store.writes_at_once, store.flaw) == (False, 25, 10, None)
    assert "there is no folder" in (store.look() or "")
    assert not (tmp_path / "none").exists()
    inner.flaw = "its folder is gone"
    assert store.flaw == "its folder is gone"


def test_who_only_looks_is_refused_in_an_outage_too() -> None:
    store = FaultyStore()
    store.outage()

    with pytest.raises(errors.StoreUnavailableError):
        store.look()


def test_an_outage_lasts_until_it_is_ended():
    store = FaultyStore().init()
    store.outage()
    for call in (store.init, lambda: store.read_many(["ann"]), lambda: store.write_many([Write(record("ann"), b"")])):
        with pytest.raises(errors.StoreUnavailableError):
            call()
    store.restore()

    assert store.init().read_many(["ann"]) == [None]


def test_a_number_of_calls_can_fail():
    store = FaultyStore().init()
    store.fail_reads(2)
    for _ in range(2):
        with pytest.raises(errors.StoreUnavailableError):
            store.read("ann")
    store.read("ann")
    store.fail_writes(1)
    with pytest.raises(errors.StoreUnavailableError):
        store.destroy("ann")
    store.destroy("ann")

    assert (store.read_calls, store.write_calls) == (3, 2)


def test_a_write_whose_reply_is_lost_was_made():
    store = FaultyStore().init()
    ann = record("ann")
    store.lose_replies(1)
    with pytest.raises(errors.OutcomeUnknownError):
        store.write_many([Write(ann, b"")])

    assert store.read_many(["ann"]) == [ann]


def test_a_damaged_record_is_neither_read_nor_overwritten_until_it_is_mended_or_destroyed():
    store = FaultyStore().init()
    ann, bob = record("ann"), record("bob")
    store.write_many([Write(ann, b"")])
    store.corrupt("ann")

    assert isinstance(store.read_many(["ann"])[0], errors.CorruptSessionError)
    outcomes = store.write_many([Write(ann.next_write(), ann.write_id), Write(bob, b"")])
    assert [type(each) for each in outcomes] == [errors.CorruptSessionError, type(None)]
    store.mend("ann")
    assert store.read_many(["ann", "bob"]) == [ann, bob]

    store.corrupt("ann")
    store.destroy("ann")
    assert store.read("ann") is None


def test_held_calls_wait_until_they_are_released():
    store = FaultyStore().init()
    ann = record("ann")
    store.hold()
    caller = threading.Thread(target=store.write_many, args=([Write(ann, b"")],))
    caller.start()
    assert store.inner.read_many(["ann"]) == [None]
    store.release()
    caller.join(timeout=10)

    assert store.read_many(["ann"]) == [ann]
