"""What the README's table says a killed process loses."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from actorbot import FileSessionStore

WORKER = """
import itertools, sys
from actorbot import FileSessionStore, FlushPolicy, SessionManager

def handle(context):
    context.session["n"] = context.session.get("n", 0) + 1
    return context.session["n"]

with SessionManager(FileSessionStore("s"), handler=handle, flush=FlushPolicy.parse(sys.argv[1])) as manager:
    for _ in itertools.count():
        print(manager.dispatch_sync("ann", "hi"), flush=True)
"""


@pytest.mark.parametrize("acknowledged", [1, 37, 250])
@pytest.mark.parametrize(
    ("policy", "most_lost"), [("write-through", 0), ("write-behind:max_delay=600,max_events=20", 20)]
)
def test_a_killed_process_has_lost_no_more_than_its_policy_says(
    policy: str, most_lost: int, acknowledged: int, tmp_path: Path
) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", WORKER, policy], cwd=tmp_path, stdout=subprocess.PIPE, env=os.environ | {"PYTHONUNBUFFERED": "1"}
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for _ in range(acknowledged):
            process.stdout.readline()
        process.kill()
        # What it printed before it died was acknowledged too; a line that the kill has cut was not.
        lines = [line for line in process.stdout.read().splitlines(keepends=True) if line.endswith(b"\n")]
        acknowledged = int(lines[-1]) if lines else acknowledged

    store = FileSessionStore(tmp_path / "s").init()
    stored = (store.read("ann") or {"n": 0})["n"]
    store.close()
    assert acknowledged - most_lost <= stored <= acknowledged + 1  # one more: stored, and killed before it was printed
