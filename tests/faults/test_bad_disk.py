"""A disk that fails, fills up, or sees the bot killed, at any one of the calls that change it:
nothing acknowledged is lost.

`strace` does it to the real calls of the real process. Its counters are each thread's own, so the
nth call of several threads may fail.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import pytest

from actorbot import FileSessionStore, FlushPolicy, SessionManager
from actorbot._journal.file import JournalFile
from tests.faults._power import find_strace
from tests.faults._scale import scaled
from tests.tiers import tiers

CALLS = "pwrite64,write,fsync,fdatasync,ftruncate,rename,renameat,unlink,unlinkat"
FAULTS = {
    "an error": "error=EIO:when={n}",
    "no space": "error=ENOSPC:when={n}",
    "no space from then on": "error=ENOSPC:when={n}+",
    "a kill": "signal=SIGKILL:when={n}",
}
STRIDE = scaled(4, 1)  # CI takes each fourth call of one fault, another fourth of the next
USERS, EVENTS = 3, 12

# What a run prints goes out by writev, which does not fail.
BOT = f"""
    import asyncio, os
    from actorbot import FileSessionStore, FlushPolicy, SessionManager
    from actorbot.errors import StoreUnavailableError

    def say(*words):
        os.writev(1, [(" ".join(map(str, words)) + "\\n").encode()])

    def handle(context):
        context.session.setdefault("numbers", []).append(context.event)

    async def live():
        manager = SessionManager(FileSessionStore("sessions"), handler=handle, flush=FlushPolicy.parse(POLICY), close_timeout=2.0)
        try:
            await manager.start()
        except StoreUnavailableError as error:
            return say("refused", error)
        for number in range(FIRST, FIRST + {EVENTS}):
            for attempt in range(3):
                try:
                    await manager.dispatch(f"user:{{number % {USERS}}}", number, event_id=str(number))
                except StoreUnavailableError as error:
                    say("failed", number, error)
                else:
                    say("done", number)
                    break
        if CLOSES:
            await manager.close()
            say("closed")
        else:
            os._exit(0)

    asyncio.run(live())
"""

# As the journal uses its file: after an error it goes on with a new one, as soon as one can be
# made.
JOURNAL = """
    import os, sqlite3
    from actorbot._journal.file import JournalFile
    from actorbot.errors import StoreUnavailableError

    file = JournalFile("journal", "full")
    try:
        file.open()
    except StoreUnavailableError:
        os._exit(0)
    for n in range(8):
        failed = n == 4
        for attempt in range(4):
            try:
                if failed:
                    file.renew()
                    failed = False
                file.commit([(n % 3 + 1, b"%d" % n * 2000)])
            except (sqlite3.Error, OSError):
                failed = True
            else:
                os.writev(1, [b"done %d\\n" % n])
                break
        else:
            os._exit(0)
    file.close()
