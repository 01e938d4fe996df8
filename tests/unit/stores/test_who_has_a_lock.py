"""A bot that may not have a folder of sessions, or a journal, is told who has it."""

from __future__ import annotations

import json
import os
import socket
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from actorbot import FileSessionStore, errors
from actorbot._journal.file import JournalFile
from actorbot._runtime.process import this_process
from tests.programs import start
from tests.waiting import HANGS

Place = Callable[[Path], Any]


def a_folder(path: Path) -> FileSessionStore:
    return FileSessionStore(path / "sessions").init()


def a_journal(path: Path) -> JournalFile:
    file = JournalFile(str(path / "journal"), "full")
    file.open()
    return file


LOCKS = {a_folder: "sessions/.lock", a_journal: "journal.lock"}
each_place = pytest.mark.parametrize("place", LOCKS, ids=["a folder", "a journal"])

HOLD = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from tests.unit.stores.test_who_has_a_lock import {place}
held = {place}(Path("."))
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another(place: Place, path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Let another process have it."""
    root = str(Path(__file__).parents[3])
    process = start(HOLD.format(root=root, place=place.__name__), path)
    assert process.stdout is not None
    assert process.stdout.readline() == b"held\n"
    try:
        yield process
    finally:
        process.communicate(timeout=HANGS)


def refused(place: Place, path: Path) -> errors.StoreLockedError:
    with pytest.raises(errors.StoreLockedError) as told:
        place(path)
    return told.value


@each_place
def test_the_process_that_has_it_is_named_and_what_to_do(place: Place, tmp_path: Path) -> None:
    with held_by_another(place, tmp_path) as other:
        error = refused(place, tmp_path)

    assert error.owner is not None
    assert error.owner.startswith(f"process {other.pid} on {socket.gethostname()} (-c), exclusive, since 20")
    assert f"somebody else owns {tmp_path}" in str(error)
    assert error.owner in str(error)
    assert "Close that one" in str(error)
    place(tmp_path).close()


@each_place
def test_a_process_that_has_it_already_is_told_that_it_is_itself(place: Place, tmp_path: Path) -> None:
    held = place(tmp_path)
    error = refused(place, tmp_path)
    held.close()

    assert f"this process owns {tmp_path}" in str(error)
    assert f"process {os.getpid()} on " in str(error.owner)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.filterwarnings("ignore:This process:DeprecationWarning")
@each_place
def test_a_forked_child_is_told_that_its_parent_has_it(place: Place, tmp_path: Path) -> None:
    held = place(tmp_path)
    said = tmp_path / "said"
    child = os.fork()
    if child == 0:
        said.write_text(str(refused(place, tmp_path).owner))
        os._exit(0)
    os.waitpid(child, 0)
    held.close()

    assert said.read_text().startswith(f"process {os.getpid()} on ")


def written_by(**changes: Any) -> bytes:
    return json.dumps(asdict(replace(this_process(), **changes))).encode()


def gone() -> bytes:
    """What a process of this machine wrote that has ended."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait(timeout=HANGS)
    return written_by(pid=process.pid)


WRITTEN: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: b"",
    "a half of it": lambda: written_by()[:40],
    "what is no text": lambda: b"\xff\x00\x80",
    "other JSON": lambda: b"[1, 2]",
    "nested JSON": lambda: b"[" * 4000,
    "a number that is no process id": lambda: written_by(pid=2**70),
    "a host that is no text": lambda: written_by(host=7),
    "what a later release has added": lambda: written_by()[:-1] + b', "more": 1}',
    "a process that has ended": gone,
}


@pytest.fixture(scope="module")
def held(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[Place], Path]]:
    """Let another process have a place, the same one in all these tests; return where it is."""
    with ExitStack() as stack:

        @cache
        def hold(place: Place) -> Path:
            path = tmp_path_factory.mktemp("held")
            stack.enter_context(held_by_another(place, path))
            return path

        yield hold


@each_place
@pytest.mark.parametrize("written", WRITTEN.values(), ids=WRITTEN)
def test_a_lock_that_does_not_say_who_has_it_is_an_error_without_a_name(
    written: Callable[[], bytes], place: Place, held: Callable[[Place], Path]
) -> None:
    (held(place) / LOCKS[place]).write_bytes(written())
    error = refused(place, held(place))

    assert error.owner is None
    assert "somebody else owns" in str(error)
    assert "who it is cannot be told" in str(error)


@each_place
def test_whatever_an_earlier_owner_left_in_the_lock_is_replaced(place: Place, tmp_path: Path) -> None:
    place(tmp_path).close()
    lock = tmp_path / LOCKS[place]
    lock.write_bytes(b"x" * 10_000)
    with held_by_another(place, tmp_path) as other:
        assert f"process {other.pid} on " in str(refused(place, tmp_path).owner)

    assert stat.S_IMODE(lock.stat().st_mode) == 0o600  # and it is never removed


@each_place
def test_a_disk_on_which_no_name_can_be_written_keeps_nobody_from_the_lock(
    place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", full)
        held = place(tmp_path)
    assert (tmp_path / LOCKS[place]).read_bytes() == b""
    refused(place, tmp_path)
    held.close()
