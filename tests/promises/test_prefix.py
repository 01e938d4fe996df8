"""G3: after any crash a session is what some first part of its events made; none is torn, and none
lost beyond what the policy says.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actorbot import (
    DUPLICATE,
    FileSessionStore,
    SessionManager,
)
from actorbot.testing import ManualClock
from tests import inside
from tests.backends import each_store
from tests.journals import Server, kill, make_manager

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


async def test_an_event_is_safe_before_the_store_has_heard_of_it(tmp_path: Path) -> None:
    clock, store = ManualClock(), Server()
    async with make_manager(store, tmp_path / "journal", clock=clock) as manager:
        assert await manager.dispatch("ann", "hi", event_id="1") == 1
        assert store.read("ann") is None
        left = kill(tmp_path / "journal")

        async with make_manager(store, left, clock=clock) as heir:
            assert await heir.dispatch("ann", "hi", event_id="1") is DUPLICATE
            assert await heir.dispatch("ann", "hi", event_id="2") == 2


@each_store
async def test_what_a_killed_bot_had_acknowledged_is_in_the_store_when_the_next_has_started(
    make_store: Callable[[Path], Any], tmp_path: Path
) -> None:
    server, policy = Server(), {"max_delay": 3600.0}
    async with make_manager(server, tmp_path / "journal", policy=policy) as manager:
        for n in range(5):
            await manager.dispatch(f"user:{n % 2}", "hi", event_id=str(n))
        left = kill(tmp_path / "journal")
        server.outage()  # what it does from here on does not count
        store = make_store(tmp_path / "store")
        async with make_manager(store, left, policy=policy) as heir:
            assert [await heir.peek(f"user:{n}") for n in range(2)] == [{"n": 3}, {"n": 2}]
            assert await heir.dispatch("user:0", "hi", event_id="4") is DUPLICATE
        server.restore()

    async with SessionManager(store) as reader:
        assert [await reader.peek(f"user:{n}") for n in range(2)] == [{"n": 3}, {"n": 2}]


async def test_what_the_store_had_taken_without_the_bot_learning_of_it_is_not_counted_twice(tmp_path: Path) -> None:
    clock, store = ManualClock(), Server()
    async with make_manager(store, tmp_path / "journal", clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        await manager.dispatch("ann", "hi")
        store.lose_replies(1)
        await clock.advance(1.0)
        await manager.dispatch("ann", "hi")
        left = kill(tmp_path / "journal")
        store.outage()

        store.restore()
        async with make_manager(store, left, clock=clock) as heir:
            assert await heir.peek("ann") == {"n": 3}
            assert heir.stats().conflicts == 0
        store.outage()
        inside.lose_sessions(manager)
    assert (store.inner.read("ann") or {})["n"] == 3
