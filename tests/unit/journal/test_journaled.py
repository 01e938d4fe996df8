"""What a bot author gets from `FlushPolicy.journaled`: durable events at the speed of a local disk, whatever becomes of the store."""

from __future__ import annotations

import asyncio
import logging
import sqlite3
import stat
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, Self

import pytest

from actorbot import (
    DUPLICATE,
    Context,
    FileSessionStore,
    MemorySessionStore,
    Retry,
    SessionManager,
    errors,
)
from actorbot._flushing.waiters import Goal
from actorbot._journal.file import JournalFile
from actorbot._journal.journal import REMOVED
from actorbot._residents.replay import Replay
from actorbot.testing import ManualClock
from tests import inside
from tests.backends import each_store
from tests.journals import Server, advancing, idle, kill, make_manager
from tests.waiting import until

# --- nothing acknowledged is lost -------------------------------------------------------------------------------------


async def test_an_event_is_safe_before_the_store_has_heard_of_it(tmp_path: Path) -> None:
    clock, store = ManualClock(), Server()
    async with make_manager(store, tmp_path / "journal", clock=clock) as manager:
        assert await manager.dispatch("ann", "hi", event_id="1") == 1
        assert store.read("ann") is None
        left = kill(tmp_path / "journal")

        async with make_manager(store, left, clock=clock) as heir:
            assert await heir.dispatch("ann", "hi", event_id="1") is DUPLICATE
            assert await heir.dispatch("ann", "hi", event_id="2") == 2


@each_store
async def test_what_a_killed_bot_had_acknowledged_is_in_the_store_when_the_next_has_started(
    make_store: Callable[[Path], Any], tmp_path: Path
) -> None:
    server, policy = Server(), {"max_delay": 3600.0}
    async with make_manager(server, tmp_path / "journal", policy=policy) as manager:
        for n in range(5):
            await manager.dispatch(f"user:{n % 2}", "hi", event_id=str(n))
        left = kill(tmp_path / "journal")
        server.outage()  # what it does from here on does not count
        store = make_store(tmp_path / "store")
        async with make_manager(store, left, policy=policy) as heir:
            assert [await heir.peek(f"user:{n}") for n in range(2)] == [{"n": 3}, {"n": 2}]
            assert await heir.dispatch("user:0", "hi", event_id="4") is DUPLICATE
        server.restore()

    async with SessionManager(store) as reader:
        assert [await reader.peek(f"user:{n}") for n in range(2)] == [{"n": 3}, {"n": 2}]


async def test_what_the_store_had_taken_without_the_bot_learning_of_it_is_not_counted_twice(tmp_path: Path) -> None:
    clock, store = ManualClock(), Server()
    async with make_manager(store, tmp_path / "journal", clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        await manager.dispatch("ann", "hi")
        store.lose_replies(1)
        await clock.advance(1.0)
        await manager.dispatch("ann", "hi")
        left = kill(tmp_path / "journal")
        store.outage()

        store.restore()
        async with make_manager(store, left, clock=clock) as heir:
            assert await heir.peek("ann") == {"n": 3}
            assert heir.stats().conflicts == 0
        store.outage()
        inside.lose_sessions(manager)
    assert (store.inner.read("ann") or {})["n"] == 3


async def test_a_reply_leaves_after_its_event_is_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered: list[str] = []
    begun, go_on, commit = threading.Event(), threading.Event(), JournalFile.commit

    def commit_when_told(file: JournalFile, *rows: Any) -> None:
        begun.set()
        assert go_on.wait(5.0)
        commit(file, *rows)

    monkeypatch.setattr(JournalFile, "commit", commit_when_told)
    async with make_manager(Server(), tmp_path / "journal", deliver=lambda _, text: delivered.append(text)) as manager:
        talking = asyncio.create_task(manager.dispatch("ann", "hi"))
        await asyncio.to_thread(begun.wait, 5.0)
        for _ in range(20):
            await asyncio.sleep(0.001)  # whatever can go on does
        assert delivered == []
        assert not talking.done()
        go_on.set()
        await talking
        await manager.delivered("ann")

    assert delivered == ["1"]


@pytest.mark.parametrize(("took", "groups"), [(0.0, [1, 20, 19]), (1.0, [1, 39])], ids=["quick", "slow"])
async def test_a_quick_disk_gets_half_of_what_is_in_flight_and_a_slow_one_all_that_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, took: float, groups: list[int]
) -> None:
    seen: list[int] = []
    begun, go_on, commit = threading.Event(), threading.Event(), JournalFile.commit
    now = [0.0]

    def commit_when_told(file: JournalFile, rows: Any, conflicts: Any) -> None:
        seen.append(len(rows))
        begun.set()
        assert go_on.wait(5.0)
        now[0] += took
        commit(file, rows, conflicts)

    monkeypatch.setattr(JournalFile, "commit", commit_when_told)
    monkeypatch.setattr("actorbot._journal.journal.perf_counter", lambda: now[0])
    policy = {"max_delay": 60}
    async with make_manager(Server(), tmp_path / "journal", policy=policy) as manager:
        talking = [asyncio.create_task(manager.dispatch("user:0", "hi"))]
        await asyncio.to_thread(begun.wait, 5.0)
        talking += [asyncio.create_task(manager.dispatch(f"user:{n}", "hi")) for n in range(1, 40)]
        await until(lambda: inside.asked(manager) == 39)  # once the store has said that it has nothing of them
        go_on.set()
        await asyncio.gather(*talking)
        assert seen == groups


