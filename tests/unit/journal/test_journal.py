"""The parts of the journal by themselves: its file, its log, its entries, and what is decided about
what the store has.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from actorbot._flushing.recovery import JournalBehind, Rebased, Settled, rebase
from actorbot._journal.entry import Entry, pack_entry
from actorbot._journal.file import KEPT, JournalFile
from actorbot._journal.wal import find_flaw
from actorbot._state.committed import ANYBODYS, Committed, write_id_of
from actorbot._state.record import Record
from actorbot._state.values import UndecodableError
from actorbot.errors import ActorbotError, ConflictError, CorruptSessionError, JournalError, StoreUnavailableError
from actorbot.stores import Write
from tests.faults._scale import scaled
from tests.tiers import tiers

MINE, THEIRS = b"mine....", b"theirs.."

pytestmark = pytest.mark.timeout(scaled(180, 3_600))


def copy_as_a_kill_would_leave_it(path: Path, to: Path) -> JournalFile:
    to.mkdir(mode=0o700)
    for file in path.parent.glob(f"{path.name}*"):
        if not file.name.endswith(".lock"):
            shutil.copy(file, to / file.name)
    return JournalFile(str(to / path.name), "full")


# --- the file -----------------------------------------------------------------------------------


class TheFile(RuleBasedStateMachine):
    """A journal's file beside a dict."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.path = Path(self.folder.name) / "journal"
        self.file = JournalFile(str(self.path), "full")
        self.file.open()
        self.rows: dict[int, bytes] = {}
        self.conflicts: list[bytes] = []
        self.copies = 0

    @rule(
        rows=some.dictionaries(some.integers(1, 60), some.binary(max_size=5_000), max_size=40),
        conflicts=some.lists(some.binary(min_size=1, max_size=20), max_size=3),
    )
    def commit(self, rows: dict[int, bytes], conflicts: list[bytes]) -> None:
        self.file.commit(list(rows.items()), conflicts)
        self.rows |= rows
        self.conflicts = list(dict.fromkeys(self.conflicts + conflicts))

    @rule()
    def renew(self) -> None:
        self.file.renew()

    @rule()
    def close_and_open(self) -> None:
        self.file.close()
        self.file.close()
        self.file.open()

    @rule()
    def kill(self) -> None:
        self.copies += 1
        copy = copy_as_a_kill_would_leave_it(self.path, Path(self.folder.name) / f"copy {self.copies}")
        self.file.close()
        self.path, self.file = Path(copy.path), copy
        self.file.open()

    @invariant()
    def holds_what_was_committed(self) -> None:
        full = {number: data for number, data in self.rows.items() if data}
        assert list(self.file.rows()) == sorted(full.items())
        assert list(self.file.conflicts()) == self.conflicts
        for number, data in full.items():
            assert self.file.read(number) == data

    def teardown(self) -> None:
        self.file.close()
        self.folder.cleanup()


TestTheFile = TheFile.TestCase
TestTheFile.settings = settings(max_examples=scaled(30, 1_000), stateful_step_count=20, deadline=None)


def test_the_newest_conflicts_are_kept(tmp_path: Path) -> None:
    file = JournalFile(str(tmp_path / "journal"), "normal")
    file.open()
    for number in range(KEPT + 10):
        file.commit([], [b"%d" % number])

    assert list(file.conflicts()) == [b"%d" % number for number in range(10, KEPT + 10)]
    file.close()


# --- a disk that turns bits ---------------------------------------------------------------------


def write_a_journal(path: Path) -> tuple[dict[str, bytes], list[dict[str, int]]]:
    """Return its files as a kill would leave them, and the version of each session after each
    commit.
    """
    chance = random.Random(2017)
    file = JournalFile(str(path), "full")
    file.open()
    after: list[dict[str, int]] = [{}]
    for n in range(60):
        users = [(3 * n + k) % 20 for k in range(3)]
        rows = [
            (user + 1, pack_entry(f"user:{user}", (n + 1, chance.randbytes(300), b"", 1.0, 2.0), b"", ((MINE, n + 1),)))
            for user in users
        ]
        file.commit(rows)
        after.append(after[-1] | {f"user:{user}": n + 1 for user in users})
        if n == 30:
            file._open.execute("PRAGMA wal_checkpoint")  # so that the log begins anew, over what it held
    files = {name: path.with_name(name).read_bytes() for name in ("journal", "journal-wal")}
    file.close()
    return files, after


