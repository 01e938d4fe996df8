"""What a bot author gets from `FlushPolicy.journaled`: durable events at the speed of a local disk,
whatever becomes of the store.
"""

from __future__ import annotations

import asyncio
import sqlite3
import stat
import subprocess
import sys
import threading
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from actorbot import (
    Context,
    FileSessionStore,
    FlushPolicy,
    MemorySessionStore,
    SessionManager,
    errors,
)
from actorbot._flushing.waiters import Goal
from actorbot._journal.file import JournalFile
from actorbot._residents.replay import Replay
from actorbot.testing import ManualClock, RecordingStore
from tests import inside
from tests.journals import Server, advancing, kill, make_manager
from tests.waiting import until


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
    monkeypatch.setattr("actorbot._journal.commits.perf_counter", lambda: now[0])
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


async def test_a_flush_by_an_id_of_a_type_derived_from_str_writes_that_string(tmp_path: Path) -> None:
    class User(StrEnum):
        ANN = "ann"

    clock, store = ManualClock(), Server()
    store.inner = written = RecordingStore(store.inner)
    async with make_manager(store, tmp_path / "journal", clock=clock, idle_timeout=60.0) as manager:
        await manager.dispatch("ann", "hi")
        store.outage()
        await clock.advance(200.0)
        assert manager.stats().resident == 0

        store.restore()
        await advancing(clock, manager.flush(User.ANN))
        assert [type(record.session_id) for record in written.writes] == [str]  # msgpack takes no other


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


async def test_a_second_bot_on_the_same_journal_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with make_manager(Server(), tmp_path / "journal"):
        with pytest.raises(errors.StoreLockedError, match="journal"):
            await make_manager(Server(), tmp_path / "journal").start()
        with monkeypatch.context() as patch:
            patch.setattr("actorbot._runtime.file_lock._held", {})  # another process knows nothing of this one
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


async def test_a_start_that_is_cancelled_while_it_recovers_lets_go_of_the_journal(tmp_path: Path) -> None:
    store, path = Server(), tmp_path / "journal"
    async with make_manager(store, path, policy={"max_delay": 60}) as manager:
        await manager.dispatch("ann", "hi")
        left = kill(path)
    calls = store.write_calls + store.read_calls
    store.hold()
    starting = asyncio.create_task(make_manager(store, left).start())
    await until(lambda: store.write_calls + store.read_calls > calls)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    store.release()

    async with make_manager(store, left) as heir:
        assert await heir.peek("ann") == {"n": 1}


async def test_sessions_in_files_have_a_journal_too(tmp_path: Path) -> None:
    async with make_manager(FileSessionStore(tmp_path / "sessions"), tmp_path / "journal") as manager:
        for n in range(1, 4):
            assert await manager.dispatch("ann", "hi", durable=True) == n
    async with make_manager(FileSessionStore(tmp_path / "sessions"), tmp_path / "journal") as manager:
        assert await manager.dispatch("ann", "hi") == 4


async def test_a_journal_may_stand_in_the_users_own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for policy in (FlushPolicy.journaled("~/bot.journal"), FlushPolicy.parse("journaled:path=~/bot.journal")):
        async with SessionManager(MemorySessionStore(), flush=policy):
            assert (tmp_path / "bot.journal").is_file()
    assert FlushPolicy.parse(str(policy)) == policy
