"""A folder of sessions that is removed, replaced or moved away while the bot runs."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actorbot import FileSessionStore, FlushPolicy, SessionManager, errors
from actorbot.stores import Write
from actorbot.stores.file import file_name
from actorbot.testing import ManualClock
from actorbot.testing._expect import make_record
from tests.handlers import count
from tests.waiting import soon

POLICIES = {
    "write-behind": lambda _: FlushPolicy.parse("write-behind:max_delay=60,retry.attempts=2"),
    "write-through": lambda _: FlushPolicy.parse("write-through:retry.attempts=2"),
    "journaled": lambda folder: FlushPolicy.parse(f"journaled:path={folder}/journal,max_delay=60,retry.attempts=2"),
}
each_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)


def remove(folder: Path) -> None:
    shutil.rmtree(folder)


def make_anew(folder: Path) -> None:
    shutil.rmtree(folder)
    folder.mkdir(0o700)


def replace(folder: Path) -> None:
    folder.rename(folder.with_name("old"))
    folder.mkdir(0o700)


def remove_its_lock(folder: Path) -> None:
    (folder / ".lock").unlink()


def remove_with_its_parent(folder: Path) -> None:
    shutil.rmtree(folder.parent)


def is_locked(folder: Path) -> bool:
    """Tell whether a process that is not this one would find the folder locked."""
    with (folder / ".lock").open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False


def test_a_folder_that_another_thing_has_replaced_is_named_once_with_what_to_do(tmp_path: Path) -> None:
    store = FileSessionStore(tmp_path / "sessions").init()
    remove(tmp_path / "sessions")
    (tmp_path / "sessions").symlink_to(tmp_path)

    with pytest.raises(errors.StoreUnavailableError, match=r"^file: it is lost: /.*name the folder itself$"):
        store.read_many(["ann"])
    assert str(store.flaw).startswith("file: /")
    store.close()


@each_policy
@pytest.mark.parametrize("lose", [remove, make_anew, replace, remove_its_lock, remove_with_its_parent])
async def test_a_folder_that_was_lost_is_had_again_and_what_is_in_memory_is_written_there(
    lose: Callable[[Path], None], policy: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "data" / "sessions"
    async with SessionManager(FileSessionStore(folder), handler=count, flush=policy(tmp_path)) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        lose(folder)
        assert await manager.dispatch("ann", "hi") == 2
        await soon(manager.flush())
        assert (folder / file_name("ann")).is_file()
        assert folder.stat().st_mode & 0o777 == 0o700
        assert is_locked(folder)
        assert manager.health().status == "ready"
        assert "while it was in use" in caplog.text
        with pytest.raises(errors.StoreLockedError):
            FileSessionStore(folder).init()
        assert (await manager.close()).clean
    async with SessionManager(FileSessionStore(folder), handler=count) as manager:
        assert await manager.peek("ann") == {"n": 2}


@pytest.mark.parametrize("lose", [make_anew, replace, remove_its_lock])
async def test_a_second_store_is_refused_also_before_the_first_has_noticed(
    lose: Callable[[Path], None], tmp_path: Path
) -> None:
    folder = tmp_path / "data" / "sessions"
    async with SessionManager(FileSessionStore(folder), handler=count) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        lose(folder)
        (tmp_path / "link").symlink_to(tmp_path / "data")
        for name in (folder, tmp_path / "link" / "sessions", folder / ".." / "sessions"):
            with pytest.raises(errors.StoreLockedError):
                FileSessionStore(name).init()
    FileSessionStore(folder).init().close()


def test_a_second_store_is_refused_to_another_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = FileSessionStore(tmp_path / "sessions").init()
    with monkeypatch.context() as patch:
        patch.setattr("actorbot._runtime.file_lock._held", {})  # another process knows nothing of this one
        with pytest.raises(errors.StoreLockedError):
            FileSessionStore(tmp_path / "sessions").init()
    store.close()


@pytest.mark.parametrize("mode", POLICIES)
async def test_a_folder_that_was_moved_away_is_waited_for(mode: str, tmp_path: Path) -> None:
    folder, away = tmp_path / "sessions", tmp_path / "backup"
    async with SessionManager(FileSessionStore(folder), handler=count, flush=POLICIES[mode](tmp_path)) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        folder.rename(away)
        with pytest.raises(errors.StoreUnavailableError, match="moved away"):
            await soon(manager.dispatch("eve", "hi"))  # perhaps that folder has her session
        if mode == "write-through":
            with pytest.raises(errors.StoreUnavailableError, match="moved away"):
                await soon(manager.dispatch("ann", "hi"))
        else:
            assert await manager.dispatch("ann", "hi") == 2
            with pytest.raises(errors.StoreUnavailableError, match="moved away"):
                await soon(manager.flush())
        assert manager.health().status == "failing"
        assert "moved away" in manager.health().reason
        assert not folder.exists()
        away.rename(folder)
        assert await soon(manager.dispatch("ann", "hi")) == (2 if mode == "write-through" else 3)
        await soon(manager.flush())
        assert manager.health().status == "ready"


def locked_by_another(folder: Path) -> Callable[[], None]:
    """Lock the folder as another process would; return what ends that."""
    descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return lambda: os.close(descriptor)


def opened_to_others(folder: Path) -> Callable[[], None]:
    folder.chmod(0o777)
    return lambda: folder.chmod(0o700)


def a_link(folder: Path) -> Callable[[], None]:
    folder.rmdir()
    folder.symlink_to("elsewhere")
    return folder.unlink


def a_file(folder: Path) -> Callable[[], None]:
    folder.rmdir()
    folder.write_text("")
    return folder.unlink


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(locked_by_another, "somebody else owns"), (opened_to_others, "chmod 700"), (a_link, "link"), (a_file, "not a folder")],
)  # fmt: skip
async def test_what_has_taken_the_place_of_the_folder_is_left_alone_until_it_may_be_used(
    spoil: Callable[[Path], Callable[[], None]], reason: str, tmp_path: Path
) -> None:
    folder = tmp_path / "sessions"
    policy = POLICIES["write-behind"](tmp_path)
    async with SessionManager(FileSessionStore(folder), handler=count, flush=policy) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        make_anew(folder)
        mend = spoil(folder)
        assert await manager.dispatch("ann", "hi") == 2
        with pytest.raises(errors.StoreUnavailableError, match=reason):
            await soon(manager.flush())
        assert manager.health().status == "failing"
        assert reason in manager.health().reason
        assert not (folder / file_name("ann")).exists()
        mend()
        await soon(manager.flush())
        assert (folder / file_name("ann")).is_file()
        assert manager.health().status == "ready"


async def test_a_bot_that_writes_nothing_notices_too(tmp_path: Path) -> None:
    clock, folder = ManualClock(), tmp_path / "sessions"
    async with SessionManager(FileSessionStore(folder), handler=count, clock=clock) as manager:
        folder.rename(tmp_path / "backup")
        await clock.advance(600.0)
        assert manager.health().status == "failing"
        assert "moved away" in manager.health().reason


def test_a_folder_that_goes_while_it_is_written_to_confirms_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = FileSessionStore(tmp_path / "sessions").init()
    fsync = os.fsync

    def move_away(descriptor: int) -> None:
        fsync(descriptor)
        if (tmp_path / "sessions").exists():
            (tmp_path / "sessions").rename(tmp_path / "backup")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", move_away)
        with pytest.raises(errors.OutcomeUnknownError, match="removed while"):
            store.write_many([Write(make_record("ann", {"n": 1}), b"")])
    store.close()
