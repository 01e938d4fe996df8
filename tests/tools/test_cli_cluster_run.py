"""`actorbot cluster run`: the shards of a bot as processes, from their start to the exit status."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from actorbot._running.signals import AGAIN
from actorbot.cli import _shards
from actorbot.cluster import Cluster
from tests import ROOT
from tests.servers import redis_servers
from tests.servers.redis_servers import free_port
from tests.tools.test_cli import run as run_here
from tests.waiting import HANGS, soon, until, until_sync

BOT = """
import asyncio, os
from actorbot import RedisSessionStore
from actorbot.cluster import Shard

URL = os.environ["REDIS_URL"]

async def handle(context):
    if context.event == "hang":
        await asyncio.Event().wait()
    if context.event == "slow":
        await asyncio.sleep(0.5)
    context.session["n"] = context.session.get("n", 0) + 1
    return context.session["n"]

def make_shard(**options):
    name = os.environ.get("NAME", "mybot")
    store = RedisSessionStore(URL, key_prefix=f"{name}:")
    return Shard(URL, cluster=name, store=store, handler=handle, **{"slots": 8, "lease": 1.0} | options)
"""
WRONG = """
import os, signal, sys, time
from pathlib import Path
from actorbot.errors import ConfigError
from actorbot.cluster import Cluster, Shard
from actorbot import MemorySessionStore

shard = Shard("redis://localhost", cluster="mybot", store=MemorySessionStore(), handler=print)
number = 7
async def later(): return shard
def needs(name): return shard
def forgets(): shard
def other(): return Cluster("redis://localhost")
def option(): return Shard("redis://localhost", cluster="mybot", store=MemorySessionStore(), handler=print, lease=0.1)
def mistake(): return shard.no_such_thing
def dies():
    if "--of" in sys.argv:
        os._exit(7)
    return shard
def deaf():
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    Path("deaf").touch()
    time.sleep(600)
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "bot.py").write_text(BOT, "utf-8")
    (tmp_path / "wrong.py").write_text(WRONG, "utf-8")
    (tmp_path / "broken.py").write_text("import actorbot\nname_that_is_nowhere\n", "utf-8")
    (tmp_path / "lacks.py").write_text("import package_that_is_nowhere\n", "utf-8")
    return tmp_path


