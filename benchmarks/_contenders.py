"""Who is measured by `cluster`: all processes of each, in groups of shards."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from benchmarks._own_servers import end, free_port
from benchmarks._peer_env import ROOT, MissingPeerError, make
from benchmarks._programs import Program

POLICY = "write-behind:max_delay=0.5"
OURS, ALONE, SMALL, LOOPS, RAY, NATS = "actorbot", "manager, no hop", "manager", "bare loops", "ray", "nats"
PLAIN, ASYNC = "XADD + XREAD, redis-py", "XADD + XREAD, redis.asyncio"
PEERS = (RAY, NATS)
GROUPS = {"trivial": 1, "one": 1, "two": 2}
"""How many shards each group of sessions has. The handlers of the last two take the processor."""


class Contenders:
    """All processes. While one of a contender is measured, the others are idle."""

    def __init__(self, url: str, name: str, users: int, spins: int) -> None:
        self.callers: dict[str, Program] = {}
        """Whom to order what is measured."""
        self.loops: list[Program] = []
        self.shards: dict[str, int] = {}
        """The process that has the sessions of the first group."""
        self._url = url
        self._name = name
        self._users = users
        self._spins = {group: 0 if group == "trivial" else spins for group in GROUPS}

    def names(self) -> dict[str, str]:
        """Return what begins the keys of the sessions of each group, and of the managers alone."""
        return {group: f"{self._name}-{group}" for group in (*GROUPS, ALONE, SMALL)}

    def start_peer(self, stack: ExitStack, name: str, environments: Path) -> None:
        """Start another system; it ends with *stack*. Raises: MissingPeerError."""
        {RAY: self._start_ray, NATS: self._start_nats}[name](stack, *make(name, environments))

    def start(self, stack: ExitStack) -> None:
        """Start all but the other systems; they end with *stack*."""
        self.loops = [self._ours(stack, "loop", spins=self._spins["one"]) for _ in range(2)]
        for name in (PLAIN, ASYNC):
            client = name.rpartition(" ")[2]
            job = {"client": client, "name": f"{self._name}:{client}"}
            self._ours(stack, "bare", **job, side="shard")
            self.callers[name] = self._ours(stack, "bare", **job, side="caller")
        names = self.names()
        for group, shards in GROUPS.items():
            for _ in range(shards):
                shard = self._ours(stack, "shard", name=names[group], spins=self._spins[group])
                self.shards.setdefault(OURS, shard.pid)
        self.callers[OURS] = self._ours(stack, "caller", groups={group: names[group] for group in GROUPS})
        for name in (ALONE, SMALL):
            self.callers[name] = self._ours(stack, "manager", name=names[name])
        self.shards[SMALL] = self.callers[SMALL].pid

    def _start_nats(self, stack: ExitStack, command: list[str], settings: dict[str, str]) -> None:
        port = free_port()
        server = str(Path(command[0]).with_name("nats-server"))
        stack.enter_context(_running([server, "-a", "127.0.0.1", "-p", str(port)]))
        job = {"url": f"nats://127.0.0.1:{port}", "groups": GROUPS}
        for group, shards in GROUPS.items():
            for number in range(shards):
                part = {"side": "shard", "subject": f"{group}.{number}", "spins": self._spins[group]}
                shard = self._enter(stack, command, "nats_replies", settings, job | part)
                self.shards.setdefault(NATS, shard.pid)
        self.callers[NATS] = self._enter(stack, command, "nats_replies", settings, job | {"side": "caller"})

    def _start_ray(self, stack: ExitStack, command: list[str], settings: dict[str, str]) -> None:
        folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True))
        job = {"folder": folder, "groups": GROUPS, "spins": self._spins}
        settings |= {"RAY_USAGE_STATS_ENABLED": "0"}
        self.callers[RAY] = self._enter(stack, command, "ray_actors", settings, job)
        self.shards[RAY] = self.callers[RAY].ready["pid"]

    def _ours(self, stack: ExitStack, program: str, **job: Any) -> Program:
        return self._enter(stack, [sys.executable], program, {"PYTHONPATH": str(ROOT)}, {"url": self._url, **job})

    def _enter(
        self, stack: ExitStack, command: list[str], program: str, settings: Mapping[str, str], job: Mapping[str, Any]
    ) -> Program:
        common = {"policy": POLICY, "users": self._users}
        return stack.enter_context(
            Program([*command, "-m", f"benchmarks._hops.{program}"], settings, {**common, **job})
        )


@contextmanager
def _running(command: Sequence[str]) -> Iterator[None]:
    """Run a server meanwhile. Raises: MissingPeerError."""
    try:
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except OSError as exc:
        raise MissingPeerError(f"{Path(command[0]).name} does not start: {exc}") from exc
    try:
        yield
    finally:
        end(process)
