"""A file that one process at a time holds, and that a forked child does not go on holding.

It says who holds it, so that the next one to come can be told.
"""

from __future__ import annotations

import json
import os
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Final

from actorbot._runtime.forks import kept_from_children
from actorbot._runtime.locked import locked, show_time
from actorbot._runtime.process import Process, is_gone, this_process
from actorbot.errors import StoreLockedError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

__all__ = ["HAS_FLOCK", "FileLock", "HeldError", "is_named", "sync_folder"]

HAS_FLOCK: Final = fcntl is not None
NO_FLOCK: Final = "it needs flock, which this platform lacks; Linux and macOS have it"
MOST: Final = 4096  # bytes that are read of what a lock says

# The locks of this process by name, however the name is written. A locked file may have been
# removed meanwhile: then another file of its name can be locked too, and means the same.
_held: Final[dict[str, FileLock]] = {}


class HeldError(BlockingIOError):
    """Somebody has the lock: *owner*, as far as is known; or *is_here*, in this process."""

    def __init__(self, owner: str | None, *, is_here: bool = False) -> None:
        super().__init__("the lock is held")
        self.owner = owner
        self.is_here = is_here

    def tell(self, store: str, place: str, ways_on: str) -> StoreLockedError:
        """Make the error of the *store* or journal that the lock belongs to."""
        return locked(store, self.owner, ways_on, place=place, is_here=self.is_here)


class FileLock:
    """An exclusive lock on the file *path*, held from `take` to `release`. Linux and macOS.

    It ends with the process too. `flock` belongs to the open file, which a forked child shares:
    if the child did not close it, the lock would outlive its owner.
    """

    def __init__(self, path: str) -> None:
        self._path = Path(path)
        self._name: str | None = None  # in `_held`
        self._file: int | None = None
        self._process = 0  # whose lock it is: a child that lets go of it must not end it for its parent

    def take(self, *, dir_fd: int | None = None) -> None:
        """Take the lock, at once or not at all; the file may be in the open folder *dir_fd*.

        Raises: HeldError if somebody has it; OSError.
        """
        if fcntl is None:
            raise OSError(NO_FLOCK)
        self._name = str(self._path.parent.resolve() / self._path.name)
        if _held.setdefault(self._name, self) is not self:
            self._name = None
            raise HeldError(str(this_process()), is_here=True)
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        try:
            self._file = os.open(self._path if dir_fd is None else self._path.name, flags, 0o600, dir_fd=dir_fd)
            os.fchmod(self._file, 0o600)  # whatever the umask: who comes next must be able to open it
            _lock(self._file)
        except BaseException:
            self.release()
            raise
        self._process = os.getpid()
        kept_from_children.add(self)

    def is_here(self, *, dir_fd: int | None = None) -> bool:
        """Tell whether it is held, and the locked file still has its name. Raises: OSError."""
        if self._file is None:
            return False
        return is_named(self._file, self._path if dir_fd is None else self._path.name, dir_fd=dir_fd)

    def release(self) -> None:
        """Let it go; twice is no error.

        The file stays: if it were removed, two processes could lock two files of one name.
        """
        file, self._file = self._file, None
        if file is not None:
            if self._process == os.getpid():
                # A child that has just begun may still have the file open, and with it the lock.
                fcntl.flock(file, fcntl.LOCK_UN)
            os.close(file)
        if self._name is not None:
            del _held[self._name]
            self._name = None
        kept_from_children.discard(self)

    def _leave_to_parent(self) -> None:
        self.release()


def _lock(file: int) -> None:
    """Lock an open file, and sign it. Raises: HeldError, OSError."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise _held_by(file) from error
    _sign(file)


def _sign(file: int) -> None:
    """Write into a lock who has it."""
    with suppress(OSError):  # a full disk: only the name is missing
        os.ftruncate(file, 0)
        os.pwrite(file, json.dumps(asdict(this_process())).encode(), 0)


def _held_by(file: int) -> HeldError:
    """Read who has a lock; what it says may be torn, or another's who had it before."""
    try:
        process = Process.from_fields(json.loads(os.pread(file, MOST, 0)))
        since = show_time(os.fstat(file).st_mtime)
    except (OSError, TypeError, ValueError, RecursionError):
        return HeldError(None)
    if is_gone(process):
        return HeldError(None)
    return HeldError(f"{process}, exclusive, since {since}", is_here=process == this_process())


def is_named(file: int, path: str | Path, *, dir_fd: int | None = None) -> bool:
    """Tell whether *path* is the name of the open *file*, or folder. Raises: OSError."""
    try:
        found = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
    except FileNotFoundError:
        return False
    return os.path.samestat(found, os.fstat(file))


def sync_folder(path: Path) -> None:
    """Make the names in a folder survive a power loss."""
    folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
