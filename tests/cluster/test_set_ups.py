"""What each set-up of the server loses when it fails under load.

The figures of docs/cluster.md are what this prints for all set-ups, one after the other:
`ACTORBOT_TORTURE=1 .venv/bin/python -m pytest -n 0 -s tests/cluster/test_set_ups.py`.
"""

from __future__ import annotations

import asyncio
import os
import re
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis.crc import key_slot

from actorbot.cluster import Cluster
from tests.cluster._load import Platform, load, stored_tags
from tests.cluster._shards import Shards
from tests.faults._kills import ForkServer
from tests.faults._power import find_strace
from tests.faults._scale import TORTURE
from tests.servers import redis_servers
from tests.servers.redis_servers import Server, shared, watched
from tests.waiting import until_sync

RATE = 300.0  # events a second
LEASE = 5.0  # seconds
BEFORE, AFTER = 4.0, 6.0  # seconds of load
AWAY = 0.5  # seconds until a server that has died is started again
BEHIND = {"thinks": 0.33, "max_in_hand": 40}
"""Of shards that do not keep up, so that events wait in the log."""

SetUp = tuple[str, Callable[[], None]]
"""The URL of the log, and what makes it fail."""


@contextmanager
def killed(folder: Path, *options: str) -> Iterator[SetUp]:
    """Run one server, whose process is killed."""
    with Server("valkey", folder, *options) as server:

        def fail() -> None:
            server.kill()
            time.sleep(AWAY)  # for which it is away
            server.start()

        yield server.url, fail


@contextmanager
def without_power(folder: Path, *options: str) -> Iterator[SetUp]:
    """Run one server whose machine loses its power: its log ends where it was synced last."""
    trace, program = folder / "trace", folder / "server"
    strace = f"{find_strace()} -f -qq -y -s 0 -e trace=write,fdatasync,fsync -e signal=none -o {trace}"
    program.write_text(f'#!/bin/sh\nexec {strace} {redis_servers.require("valkey")} "$@"\n')
    program.chmod(0o755)
    server = Server("valkey", folder, *options)
    plain, server._binary = server._binary, program
    with server:

        def fail() -> None:
            info: Any = server.ask("INFO", "server")
            os.kill(int(info["process_id"]), signal.SIGKILL)
            until_sync(lambda: server.process is not None and server.process.poll() is not None)
            cut_off(trace)
            server._binary = plain
            time.sleep(AWAY)  # for which it is away
            server.start()

        yield server.url, fail


def cut_off(trace: Path) -> None:
    """Cut the server's log off where it was synced last."""
    written, synced, log = 0, 0, ""
    begun: dict[str, int] = {}
    for line in trace.read_text("utf-8").splitlines():
        thread = line.split(maxsplit=1)[0]
        if found := re.search(r" write\(\d+<(.*\.incr\.aof)>.* = (\d+)$", line):
            log, written = found[1], written + int(found[2])
        elif re.search(r" f(data)?sync\(\d+<.*\.incr\.aof", line):
            begun[thread] = written
        if re.search(r"f(data)?sync.*= 0$", line) and thread in begun:
            synced = max(synced, begun.pop(thread))
    os.truncate(log, Path(log).stat().st_size - (written - synced))


@contextmanager
def failed_over(folder: Path, how: str) -> Iterator[SetUp]:
    """Run a primary, its replica and a Sentinel. The primary dies, or hangs and comes back when the
    replica has taken its place.
    """
    with watched("valkey", folder) as (primary, replica, sentinel):

        def fail() -> None:
            (primary.freeze if how == "hangs" else primary.kill)()
            until_sync(lambda: is_primary(replica))
            if how == "hangs":
                primary.thaw()

        yield f"redis+sentinel://127.0.0.1:{sentinel.port}/bot/0", fail


@contextmanager
def clustered(folder: Path) -> Iterator[SetUp]:
    """Run a Redis Cluster of three primaries with a replica each; the one with the keys dies."""
    with redis_servers.cluster("valkey", folder) as primaries, ExitStack() as stack:
        replicas = [replica_of(primary, folder / f"replica-{n}", stack) for n, primary in enumerate(primaries)]
        at = key_slot(b"{bot}") * len(primaries) // redis_servers.SLOTS

        def fail() -> None:
            primaries[at].kill()
            until_sync(lambda: is_primary(replicas[at]))

        yield primaries[at - 1].url, fail