class Run:
    """The command as a process, and what it has said so far."""

    def __init__(self, folder: Path, url: str, *args: str, name: str = "mybot") -> None:
        self.url, self.name = url, name
        self._said = folder / f"said-{uuid.uuid4().hex}"
        with self._said.open("wb") as said:
            self.process = subprocess.Popen(
                [sys.executable, "-W", "error", "-m", "actorbot", "cluster", "run", *args],
                cwd=folder, env=os.environ | {"REDIS_URL": url, "NAME": name, "PYTHONPATH": str(ROOT)},
                stdin=subprocess.DEVNULL, stdout=said, stderr=said, process_group=0,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self._said.read_text("utf-8")

    def until(self, pattern: str, times: int = 1) -> list[str]:
        """Wait until it has said *pattern* so often; return what the pattern's groups matched."""
        ends = monotonic() + HANGS  # several starts of Python one after the other
        while len(re.findall(pattern, self.said)) < times and self.process.poll() is None and monotonic() < ends:
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(0.02)
        found = re.findall(pattern, self.said)
        assert len(found) >= times, self.said
        return found

    def joined(self, count: int) -> list[int]:
        """Wait until so many shards have joined; return their processes."""
        return [int(pid) for pid in self.until(rf" (\d+) INFO \S+ has joined the cluster {self.name}", count)]

    def end(self, *signals: signal.Signals) -> int:
        """Send the signals, and wait for the end; return the exit status."""
        for number in signals:
            self.process.send_signal(number)
        return self.process.wait(HANGS)

    def status(self) -> Any:
        return json.loads(run_here("cluster", "status", self.url, self.name, "--json").stdout)


@contextmanager
def running(folder: Path, *args: str, url: str = "", name: str = "") -> Iterator[Run]:
    run = Run(folder, url or redis_servers.shared().url, *args, name=name or uuid.uuid4().hex)
    try:
        yield run
    finally:
        if run.process.poll() is None:
            run.process.send_signal(signal.SIGTERM)
            try:
                run.process.wait(HANGS)
            finally:
                run.process.kill()


def is_gone(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return True
    return Path(f"/proc/{pid}/stat").read_text("utf-8").rpartition(")")[2].split()[0] == "Z"


# --- the target -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("target", "said"),
    [
        ("bot", "'bot' names no function: write it as module:function, such as bot:make_shard"),
        ("bot.py:make_shard", "names no function: write bot:make_shard, with dots and without .py"),
        ("./src/bot.py", "names no function: write src.bot:make_shard, with dots and without .py"),
        ("nosuch:make_shard", "there is no module 'nosuch' in {folder}, nor is one installed"),
        ("wrong.deep:make_shard", "there is no module 'wrong.deep' in {folder}, nor is one installed"),
        ("wrong:nummer", "the module wrong ({folder}/wrong.py) has no 'nummer'; do you mean number?"),
        ("wrong:number", "wrong:number is no function, but an int"),
        ("wrong:shard", "wrong:shard is a Shard; name a function that makes it"),
        ("wrong:later", "wrong:later is an `async def`: make the shard in a `def`"),
        ("wrong:needs", "wrong:needs is called without arguments: missing a required argument: 'name'"),
        ("wrong:forgets", "returned no actorbot.cluster.Shard, but None; is a `return` missing?"),
        ("wrong:other", "returned no actorbot.cluster.Shard, but a Cluster"),
        ("wrong:option", "wrong:option: lease=0.1: expected seconds, at least 1, up to 60"),
    ],
)
def test_a_target_that_makes_no_shard_is_one_line_that_says_what_to_write(
    target: str, said: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for module in ("bot", "wrong"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    done = run_here("cluster", "run", target)

    assert (done.exit_code, done.stdout) == (2, "")
    assert said.format(folder=folder) in done.stderr.splitlines()[-1]
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("target", "where", "what"),
    [
        ("broken:make_shard", "broken.py", "broken cannot be imported: NameError: name 'name_that_is_nowhere' is not defined"),
        ("lacks:make_shard", "lacks.py", "lacks cannot be imported: ModuleNotFoundError: No module named 'package_that_is_nowhere'"),
        ("wrong:mistake", "wrong.py", "wrong:mistake has failed: AttributeError: 'Shard' object has no attribute 'no_such_thing'"),
    ],
)  # fmt: skip
def test_a_mistake_of_the_author_is_shown_where_it_is(
    target: str, where: str, what: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    for module in ("broken", "lacks", "wrong"):
        monkeypatch.delitem(sys.modules, module, raising=False)
    done = run_here("cluster", "run", target)

    assert done.exit_code == 2
    lines = done.stderr.splitlines()
    assert lines[-1] == f"Error: {what}"
    assert [line.split('"')[1] for line in lines if line.startswith("  File ")] == [str(folder / where)]


# --- shards ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_shard_handles_events_until_a_signal_and_leaves_in_order(number: signal.Signals, folder: Path) -> None:
    with running(folder, "bot:make_shard") as run:
        (pid,) = run.joined(1)
        with Cluster(run.url, cluster=run.name) as cluster:
            assert [cluster.dispatch_sync("ann", "hi") for _ in range(3)] == [1, 2, 3]
        assert (pid, run.end(number)) == (run.process.pid, 0)
        run.until("has left the cluster")
        assert run.status()["members"] == []
    with running(folder, "bot:make_shard", name=run.name) as run, Cluster(run.url, cluster=run.name) as cluster:
        assert cluster.dispatch_sync("ann", "hi") == 4


@pytest.mark.long
def test_of_several_shards_one_that_is_killed_is_started_again_and_all_leave_together(folder: Path) -> None:
    with running(folder, "bot:make_shard", "--shards", "2") as run:
        pids = run.joined(2)
        os.kill(pids[0], signal.SIGKILL)
        run.until(r"actorbot: shard [12] of 2 was killed by SIGKILL; it is started again in 0.5 s")
        pids = run.joined(3)[1:]
        with Cluster(run.url, cluster=run.name) as cluster:
            assert [cluster.dispatch_sync(f"user:{each}", "hi") for each in range(20)] == [1] * 20
        assert run.end(signal.SIGTERM) == 0
        assert all(map(is_gone, pids))
        assert run.status()["members"] == []


@pytest.mark.long
def test_a_shard_that_is_drained_is_not_started_again(folder: Path) -> None:
    with running(folder, "bot:make_shard", "--shards", "2") as run:
        run.joined(2)
        assert run_here("cluster", "drain", run.url, run.name, run.status()["members"][0]["id"]).exit_code == 0
        run.until(r"actorbot: shard [12] of 2 was drained, and is not started again")
        assert len(run.status()["members"]) == 1
        assert run_here("cluster", "drain", run.url, run.name, "--all").exit_code == 0
        assert run.end() == 0


@pytest.mark.long
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process that its parent has ended")
def test_the_shards_leave_in_order_when_the_command_is_killed(folder: Path) -> None:
    with running(folder, "bot:make_shard", "--shards", "2") as run:
        pids = run.joined(2)
        run.process.kill()
        run.process.wait()
        until_sync(lambda: all(map(is_gone, pids)))
        assert len(re.findall("has left the cluster", run.said)) == 2
        assert run.status()["members"] == []


@pytest.mark.long
def test_a_second_signal_hurries_all_shards(folder: Path) -> None:
    with running(folder, "bot:make_shard", "--shards", "2") as run:
        pids = run.joined(2)
        with Cluster(run.url, cluster=run.name) as cluster:
            for each in range(20):
                cluster.submit_sync(f"user:{each}", "hang")
            until_sync(lambda: sum(member["in_hand"] for member in run.status()["members"]) == 20)
        run.process.send_signal(signal.SIGTERM)
        sent = monotonic()
        until_sync(lambda: all(member["leaving"] for member in run.status()["members"]))
        until_sync(lambda: monotonic() > sent + 2 * AGAIN)  # before that it would be the same signal
        assert run.end(signal.SIGTERM) == 0  # what hung was rolled back, and waits for the next owner
        assert run.said.count("told to end for the second time") == 2
        assert all(map(is_gone, pids))
        assert sum(lease["waiting"] for lease in run.status()["leases"]) == 20


@pytest.mark.parametrize("shards", ["1", pytest.param("2", marks=pytest.mark.long)])
def test_shards_that_cannot_start_end_with_status_2_and_are_not_tried_again(shards: str, folder: Path) -> None:
    port = free_port()
    with running(
        folder, "bot:make_shard", "--without-redis", "--shards", shards, url=f"redis://127.0.0.1:{port}/0"
    ) as run:
        assert run.end() == 2
        assert f"could not start: cluster {run.name}: 127.0.0.1:{port} does not answer" in run.said
        assert "started again" not in run.said


@pytest.mark.long
def test_a_shard_that_dies_again_and_again_is_started_after_longer_and_longer_pauses(folder: Path) -> None:
    with running(folder, "wrong:dies", "--shards", "2", "--without-redis") as run:
        run.until(r"shard 1 of 2 ended with status 7; it is started again in (\S+) s", 3)
        assert re.findall(r"shard 1 .* in (\S+) s", run.said)[:3] == ["0.5", "1", "2"]
        assert run.end(signal.SIGTERM) == 1


async def test_a_shard_that_does_not_end_in_its_time_is_killed(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setattr(_shards, "BEYOND", 0.1)
    before = {number: signal.getsignal(number) for number in _shards.HANDLED}
    running = asyncio.create_task(_shards.Shards("wrong:deaf", 1, 0.1).run())
    try:
        await until((folder / "deaf").exists)
        os.kill(os.getpid(), signal.SIGTERM)
        assert await soon(running) == 1
    finally:
        for number, handler in before.items():
            asyncio.get_running_loop().remove_signal_handler(number)
            signal.signal(number, handler)
    assert "shard 1 of 1 does not end within 0.2 s, and is killed" in capsys.readouterr().err


# --- a Redis to try it out ------------------------------------------------------------------------


def test_on_a_laptop_without_a_redis_one_is_started_and_keeps_its_data(folder: Path) -> None:
    redis_servers.require("valkey")
    port = free_port()
    url = f"redis://:pa%22ss@localhost:{port}/17"
    data = folder / f".actorbot-redis-{port}"
    for count in (1, 2):
        with running(folder, "bot:make_shard", url=url, name="mybot") as run:
            run.joined(1)
            assert (
                f"actorbot: no Redis answered at localhost:{port}, so one was started there, until this command ends. It"
                f" is for trying out; its data is in {data}\n"
            ) in run.said
            with Cluster(url, cluster="mybot") as cluster:
                assert cluster.dispatch_sync("ann", "hi") == count
            assert run.end(signal.SIGINT) == 0
            assert run.said.endswith(f"actorbot: the Redis at localhost:{port} has ended; its data is in {data}\n")
            assert "pa" + '"ss' not in run.said
    assert data.stat().st_mode & 0o077 == 0
    assert (data / ".gitignore").read_text("utf-8") == "*\n"


@pytest.mark.long
def test_the_redis_outlives_the_shards_that_leave_and_not_the_command(folder: Path) -> None:
    redis_servers.require("valkey")
    port = free_port()
    with running(folder, "bot:make_shard", "--shards", "2", url=f"redis://127.0.0.1:{port}", name="mybot") as run:
        run.joined(2)
        with Cluster(run.url, cluster="mybot") as cluster:
            cluster.submit_sync("ann", "slow")
            until_sync(lambda: sum(member["in_hand"] for member in run.status()["members"]) == 1)
        os.killpg(run.process.pid, signal.SIGINT)  # Ctrl-C goes to all that are in the terminal's group
        assert run.end() == 0
        assert run.said.count("has left the cluster mybot") == 2
    with running(folder, "bot:make_shard", url=f"redis://127.0.0.1:{port}", name="mybot") as run:
        run.joined(1)
        with Cluster(run.url, cluster="mybot") as cluster:
            assert cluster.peek_sync("ann") == {"n": 1}
        run.process.kill()
        run.process.wait()
        until_sync(lambda: run_here("cluster", "status", run.url, "mybot").exit_code == 1)


def test_a_redis_that_is_there_is_used(folder: Path) -> None:
    with running(folder, "bot:make_shard", "--with-redis") as run:
        run.joined(1)
        assert run.end(signal.SIGTERM) == 0
        assert "Redis answered" not in run.said
    assert not list(folder.glob(".actorbot-redis-*"))


@pytest.mark.parametrize(
    "url", ["redis://192.0.2.1/0", "rediss://localhost/0", "redis://bot:pw@localhost/0", "unix:///tmp/x"]
)
def test_no_redis_is_started_for_another_machine_tls_or_a_user(
    url: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setenv("REDIS_URL", url)
    monkeypatch.delitem(sys.modules, "bot", raising=False)
    done = run_here("cluster", "run", "bot:make_shard", "--with-redis")

    assert done.exit_code == 2
    assert done.stderr == (
        "Error: --with-redis starts a Redis only for a URL such as redis://localhost:6379/0: of this machine, without TLS,"
        " and without a user's name\n"
    )
    assert not list(folder.glob(".actorbot-redis-*"))
