"""Sessions as files in one folder, for one process at a time."""

from __future__ import annotations

import errno
import os
import threading
from collections.abc import Iterator, Sequence
from hashlib import sha256
from math import floor
from typing import ClassVar, Final, Self

from actorbot._runtime.file_lock import HAS_FLOCK, NO_FLOCK
from actorbot._runtime.forks import kept_from_children
from actorbot._state.record import Record
from actorbot.errors import (
    ActorbotError,
    ConfigError,
    CorruptSessionError,
    OutcomeUnknownError,
    StoreError,
    StoreLockedError,
    StoreUnavailableError,
)
from actorbot.stores._findings import Finding, judge_folder
from actorbot.stores._folder import LOCK, TEMPORARY, Folder
from actorbot.stores.base import ASIDE_AGE, ONE_YEAR, RecordStore, Verdict, Write, check_expires_in, judge

__all__ = ["FileSessionStore"]

SUFFIX: Final = ".session"
DAMAGED: Final = ".damaged"  # after SUFFIX: what was set aside
LATEST: Final = 2**33  # seconds, in the year 2242: file systems can keep such a time, or clamp it


class FileSessionStore(RecordStore):
    """Keeps each session in a file of its own in *directory*. Linux and macOS.

    The folder is made if it is missing (mode 0700, files 0600). File names are hashes; the id is in
    the file. A write goes to a temporary file, which is synced and then put in place. The folder is
    synced before a batch is reported as written: so a confirmed write survives a power loss. One
    process at a time can have the folder: a lock is held from `init` to `close`. All work is
    relative to the open folder, and no symbolic link is followed.

    Each batch looks whether the folder and its lock are still there. A folder that was removed is
    made again, and one that was put in its place is used; what is in memory is written there. If
    the folder was moved away, or somebody else has locked the new one, nothing is written or read
    until that has changed: `flaw` says so.

    A file's time of modification is its record's `expires_at`: so a sweep opens only files whose
    session may have ended.

    Raises: ConfigError, StoreUnavailableError where the platform has no `flock` (Windows).
    """

    name: ClassVar[str] = "file"

    def __init__(self, directory: str | os.PathLike[str] = ".sessions", *, expires_in: float = ONE_YEAR) -> None:
        if not HAS_FLOCK:  # on Windows the package can be imported, but this store cannot be made
            raise StoreUnavailableError(self.name, NO_FLOCK)
        self.expires_in = check_expires_in(expires_in)
        given: object = directory
        path = os.fspath(given) if isinstance(given, str | os.PathLike) else None
        if not isinstance(path, str) or not path or "\0" in path:
            raise ConfigError("directory", directory, "the path of a folder")
        self.directory = os.path.abspath(os.path.expanduser(directory))
        self._folder = Folder(self.directory)
        # Guards changes of `_folder`, and makes comparing and replacing one step. Held across the
        # read of one record and a rename, for which a file system has no single call. Held across a
        # sync only when the folder has to be made again.
        self._swap = threading.Lock()

    # --- life ------------------------------------------------------------------------------------

    def init(self) -> Self:
        if not self._folder.is_open:
            self._folder.open()
            kept_from_children.add(self)
        self.flaw = None
        return self

    def look(self) -> str | None:
        if not self._folder.is_open:
            if not os.path.lexists(self.directory):
                return f"there is no folder {self.directory}"
            if os.path.isdir(self.directory) and not _has_been_a_store(self.directory):
                return f"there are no sessions in the folder {self.directory}"
        self.init()
        return None

    def examine(self) -> Iterator[Finding]:
        if not os.path.lexists(self.directory):
            text = f"{self.directory} is not there; a bot makes it when it starts; look at the path if you expected it"
            yield Finding("reach", "warning", text)
            return
        try:
            self.init()
        except StoreLockedError as error:
            yield Finding("owner", "failure", str(error))
            return
        yield Finding("reach", "ok", f"{self.directory} opens")
        yield Finding("owner", "ok", "nobody: no process has the folder open")
        try:
            yield from judge_folder(self._dir, f"s-{os.urandom(8).hex()}{TEMPORARY}")
        except OSError as error:
            raise StoreUnavailableError(self.name, f"{self.directory} cannot be used: {error}") from error

    def close(self) -> None:
        with self._swap:
            self._folder.close()
        kept_from_children.discard(self)

    def _leave_to_parent(self) -> None:
        self._swap = threading.Lock()  # the old one may be held by a thread that the child lacks
        self.close()

    @property
    def _dir(self) -> int:
        return self._folder.number

    def _return(self) -> None:
        """Look whether the open folder is still the one of its name, and go back to that if not."""
        if not self._folder.is_open:
            return
        with self._swap:
            try:
                self._folder.return_to()
            except StoreError as error:
                self.flaw = str(error)
                if isinstance(error, StoreUnavailableError):
                    raise
                raise StoreUnavailableError(
                    self.name, f"it is lost: {self.flaw.removeprefix(f'{self.name}: ')}"
                ) from error
            self.flaw = None

    # --- reading ---------------------------------------------------------------------------------

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        self._return()
        return [self._read(session_id) for session_id in session_ids]

    def _read(self, session_id: str) -> Record | ActorbotError | None:
        try:
            data = self._read_file(file_name(session_id))
        except FileNotFoundError:
            return None
        except OSError as error:
            if error.errno in (errno.ELOOP, errno.EISDIR):
                reason = "its file is a folder, or a symbolic link, which is not followed"
                return CorruptSessionError(self.name, session_id, reason)
            failure = StoreUnavailableError(self.name, f"reading failed: {error}", session_id=session_id)
            failure.__cause__ = error
            return failure
        try:
            return Record.from_bytes(data, session_id=session_id, store=self.name)
        except CorruptSessionError as error:
            return error

    def _read_file(self, name: str) -> bytes:
        flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK  # the last: a pipe must not block
        descriptor = os.open(name, flags, dir_fd=self._dir)
        try:
            return b"".join(iter(lambda: os.read(descriptor, 65_536), b""))
        finally:
            os.close(descriptor)

    def scan(self) -> Iterator[Record | ActorbotError]:
        for name in self._names():
            try:
                data = self._read_file(name)
            except FileNotFoundError:
                continue  # it was removed in the meantime
            except OSError as error:
                yield StoreUnavailableError(self.name, f"{self.directory}/{name} cannot be read: {error}")
                continue
            yield self._to_record(name, data)

    def _to_record(self, name: str, data: bytes) -> Record | ActorbotError:
        session_id = Record.peek_id(data)
        if session_id and file_name(session_id) != name:
            return CorruptSessionError(self.name, session_id, f"{self.directory}/{name} is not the name of its file")
        try:
            return Record.from_bytes(data, session_id=session_id, store=self.name)
        except CorruptSessionError as error:
            return CorruptSessionError(self.name, session_id or name, error.reason)

    def count(self) -> int:
        return len(self._names())

    def _names(self) -> list[str]:
        try:
            return [name for name in os.listdir(self._dir) if name.startswith("s-") and name.endswith(SUFFIX)]
        except OSError as error:
            raise StoreUnavailableError(self.name, f"{self.directory} cannot be listed: {error}") from error

    # --- writing ---------------------------------------------------------------------------------

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        self._return()
        folder = self._dir
        outcomes = [self._write(write) for write in writes]
        try:
            os.fsync(folder)
            is_here = self._folder.is_here()
        except OSError as error:
            raise OutcomeUnknownError(self.name, f"{self.directory} could not be synced: {error}") from error
        if not is_here:
            raise OutcomeUnknownError(self.name, f"{self.directory} was removed while it was written to")
        return outcomes

    def _write(self, write: Write) -> ActorbotError | None:
        session_id = write.record.session_id
        name = file_name(session_id)
        temporary = f"{name}.{os.urandom(8).hex()}{TEMPORARY}"
        try:
            self._write_file(temporary, write.record)
            with self._swap:
                verdict = self._judge(write)
                if isinstance(verdict, CorruptSessionError) and write.over_damage:
                    self._put_aside(name, verdict)
                    verdict = Verdict.WRITE
                if verdict is Verdict.WRITE:
                    os.replace(temporary, name, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        except OSError as error:
            self._discard(temporary)
            failure = StoreUnavailableError(self.name, f"writing failed: {error}", session_id=session_id)
            failure.__cause__ = error
            return failure
        if verdict is Verdict.WRITE:
            return None
        self._discard(temporary)
        if verdict is Verdict.CONFLICT:
            return write.conflict(self.name)
        return verdict if isinstance(verdict, ActorbotError) else None

    def _judge(self, write: Write) -> Verdict | ActorbotError:
        if write.base is None:
            return Verdict.WRITE
        stored = self._read(write.record.session_id)
        if isinstance(stored, ActorbotError):
            return stored
        return judge(write, None if stored is None else stored.write_ids)

    def _put_aside(self, name: str, damage: CorruptSessionError) -> None:
        aside = f"{name}{DAMAGED}"
        if os.access(aside, os.F_OK, dir_fd=self._dir, follow_symlinks=False):  # of an earlier damage
            aside = f"{name.removesuffix(SUFFIX)}-{os.urandom(4).hex()}{SUFFIX}{DAMAGED}"
        os.rename(name, aside, src_dir_fd=self._dir, dst_dir_fd=self._dir)
        os.utime(aside, dir_fd=self._dir, follow_symlinks=False)  # it is kept from now on
        self.note_damage(damage.session_id or "", damage.reason, f"kept for a week as {self.directory}/{aside}")

    def _write_file(self, name: str, record: Record) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        descriptor = os.open(name, flags, 0o600, dir_fd=self._dir)
        try:
            os.fchmod(descriptor, 0o600)  # whatever the umask
            view = memoryview(record.to_bytes())
            while view:
                view = view[os.write(descriptor, view) :]
            ends = floor(min(max(record.expires_at, 0), LATEST))  # rounded down: never after the record's end
            os.utime(descriptor, (ends, ends))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _discard(self, temporary: str) -> None:
        try:
            os.unlink(temporary, dir_fd=self._dir)
        except OSError:
            # It was not made; or the disk fails, which is being reported. `init` removes what is
            # left.
            pass

    # --- cleaning --------------------------------------------------------------------------------

    def sweep(self, now: float) -> Iterator[Record]:
        self._return()
        try:
            for name in _ended_files(self._dir, now):
                with self._swap:
                    record = self._remove_if_ended(name, now)
                if record is not None and record.state is not None:
                    yield record
            for name in _ended_files(self._dir, now - ASIDE_AGE, SUFFIX + DAMAGED):
                os.unlink(name, dir_fd=self._dir)
        except OSError as error:
            raise StoreUnavailableError(self.name, f"{self.directory} cannot be swept: {error}") from error

    def _remove_if_ended(self, name: str, now: float) -> Record | None:
        try:
            data = self._read_file(name)
            record = Record.from_bytes(data, session_id=Record.peek_id(data), store=self.name)
        except (OSError, CorruptSessionError):
            return None  # left as it is; it is reported when somebody wants the session
        if not record.is_expired(now):
            return None
        os.unlink(name, dir_fd=self._dir)
        return record


def _has_been_a_store(directory: str) -> bool:
    """Tell whether there is a lock in the folder, or a session, as in a backup that came back."""
    try:
        with os.scandir(directory) as entries:
            return any(entry.name == LOCK or entry.name.endswith(SUFFIX) for entry in entries)
    except OSError:
        return True  # `init` says why


def _ended_files(folder: int, now: float, suffix: str = SUFFIX) -> list[str]:
    """List the files whose session may have ended, by the file times alone.

    So 100,000 sessions that live on cost a fraction of a second.
    """
    with os.scandir(folder) as entries:
        return [
            entry.name
            for entry in entries
            if entry.name.startswith("s-")
            and entry.name.endswith(suffix)
            and not entry.is_dir(follow_symlinks=False)
            and entry.stat(follow_symlinks=False).st_mtime <= now
        ]


def file_name(session_id: str) -> str:
    """Return the name of a session's file: another for each id, fit for every file system."""
    return f"s-{sha256(session_id.encode()).hexdigest()}{SUFFIX}"
