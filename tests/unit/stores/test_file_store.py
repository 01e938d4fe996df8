"""The file store: who may read it, what a broken file becomes, and what survives."""

from __future__ import annotations

import errno
import itertools
import os
import re
import resource
import signal
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actorbot import FileSessionStore, errors
from actorbot._state.record import Record
from actorbot.stores.base import Write
from actorbot.stores.file import file_name
from tests.tiers import tiers


def record(session_id: str, expires_at: float = 4e9) -> Record:
    return Record(session_id, 1, b"\x81\xa1n\x01", b"", b"", 1.5e9, expires_at).next_write()


def names(store: FileSessionStore) -> list[str]:
    return sorted(each.name for each in Path(store.directory).iterdir())


def open_files() -> int:
    return len(list(Path("/dev/fd").iterdir()))


@pytest.fixture
def store(tmp_path: Path):  # type: ignore[no-untyped-def]
    store = FileSessionStore(tmp_path / "sessions").init()
    yield store
    store.close()


def test_folder_and_files_are_the_owners_alone_whatever_the_umask(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        store = FileSessionStore(tmp_path / "sessions").init()
        store.write_many([Write(record("ann"), b"")])
        store.close()
    finally:
        os.umask(before)

    assert stat.S_IMODE((tmp_path / "sessions").stat().st_mode) == 0o700
    assert {stat.S_IMODE(each.stat().st_mode) for each in (tmp_path / "sessions").iterdir()} == {0o600}


def test_a_folder_that_others_may_write_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir()
    (tmp_path / "sessions").chmod(0o770)

    with pytest.raises(errors.InsecureStorageError, match="chmod 700"):
        FileSessionStore(tmp_path / "sessions").init()


@pytest.mark.parametrize("end", ["", "/", "/."])
def test_a_folder_that_is_a_symbolic_link_is_refused(tmp_path: Path, end: str) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "sessions").symlink_to(tmp_path / "real")

    with pytest.raises(errors.InsecureStorageError):
        FileSessionStore(f"{tmp_path}/sessions{end}").init()


def test_a_second_process_is_told_at_once_that_the_store_is_taken(store: FileSessionStore) -> None:
    code = f"from actorbot import FileSessionStore; FileSessionStore({store.directory!r}).init()"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)

    assert "StoreLockedError" in run.stderr
    with pytest.raises(errors.StoreLockedError):
        FileSessionStore(store.directory).init()


@pytest.mark.parametrize(
    "damage",
    [lambda data: data[:-1], lambda data: data[:20], lambda data: b"", lambda data: data[:-3] + bytes([data[-3] ^ 1]) + data[-2:],
     lambda data: b"ABS\x09" + data[4:], lambda data: b"\x80\x04K\x01.", lambda data: data + b"x"],
    ids=["cut", "cut short", "empty", "flipped", "unknown version", "pickle", "longer"],
)  # fmt: skip
def test_a_damaged_file_is_reported_and_stays_as_it_is(store: FileSessionStore, damage) -> None:  # type: ignore[no-untyped-def]
    first = record("ann")
    store.write_many([Write(first, b"")])
    path = Path(store.directory) / file_name("ann")
    path.write_bytes(broken := damage(path.read_bytes()))

    assert isinstance(store.read_many(["ann"])[0], errors.CorruptSessionError)
    outcome = store.write_many([Write(first.next_write(), first.write_id)])[0]
    assert isinstance(outcome, errors.CorruptSessionError)
    assert path.read_bytes() == broken


def test_the_file_of_another_session_is_not_taken_for_this_one(store: FileSessionStore) -> None:
    store.write_many([Write(record("ann"), b"")])
    folder = Path(store.directory)
    (folder / file_name("bob")).write_bytes((folder / file_name("ann")).read_bytes())

    assert isinstance(store.read_many(["bob"])[0], errors.CorruptSessionError)


def test_a_file_that_is_a_symbolic_link_is_not_followed(store: FileSessionStore, tmp_path: Path) -> None:
    store.write_many([Write(record("ann"), b"")])
    path = Path(store.directory) / file_name("ann")
    path.rename(tmp_path / "elsewhere")
    path.symlink_to(tmp_path / "elsewhere")

    assert isinstance(store.read_many(["ann"])[0], errors.CorruptSessionError)


