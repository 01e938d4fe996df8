"""What can be told of an open folder, judged: is it private, is there room, and does it keep what is synced?"""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Final, Literal

from actorbot.stores._finding import Finding

__all__ = ["examine_folder"]

SYNCS: Final = 5
SLOW: Final = 0.1  # seconds for a sync; a session that is flushed costs one
LEAST_ROOM: Final = 0.05  # of the space, and of the inodes
NETWORK: Final = frozenset(
    {"9p", "afs", "ceph", "cifs", "glusterfs", "lustre", "ncpfs", "nfs", "nfs4", "smb3", "smbfs", "vboxsf"}
)
PASSING: Final = frozenset({"ramfs", "tmpfs"})

Level = Literal["ok", "warning"]


def examine_folder(folder: int, temporary: str) -> Iterator[Finding]:
    """Judge the *folder*, a descriptor; a file named *temporary* is made in it, synced and removed. Raises: OSError."""
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
    level: Level = "ok" if system.f_bavail >= LEAST_ROOM * system.f_blocks else "warning"
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