"""


@dataclass(frozen=True, slots=True)
class Run:
    """One run in which a call went wrong."""

    n: int
    folder: Path
    said: list[list[str]]
    hit: bool  # whether there was such a call
    status: int
    log: str

    def numbers(self, word: str) -> list[int]:
        return [int(number) for said, number, *_ in filter(lambda words: len(words) > 1, self.said) if said == word]


def go_wrong(program: str, folder: Path, fault: str, n: int) -> Run:
    """Run *program* in *folder*; its *n*th call meets *fault*."""
    log = folder.with_name(f"{folder.name}.log")
    done = subprocess.run(
        [find_strace(), "-f", "-e", f"trace={CALLS}", "-e", f"inject={CALLS}:{FAULTS[fault].format(n=n)}", "-o", log,
         sys.executable, "-c", textwrap.dedent(program)],
        cwd=folder, check=False, capture_output=True, text=True, timeout=50, env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    calls = log.read_text()
    hit = "(INJECTED)" in calls or "killed by SIGKILL" in calls
    said = [line.split(" ") for line in done.stdout.splitlines()]
    return Run(n, folder, said, hit, done.returncode, done.stderr)


def each_call(program: str, before: Path, fault: str, tmp_path: Path) -> Iterator[Run]:
    """Run *program* in copies of the folder *before*, with a fault at its first call, its second, …
    until there are no more.
    """
    first = 1 + list(FAULTS).index(fault) % STRIDE

    def attempt(n: int) -> Run:
        folder = tmp_path / f"{n}"
        shutil.copytree(before, folder)
        return go_wrong(program, folder, fault, n)

    with ThreadPoolExecutor(2) as pool:
        for start in range(first, 1_000, 4 * STRIDE):
            runs = list(pool.map(attempt, range(start, start + 4 * STRIDE, STRIDE)))
            yield from (run for run in runs if run.hit)
            if not all(run.hit for run in runs):
                return


def what_is_there(folder: Path, policy: str) -> dict[str, list[int]]:
    """Start a bot on what is left, on a disk that works, and return the numbers that each session
    holds.
    """
    here = Path.cwd()
    os.chdir(folder)
    try:
        with SessionManager(FileSessionStore("sessions"), flush=FlushPolicy.parse(policy)) as manager:
            found = {f"user:{user}": manager.peek_sync(f"user:{user}") or {} for user in range(USERS)}
    finally:
        os.chdir(here)
    return {session_id: state.get("numbers", []) for session_id, state in found.items()}


def check(run: Run, policy: str, before: list[int]) -> None:
    """Compare what is there with what was acknowledged, before the run and in it."""
    assert "Traceback" not in run.log, f"call {run.n}: {run.log}"
    acknowledged = before + run.numbers("done")
    found = what_is_there(run.folder, policy)
    for user in range(USERS):
        numbers = found[f"user:{user}"]
        told = f"call {run.n}: {numbers} of {acknowledged}; {run.said}"
        assert numbers == sorted(set(numbers)), told  # in order, once each
        missing = {number for number in acknowledged if number % USERS == user} - set(numbers)
        assert not missing, told
        assert set(numbers) <= {*before, *range(1_000)}, told


def prepare(policy: str, folder: Path, closes: bool) -> str:
    folder.mkdir(mode=0o700)
    return BOT.replace("POLICY", json.dumps(policy)).replace("CLOSES", str(closes))


@pytest.mark.timeout(scaled(120, 1_200))
@pytest.mark.parametrize("fault", tiers(list(FAULTS), "no space"))
@pytest.mark.parametrize("policy", ["journaled:path=journal,max_delay=0.01", "write-through"])
def test_a_bot_whose_disk_fails_at_any_call_keeps_what_it_has_acknowledged(
    policy: str, fault: str, tmp_path: Path
) -> None:
    program = prepare(policy, tmp_path / "before", True).replace("FIRST", "0")
    runs = list(each_call(program, tmp_path / "before", fault, tmp_path))

    assert len(runs) * STRIDE > 20  # of the thread that has the most of them
    for run in runs:
        check(run, policy, [])


@pytest.mark.timeout(scaled(120, 1_200))
@pytest.mark.parametrize("fault", tiers(list(FAULTS), "a kill"))
def test_a_recovery_whose_disk_fails_at_any_call_keeps_what_was_acknowledged(fault: str, tmp_path: Path) -> None:
    slow = "journaled:path=journal,max_delay=60"
    first = prepare(slow, tmp_path / "before", False).replace("FIRST", "0")
    before = go_wrong(first, tmp_path / "before", "a kill", 60_000)
    assert before.numbers("done") == list(range(EVENTS)), before
    again = prepare("journaled:path=journal,max_delay=0.01", tmp_path / "unused", True).replace("FIRST", "100")
    runs = list(each_call(again, tmp_path / "before", fault, tmp_path))

    assert len(runs) * STRIDE > 20
    for run in runs:
        check(run, slow, before.numbers("done"))


@pytest.mark.timeout(scaled(120, 1_200))
@pytest.mark.parametrize("fault", tiers(list(FAULTS), "an error"))
def test_a_new_file_of_the_journal_whose_disk_fails_at_any_call_keeps_what_was_committed(
    fault: str, tmp_path: Path
) -> None:
    (tmp_path / "before").mkdir(mode=0o700)
    runs = list(each_call(JOURNAL, tmp_path / "before", fault, tmp_path))

    assert len(runs) * STRIDE > 30
    for run in runs:
        assert "Traceback" not in run.log, f"call {run.n}: {run.log}"
        file = JournalFile(str(run.folder / "journal"), "full")
        file.open()
        rows = dict(file.rows())
        file.close()
        for n in run.numbers("done"):
            newest = int(rows.get(n % 3 + 1, b"-1")[:1])  # what has one figure was written 2,000 times
            assert newest >= n, f"call {run.n}: {newest} of {n}; {run.said}"