def test_a_failing_sync_leaves_the_old_record_in_place(
    store: FileSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = record("ann")
    store.write_many([Write(first, b"")])
    folder = store._folder.number
    real = os.fsync

    def fsync(descriptor: int) -> None:
        if descriptor != folder:
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    outcome = store.write_many([Write(first.next_write(), first.write_id)])[0]

    assert isinstance(outcome, errors.StoreUnavailableError)
    assert isinstance(outcome.__cause__, OSError)
    assert store.read_many(["ann"]) == [first]
    assert names(store) == [".lock", file_name("ann")]


def test_what_a_crash_left_half_written_is_removed_at_the_next_start(store: FileSessionStore) -> None:
    left = Path(store.directory) / (file_name("ann") + ".tmp")
    left.write_bytes(b"half")
    store.close()
    store.init()

    assert not left.exists()


def test_a_sweep_removes_what_has_ended_and_nothing_else(store: FileSessionStore) -> None:
    tombstone = Record.tombstone("gone", now=-4000.0)
    store.write_many([Write(record("old", 100.0), b""), Write(record("new"), b""), Write(tombstone, None)])
    broken = Path(store.directory) / file_name("broken")
    broken.write_bytes(b"?")

    assert [each.session_id for each in store.sweep(200.0)] == ["old"]
    assert [each is None for each in store.read_many(["old", "gone", "new"])] == [True, True, False]
    assert broken.read_bytes() == b"?"


def test_two_batches_at_once_do_not_overwrite_each_other(
    store: FileSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A write that the disk held up meets the one that came after it."""
    first = record("ann")
    store.write_many([Write(first, b"")])
    slow, fast = first.next_write(), first.next_write()
    real, outcomes = os.fsync, []

    def fsync(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", real)
        outcomes.extend(store.write_many([Write(fast, first.write_id)]))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    outcomes.extend(store.write_many([Write(slow, first.write_id)]))

    assert outcomes[0] is None
    assert isinstance(outcomes[1], errors.ConflictError)
    assert store.read_many(["ann"]) == [fast]


def test_a_full_disk_in_the_middle_of_a_record_leaves_the_old_one(store: FileSessionStore) -> None:
    first = record("ann")
    store.write_many([Write(first, b"")])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50, before[1]))
    try:
        outcome = store.write_many([Write(first.next_write(), first.write_id)])[0]
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)

    assert type(outcome) is errors.StoreUnavailableError
    assert outcome.session_id == "ann"
    assert store.read_many(["ann"]) == [first]
    assert names(store) == [".lock", file_name("ann")]


def test_one_record_that_cannot_be_written_does_not_fail_its_batch(store: FileSessionStore) -> None:
    (Path(store.directory) / file_name("bob")).mkdir()
    ann, eve = record("ann"), record("eve")
    outcomes = store.write_many([Write(ann, b""), Write(record("bob"), None), Write(eve, b"")])

    assert [type(each) for each in outcomes] == [type(None), errors.StoreUnavailableError, type(None)]
    assert store.read_many(["ann", "eve"]) == [ann, eve]


def test_a_folder_that_cannot_be_synced_leaves_the_outcome_unknown(
    store: FileSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, folder = os.fsync, store._folder.number

    def fsync(descriptor: int) -> None:
        if descriptor == folder:
            raise OSError(errno.EIO, "Input/output error")
        real(descriptor)

    first = record("ann")
    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(errors.OutcomeUnknownError):
        store.write_many([Write(first, b"")])
    monkeypatch.undo()

    assert store.write_many([Write(first, b"")]) == [None]


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo], ids=["folder", "pipe"])
def test_what_is_no_file_is_a_corrupt_session(store: FileSessionStore, make: Callable[[Path], None]) -> None:
    make(Path(store.directory) / file_name("ann"))
    before = open_files()

    assert isinstance(store.read_many(["ann"])[0], errors.CorruptSessionError)
    assert open_files() == before


def test_destroying_a_session_whose_file_is_a_link_removes_the_link(store: FileSessionStore, tmp_path: Path) -> None:
    (tmp_path / "elsewhere").write_bytes(b"precious")
    (Path(store.directory) / file_name("ann")).symlink_to(tmp_path / "elsewhere")
    store.destroy("ann")

    assert store.read("ann") is None
    assert (tmp_path / "elsewhere").read_bytes() == b"precious"


@pytest.mark.parametrize("parts_of_an_id", tiers([3, 4]))  # 1,000 ids, and 10,000
def test_hostile_ids_stay_apart_and_in_the_folder(parts_of_an_id: int, store: FileSessionStore, tmp_path: Path) -> None:
    parts = ["../", "/etc/", "CON", "con", "\u00e9", "e\u0301", "*", "%00", "\\", "{}"]
    ids = ["".join(each) for each in itertools.product(parts, repeat=parts_of_an_id)]
    records = [record(session_id) for session_id in ids]
    assert len(set(ids)) == 10**parts_of_an_id
    written = store.write_many([Write(each, b"") for each in records])

    assert list(written) == [None] * len(ids)
    assert store.read_many(ids) == records
    assert [each.name for each in tmp_path.iterdir()] == ["sessions"]
    assert len({name.lower() for name in names(store)}) == len(ids) + 1
    assert all(re.fullmatch(r"s-[0-9a-f]{64}\.session|\.lock", name) for name in names(store))


def test_a_lock_that_is_a_symbolic_link_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "sessions").mkdir(mode=0o700)
    (tmp_path / "sessions" / ".lock").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(errors.InsecureStorageError):
        FileSessionStore(tmp_path / "sessions").init()
    assert not (tmp_path / "elsewhere").exists()


def test_a_folder_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sessions").mkdir(mode=0o700)
    monkeypatch.setattr(os, "geteuid", lambda: 12_345)

    with pytest.raises(errors.InsecureStorageError, match="another user"):
        FileSessionStore(tmp_path / "sessions").init()


def test_a_store_that_could_not_be_opened_holds_nothing(tmp_path: Path) -> None:
    holder = FileSessionStore(tmp_path / "sessions").init()
    before = open_files()
    with pytest.raises(errors.StoreLockedError):
        FileSessionStore(tmp_path / "sessions").init()

    assert open_files() == before
    holder.close()
    FileSessionStore(tmp_path / "sessions").init().close()


def test_a_new_folder_is_still_there_after_a_power_loss(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    synced, real = [], os.fsync

    def fsync(descriptor: int) -> None:
        synced.append(os.fstat(descriptor).st_ino)
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)
    FileSessionStore(tmp_path / "bot" / "sessions").init().close()

    assert synced == [tmp_path.stat().st_ino, (tmp_path / "bot").stat().st_ino]


def test_the_folder_stays_the_same_when_the_process_goes_elsewhere(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    store = FileSessionStore()
    monkeypatch.chdir("/")
    store.init().close()

    assert (tmp_path / ".sessions").is_dir()


@pytest.mark.parametrize("directory", ["", None, 7, "a\0b", b".sessions", Path("a\0b")])
def test_the_folder_must_have_a_name(directory: Any) -> None:
    with pytest.raises(errors.ConfigError, match="directory"):
        FileSessionStore(directory)


def test_a_closed_store_says_so_and_may_be_opened_again(store: FileSessionStore) -> None:
    first = record("ann")
    store.write_many([Write(first, b"")])
    store.close()
    store.close()
    for call in (lambda: store.read("ann"), lambda: store.destroy("ann"), lambda: list(store.sweep(1.0))):
        with pytest.raises(errors.StoreUnavailableError, match="init"):
            call()

    assert store.init().read_many(["ann"]) == [first]


def test_a_sweep_opens_only_what_may_have_ended(store: FileSessionStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.write_many([Write(record(f"new {n}", 300.5), b"") for n in range(5)] + [Write(record("old", 100.5), b"")])
    opened, real = [], os.open
    monkeypatch.setattr(os, "open", lambda name, *args, **kwargs: opened.append(name) or real(name, *args, **kwargs))

    assert [each.session_id for each in store.sweep(200.0)] == ["old"]
    assert opened == [file_name("old")]


def test_a_sweep_believes_the_record_and_not_the_time_of_its_file(store: FileSessionStore) -> None:
    store.write_many([Write(record("ann", 4e9), b""), Write(record("far", 1e300), b"")])
    for session_id in ("ann", "far"):
        os.utime(Path(store.directory) / file_name(session_id), (0, 0))  # restored from a backup

    assert list(store.sweep(200.0)) == []
    assert None not in store.read_many(["ann", "far"])


def test_a_platform_without_flock_is_told_clearly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actorbot.stores.file.HAS_FLOCK", False)

    with pytest.raises(errors.StoreUnavailableError, match="Linux and macOS"):
        FileSessionStore()


@pytest.mark.parametrize("moment", ["fsync", "replace"])
def test_a_process_killed_between_writing_and_replacing_leaves_the_old_record(
    store: FileSessionStore, moment: str
) -> None:
    first = record("ann")
    store.write_many([Write(first, b"")])
    store.close()
    code = f"""
import os, signal
from actorbot import FileSessionStore
store = FileSessionStore({store.directory!r}).init()
os.{moment} = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)
store.write("ann", {{"n": 2}})
"""
    run = subprocess.run([sys.executable, "-c", code], timeout=30, check=False)
    assert run.returncode == -signal.SIGKILL
    assert len(names(store)) == 3  # the lock, the old record, and what the new one was written to

    assert store.init().read_many(["ann"]) == [first]
    assert names(store) == [".lock", file_name("ann")]


def test_what_may_not_be_opened_is_an_unavailable_store(
    store: FileSessionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = record("ann")
    store.write_many([Write(first, b"")])

    def refuse(name: str, *args: Any, **kwargs: Any) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", name)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", refuse)
        outcomes = [*store.read_many(["ann"]), *store.write_many([Write(first.next_write(), first.write_id)])]
        with pytest.raises(errors.StoreUnavailableError, match="Permission denied"):
            FileSessionStore(store.directory).init()

    for each in outcomes:
        assert isinstance(each, errors.StoreUnavailableError)
        assert each.session_id == "ann"
        assert isinstance(each.__cause__, PermissionError)
    assert store.read_many(["ann"]) == [first]