async def test_the_rows_go_when_the_store_has_them(tmp_path: Path) -> None:
    manager = make_manager(Server(), tmp_path / "journal")
    async with manager:
        for n in range(20):
            await manager.dispatch(f"user:{n}", "hi")
        await manager.flush()
    connection = sqlite3.connect(tmp_path / "journal")
    rows = connection.execute("SELECT count(*) FROM entries WHERE data != x''").fetchone()
    connection.close()

    assert rows == (0,)


async def test_with_the_memory_store_the_journal_is_what_lasts(tmp_path: Path) -> None:
    async with make_manager(MemorySessionStore(), tmp_path / "journal") as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()

    async with make_manager(MemorySessionStore(), tmp_path / "journal") as manager:
        assert await manager.dispatch("ann", "hi") == 2
        assert manager.stats().conflicts == 0


def test_threads_have_a_journal_too(tmp_path: Path) -> None:
    def count_plainly(context: Context) -> int:
        context.session["n"] = context.session.get("n", 0) + 1
        return int(context.session["n"])

    store = Server()
    with make_manager(store, tmp_path / "journal", handler=count_plainly) as manager:
        assert [manager.dispatch_sync("ann", "hi", timeout=5.0) for _ in range(3)] == [1, 2, 3]
        with manager.turn_sync("ann") as turn:
            turn.session["n"] = 10
        receipt = manager.submit_sync("ann", "hi")
        receipt.durable_sync(timeout=5.0)
        left = kill(tmp_path / "journal")
        with make_manager(store, left, handler=count_plainly) as heir:
            assert heir.peek_sync("ann") == {"n": 11}


# --- an outage of the store -------------------------------------------------------------------------------------------


async def test_during_an_outage_sessions_leave_memory_and_come_back_from_the_journal(tmp_path: Path) -> None:
    clock, store = ManualClock(), Server()
    async with make_manager(store, tmp_path / "journal", clock=clock, idle_timeout=60.0) as manager:
        await manager.dispatch("ann", "hi")
        store.outage()
        await clock.advance(200.0)
        assert manager.stats().resident == 0
        assert manager.stats().dirty_bytes == 0

        assert await manager.peek("ann") == {"n": 1}
        assert await manager.dispatch("ann", "hi") == 2
        await clock.advance(200.0)
        assert manager.stats().resident == 0

        store.restore()
        await manager.dispatch("bob", "hi")
        for _ in range(1_000):
            if (store.read("ann") or {"n": 0})["n"] == 2:
                break
            await clock.advance(0.1)
            await asyncio.sleep(0.001)  # real threads need real time
        assert (store.read("ann") or {})["n"] == 2
        assert manager.stats().conflicts == 0


