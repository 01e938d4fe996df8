"""What somebody who looks at a store has found, and how each kind of store is judged.

A server is judged by what it says of itself, a folder by its mode, its disk and a few syncs. The
text of each finding goes on from the name of what was looked at: "localhost:6379" "is a replica,
…".
"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final, Literal

__all__ = ["CLOCK_WARNS", "Finding", "has_expiry", "judge_clock", "judge_folder", "judge_mongo", "judge_redis"]

CLOCK_WARNS: Final = 5.0  # seconds that two clocks may differ: NTP, just started, gets that close


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a store, and how good that is for sessions."""

    what: str
    """What was looked at, in a word or two."""
    level: Literal["ok", "warning", "failure"]
    """`failure`: no bot can keep its sessions here. `warning`: it can, and may lose some."""
    text: str
    """What was found, and what to do about it."""


def judge_clock(ahead: float) -> Finding:
    """Judge a server's clock: it is *ahead* seconds ahead of the clock here (below 0: behind)."""
    text = f"{abs(ahead):.3f} s {'ahead of' if ahead >= 0 else 'behind'} the clock here"
    if abs(ahead) <= CLOCK_WARNS:
        return Finding("clock", "ok", text)
    text += ", and sessions end by the server's; let both follow a time server (NTP)"
    return Finding("clock", "warning", text)


# --- a folder -----------------------------------------------------------------------------------


SYNCS: Final = 5
SLOW: Final = 0.1  # seconds for a sync; each flush of a session makes one
LEAST_ROOM: Final = 0.05  # of the space, and of the inodes
NETWORK: Final = frozenset(
    {"9p", "afs", "ceph", "cifs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs", "vboxsf"}
)
PASSING: Final = frozenset({"ramfs", "tmpfs"})


def judge_folder(folder: int, temporary: str) -> Iterator[Finding]:
    """Judge the open folder *folder*. A file named *temporary* is made in it, synced and removed.

    Raises: OSError if it cannot be used.
    """
    status = os.fstat(folder)
    yield _mode(status)
    yield from _room(os.fstatvfs(folder))
    kind = _file_system(status.st_dev)
    if kind is not None:
        yield _kind(kind)
    yield _sync(folder, temporary)


def _mode(status: os.stat_result) -> Finding:
    mode = stat.S_IMODE(status.st_mode)
    if mode & 0o077:
        return Finding("owner and mode", "warning", f"others may look into it (mode {mode:04o}); run chmod 700 on it")
    return Finding("owner and mode", "ok", f"belongs to the user who asks (uid {status.st_uid}, mode {mode:04o})")


def _room(system: os.statvfs_result) -> Iterator[Finding]:
    free = system.f_bavail * system.f_frsize
    level: Literal["ok", "warning"] = "ok" if system.f_bavail >= LEAST_ROOM * system.f_blocks else "warning"
    text = f"{free / 2**30:.1f} of {system.f_blocks * system.f_frsize / 2**30:.1f} GiB are free"
    yield Finding("space", level, text if level == "ok" else f"{text}; writes will fail when it is full")
    if system.f_files:  # some file systems make inodes as they need them, and say 0
        level = "ok" if system.f_favail >= LEAST_ROOM * system.f_files else "warning"
        text = f"{system.f_favail:,} of {system.f_files:,} are free, and each session takes one"
        yield Finding("inodes", level, text if level == "ok" else f"{text}; writes will fail when there are none")


def _file_system(device: int) -> str | None:
    """Return the type of the file system, where Linux tells it."""
    number = f"{os.major(device)}:{os.minor(device)}"
    try:
        mounts = Path("/proc/self/mountinfo").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    fields = (line.split(" - ", 1) for line in mounts if line.split(" ", 3)[2] == number)
    return next((behind.split(" ", 1)[0] for _, behind in fields), None)


def _kind(kind: str) -> Finding:
    if kind.removeprefix("fuse.") in {*NETWORK, "sshfs"}:
        text = f"is {kind}, on another machine: its locks may not hold and its syncs may not last; use a local disk"
        return Finding("file system", "warning", text)
    if kind in PASSING:
        return Finding("file system", "warning", f"is {kind}: in memory, and gone when the machine ends; use a disk")
    return Finding("file system", "ok", f"is {kind}")


def _sync(folder: int, temporary: str) -> Finding:
    seconds = []
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    for _ in range(SYNCS):
        descriptor = os.open(temporary, flags, 0o600, dir_fd=folder)
        try:
            os.write(descriptor, bytes(1000))
            began = time.perf_counter()
            os.fsync(descriptor)
            os.fsync(folder)
            seconds.append(time.perf_counter() - began)
        finally:
            os.close(descriptor)
            os.unlink(temporary, dir_fd=folder)
    typical, worst = median(seconds), max(seconds)
    text = f"takes {typical * 1000:.1f} ms, at worst {worst * 1000:.1f} ms, for a file and its folder"
    if typical > SLOW:
        return Finding("sync", "warning", f"{text}; use a faster disk, or a server")
    return Finding("sync", "ok", text)


# --- a Redis or Valkey server: will it do, and may it lose sessions? ----------------------------


OLDEST: Final = (6, 2)  # the oldest that is tested
FULL: Final = 0.9  # of its memory limit


