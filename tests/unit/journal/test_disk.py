"""A disk that fails, fills up or hangs under the journal."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from pathlib import Path
from typing import Any

import pytest

from actorbot import (
    Context,
    MemorySessionStore,
    SessionManager,
    errors,
)
from actorbot._journal.entry import pack_entry
from actorbot._journal.file import JournalFile
from actorbot._journal.removals import REMOVED
from actorbot.testing import ManualClock
from tests import inside
from tests.handlers import count_plainly
from tests.journals import Server, idle, kill, make_manager
from tests.waiting import soon, until


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

    store, policy = Server(), {"max_delay": 3600.0, "store_deadline": 1.0}
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
        await until(lambda: manager.health().status == "ready")
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
    async with make_manager(Server(), tmp_path / "journal", policy={"store_deadline": 0.5}) as manager:
        with pytest.raises(errors.OutcomeUnknownError, match="no answer within"):
            await manager.dispatch("ann", "hi", event_id="1")
        with pytest.raises(errors.StoreUnavailableError, match="does not answer"):
            await manager.dispatch("ann", "hi", event_id="1")
        assert manager.health().status == "failing"
        answer.set()
        await until(lambda: manager.health().status != "failing")
        assert await manager.dispatch("ann", "hi", event_id="1") == 1
        assert await manager.dispatch("ann", "hi", event_id="2") == 2
    async with make_manager(MemorySessionStore(), tmp_path / "journal") as manager:
        assert inside.parts(manager).only_in_journal() == []


# --- what is not the disk's fault ----------------------------------------------------------------


async def talk(manager: SessionManager, *users: str) -> list[Any]:
    return await soon(asyncio.gather(*(manager.dispatch(user, "hi") for user in users), return_exceptions=True))


async def test_an_entry_that_the_journal_cannot_hold_fails_its_own_event_alone(tmp_path: Path) -> None:
    def grow(context: Context) -> int:
        context.session["text"] = "x" * (20_000 if context.session_id == "bad" else 10)
        return count_plainly(context)

    async with make_manager(Server(), tmp_path / "journal", handler=grow, policy={"max_delay": 3600.0}) as manager:
        inside.connection(manager).setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 10_000)
        for n in range(1, 4):
            *good, bad = await talk(manager, "ann", "bob", "eve", "bad")
            assert good == [n, n, n]
            assert isinstance(bad, errors.StoreUnavailableError)
            assert "'bad'" in str(bad)
            assert manager.health().status == "ready"
        inside.connection(manager).setlimit(sqlite3.SQLITE_LIMIT_LENGTH, 1_000_000)
        assert await talk(manager, "bad") == [1]


async def test_an_entry_that_cannot_be_encoded_fails_its_own_event_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def encode(session_id: str, *rest: Any) -> bytes:
        if session_id == "bad":
            raise OverflowError("int too big to convert")
        return pack_entry(session_id, *rest)

    async with make_manager(Server(), tmp_path / "journal", policy={"max_delay": 3600.0}) as manager:
        monkeypatch.setattr("actorbot._journal.places.pack_entry", encode)
        *good, bad = await talk(manager, "ann", "bob", "eve", "bad")
        assert good == [1, 1, 1]
        assert isinstance(bad, errors.StoreUnavailableError)
        assert isinstance(bad.__cause__, OverflowError)
        assert manager.health().status == "ready"


async def test_what_cannot_be_set_aside_holds_up_no_event_and_is_kept_until_it_can(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As when a newer Python warns of a statement, and warnings are errors."""
    clock, store, path = ManualClock(), Server(), tmp_path / "journal"
    async with make_manager(store, path, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        store.write("ann", {"n": 100})  # somebody else's
        await manager.dispatch("ann", "hi")
        with monkeypatch.context() as patch:
            patch.setattr(JournalFile, "_set_aside", lambda *_: (_ for _ in ()).throw(DeprecationWarning("old")))
            await clock.advance(1.0)
            await until(lambda: "DeprecationWarning: old" in manager.health().reason)
            assert manager.health().status == "degraded"
            assert await talk(manager, "bob", "eve") == [1, 1]
            assert await talk(manager, "ann", "bob") == [101, 2]
            left = kill(path)
        await clock.advance(1.0)
        await until(lambda: manager.health().status == "ready")
    async with make_manager(store, path) as manager:
        assert [(each.session_id, each.state) for each in manager.conflicts()] == [("ann", {"n": 2})]
    async with make_manager(Server(), left, clock=clock) as manager:
        assert await talk(manager, "bob", "eve") == [3, 2]
