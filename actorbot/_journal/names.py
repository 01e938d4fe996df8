"""Whether the files of a journal still have their names.

A file that was removed can be written to as long as it is open, and is gone with the process.
"""

from __future__ import annotations

import stat
import time
from pathlib import Path
from typing import Final

from actorbot._runtime.locked import locked
from actorbot._runtime.process import this_process
from actorbot.errors import InsecureStorageError, JournalError

__all__ = ["WAYS_ON", "Names"]

NAME: Final = "journal"
WAYS_ON: Final = "Close that one, or name another file: each manager needs a journal of its own"
SETTLED: Final = 2_000_000_000  # nanoseconds: by then a folder's time is surely another after a change

_File = tuple[int, int]
"""A device, and a file's number on it."""

# The files that journals of this process have open. To open one of them under a second name, and to
# close it, would end SQLite's lock on it.
_open: Final[set[_File]] = set()


class Names:
    """The names of the file *path* and of its `-wal`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._wal = path.with_name(f"{path.name}-wal")
        self._files: dict[Path, _File] = {}  # what has each name, as far as is known
        # The folder, and when a name in it has last changed, if no name has been lost until then.
        self._whole: tuple[int, int, int] | None = None

    def look(self) -> None:
        """Look at what has the name now, before anything is opened or made.

        Raises: InsecureStorageError; StoreLockedError if this process has it, by any name; OSError.
        """
        try:
            status = self._path.stat(follow_symlinks=False)
        except FileNotFoundError:
            return
        if stat.S_ISLNK(status.st_mode):
            raise InsecureStorageError(NAME, f"{self._path} is a symbolic link; name the file itself")
        if not stat.S_ISREG(status.st_mode):
            raise InsecureStorageError(NAME, f"{self._path} is no file")
        if (status.st_dev, status.st_ino) in _open:
            ways_on = f"Perhaps by another name. {WAYS_ON}"
            raise locked(NAME, str(this_process()), ways_on, place=str(self._path), is_here=True)

    def note(self) -> None:
        """Note that the files of these names have been opened. Raises: OSError."""
        self.forget()
        self._files[self._path] = _identify(self._path)
        _open.add(self._files[self._path])

    def forget(self) -> None:
        """Note that the files are closed."""
        _open.discard(self._files.get(self._path, (0, 0)))
        self._files.clear()
        self._whole = None

    def are_whole(self) -> bool:
        """Tell whether no name in the folder has changed since the last look at all of them.

        One call to the system instead of four: after each, another thread may hold the interpreter.
        Raises: OSError.
        """
        try:
            folder = self._path.parent.stat()
        except FileNotFoundError:
            return False
        return (folder.st_dev, folder.st_ino, folder.st_mtime_ns) == self._whole

    def find_lost(self) -> str | None:
        """Look at all names; return one that is gone, or has another file. Raises: OSError."""
        began = time.time_ns()
        path = self._path.parent
        try:
            folder = path.stat()
            for path in (self._path, self._wal):
                found = _identify(path)
                if self._files.setdefault(path, found) != found:
                    return str(path)
        except FileNotFoundError:
            return str(path)
        if folder.st_mtime_ns < began - SETTLED:
            self._whole = folder.st_dev, folder.st_ino, folder.st_mtime_ns
        return None

    def check_place(self) -> None:
        """Raise JournalError if another file has the journal's name. Raises: OSError."""
        try:
            found = _identify(self._path)
        except FileNotFoundError:
            return
        if found != self._files.get(self._path, found):
            raise JournalError(NAME, f"another file has taken the place of {self._path}; move that away")


def _identify(path: Path) -> _File:
    status = path.stat(follow_symlinks=False)
    return status.st_dev, status.st_ino