async def test_a_flush_that_meets_a_session_on_its_way_out_of_memory_does_not_take_that_for_a_conflict(
    tmp_path: Path,
) -> None:
    clock, store = ManualClock(), Server()
    async with make_manager(store, tmp_path / "journal", clock=clock, idle_timeout=60.0) as manager:
        await manager.dispatch("ann", "hi")
        ann = inside.resident(manager, "ann")
        goal = Goal(ann, ann.behind(), len(ann.losses))
        store.outage()
        await clock.advance(200.0)
        assert manager.stats().resident == 0

        with pytest.raises(errors.StoreUnavailableError, match="what it has not is in the journal"):
            await asyncio.wrap_future(inside.flusher(manager).reach([goal]))
        store.restore()


async def test_a_flush_brings_to_the_store_also_what_left_memory_in_an_outage(tmp_path: Path) -> None:
    clock, store = ManualClock(), Server()
    async with make_manager(store, tmp_path / "journal", clock=clock, idle_timeout=60.0) as manager:
        for user in ("ann", "bob", "cleo"):
            await manager.dispatch(user, "hi")
        store.outage()
        await clock.advance(200.0)
        assert manager.stats().resident == 0
        with pytest.raises(errors.StoreUnavailableError):
            await advancing(clock, manager.flush("ann"))

        store.restore()
        await advancing(clock, manager.flush())
        assert [(store.read(user) or {}).get("n") for user in ("ann", "bob", "cleo")] == [1, 1, 1]


async def test_a_conflict_hides_no_session_that_found_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, store = ManualClock(), Server()
    activate = Replay._activate

    async def activate_all_but_bob(self: Replay, session_id: str) -> Any:
        if session_id == "bob":
            raise errors.OverloadedError("no room for bob")
        return await activate(self, session_id)

    async with make_manager(store, tmp_path / "journal", clock=clock, idle_timeout=60.0) as manager:
        for user in ("ann", "bob"):
            await manager.dispatch(user, "hi")
        store.outage()
        await clock.advance(200.0)
        store.restore()
        store.inner.write("ann", {"n": 7})  # somebody else
        monkeypatch.setattr(Replay, "_activate", activate_all_but_bob)
        with pytest.raises(errors.OverloadedError, match="bob"):
            await advancing(clock, inside.bring(manager, ["bob", "ann"]))
        assert manager.stats().conflicts == 1
        monkeypatch.undo()


async def test_a_flush_takes_with_it_a_session_that_comes_back_into_memory_while_it_waits(tmp_path: Path) -> None:
    clock, store = ManualClock(), Server()
    async with make_manager(store, tmp_path / "journal", clock=clock, idle_timeout=60.0) as manager:
        for user in ("ann", "bob"):
            await manager.dispatch(user, "hi")
        store.outage()
        for _ in range(8):
            await clock.advance(10.0)
            await manager.dispatch("bob", "hi")
        assert [session_id for session_id, _ in manager.resident()] == [
            "bob"
        ]  # ann has left, with an entry in the journal
        store.restore()
        store.hold()
        tries, later = store.write_calls, asyncio.create_task(clock.advance(10.0))
        async with asyncio.timeout(10.0):
            while store.write_calls == tries:  # until bob's write keeps everybody else's waiting
                await asyncio.sleep(0)
            flush = asyncio.create_task(manager.flush("ann"))
            await asyncio.sleep(0)
            assert await manager.dispatch("ann", "hi") == 2
            store.release()
            await flush
        assert (store.read("ann") or {}).get("n") == 2
        await later


async def test_more_sessions_than_fit_into_memory_are_served_during_an_outage(tmp_path: Path) -> None:
    store = Server()
    async with make_manager(store, tmp_path / "journal", max_resident=10, policy={"max_delay": 0.05}) as manager:
        await manager.dispatch("user:0", "hi")
        await manager.flush()
        for n in range(20):
            await manager.dispatch(f"user:{n % 5}", "hi")
        store.outage()
        while manager.health().status == "ready":
            await manager.dispatch("user:0", "hi")
            await asyncio.sleep(0)
        resident = manager.stats().resident
        assert resident <= 10
        store.restore()