def what_is_read(files: dict[str, bytes], folder: Path) -> dict[str, int]:
    """Open a journal of these files. Raises: ActorbotError."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(mode=0o700)
    for name, data in files.items():
        (folder / name).write_bytes(data)
    file = JournalFile(str(folder / "journal"), "full")
    try:
        file.open()
        records = [Entry.from_bytes(data).record for _, data in file.rows()]
        return {record.session_id: record.version for record in records}
    finally:
        file.close()


@pytest.mark.parametrize("each", tiers([6, 1]), ids=["some bits", "all bits"])
@pytest.mark.parametrize("name", ["journal", "journal-wal"])
def test_a_bit_that_has_turned_is_found_unless_it_is_in_the_last_commit(name: str, each: int, tmp_path: Path) -> None:
    files, after = write_a_journal(tmp_path / "journal")
    chance = random.Random(4)
    head = [(at, bit) for at in range(100) for bit in range(8)]
    if name == "journal-wal":  # and a bit of each byte of each frame's head
        head += [(at + n, n % 8) for at in range(32, len(files[name]), 24 + 4096) for n in range(24)]
    else:  # and of the schema, at the end of the first page
        head += [(at, at % 7) for at in range(4096 - 200, 4096)]
    anywhere = [(chance.randrange(len(files[name])), chance.randrange(8)) for _ in range(scaled(800, 40_000))]
    head, anywhere = head[::each], anywhere[::each]
    refused = missed = 0
    for n, (at, bit) in enumerate(head + anywhere):
        data = bytearray(files[name])
        data[at] ^= 1 << bit
        try:
            found = what_is_read({**files, name: bytes(data)}, tmp_path / "turned")
        except (ActorbotError, UndecodableError):
            refused += 1
        else:
            assert found in after[-2:], f"bit {bit} of byte {at} costs more than the last commit"
            missed += found != after[-1] and n >= len(head)

    assert refused > 300 / each
    assert missed < len(anywhere) / 10  # of 29 commits in the log the last cannot be told from one that was cut off


def test_damage_in_the_log_is_named_and_the_way_on_leads_to_what_stands_before_it(tmp_path: Path) -> None:
    files, after = write_a_journal(tmp_path / "journal")
    log = bytearray(files["journal-wal"])
    log[10 * 4_120 + 500] ^= 1
    damaged = {**files, "journal-wal": bytes(log)}

    with pytest.raises(JournalError) as caught:
        what_is_read(damaged, tmp_path / "damaged")
    assert "journal-wal is damaged at byte" in str(caught.value)
    assert 'sync="normal"' in str(caught.value)
    assert {name: (tmp_path / "damaged" / name).read_bytes() for name in files} == damaged  # it was left as it is

    file = JournalFile(str(tmp_path / "damaged" / "journal"), "normal")
    file.open()
    found = {Entry.from_bytes(data).record.session_id: Entry.from_bytes(data).record.version for _, data in file.rows()}
    file.close()
    assert found in after[30:-2]


def test_a_log_that_is_cut_off_anywhere_is_no_flaw(tmp_path: Path) -> None:
    files, _ = write_a_journal(tmp_path / "journal")
    log = files["journal-wal"]
    (tmp_path / "cut-wal").touch()
    for length in [*range(100), *random.Random(5).sample(range(len(log)), 100)]:
        (tmp_path / "cut-wal").write_bytes(log[:length])
        assert find_flaw(tmp_path / "cut-wal") is None


# --- entries ------------------------------------------------------------------------------------

committed_states = some.tuples(
    some.integers(1, 2**62),
    some.none() | some.binary(max_size=300),
    some.binary(max_size=64),
    some.floats(0, 1e10),
    some.floats(0, 1e10) | some.just(float("inf")),
)
lineages = some.lists(some.tuples(some.binary(min_size=8, max_size=8), some.integers(0, 2**63 - 1)), max_size=4)


@given(committed_states, some.binary(max_size=128), lineages)
def test_an_entry_is_read_as_it_was_written(
    committed: Committed, write_ids: bytes, known: list[tuple[bytes, int]]
) -> None:
    entry = Entry.from_bytes(pack_entry("ann", committed, write_ids, tuple(known)))

    assert entry.record.committed == committed
    assert (entry.record.session_id, entry.record.write_ids, entry.lineages) == ("ann", write_ids, tuple(known))


@given(committed_states, some.data())
def test_an_entry_that_was_changed_is_not_read(committed: Committed, data: some.DataObject) -> None:
    packed = bytearray(pack_entry("ann", committed, b"", ((MINE, 1),)))
    at = data.draw(some.integers(0, 8 * len(packed) - 1))
    packed[at // 8] ^= 1 << at % 8

    with pytest.raises(UndecodableError):
        Entry.from_bytes(bytes(packed))


# --- what is decided about what the store has ---------------------------------------------------


def make_record(version: int, *write_ids: bytes, state: bytes | None = b"x") -> Record:
    return Record("ann", version, state, b"".join(write_ids), b"", 1.0, 2.0)


BASE = os.urandom(8)  # write id of the record that the recovered state was made from
OLDER = os.urandom(8)  # of the one before it
RECOVERED = make_record(7, write_id_of(MINE, 7), BASE, OLDER)
KNOWN = ((MINE, 7),)


@pytest.mark.parametrize(
    ("stored", "known", "expected"),
    [
        pytest.param(None, KNOWN, "written", id="nothing is there"),
        pytest.param(None, (*KNOWN, ANYBODYS), "written", id="nothing is there that it may replace"),
        pytest.param(make_record(7, write_id_of(MINE, 7), BASE), KNOWN, "done", id="it is there already"),
        pytest.param(make_record(9, THEIRS, write_id_of(MINE, 7)), KNOWN, "done", id="and somebody went on from it"),
        pytest.param(make_record(4, BASE, OLDER), KNOWN, "written", id="what it was made from is there"),
        pytest.param(make_record(3, OLDER), KNOWN, "written", id="the store has gone back"),
        pytest.param(make_record(6, write_id_of(MINE, 6), BASE), KNOWN, "written", id="an own one of before is there"),
        pytest.param(
            make_record(8, write_id_of(MINE, 8), BASE), KNOWN, "set back", id="an own one that the journal has lost"
        ),
        pytest.param(
            make_record(5, write_id_of(THEIRS, 5)), (*KNOWN, (THEIRS, 5)), "written", id="one of an earlier start's"
        ),
        pytest.param(make_record(5, THEIRS, BASE), KNOWN, "conflict", id="somebody else's is there"),
        pytest.param(make_record(6, write_id_of(THEIRS, 6)), KNOWN, "conflict", id="somebody else's, as new"),
        pytest.param(make_record(5, b""), KNOWN, "conflict", id="one without a write id"),
        pytest.param(make_record(5, THEIRS), (*KNOWN, ANYBODYS), "written", id="it replaces whatever is there"),
        pytest.param(StoreUnavailableError("s", "busy"), KNOWN, "refused", id="it cannot be looked at"),
        pytest.param(CorruptSessionError("s", "ann", "torn"), KNOWN, "set aside", id="it is damaged"),
        pytest.param(CorruptSessionError("s", "ann", "torn"), (*KNOWN, ANYBODYS), "written", id="and is replaced"),
    ],
)
def test_what_is_decided_about_a_recovered_state(stored: Any, known: Any, expected: str) -> None:
    verdict = rebase(Write(RECOVERED, BASE), known, stored, "redis")

    match expected:
        case "done":
            assert verdict == Settled(None)
        case "conflict":
            assert isinstance(verdict, Settled)
            assert isinstance(verdict.error, ConflictError)
            assert verdict.error.session_id == "ann"
        case "refused":
            assert verdict == Settled(stored)
        case "set back":
            assert verdict == JournalBehind()
        case "set aside":
            assert verdict == Rebased(Write(RECOVERED, BASE, over_damage=True))
        case "written":
            assert isinstance(verdict, Rebased)
            write = verdict.write
            assert write.record.version == 7
            assert write.record.write_ids[:8] == write_id_of(MINE, 7)
            if isinstance(stored, Record):
                assert write.base == stored.write_id
                assert write.record.write_ids[8:] == stored.write_ids  # whose writers find theirs
            elif stored is None and ANYBODYS in known:
                assert write.base == b""  # nor what comes between this look and the write
