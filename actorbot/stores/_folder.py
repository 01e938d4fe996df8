"""The open folder of a file store, with its lock: is it still the one of its name?"""

from __future__ import annotations

import errno
import logging
import os
import stat
from contextlib import ExitStack
from pathlib import Path
from typing import Final

from actorbot._runtime.file_lock import FileLock, HeldError, is_named, sync_folder
from actorbot.errors import InsecureStorageError, StoreError, StoreUnavailableError

__all__ = ["LOCK", "TEMPORARY", "Folder"]

logger = logging.getLogger("actorbot")

NAME: Final = "file"
LOCK: Final = ".lock"
TEMPORARY: Final = ".tmp"


class Folder:
    """The folder *path*, and the lock of the one process that may have it.

    Not thread-safe; the number of the open folder stays the same from `open` to `close`.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = FileLock(os.path.join(path, LOCK))
        self._folder: int | None = None

    @property
    def is_open(self) -> bool:
        return self._folder is not None

    @property
    def number(self) -> int:
        """Of the open folder. Raises: StoreUnavailableError."""
        if self._folder is None:
            raise StoreUnavailableError(NAME, f"{self.path} is not open: init() comes first")
        return self._folder

    def open(self) -> None:
        """Open the folder and lock it; make it, with mode 0700, if it is missing.

        Raises: StoreLockedError, InsecureStorageError, StoreUnavailableError.
        """
        try:
            with ExitStack() as undo:
                folder = _open_folder(Path(self.path))
                undo.callback(os.close, folder)
                self._check_owner(folder)
                self._lock.take(dir_fd=folder)
                undo.callback(self._lock.release)
                _remove_temporary_files(folder)
                undo.pop_all()
        except OSError as error:
            raise self._explain(error) from error
        if self._folder is None:
            self._folder = folder
        else:  # whoever uses the number meanwhile finds the new folder under it
            os.dup2(folder, self._folder, inheritable=False)
            os.close(folder)

    def _check_owner(self, folder: int) -> None:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid():
            raise InsecureStorageError(NAME, f"{self.path} belongs to another user (uid {status.st_uid})")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise InsecureStorageError(NAME, f"{self.path} may be written by others; run: chmod 700 {self.path}")

    def _explain(self, error: OSError) -> StoreError:
        if isinstance(error, HeldError):
            return error.tell(NAME, self.path, "Close that one: a folder is for one store of one process at a time")
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            return InsecureStorageError(
                NAME,
                f"{self.path} is not a folder, or it or its file .lock is a symbolic link; name the folder itself",
            )
        return StoreUnavailableError(NAME, f"{self.path} cannot be opened: {error}")

    def is_here(self) -> bool:
        """Tell whether the open folder and its lock still have their names. Raises: OSError."""
        folder = self.number
        return is_named(folder, self.path) and self._lock.is_here(dir_fd=folder)

    def return_to(self) -> None:
        """Go back to the folder of this name, if the open one or its lock is not there any more.

        What was removed is made again. A folder that was moved away is not: it has the sessions.
        Raises: as `open`.
        """
        try:
            if self.is_here():
                return
            is_gone = not os.path.lexists(self.path)
            if is_gone and os.fstat(self.number).st_nlink > 0:
                raise StoreUnavailableError(NAME, f"{self.path} was moved away; move it back, or restart the bot")
        except OSError as error:
            raise self._explain(error) from error
        self._lock.release()  # of a file that has no name any more, or of another folder
        self.open()
        what = "was removed, and was made again" if is_gone else "was replaced, or its lock removed"
        logger.error("%s: %s while it was in use; sessions in memory are written again", NAME, f"{self.path} {what}")

    def close(self) -> None:
        """Let go of the folder and the lock; twice is no error."""
        folder, self._folder = self._folder, None
        if folder is not None:
            os.close(folder)
        self._lock.release()


def _open_folder(path: Path) -> int:
    """Open the folder; make what is missing of it, so that it is there after a power loss too."""
    for folder in reversed([each for each in (path, *path.parents) if not os.path.lexists(each)]):
        folder.mkdir(0o700 if folder == path else 0o777, exist_ok=True)
        sync_folder(folder.parent)
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _remove_temporary_files(folder: int) -> None:
    for name in os.listdir(folder):
        if name.startswith("s-") and name.endswith(TEMPORARY):
            os.unlink(name, dir_fd=folder)
