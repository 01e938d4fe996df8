"""A store of records of your own: whole batches, compared before they are written.

This one keeps sessions as bytes in a SQLite table. custom_store.py does that with four methods, and
docs/stores.md says which of the two to build when.
"""

import sqlite3
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Self

from actorbot import ONE_YEAR, ConsoleBot, Context
from actorbot.errors import ActorbotError, CorruptSessionError, OutcomeUnknownError, StoreUnavailableError
from actorbot.stores import LeaseFound, Record, RecordStore, Verdict, Write, judge

TABLE = "create table if not exists sessions (id text primary key, write_ids blob, ends real, record blob)"
LEASE = "create table if not exists lease (only_one integer primary key, text text)"


class SqliteRecordStore(RecordStore):
    name = "sqlite"  # in errors and logs
    keeps_lease = True  # several processes may open the file: one of them owns it, see read_lease

    def __init__(self, path: str, *, expires_in: float = ONE_YEAR) -> None:
        self.path = path
        self.expires_in = expires_in
        self.open = False

    def init(self) -> Self:
        if not self.open:
            try:
                # Two connections: reads come from one thread, and writes from another.
                self.reader, self.writer = self.connect(), self.connect()
                self.writer.execute("pragma journal_mode=wal")
                self.writer.execute(TABLE)
                self.writer.execute(LEASE)
            except sqlite3.Error as error:
                raise StoreUnavailableError(self.name, f"{self.path} cannot be opened: {error}") from error
            self.open = True
        return self

    def connect(self) -> sqlite3.Connection:
        # The time-out is shorter than the policy's `store_deadline`. After a call that was left
        # behind, the next ones come from another thread.
        return sqlite3.connect(self.path, timeout=3.0, isolation_level=None, check_same_thread=False)

    def close(self) -> None:
        if self.open:
            self.open = False
            self.reader.close()
            self.writer.close()

    # --- reading: an error is never an absent session --------------------------------------------

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        marks = ",".join("?" * len(session_ids))
        try:
            found = dict(self.reader.execute(f"select id, record from sessions where id in ({marks})", session_ids))
        except sqlite3.OperationalError as error:
            raise StoreUnavailableError(self.name, f"reading failed: {error}") from error
        return [
            self.to_record(session_id, found[session_id]) if session_id in found else None for session_id in session_ids
        ]

    def to_record(self, session_id: str, data: bytes) -> Record | ActorbotError:
        try:
            return Record.from_bytes(data, session_id=session_id, store=self.name)
        except CorruptSessionError as error:
            return error

    # --- writing: a batch is one transaction -----------------------------------------------------

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        try:
            with self.writer:  # commits, or rolls back
                self.writer.execute("begin immediate")
                return [self.write_one(write) for write in writes]
        except sqlite3.OperationalError as error:  # busy, full, or the disk: perhaps the commit was done
            raise OutcomeUnknownError(self.name, f"writing failed: {error}") from error
        # Whatever else is raised is about a record. The batch is then divided, until it is alone.

    def write_one(self, write: Write) -> ActorbotError | None:
        record = write.record
        stored = self.writer.execute("select write_ids from sessions where id = ?", (record.session_id,)).fetchone()
        verdict = judge(write, None if stored is None else stored[0])
        if verdict is Verdict.CONFLICT:
            return write.conflict(self.name)
        if verdict is Verdict.WRITE:
            row = (record.session_id, record.write_ids, record.expires_at, record.to_bytes())
            self.writer.execute("replace into sessions values (?, ?, ?, ?)", row)
        return None

    # --- who owns it: called on a third thread, beside reads and writes --------------------------

    def read_lease(self) -> LeaseFound:
        try:
            with closing(self.connect()) as db:  # a new one each time: so any thread may call this
                row = db.execute("select text from lease").fetchone()
        except sqlite3.Error as error:
            raise StoreUnavailableError(self.name, f"reading the lease failed: {error}") from error
        # Who opens one file of SQLite sees one clock. A server has a clock of its own: ask that.
        return LeaseFound(None if row is None else row[0], time.time())

    def swap_lease(self, old: str | None, new: str) -> bool:
        try:
            with closing(self.connect()) as db:  # each statement is a transaction that compares and writes
                if old is None:
                    return db.execute("insert into lease values (1, ?) on conflict do nothing", (new,)).rowcount == 1
                return db.execute("update lease set text = ? where text = ?", (new, old)).rowcount == 1
        except sqlite3.Error as error:
            raise OutcomeUnknownError(self.name, f"writing the lease failed: {error}") from error

    # --- what is optional: removing what has expired, and listing for the tools ------------------

    def sweep(self, now: float) -> Iterator[Record]:
        for session_id, data in self.writer.execute(
            "select id, record from sessions where ends <= ?", (now,)
        ).fetchall():
            found = self.to_record(session_id, data)
            if isinstance(found, Record):
                self.writer.execute("delete from sessions where id = ? and ends <= ?", (session_id, now))
                if found.state is not None:  # else it is a tombstone, left by a destroy
                    yield found

    def scan(self) -> Iterator[Record | ActorbotError]:
        last = ""
        while page := self.reader.execute(
            "select id, record from sessions where id > ? order by id limit 250", (last,)
        ).fetchall():
            yield from (self.to_record(session_id, data) for session_id, data in page)
            last = page[-1][0]

    def count(self) -> int:
        return int(self.reader.execute("select count(*) from sessions").fetchone()[0])


bot = ConsoleBot(session_store=SqliteRecordStore("sessions.db"))


@bot.on_event
def count(context: Context) -> None:
    context.session["n"] = context.session.get("n", 0) + 1
    context.send_text(f"That was number {context.session['n']}")


if __name__ == "__main__":
    bot.run()
