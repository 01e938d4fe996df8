"""A power loss at any instant costs nothing that was acknowledged: of the journal (`full`) and of
sessions in files.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Literal

import pytest

from actorbot import FileSessionStore
from actorbot._journal.file import JournalFile
from actorbot.errors import CorruptSessionError
from tests.faults._power import Step, record, states
from tests.faults._scale import scaled

STATES = scaled(400, 10_000)
COMMITS = 24
ROWS = 5
Sync = Literal["full", "normal"]

JOURNAL = f"""
import os
from actorbot._journal import file as _journal_file
from actorbot._journal.file import JournalFile

file = JournalFile("journal", SYNC)
file.open()
for n in range({COMMITS}):
    file.commit([(n % {ROWS} + 1, b"%d " % n * 400), (100 + n % {ROWS}, b"%d" % n)])
    os.write(1, b"%d\\n" % n)
    if n % 10 == 7:
        file.renew()
os.kill(os.getpid(), 9)
"""

FILES = f"""
import os
from actorbot import FileSessionStore
from actorbot._state.record import Record
from actorbot.stores import Write

store = FileSessionStore(".").init()
last = {{}}
for n in range({COMMITS}):
    session_id = f"user:{{n % {ROWS}}}"
    base = last.get(session_id)
    state = {{"n": n, "text": str(n) * 500}}
    record = Record.from_document(state, session_id=session_id, store="file", expires_in=1e9).next_write()
    assert store.write_many([Write(record, base or b"")]) == [None]
    last[session_id] = record.write_id
    os.write(1, b"%d\\n" % n)
os.kill(os.getpid(), 9)
"""


def lay_out(files: dict[str, bytes], folder: Path) -> Path:
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(mode=0o700)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return folder


def last_said(said: bytes) -> int:
    return int(said.split()[-1]) if said else -1


def after(commits: int) -> dict[int, bytes]:
    """What the journal holds after so many commits."""
    rows: dict[int, bytes] = {}
    for n in range(commits):
        rows |= {n % ROWS + 1: b"%d " % n * 400, 100 + n % ROWS: b"%d" % n}
    return rows


def losses_of_journal(steps: list[Step], folder: Path, number: int, sync: Sync = "full") -> list[int]:
    """Lay out what power losses leave, and open it; return of each how many acknowledged commits
    are missing.
    """
    lost = []
    for files, said in states(steps, number, seed=2017):
        file = JournalFile(str(lay_out(files, folder) / "journal"), sync)
        file.open()
        rows = dict(file.rows())
        file.close()
        whole = [commits for commits in range(COMMITS + 1) if rows == after(commits)]
        assert whole, f"the journal is torn: it holds {sorted(rows)}"
        lost.append(last_said(said) + 1 - whole[-1])
    return lost


@pytest.mark.timeout(scaled(60, 1_200))
def test_a_power_loss_costs_the_journal_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    steps = record(JOURNAL.replace("SYNC", '"full"'), tmp_path / "run")

    assert sum(step.call == "sync" for step in steps) > COMMITS
    assert max(losses_of_journal(steps, tmp_path / "left", STATES)) <= 0


@pytest.mark.timeout(scaled(60, 1_200))
def test_with_sync_normal_a_power_loss_costs_the_last_moments_and_leaves_a_prefix(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    steps = record(JOURNAL.replace("SYNC", '"normal"'), tmp_path / "run")

    assert max(losses_of_journal(steps, tmp_path / "left", STATES, "normal")) > 0


@pytest.mark.long
@pytest.mark.parametrize(
    ("right", "wrong"),
    [
        pytest.param('f"synchronous={self._sync.upper()}"', '"synchronous=OFF"', id="the journal is not synced"),
        pytest.param("PRAGMA synchronous=FULL", "PRAGMA synchronous=OFF", id="a renewed journal is not synced"),
    ],
)
def test_a_journal_that_syncs_too_little_is_found(right: str, wrong: str, tmp_path: Path) -> None:
    program = f"""
import pathlib, sys, types
import actorbot
source = pathlib.Path(actorbot.__file__).parent.joinpath("_journal/file.py").read_text()
assert {right!r} in source
module = types.ModuleType("actorbot._journal.file")
sys.modules["actorbot._journal.file"] = module
actorbot._journal.file = module
exec(compile(source.replace({right!r}, {wrong!r}), "mutant", "exec"), module.__dict__)
""" + JOURNAL.replace("SYNC", '"full"')
    (tmp_path / "run").mkdir(mode=0o700)
    steps = record(program, tmp_path / "run")

    try:
        lost = losses_of_journal(steps, tmp_path / "left", 400)
    except Exception as error:
        lost = [1]
        print(error)
    assert max(lost) > 0


def is_damaged(store: FileSessionStore, session_id: str) -> bool:
    return isinstance(store.read_many([session_id])[0], CorruptSessionError)


def losses_of_files(steps: list[Step], folder: Path, number: int) -> list[str]:
    lost = []
    for files, said in states(steps, number, seed=2017):
        store = FileSessionStore(lay_out(files, folder)).init()
        for user in range(ROWS):
            acknowledged = [n for n in range(last_said(said) + 1) if n % ROWS == user]
            found = store.read(f"user:{user}") if not is_damaged(store, f"user:{user}") else None
            if acknowledged and (found is None or found["n"] < acknowledged[-1]):
                lost.append(f"user:{user} at {said!r}: {json.dumps(found)[:80]}")
        store.close()
    return lost


@pytest.mark.timeout(scaled(60, 1_200))
def test_a_power_loss_costs_sessions_in_files_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir(mode=0o700)
    steps = record(FILES, tmp_path / "run")

    assert losses_of_files(steps, tmp_path / "left", STATES) == []


@pytest.mark.long
@pytest.mark.parametrize("call", ["os.fsync(descriptor)", "os.fsync(folder)"])
def test_files_that_are_synced_too_little_are_found(call: str, tmp_path: Path) -> None:
    program = (
        f"""
import pathlib, sys, types
import actorbot.stores.base
source = pathlib.Path(actorbot.__file__).parent.joinpath("stores/file.py").read_text()
assert source.count({call!r}) == 1
module = sys.modules["actorbot.stores.file"]
exec(compile(source.replace({call!r}, "None"), "mutant", "exec"), module.__dict__)
actorbot.FileSessionStore = module.FileSessionStore
"""
        + FILES
    )
    (tmp_path / "run").mkdir(mode=0o700)
    steps = record(program, tmp_path / "run")

    assert losses_of_files(steps, tmp_path / "left", 400) != []
