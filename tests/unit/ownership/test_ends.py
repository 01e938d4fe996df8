"""What becomes of a lease when its program ends without a close, or is killed."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest

from tests.programs import run, start
from tests.waiting import until_sync

PROGRAM = """
import asyncio, json, os, sys, time
from actorbot import FlushPolicy, SessionManager, errors

class Folder:
    \"\"\"A driver of one file, which no two of these processes write at the same moment.\"\"\"
    def init(self): pass
    def load(self):
        try:
            with open("all.json") as file: return json.load(file)
        except FileNotFoundError:
            return {}
    def save(self, data):
        with open(f"new{os.getpid()}", "w") as file: json.dump(data, file)
        os.replace(f"new{os.getpid()}", "all.json")
    def read(self, session_id): return self.load().get(session_id)
    def write(self, session_id, data): self.save(self.load() | {session_id: data})
    def destroy(self, session_id): self.save({k: v for k, v in self.load().items() if k != session_id})
    def read_lease(self): return self.load().get("lease"), time.time()
    def swap_lease(self, old, new):
        data = self.load()
        if data.get("lease") != old:
            return False
        self.save(data | {"lease": new})
        return True

def handle(context):
    context.session["n"] = context.session.get("n", 0) + 1
    return context.session["n"]

def manager(**options):
    return SessionManager(Folder(), handler=handle, flush=FlushPolicy.write_behind(max_delay=600.0), **options)
"""


def all_of(folder: Path) -> Any:
    return json.loads((folder / "all.json").read_text())


def lease_of(folder: Path) -> Any:
    return json.loads(all_of(folder)["lease"])


@pytest.mark.parametrize(
    "code",
    [
        'm = manager().start_sync(); print(m.dispatch_sync("ann", "hi"))',
        'async def main():\n    m = await manager().start(); print(await m.dispatch("ann", "hi"))\nasyncio.run(main())',
    ],
    ids=["threads", "loop"],
)
def test_a_program_that_ends_without_a_close_flushes_and_gives_its_lease_back(code: str, tmp_path: Path) -> None:
    status, out, _ = run(PROGRAM + code, tmp_path)

    assert (status, out) == (0, "1\n")
    assert all_of(tmp_path)["ann"]["n"] == 1
    assert (lease_of(tmp_path)["epoch"], lease_of(tmp_path)["holders"]) == (1, {})


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_child_that_ends_does_not_give_its_parents_lease_back(tmp_path: Path) -> None:
    code = (
        'm = manager().start_sync(); m.dispatch_sync("ann", "hi")\n'
        "child = os.fork()\n"
        "if child == 0:\n    sys.exit(3)\n"
        "assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 3\n"
        'print(len(json.loads(Folder().load()["lease"])["holders"]), m.dispatch_sync("ann", "hi"))\n'
        "m.close_sync()"
    )
    status, out, error = run(PROGRAM + code, tmp_path)

    assert (status, out) == (0, "1 2\n"), error
    assert lease_of(tmp_path)["holders"] == {}


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="only Linux tells that a process is gone")
def test_a_start_after_a_kill_does_not_wait_and_claims(tmp_path: Path) -> None:
    killed = start(PROGRAM + 'm = manager().start_sync(); m.dispatch_sync("ann", "hi"); input()', tmp_path)
    until_sync(lambda: (tmp_path / "all.json").exists() and lease_of(tmp_path)["holders"])
    with_it = next(iter(lease_of(tmp_path)["holders"].values()))
    assert with_it["process"]["pid"] == killed.pid
    killed.send_signal(signal.SIGKILL)
    killed.wait()

    status, out, error = run(
        PROGRAM + 'm = manager(takeover_timeout=0.0).start_sync(); print(m.dispatch_sync("ann", "hi"), m.stats()'
        '.ownership.epoch, "ann" in Folder().load()); m.close_sync()',
        tmp_path,
    )
    assert (status, out) == (0, "1 2 True\n"), error  # the first turn is in the store: a claim
    assert lease_of(tmp_path)["away"] == {}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_program_that_starts_itself_anew_in_its_own_process_does_not_wait(tmp_path: Path) -> None:
    """As a bot that updates itself: the process is the same, and what it had is gone."""
    code = (
        'm = manager(takeover_timeout=0.0).start_sync(); n = m.dispatch_sync("ann", "hi")\n'
        'if "again" not in os.environ:\n'
        '    os.execve(sys.executable, [sys.executable, "-c", open("code.py").read()], os.environ | {"again": "1"})\n'
        "print(n, m.stats().ownership.epoch); m.close_sync()"
    )
    (tmp_path / "code.py").write_text(PROGRAM + code)
    status, out, error = run(PROGRAM + code, tmp_path)

    assert (status, out) == (0, "1 2\n"), error
