"""The journal's file: numbered rows in SQLite.

When `commit` returns, its rows are on the disk, however many they are.
"""

from __future__ import annotations

import ctypes
import os
import sqlite3
import stat
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final, Literal

from actorbot._journal.names import WAYS_ON, Names
from actorbot._journal.wal import find_flaw
from actorbot._runtime.file_lock import FileLock, HeldError, sync_folder
from actorbot._runtime.forks import kept_from_children
from actorbot._runtime.locked import locked
from actorbot.errors import InsecureStorageError, JournalError, StoreUnavailableError

__all__ = ["KEPT", "JournalFile"]

NAME: Final = "journal"
FORMAT: Final = 1
APPLICATION: Final = 0x41424A4C  # "ABJL": whose file this is
KEPT: Final = 1_000  # conflicts, the newest
STEP: Final = 16  # rows; each statement is for a multiple of it
TABLES: Final = {
    table: f"CREATE TABLE {table} (number INTEGER PRIMARY KEY, data BLOB NOT NULL) STRICT"
    for table in ("entries", "conflicts")
}


class JournalFile:
    """Rows `(number, data)` in the file *path*.

    Beside it are SQLite's `-wal` and the lock of the process that has the file. Not thread-safe:
    one thread at a time. A transaction that fails is never tried again on the same file. The kernel
    may take the file's pages for written by then, since fsync reports an error once. `renew` copies
    what was committed to a new file, which takes the place of the old one.
    """

    def __init__(self, path: str, sync: Literal["full", "normal"]) -> None:
        named = Path(os.path.expanduser(path))  # noqa: PTH111  # `~nobody` stays as it is
        self.path = str(named.parent.resolve() / named.name)
        self._sync = sync
        self._lock = FileLock(f"{self.path}.lock")
        self._names = Names(Path(self.path))
        self._connection: sqlite3.Connection | None = None

    # --- life ------------------------------------------------------------------------------------

    def open(self) -> None:
        """Open the file, or make it with mode 0600.

        Raises: StoreLockedError, JournalError, InsecureStorageError, StoreUnavailableError.
        """
        try:
            self._names.look()
            self._make_folder()
            self._take_lock()
            self._finish_renewal()
            self._create(self.path)
            self._check_log()
            self._connection = self._connect(self.path)
            self._check()
            self._compact()
            kept_from_children.add(self)
        except (OSError, sqlite3.OperationalError) as error:
            self.close()
            if _is_busy(error):
                raise locked(NAME, None, f"It is open under another name. {WAYS_ON}", place=self.path) from error
            raise StoreUnavailableError(NAME, f"{self.path} cannot be opened: {error}") from error
        except (sqlite3.DatabaseError, UnicodeDecodeError) as error:
            # UnicodeDecodeError: SQLite's message quotes what is damaged.
            self.close()
            raise self._damaged(str(error)) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Let go of the file and of its lock; twice is no error."""
        connection, self._connection = self._connection, None
        kept_from_children.discard(self)
        try:
            if connection is not None:
                connection.close()  # with a checkpoint: what is left is one file
        finally:
            self._names.forget()
            self._lock.release()

    def _leave_to_parent(self) -> None:
        """Let go of the connection in a forked child, but never close it.

        Not even the end of the interpreter may close it: SQLite would remove the write-ahead log to
        which the parent goes on writing.
        """
        connection, self._connection = self._connection, None
        self._names.forget()
        if connection is not None:
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(connection))

    def _take_lock(self) -> None:
        try:
            self._lock.take()
        except HeldError as error:
            raise error.tell(NAME, self.path, WAYS_ON) from error

    def _make_folder(self) -> None:
        folder = Path(self.path).parent
        if not folder.exists():
            folder.mkdir(0o700, parents=True)

    def _create(self, path: str) -> None:
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        file = os.open(path, flags, 0o600)
        try:
            status = os.fstat(file)
            if not stat.S_ISREG(status.st_mode):
                raise InsecureStorageError(NAME, f"{path} is no file")
            if status.st_uid != os.geteuid():
                raise InsecureStorageError(NAME, f"{path} belongs to another user (uid {status.st_uid})")
            os.fchmod(file, 0o600)  # also what SQLite makes beside it
            os.fsync(file)
        finally:
            os.close(file)
        sync_folder(Path(path).parent)

    def _connect(self, path: str) -> sqlite3.Connection:
        connection = sqlite3.connect(path, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            for pragma in (
                "locking_mode=EXCLUSIVE",  # no file of shared memory, and no looking for others
                "journal_mode=WAL",
                f"synchronous={self._sync.upper()}",
                *(("fullfsync=1", "checkpoint_fullfsync=1") if sys.platform == "darwin" else ()),
            ):
                connection.execute(f"PRAGMA {pragma}")
            connection.execute("BEGIN IMMEDIATE")
            if not connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]:
                self._make_table(connection)
            connection.execute("COMMIT")
            self._names.note()
        except BaseException:
            connection.close()
            raise
        return connection

    @staticmethod
    def _make_table(connection: sqlite3.Connection) -> None:
        for statement in TABLES.values():
            connection.execute(statement)
        connection.execute(f"PRAGMA application_id={APPLICATION}")
        connection.execute(f"PRAGMA user_version={FORMAT}")

    def _check(self) -> None:
        if self._ask("PRAGMA application_id") != APPLICATION:
            raise JournalError(NAME, f"{self.path} is no journal of actorbot's; give the policy another path")
        if (version := self._ask("PRAGMA user_version")) != FORMAT:
            raise JournalError(
                NAME,
                f"{self.path} is of format version {version}, and this release reads {FORMAT}; start the"
                " release that wrote it, and close it once the store is up: it leaves an empty journal",
            )
        if (flaw := self._ask("PRAGMA quick_check(1)")) != "ok":
            raise self._damaged(str(flaw))
        # `quick_check` does not look at this.
        if dict(self._open.execute("SELECT name, sql FROM sqlite_schema")) != TABLES:
            raise self._damaged("its tables are not those of a journal")

    def _check_log(self) -> None:
        """Refuse a log that is damaged in its middle.

        Done before SQLite opens the log: it would remove what comes after the damage.
        """
        if self._sync == "full" and (flaw := find_flaw(Path(f"{self.path}-wal"))) is not None:
            raise self._damaged(f'{flaw}; one start with sync="normal" goes on with what stands before the damage')

    def _ask(self, question: str) -> Any:
        return self._open.execute(question).fetchone()[0]

    def _damaged(self, flaw: str) -> JournalError:
        return JournalError(
            NAME,
            f"{self.path} is damaged ({flaw}). It was left as it is. Restore it from a copy, or move it and its"
            " -wal away to start without the events that only it holds: the sessions are then as the store has them",
        )

    @property
    def _open(self) -> sqlite3.Connection:
        if self._connection is None:
            raise StoreUnavailableError(NAME, f"{self.path} is not open")
        return self._connection

    # --- rows ------------------------------------------------------------------------------------

    def rows(self) -> Iterator[tuple[int, bytes]]:
        """Yield all rows that are not empty."""
        return iter(self._open.execute("SELECT number, data FROM entries WHERE data != x'' ORDER BY number"))

    def read(self, number: int) -> bytes:
        """Return the data of a row that there is."""
        data: bytes = self._open.execute("SELECT data FROM entries WHERE number=?", (number,)).fetchone()[0]
        return data

    def conflicts(self) -> Iterator[bytes]:
        """Yield what was set aside, oldest first."""
        return (data for (data,) in self._open.execute("SELECT data FROM conflicts ORDER BY number"))

    def commit(self, rows: Sequence[tuple[int, bytes]], conflicts: Sequence[bytes] = ()) -> None:
        """Replace or add *rows* and set *conflicts* aside, all or nothing.

        What is committed survives a power loss (with `sync="full"`). Raises: sqlite3.Error; until
        `renew` it is then unknown whether this was committed. FileNotFoundError: it was, to a file
        without a name; `renew` gives it one. After a DataError (a row is too large), or another
        exception that is not sqlite3's, it was not, and the file may be used.
        """
        if conflicts:
            self._replace_and_set_aside(rows, conflicts)
        else:
            self._replace(rows)
        self._check_names()

    def _check_names(self) -> None:
        if self._names.are_whole():
            return
        lost = self._names.find_lost() if self._lock.is_here() else f"{self.path}.lock"
        if lost is not None:
            raise FileNotFoundError(f"{lost} was removed or replaced while it was in use")

    def _replace_and_set_aside(self, rows: Sequence[tuple[int, bytes]], conflicts: Sequence[bytes]) -> None:
        connection = self._open
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._replace(rows)
            self._set_aside(conflicts)
            connection.execute("COMMIT")
        except BaseException as error:
            if isinstance(error, sqlite3.DataError) or not isinstance(error, sqlite3.Error):
                connection.execute("ROLLBACK")  # else `renew` ends the transaction
            raise

    def _set_aside(self, conflicts: Sequence[bytes]) -> None:
        for data in conflicts:  # each once: a transaction that seemed to fail comes again
            self._open.execute(
                "INSERT INTO conflicts (data) SELECT :data WHERE NOT EXISTS (SELECT 1 FROM conflicts WHERE data=:data)",
                {"data": data},
            )
        self._open.execute("DELETE FROM conflicts WHERE number <= (SELECT max(number) FROM conflicts) - ?", (KEPT,))

    def _replace(self, rows: Sequence[tuple[int, bytes]]) -> None:
        if not rows:
            return
        # One statement, which is a transaction by itself. After each statement this thread needs
        # the interpreter again, and another thread may hold it for 5 ms.
        values = [value for row in rows for value in row]
        # Filled up to a multiple of STEP, so that there are few statements, each prepared once.
        values += values[-2:] * (-len(rows) % STEP)
        self._open.execute(f"REPLACE INTO entries VALUES {','.join(['(?,?)'] * (len(values) // 2))}", values)

    def _compact(self) -> None:
        """Remove the empty rows."""
        self._open.execute("DELETE FROM entries WHERE data = x''")

    # --- a new file in its place -----------------------------------------------------------------

    def renew(self) -> None:
        """Copy what was committed to a new file, and go on with that.

        The copy counts from the moment when it is complete and synced: whoever opens the journal
        prefers it to the old file. What of its files has lost its name gets it again.

        Raises: sqlite3.Error, OSError; StoreLockedError, JournalError if somebody else has the name
        now. Try again later.
        """
        self._make_folder()
        if not self._lock.is_here():
            self._lock.release()
            self._take_lock()
        # Without a connection the copy is there: what came after it has failed the last time.
        if self._connection is not None:
            self._names.check_place()
            self._copy(self._connection)
            old, self._connection = self._connection, None
            try:
                old.close()
            except sqlite3.Error:
                pass  # the copy counts
        self._finish_renewal()
        self._connection = self._connect(self.path)

    def _copy(self, old: sqlite3.Connection) -> None:
        if old.in_transaction:
            old.execute("ROLLBACK")
        fresh = self._fresh
        for path in (fresh, f"{fresh}-journal"):
            Path(path).unlink(missing_ok=True)
        self._create(fresh)
        copy = sqlite3.connect(fresh, timeout=0, isolation_level=None, check_same_thread=False)
        try:
            copy.execute("PRAGMA synchronous=FULL")
            copy.execute("BEGIN IMMEDIATE")
            self._make_table(copy)  # its version, once committed, says: the copy is complete
            copy.executemany("INSERT INTO entries VALUES (?,?)", self.rows())
            copy.executemany("INSERT INTO conflicts (data) VALUES (?)", ((data,) for data in self.conflicts()))
            copy.execute("COMMIT")
        except BaseException:
            copy.close()
            Path(fresh).unlink(missing_ok=True)  # it may be what a full disk needs
            raise
        copy.close()

    @property
    def _fresh(self) -> str:
        return f"{self.path}.new"

    def _finish_renewal(self) -> None:
        fresh = Path(self._fresh)
        if fresh.exists():
            if _is_complete(fresh):
                # First: SQLite must not take the old log for that of the new file.
                Path(f"{self.path}-wal").unlink(missing_ok=True)
                fresh.replace(self.path)
            else:
                fresh.unlink()
        sync_folder(fresh.parent)  # always: an earlier attempt may have failed here


def _is_busy(error: Exception) -> bool:
    return getattr(error, "sqlite_errorname", "") == "SQLITE_BUSY"


def _is_complete(path: Path) -> bool:
    connection = sqlite3.connect(path, timeout=0, isolation_level=None)
    try:
        return bool(connection.execute("PRAGMA user_version").fetchone()[0] == FORMAT)
    except sqlite3.OperationalError:
        raise  # it cannot be read now, and may be the only copy
    except sqlite3.DatabaseError:
        return False
    finally:
        connection.close()