def judge_redis(facts: Mapping[str, str], *, in_cluster: bool) -> Iterator[Finding]:
    """Judge the *facts* of `INFO` and `CONFIG GET`, as far as this user may ask for them."""
    if "redis_version" in facts:
        yield _version(facts)
    if "sentinel" in (facts.get("redis_mode"), facts.get("server_mode")):  # Valkey says the second
        yield Finding("role", "failure", "is a Sentinel, which keeps no sessions; name the primary that it watches")
    if "role" in facts:
        yield _redis_role(facts, in_cluster)
    if "aof_enabled" in facts and "save" in facts:
        yield _redis_persistence(facts)
    if "maxmemory_policy" in facts:
        yield _eviction(facts["maxmemory_policy"])
    if "maxmemory" in facts:
        yield _memory(int(facts["maxmemory"]), int(facts.get("used_memory", 0)))


def _version(facts: Mapping[str, str]) -> Finding:
    spoken = facts["redis_version"]  # Valkey names the Redis release that it is like
    if tuple(int(part) for part in spoken.split(".")[:2]) < OLDEST:
        return Finding("version", "failure", f"runs Redis {spoken}; 6.2 is the oldest that will do")
    valkey = facts.get("valkey_version")
    return Finding("version", "ok", f"runs Valkey {valkey}" if valkey else f"runs Redis {spoken}")


def _redis_role(facts: Mapping[str, str], in_cluster: bool) -> Finding:
    if in_cluster:
        return Finding("role", "ok", f"is a {'replica' if facts['role'] == 'slave' else 'primary'} in a cluster")
    if facts["role"] == "slave":
        primary = f"{facts.get('master_host')}:{facts.get('master_port')}"
        return Finding("role", "failure", f"is a replica, which takes no writes; name its primary, {primary}")
    replicas = facts.get("connected_slaves", "0")
    text = f"is a primary with {replicas} replicas"
    if replicas != "0":
        text += "; when one takes over, bots follow only a name that leads to it then"
    return Finding("role", "ok", text)


def _redis_persistence(facts: Mapping[str, str]) -> Finding:
    if facts["aof_enabled"] != "0":
        sync = facts.get("appendfsync", "unknown")
        return Finding("persistence", "ok", f"logs each write (appendonly yes, appendfsync {sync})")
    loses = (
        "what came since its last snapshot when it crashes"
        if facts["save"]
        else "all sessions when it ends: its persistence is off"
    )
    return Finding("persistence", "warning", f"loses {loses}; set appendonly to yes")


def _eviction(policy: str) -> Finding:
    if policy == "noeviction":
        return Finding("eviction", "ok", "evicts nothing (maxmemory-policy noeviction)")
    text = f"may evict sessions when its memory is full (maxmemory-policy {policy}); set it to noeviction"
    return Finding("eviction", "warning", text)


def _memory(limit: int, used: int) -> Finding:
    if not limit:
        return Finding("memory", "ok", f"uses {used / 2**20:.1f} MiB, without a limit of its own (maxmemory 0)")
    text = f"uses {used / 2**20:.1f} of {limit / 2**20:.1f} MiB (maxmemory)"
    if used < FULL * limit:
        return Finding("memory", "ok", text)
    return Finding("memory", "warning", f"{text}; give it more before it refuses writes")


# --- a MongoDB server: may it lose sessions, and does it remove those that have ended? ----------


def judge_mongo(
    hello: Mapping[str, Any],
    version: str,
    status: Mapping[str, Any] | None,
    indexes: Sequence[Mapping[str, Any]] | None,
) -> Iterator[Finding]:
    """Judge the answer to `hello`, the *version*, `serverStatus` and a collection's *indexes*.

    The last two are `None` if this user may not ask for them.
    """
    yield Finding("version", "ok", f"runs MongoDB {version}")
    yield _mongo_role(hello)
    yield _mongo_persistence(status)
    yield Finding("writes", "ok", "are confirmed by a majority and journaled (w=majority, j=true)")
    if indexes is None:
        yield Finding("expiry", "warning", "cannot be told: this user may not ask for the collection's indexes")
    elif has_expiry(indexes):
        yield Finding("expiry", "ok", "has a TTL index on expireAt, which removes what has ended")
    else:
        there = any(list(each["key"]) == [("expireAt", 1)] for each in indexes)
        cure = "drop the other index on expireAt" if there else "a bot makes it when it starts"
        yield Finding("expiry", "warning", f"has no TTL index on expireAt, so expired sessions are not removed; {cure}")


def has_expiry(indexes: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether one of the *indexes* makes the server remove what has ended."""
    return any(list(each["key"]) == [("expireAt", 1)] and "expireAfterSeconds" in each for each in indexes)


def _mongo_role(hello: Mapping[str, Any]) -> Finding:
    if hello.get("msg") == "isdbgrid":
        return Finding("role", "ok", "is a router of a sharded cluster")
    if not hello.get("isWritablePrimary"):
        return Finding(
            "role", "failure", f"takes no writes; name its primary, {hello.get('primary', 'which is unknown')}"
        )
    if "setName" not in hello:
        return Finding("role", "ok", "is a standalone server, whose disk has the only copy")
    members = len(hello.get("hosts", ()))
    return Finding("role", "ok", f"is the primary of replica set {hello['setName']}, which has {members} with data")


def _mongo_persistence(status: Mapping[str, Any] | None) -> Finding:
    if status is None:
        return Finding("persistence", "warning", "cannot be told: this user may not ask for serverStatus")
    engine = status.get("storageEngine", {})
    name = engine.get("name", "unknown")
    if not engine.get("persistent", False):
        return Finding("persistence", "warning", f"loses all sessions when it ends: its storage engine is {name}")
    return Finding("persistence", "ok", f"keeps what it has on disk (storage engine {name})")
