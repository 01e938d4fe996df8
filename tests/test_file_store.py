"""The file store: who may read it, what a broken file becomes, and what survives."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from actorbot import FileSessionStore, errors
from actorbot._record import Record
from actorbot.stores.base import Write
from actorbot.stores.file import file_name


def record(session_id: str, expires_at: float = 4e9) -> Record:
    return Record(session_id, 1, b"\x81\xa1n\x01", b"", b"", 1.5e9, expires_at).next_write()


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


def test_a_folder_that_is_a_symbolic_link_is_refused(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir(mode=0o700)
    (tmp_path / "sessions").symlink_to(tmp_path / "real")

    with pytest.raises(errors.InsecureStorageError):
        FileSessionStore(tmp_path / "sessions").init()


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
    folder = store._folder
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
    assert sorted(each.name for each in Path(store.directory).iterdir()) == sorted([".lock", file_name("ann")])


def test_what_a_crash_left_half_written_is_removed_at_the_next_start(store: FileSessionStore) -> None:
    left = Path(store.directory) / (file_name("ann") + ".tmp")
    left.write_bytes(b"half")
    store.close()
    store.init()

    assert not left.exists()


def test_a_sweep_removes_what_has_ended_and_nothing_else(store: FileSessionStore) -> None:
    store.write_many([Write(record("old", 100.0), b""), Write(record("new"), b"")])
    broken = Path(store.directory) / file_name("broken")
    broken.write_bytes(b"?")

    assert [each.session_id for each in store.sweep(200.0)] == ["old"]
    assert [each is None for each in store.read_many(["old", "new"])] == [True, False]
    assert broken.read_bytes() == b"?"
