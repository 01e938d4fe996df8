"""A file that one process at a time holds, and that a forked child does not go on holding."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Final

from actorbot._runtime.forks import kept_from_children

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["HAS_FLOCK", "FileLock", "sync_folder"]

HAS_FLOCK: Final = fcntl is not None
NO_FLOCK: Final = "it needs flock, which this platform lacks; Linux and macOS have it"


class FileLock:
    """An exclusive lock on the file *path*, held from `take` to `release`. Linux and macOS.

    It ends with the process too. `flock` belongs to the open file, which a forked child shares:
    if the child did not close it, the lock would outlive its owner.
    """

    def __init__(self, path: str) -> None:
        self._path = path
        self._file: int | None = None

    def take(self, *, dir_fd: int | None = None) -> None:
        """Take the lock, at once or not at all; the path may start at the open folder *dir_fd*.

        Raises: BlockingIOError if somebody has it; OSError.
        """
        if fcntl is None:
            raise OSError(NO_FLOCK)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(self._path, flags, 0o600, dir_fd=dir_fd)
        try:
            os.fchmod(file, 0o600)  # whatever the umask: who comes next must be able to open it
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BaseException:
            os.close(file)
            raise
        self._file = file
        kept_from_children.add(self)

    def release(self) -> None:
        """Let it go; twice is no error.

        The file stays: if it were removed, two processes could lock two files of one name.
        """
        file, self._file = self._file, None
        if file is not None:
            os.close(file)
        kept_from_children.discard(self)

    def _leave_to_parent(self) -> None:
        self.release()


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power loss."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
