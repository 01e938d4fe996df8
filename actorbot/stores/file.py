"""Sessions as files in one folder, for one process at a time."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from hashlib import sha256
from typing import ClassVar, Final, Self

from actorbot._record import Record
from actorbot.errors import (
    ActorbotError,
    CorruptSessionError,
    InsecureStorageError,
    OutcomeUnknownError,
    StoreLockedError,
    StoreUnavailableError,
)
from actorbot.stores.base import ONE_YEAR, RecordStore, Write, check_expires_in, judge

__all__ = ["FileSessionStore"]

SUFFIX: Final = ".session"
TEMPORARY: Final = ".tmp"


class FileSessionStore(RecordStore):
    """Keeps each session in a file of its own in *directory*, which is made if need be (mode 0700, files 0600). Linux and macOS.

    File names are hashes, the id stands inside. A write goes to a temporary file that is synced and then put in place; the folder
    is synced before a batch is reported as written, so a confirmed write survives a power loss. One process at a time: a lock
    is held from `init` to `close`. All work is relative to the open folder, and no symbolic link is followed.
    """

    name: ClassVar[str] = "file"

    def __init__(self, directory: str | os.PathLike[str] = ".sessions", expires_in: float = ONE_YEAR) -> None:
        self.expires_in = check_expires_in(expires_in)
        self.directory = os.path.abspath(os.fspath(directory))
        self._folder: int | None = None
        self._lock: int | None = None

    # --- life ---------------------------------------------------------------------------------------------------------

    def init(self) -> Self:
        if self._folder is not None:
            return self
        try:
            os.makedirs(self.directory, mode=0o700, exist_ok=True)
            folder = os.open(self.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.ENOTDIR, errno.EEXIST):
                raise InsecureStorageError(
                    self.name, f"{self.directory} is a symbolic link or no folder; name the folder itself"
                ) from error
            raise StoreUnavailableError(self.name, f"{self.directory} cannot be opened: {error}") from error
        try:
            self._check_owner(folder)
            self._lock = self._take_lock(folder)
        except BaseException:
            os.close(folder)
            raise
        self._folder = folder
        self._remove_temporary_files()
        return self

    def _check_owner(self, folder: int) -> None:
        status = os.fstat(folder)
        if status.st_uid != os.geteuid():
            raise InsecureStorageError(self.name, f"{self.directory} belongs to another user (uid {status.st_uid})")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise InsecureStorageError(
                self.name, f"{self.directory} may be written by others; run: chmod 700 {self.directory}"
            )

    def _take_lock(self, folder: int) -> int:
        try:
            lock = os.open(".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600, dir_fd=folder)
        except OSError as error:
            raise InsecureStorageError(self.name, f"{self.directory}/.lock cannot be opened: {error}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise StoreLockedError(
                self.name, f"{self.directory} is open in another process or store; one at a time can have it"
            ) from error
        return lock

    def close(self) -> None:
        for descriptor in (self._lock, self._folder):
            if descriptor is not None:
                os.close(descriptor)
        self._lock = self._folder = None

    @property
    def _dir(self) -> int:
        if self._folder is None:
            raise StoreUnavailableError(self.name, f"{self.directory} is not open: init() comes first")
        return self._folder

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        return [self._read(session_id) for session_id in session_ids]

    def _read(self, session_id: str) -> Record | ActorbotError | None:
        try:
            data = self._read_file(file_name(session_id))
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno == errno.ELOOP:
                return CorruptSessionError(self.name, session_id, "its file is a symbolic link, which is not followed")
            failure = StoreUnavailableError(self.name, f"reading failed: {error}", session_id=session_id)
            failure.__cause__ = error
            return failure
        try:
            return Record.from_bytes(data, session_id=session_id, store=self.name)
        except CorruptSessionError as error:
            return error

    def _read_file(self, name: str) -> bytes:
        descriptor = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=self._dir)
        with open(descriptor, "rb") as file:
            return file.read()

    # --- writing ------------------------------------------------------------------------------------------------------

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        folder = self._dir
        outcomes = [self._write(write) for write in writes]
        try:
            os.fsync(folder)
        except OSError as error:
            raise OutcomeUnknownError(self.name, f"{self.directory} could not be synced: {error}") from error
        return outcomes

    def _write(self, write: Write) -> ActorbotError | None:
        record = write.record
        if write.base is not None:
            stored = self._read(record.session_id)
            if isinstance(stored, ActorbotError):
                return stored
            verdict = judge(self.name, write, None if stored is None else stored.write_ids)
            if isinstance(verdict, ActorbotError):
                return verdict
            if not verdict:
                return None
        name = file_name(record.session_id)
        try:
            self._put_in_place(name, record.to_bytes())
        except OSError as error:
            failure = StoreUnavailableError(self.name, f"writing failed: {error}", session_id=record.session_id)
            failure.__cause__ = error
            return failure
        return None

    def _put_in_place(self, name: str, data: bytes) -> None:
        temporary = name + TEMPORARY
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(temporary, flags, 0o600, dir_fd=self._dir)
        try:
            try:
                os.fchmod(descriptor, 0o600)  # whatever the umask
                view = memoryview(data)
                while view:
                    view = view[os.write(descriptor, view) :]
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
            os.replace(temporary, name, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        except BaseException:
            os.unlink(temporary, dir_fd=self._dir)
            raise

    # --- cleaning -----------------------------------------------------------------------------------------------------

    def sweep(self, now: float) -> Iterator[Record]:
        for name in self._names(SUFFIX):
            try:
                data = self._read_file(name)
                record = Record.from_bytes(data, session_id=Record.peek_id(data), store=self.name)
            except (OSError, ActorbotError):
                continue  # reported when somebody wants the session; a sweep leaves it as it is
            if record.expires_at <= now:
                os.unlink(name, dir_fd=self._dir)
                if record.state is not None:
                    yield record

    def _remove_temporary_files(self) -> None:
        for name in self._names(TEMPORARY):
            os.unlink(name, dir_fd=self._dir)

    def _names(self, suffix: str) -> Iterable[str]:
        # A list of names only (about 100 bytes each); scandir would skip entries while files are removed below it.
        return [name for name in os.listdir(self._dir) if name.startswith("s-") and name.endswith(suffix)]


def file_name(session_id: str) -> str:
    """Return the name of a session's file: fit for every file system, the same for no two ids."""
    return f"s-{sha256(session_id.encode()).hexdigest()}{SUFFIX}"