def replica_of(primary: Server, folder: Path, stack: ExitStack) -> Server:
    folder.mkdir()
    options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
    replica = stack.enter_context(Server("valkey", folder, *options))
    replica.ask("CLUSTER", "MEET", "127.0.0.1", primary.port)
    node: Any = primary.ask("CLUSTER", "MYID")
    until_sync(lambda: node.decode() in str(replica.ask("CLUSTER", "NODES")))
    replica.ask("CLUSTER", "REPLICATE", node)
    until_sync(lambda: primary.ask("WAIT", 1, 100) == 1)
    return replica


def is_primary(server: Server) -> bool:
    role: Any = server.ask("ROLE")
    return bool(role[0] == b"master")


SET_UPS: dict[str, Callable[[Path], AbstractContextManager[SetUp]]] = {
    "always, killed": lambda folder: killed(folder, "--appendfsync", "always"),
    "everysec, killed": lambda folder: killed(folder, "--appendfsync", "everysec"),
    "no AOF, killed": lambda folder: killed(folder, "--appendonly", "no"),
    "always, without power": lambda folder: without_power(folder, "--appendfsync", "always"),
    "everysec, without power": lambda folder: without_power(folder, "--appendfsync", "everysec"),
    "Sentinel, dies": lambda folder: failed_over(folder, "dies"),
    "Sentinel, hangs": lambda folder: failed_over(folder, "hangs"),
    "Redis Cluster, dies": clustered,
}
KEEP_ALL = ("always, killed", "always, without power")
FEW = ("always, without power", "no AOF, killed")


@pytest.mark.long
@pytest.mark.timeout(240)
@pytest.mark.parametrize("name", SET_UPS if TORTURE else FEW)
@pytest.mark.parametrize("shards", ["keep up", "are behind"] if TORTURE else ["are behind"])
def test_a_set_up_loses_no_more_than_the_page_says(fork: ForkServer, tmp_path: Path, name: str, shards: str) -> None:
    store = f"{shared().url}?key_prefix={tmp_path.name}:"
    with SET_UPS[name](tmp_path) as (url, fail):
        asking, telling = asyncio.run(put_to_the_test(fork, url, store, fail, BEHIND if shards == "are behind" else {}))

    print(f"\n{name}; shards that {shards}\n  dispatched: {show(asking, store)}\n  submitted:  {show(telling, store)}")
    for platform in (asking, telling):
        assert all(each.answered is not None for each in platform.sent)
        assert twice(platform, store) == 0
    assert lost(asking, store) == 0
    assert lost(telling, store) == 0 or name not in KEEP_ALL


async def put_to_the_test(
    fork: ForkServer, url: str, store: str, fail: Callable[[], None], shape: dict[str, Any]
) -> tuple[Platform, Platform]:
    """Have the server fail under load; return who waited for answers, and who only submitted."""
    with Shards(fork, url, store, lease=LEASE, **shape) as shards:
        await asyncio.to_thread(shards.start, 2)
        async with (
            Cluster(url, cluster="bot", timeout=20.0) as cluster,
            load(cluster, rate=RATE / 2) as asking,
            load(cluster, rate=RATE / 2, name="told", waits=False) as telling,
        ):
            await asking.passes(BEFORE)
            await asyncio.to_thread(fail)
            await asking.passes(AFTER)
        await asyncio.to_thread(shards.end)
        return asking, telling


def lost(platform: Platform, store: str) -> int:
    stored = stored_tags(store, platform.sessions)
    return sum(each.answered is not None and each.tag not in stored[each.session] for each in platform.sent)


def twice(platform: Platform, store: str) -> int:
    tags = stored_tags(store, platform.sessions).values()
    return sum(count > 1 for each in tags for count in Counter(each).values())


def show(platform: Platform, store: str) -> str:
    errors = Counter(error.partition(":")[0] for each in platform.sent for error in each.errors)
    longest = max(each.wait for each in platform.sent if each.answered is not None)
    return (
        f"{len(platform.sent)} events, {lost(platform, store)} lost, {twice(platform, store)} twice,"
        f" longest wait {longest:.2f} s, errors {dict(errors) or 'none'}"
    )