async def test_what_could_not_be_flushed_at_the_close_is_named_and_kept(tmp_path: Path) -> None:
    store = Server()
    manager = await make_manager(store, tmp_path / "journal").start()
    await manager.dispatch("ann", "hi")
    store.outage()
    report = await manager.close(timeout=0.3)

    assert report.unflushed == ("ann",)
    store.restore()
    async with make_manager(store, tmp_path / "journal") as manager:
        assert await manager.dispatch("ann", "hi") == 2
    assert (store.read("ann") or {})["n"] == 2


# --- destroy ----------------------------------------------------------------------------------------------------------


async def test_a_session_destroyed_during_an_outage_stays_gone_after_a_kill(tmp_path: Path) -> None:
    store = Server()
    async with make_manager(store, tmp_path / "journal") as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        store.outage()
        await manager.destroy("ann")
        assert await manager.peek("ann") is None
        left = kill(tmp_path / "journal")
        store.restore()
        async with make_manager(store, left) as heir:
            assert await heir.peek("ann") is None
            assert await heir.dispatch("ann", "hi") == 1
    assert (store.read("ann") or {})["n"] == 1


async def test_a_broken_record_is_destroyed_through_the_journal_too(tmp_path: Path) -> None:
    store = Server()
    async with make_manager(store, tmp_path / "journal") as manager:
        await manager.dispatch("ann", "hi")
    store.corrupt("ann")
    async with make_manager(store, tmp_path / "journal") as manager:
        with pytest.raises(errors.CorruptSessionError):
            await manager.dispatch("ann", "hi")
        await manager.destroy("ann")
        assert await manager.dispatch("ann", "hi") == 1


# --- another owner ----------------------------------------------------------------------------------------------------


