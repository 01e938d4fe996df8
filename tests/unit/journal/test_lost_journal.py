"""A journal whose files are removed, moved or replaced while the bot runs; and journals of odd
names.
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from actorbot import FlushPolicy, errors
from actorbot.testing import ManualClock
from tests.journals import Server, kill, make_manager
from tests.waiting import soon

QUIET = {"max_delay": 3600.0}


def remove_all(path: Path) -> None:
    for file in path.parent.glob(f"{path.name}*"):
        file.unlink()


def remove_the_file(path: Path) -> None:
    path.unlink()


def remove_its_log(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink()


def remove_its_lock(path: Path) -> None:
    path.with_name(f"{path.name}.lock").unlink()


def remove_the_folder(path: Path) -> None:
    shutil.rmtree(path.parent)


def move_the_file(path: Path) -> None:
    path.rename(path.with_name("elsewhere"))


def move_the_folder(path: Path) -> None:
    path.parent.rename(path.parent.with_name("elsewhere"))


each_loss = pytest.mark.parametrize(
    "lose",
    [remove_all, remove_the_file, remove_its_log, remove_its_lock, remove_the_folder, move_the_file, move_the_folder],
)


@each_loss
async def test_a_journal_that_was_lost_is_made_again_with_all_that_it_had(
    lose: Callable[[Path], None], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "data" / "journal"
    async with make_manager(Server(), path, policy=QUIET) as manager:
        for user in ("ann", "bob"):
            await manager.dispatch(user, "hi")
        lose(path)
        assert await soon(manager.dispatch("ann", "hi")) == 2
        left = kill(path)
        assert manager.health().status == "ready"
        assert "was removed or replaced while it was in use" in caplog.text
        with pytest.raises(errors.StoreLockedError):
            await make_manager(Server(), path).start()
        assert await manager.dispatch("ann", "hi") == 3
        assert (await manager.close()).clean
    async with make_manager(Server(), left) as manager:
        assert [await manager.dispatch(user, "hi") for user in ("ann", "bob")] == [3, 2]


async def test_a_journal_that_is_removed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    path = tmp_path / "data" / "journal"
    async with make_manager(Server(), path, policy=QUIET) as manager:
        for n in range(1, 6):
            remove_all(path)
            assert await soon(manager.dispatch("ann", "hi")) == n
        left = kill(path)
    async with make_manager(Server(), left) as manager:
        assert await manager.dispatch("ann", "hi") == 6


def locked_by_another(path: Path) -> Callable[[], None]:
    """Lock the journal as another process would; return what ends that."""
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT, 0o600)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    return lambda: os.close(descriptor)


def another_file(path: Path) -> Callable[[], None]:
    path.write_text("somebody's")
    return path.unlink


def no_folder(path: Path) -> Callable[[], None]:
    path.parent.rmdir()
    path.parent.write_text("")
    return path.parent.unlink


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [(locked_by_another, "somebody else owns"), (another_file, "another file has taken"), (no_folder, "Not a dir|exists")],
)  # fmt: skip
async def test_nothing_is_acknowledged_while_a_lost_journal_cannot_be_made_again(
    spoil: Callable[[Path], Callable[[], None]], reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "data" / "journal"
    clock = ManualClock()
    async with make_manager(Server(), path, policy=QUIET, clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        remove_all(path)
        mend = spoil(path)
        for _ in range(3):
            with pytest.raises(errors.StoreUnavailableError, match=reason) as told:
                await soon(manager.dispatch("ann", "hi"))
            assert "Free space" not in str(told.value)  # which would not help
        assert manager.health().status == "failing"
        assert re.search(reason, manager.health().reason)
        mend()
        await clock.advance(1.0)
        n = await soon(manager.dispatch("bob", "hi"))
        assert n == 1
        assert manager.health().status == "ready"
        before = await manager.dispatch("ann", "hi")
        left = kill(path)
    async with make_manager(Server(), left, clock=clock) as manager:
        assert await manager.dispatch("ann", "hi") == before + 1


@pytest.mark.parametrize("path", [":memory:", "file:x.db", "file:x?mode=memory&cache=shared", ""])
def test_what_is_no_path_is_refused_as_a_journal(path: str) -> None:
    with pytest.raises(errors.ConfigError, match="path"):
        FlushPolicy.journaled(path)


async def test_a_journal_is_refused_to_a_second_manager_by_whatever_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    path = tmp_path / "journal"
    (tmp_path / "folder").symlink_to(".")
    async with make_manager(Server(), path, policy=QUIET) as manager:
        await manager.dispatch("ann", "hi")
        (tmp_path / "link").symlink_to("journal")
        (tmp_path / "hard").hardlink_to(path)
        for name in ("journal", "./journal", "~/journal", "x/../journal", "folder/journal", "link", "hard"):
            with pytest.raises((errors.StoreLockedError, errors.InsecureStorageError)):
                await make_manager(Server(), Path(name)).start()
        assert await manager.dispatch("ann", "hi") == 2


async def test_a_journal_is_refused_to_another_process_by_a_second_name_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, hard = tmp_path / "journal", tmp_path / "hard"
    async with make_manager(Server(), path, policy=QUIET) as manager:
        await manager.dispatch("ann", "hi")
        hard.hardlink_to(path)
        with monkeypatch.context() as patch:
            patch.setattr("actorbot._journal.names._open", set())  # another process knows nothing of this one
            with pytest.raises(errors.StoreLockedError, match="another name"):
                await make_manager(Server(), hard).start()
        assert await manager.dispatch("ann", "hi") == 2


@pytest.mark.parametrize("path", ["/dev/null", "."])
def test_what_is_no_file_is_refused_and_nothing_is_made_beside_it(path: str, tmp_path: Path, monkeypatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(errors.InsecureStorageError, match="is no file"):
        make_manager(Server(), Path(path)).start_sync()
    assert not Path("/dev/null.lock").exists()
    assert [each.name for each in tmp_path.iterdir()] == ["here"]
