"""A file that one process at a time holds, and that a forked child does not go on holding."""

from __future__ import annotations

import os
import weakref
from pathlib import Path

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["FileLock"]


class FileLock:
    """An exclusive lock on a file, held from `take` to `release` or to the end of the process. Linux and macOS.

    `flock` belongs to the open file, which a forked child shares: without closing it there, the lock would outlive its owner.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None

    def take(self) -> None:
        """Take the lock, at once or not at all. Raises: BlockingIOError if somebody has it; OSError."""
        if fcntl is None:
            raise OSError("it needs flock, which this platform lacks; Linux and macOS have it")
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(self._path, flags, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        _held.add(self)

    def release(self) -> None:
        """Let it go; twice is no error. Its file stays: removing it would let two processes lock two files of one name."""
        file, self._file = self._file, None
        if file is not None:
            os.close(file)
        _held.discard(self)


_held: weakref.WeakSet[FileLock] = weakref.WeakSet()


def _after_fork() -> None:
    for lock in list(_held):
        lock.release()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power loss."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