async def test_what_somebody_else_has_written_since_is_not_overwritten_by_a_recovery(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store, given = Server(), []
    async with make_manager(store, tmp_path / "journal", close_timeout=0.1) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        await manager.dispatch("ann", "hi")
        left = kill(tmp_path / "journal")
        store.outage()
    store.restore()
    async with SessionManager(store) as other, other.turn("ann") as turn:
        turn.session["n"] = 100
    with caplog.at_level(logging.CRITICAL):
        async with make_manager(
            store, left, on_conflict=lambda session_id, state: given.append((session_id, state))
        ) as heir:
            assert await heir.dispatch("ann", "hi") == 101

            assert [(each.session_id, each.state) for each in heir.conflicts()] == [("ann", {"n": 2})]

    assert given == [("ann", {"n": 2})]
    assert (store.read("ann") or {})["n"] == 101


async def test_a_journal_that_a_power_loss_has_set_back_gives_way_to_the_newer_store(tmp_path: Path) -> None:
    store, given = Server(), []
    policy = {"sync": "normal"}
    async with make_manager(store, tmp_path / "journal", policy=policy) as manager:
        for _ in range(2):
            await manager.dispatch("ann", "hi")
        left = kill(tmp_path / "journal")  # all that was on the disk
        await manager.dispatch("ann", "hi")
    assert (store.read("ann") or {})["n"] == 3

    async with make_manager(store, left, policy=policy, on_conflict=lambda *lost: given.append(lost)) as heir:
        assert await heir.peek("ann") == {"n": 3}
        assert await heir.dispatch("ann", "hi") == 4
        await heir.flush()

        assert heir.stats().conflicts == 0
        assert heir.conflicts() == given == []
    assert (store.read("ann") or {})["n"] == 4


async def test_what_came_on_top_of_a_journal_that_was_set_back_is_handed_over(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    class ComesAndGoes(Server):
        def init(self) -> Self:
            self.restore()
            super().init()
            self.outage()
            return self

    store, given = ComesAndGoes(), []
    async with make_manager(store, tmp_path / "journal") as manager:
        store.restore()
        for _ in range(2):
            await manager.dispatch("ann", "hi")
        left = kill(tmp_path / "journal")
        await manager.dispatch("ann", "hi")
    policy = {"sync": "normal", "max_delay": 3600.0, "retry": Retry(attempts=1)}
    with caplog.at_level(logging.CRITICAL):
        async with make_manager(store, left, policy=policy, on_conflict=lambda *lost: given.append(lost)) as heir:
            assert await heir.dispatch("ann", "hi") == 3  # so the journal says, and the store cannot be asked
            store.restore()
            with pytest.raises(errors.ConflictError, match="which the journal had lost"):
                await heir.flush()

            assert await heir.dispatch("ann", "hi") == 4
    assert given == [("ann", {"n": 3})]
    assert (store.read("ann") or {})["n"] == 4


async def test_what_was_lost_to_a_conflict_is_kept_in_the_journal_for_the_next_bot(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    store = Server()
    with caplog.at_level(logging.CRITICAL):
        async with make_manager(store, tmp_path / "journal") as manager:
            await manager.dispatch("ann", "hi")
            async with SessionManager(store) as other, other.turn("ann") as turn:
                turn.session["n"] = 100
            with pytest.raises(errors.ConflictError):
                await manager.flush()
            assert await manager.peek("ann") == {"n": 100}

    async with make_manager(store, tmp_path / "journal") as heir:
        assert [(each.session_id, each.state) for each in heir.conflicts()] == [("ann", {"n": 1})]
        assert await heir.dispatch("ann", "hi") == 101


async def test_what_was_lost_to_a_conflict_is_not_read_again_while_the_disk_is_busy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun, go_on, commit = threading.Event(), threading.Event(), JournalFile.commit

    def commit_when_told(file: JournalFile, *rows: Any) -> None:
        begun.set()
        assert go_on.wait(5.0)
        commit(file, *rows)

    async with make_manager(Server(), tmp_path / "journal", policy={"max_delay": 3600.0}) as manager:
        await manager.dispatch("ann", "hi")
        committed = inside.resident(manager, "ann").committed
        journal = inside.journal(manager)
        assert committed is not None
        assert await asyncio.wrap_future(journal.read("ann")) is not None
        monkeypatch.setattr(JournalFile, "commit", commit_when_told)
        talking = asyncio.create_task(manager.dispatch("bob", "hi"))
        await asyncio.to_thread(begun.wait, 5.0)

        journal.set_aside("ann", committed)
        read = asyncio.wrap_future(journal.read("ann"))  # in line before the transaction that takes it out
        go_on.set()

        assert await read is None
        await talking


# --- the file ---------------------------------------------------------------------------------------------------------


async def test_a_second_bot_on_the_same_journal_is_refused_at_once(tmp_path: Path) -> None:
    async with make_manager(Server(), tmp_path / "journal"):
        with pytest.raises(errors.StoreLockedError, match="journal"):
            await make_manager(Server(), tmp_path / "journal").start()


def test_a_forked_child_that_ends_does_no_harm_to_its_parents_journal(tmp_path: Path) -> None:
    bot = """
import os, sys
from actorbot import FileSessionStore, FlushPolicy, SessionManager

def count(context):
    context.session["n"] = context.session.get("n", 0) + 1
    return context.session["n"]

policy = FlushPolicy.journaled("journal", max_delay=3600.0)
with SessionManager(FileSessionStore("sessions"), handler=count, flush=policy) as manager:
    print(manager.dispatch_sync("ann", "hi"))
    if len(sys.argv) > 1:
        if os.fork() == 0:
            sys.exit()  # with all that an interpreter does at its end
        os.wait()
        print(manager.dispatch_sync("ann", "hi"))
        sys.stdout.flush()
        os.kill(os.getpid(), 9)
"""
    killed = subprocess.run(
        [sys.executable, "-c", bot, "and fork"], cwd=tmp_path, capture_output=True, check=False, timeout=30
    )
    heir = subprocess.run([sys.executable, "-c", bot], cwd=tmp_path, capture_output=True, check=False, timeout=30)

    assert (killed.stdout.split(), heir.stdout.split()) == ([b"1", b"2"], [b"3"])


async def test_the_same_journal_may_be_opened_again_right_after_a_close(tmp_path: Path) -> None:
    for _ in range(3):
        async with make_manager(Server(), tmp_path / "journal") as manager:
            await manager.dispatch("ann", "hi")


async def test_nobody_else_can_read_the_journal(tmp_path: Path) -> None:
    async with make_manager(Server(), tmp_path / "folder" / "journal") as manager:
        await manager.dispatch("ann", "hi")
        modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "folder").iterdir()}

    assert set(modes.values()) == {0o600}
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o700


async def test_a_disk_that_fails_once_costs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit, failures = JournalFile.commit, [sqlite3.OperationalError("disk I/O error")]

    def fail(file: JournalFile, *rows: Any) -> None:
        commit(file, *rows)
        if failures:
            raise failures.pop()

    monkeypatch.setattr(JournalFile, "commit", fail)
    async with make_manager(Server(), tmp_path / "journal") as manager:
        file = (tmp_path / "journal").stat().st_ino
        assert [await manager.dispatch("ann", "hi", event_id=str(n)) for n in range(3)] == [1, 2, 3]
        assert manager.health().status == "ready"
        # Another file: of the old one the kernel may take pages for written that are not.
        assert (tmp_path / "journal").stat().st_ino != file


async def test_a_disk_that_stays_full_is_said_clearly_and_nothing_is_acknowledged_until_there_is_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit, full = JournalFile.commit, [True]

    def fail(file: JournalFile, *rows: Any) -> None:
        if full:
            raise sqlite3.OperationalError("database or disk is full")
        commit(file, *rows)

    monkeypatch.setattr(JournalFile, "commit", fail)
    clock, said = ManualClock(), []
    async with make_manager(
        Server(), tmp_path / "journal", clock=clock, deliver=lambda _, text: said.append(text)
    ) as manager:
        with pytest.raises(errors.OutcomeUnknownError, match="disk is full"):
            await manager.dispatch("ann", "hi", event_id="1")
        assert manager.health().status == "failing"
        assert said == []
        full.clear()
        await clock.advance(2.0)
        assert await manager.dispatch("ann", "hi", event_id="1") == 1
        assert manager.health().status == "ready"


async def test_what_the_store_has_leaves_a_full_disk_once_there_is_room_again_and_nobody_need_say_anything(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit, attempts, full = JournalFile.commit, [], [True]

    def fail(file: JournalFile, *rows: Any) -> None:
        attempts.append(rows)
        if full:
            raise sqlite3.OperationalError("database or disk is full")
        commit(file, *rows)

    clock, store = ManualClock(), Server()
    async with make_manager(store, tmp_path / "journal", clock=clock, policy={"max_delay": 3600.0}) as manager:
        await manager.dispatch("ann", "hi")
        await manager.dispatch("bob", "hi")
        async with SessionManager(store) as other, other.turn("bob") as turn:
            turn.session["n"] = 100
        monkeypatch.setattr(JournalFile, "commit", fail)
        with pytest.raises(errors.ConflictError):
            await manager.flush()
        await until(lambda: manager.health().status == "failing")
        assert manager.stats().journal_bytes > 0
        await idle(manager)
        tried = len(attempts)
        await clock.advance(0.9)
        await idle(manager)
        assert len(attempts) == tried  # it is not tried over and over

        full.clear()
        await clock.advance(2.0)
        await until(lambda: manager.stats().journal_bytes == 0)
        await until(lambda: manager.health().status == "ready")
        copy = kill(tmp_path / "journal")

    async with make_manager(store, copy, clock=clock) as heir:
        assert [(each.session_id, each.state) for each in heir.conflicts()] == [("bob", {"n": 1})]
        assert await heir.dispatch("ann", "hi") == 2


async def test_a_disk_that_hangs_over_a_conflict_forgets_nothing_if_it_then_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit, attempts, trouble, answer = JournalFile.commit, [], [True], threading.Event()

    def hang_and_fail(file: JournalFile, *rows: Any) -> None:
        attempts.append(rows)
        if trouble:
            answer.wait(30.0)
            raise sqlite3.OperationalError("disk I/O error")
        commit(file, *rows)

    store, policy = Server(), {"max_delay": 3600.0, "store_deadline": 0.1}
    async with make_manager(store, tmp_path / "journal", policy=policy) as manager:
        await manager.dispatch("ann", "hi")
        async with SessionManager(store) as other, other.turn("ann") as turn:
            turn.session["n"] = 100
        monkeypatch.setattr(JournalFile, "commit", hang_and_fail)
        with pytest.raises(errors.ConflictError):
            await manager.flush()
        await until(lambda: manager.health().status == "failing")
        answer.set()
        await until(lambda: len(attempts) > 2)  # on its file, on a new one, and by itself after it has come back
        trouble.clear()
        assert await manager.dispatch("ann", "hi") == 101

    async with make_manager(store, tmp_path / "journal") as heir:
        assert [(each.session_id, each.state) for each in heir.conflicts()] == [("ann", {"n": 1})]
        assert await heir.dispatch("ann", "hi") == 102


async def test_any_number_of_entries_leaves_the_journal_at_a_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    begun, go_on, commit = threading.Event(), threading.Event(), JournalFile.commit

    def commit_when_told(file: JournalFile, *rows: Any) -> None:
        begun.set()
        assert go_on.wait(30.0)
        file._open.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, 2 * REMOVED + 600)
        commit(file, *rows)

    users = [f"telegram:{n}" for n in range(REMOVED + 500)]
    async with make_manager(Server(), tmp_path / "journal", policy={"max_delay": 3600.0}) as manager:
        await asyncio.gather(*(manager.dispatch(each, "hi") for each in users))
        monkeypatch.setattr(JournalFile, "commit", commit_when_told)
        talking = asyncio.create_task(manager.dispatch("ann", "hi"))
        await asyncio.to_thread(begun.wait, 30.0)
        await manager.flush()
        go_on.set()
        await talking
        await manager.flush()
        await until(lambda: manager.stats().journal_bytes == 0)
        assert manager.health().status == "ready"
    assert caplog.messages == []


async def test_a_disk_that_hangs_keeps_nobody_waiting_and_is_used_again_when_it_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    commit, hang, answer = JournalFile.commit, [True], threading.Event()

    def wait(file: JournalFile, *rows: Any) -> None:
        if hang:
            hang.clear()
            answer.wait(30.0)
        commit(file, *rows)

    monkeypatch.setattr(JournalFile, "commit", wait)
    async with make_manager(Server(), tmp_path / "journal", policy={"store_deadline": 0.1}) as manager:
        with pytest.raises(errors.OutcomeUnknownError, match="no answer within"):
            await manager.dispatch("ann", "hi", event_id="1")
        with pytest.raises(errors.StoreUnavailableError, match="does not answer"):
            await manager.dispatch("ann", "hi", event_id="1")
        assert manager.health().status == "failing"
        answer.set()
        while manager.health().status == "failing":
            await asyncio.sleep(0.001)
        assert await manager.dispatch("ann", "hi", event_id="1") == 1
        assert await manager.dispatch("ann", "hi", event_id="2") == 2
    async with make_manager(MemorySessionStore(), tmp_path / "journal") as manager:
        assert inside.parts(manager).only_in_journal() == []


async def test_a_damaged_journal_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "journal").write_bytes(b"not a journal" * 1000)
    with pytest.raises(errors.JournalError, match="left as it is"):
        await make_manager(Server(), tmp_path / "journal").start()

    assert (tmp_path / "journal").read_bytes() == b"not a journal" * 1000


async def test_a_start_that_fails_lets_go_of_the_journal(tmp_path: Path) -> None:
    store = Server()
    store.outage()
    with pytest.raises(errors.StoreUnavailableError):
        await make_manager(store, tmp_path / "journal").start()
    store.restore()
    async with make_manager(store, tmp_path / "journal") as manager:
        assert await manager.dispatch("ann", "hi") == 1


async def test_sessions_in_files_have_a_journal_too(tmp_path: Path) -> None:
    async with make_manager(FileSessionStore(tmp_path / "sessions"), tmp_path / "journal") as manager:
        for n in range(1, 4):
            assert await manager.dispatch("ann", "hi", durable=True) == n
    async with make_manager(FileSessionStore(tmp_path / "sessions"), tmp_path / "journal") as manager:
        assert await manager.dispatch("ann", "hi") == 4
