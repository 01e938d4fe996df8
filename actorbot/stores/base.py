"""What a store is.

`SessionStore` has the four methods of a driver of your own. `RecordStore` is what the built-in
stores are: they keep records, in batches, and compare before they write.
"""

from __future__ import annotations

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Awaitable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, ClassVar, Final, Protocol, Self, runtime_checkable

from actorbot._checks import check_seconds
from actorbot._state.record import Record, has_id
from actorbot.errors import ActorbotError, ConfigError, ConflictError
from actorbot.stores._findings import Finding
from actorbot.stores._lease import LeaseFound, LeaseKeeping

__all__ = [
    "ASIDE_AGE",
    "ONE_YEAR",
    "LeaseFound",
    "Record",
    "RecordStore",
    "SessionStore",
    "Verdict",
    "Write",
    "check_expires_in",
    "judge",
]

logger = logging.getLogger("actorbot")

ONE_YEAR: Final = 365 * 24 * 3600.0
"""A year of 365 days, in seconds: a session's life after its last event, by default."""

ASIDE_AGE: Final = 7 * 24 * 3600.0
"""Seconds that a damaged record is kept when it was set aside."""

MAX_EXPIRES_IN: Final = 1000 * ONE_YEAR


@runtime_checkable
class SessionStore(Protocol):
    """The four methods of a session driver. Subclass it, or just have the methods.

    Each may be a `def` or an `async def`.

    `data` is a fresh, JSON-safe `dict`. The session's values are at its top level; those that JSON
    lacks are tagged. One reserved key, `"$actorbot"`, holds what actorbot must know again. Store
    the dict whole and give it back equal. A dict without that key is adopted as an existing
    session. Store it as the text of `json.dumps`, or as bytes. A database's own JSON need not give
    it back equal. In PostgreSQL's `jsonb`, `1e22` becomes a whole number that no session may hold,
    `-0.0` loses its sign, and `"\\0"` is refused.

    Plain methods are called on one thread of actorbot's own, one at a time. `async def` methods run
    on the manager's event loop (of a threaded manager: on a private one), for different sessions
    side by side. When a call outlives the policy's `store_deadline`, its callers get an error. An
    `async def` call is then cancelled. A plain one is left behind: the next calls come from another
    thread, and may overlap with it. So give every call to a server a time-out below that deadline,
    and do not tie a client to its thread (`sqlite3`: `check_same_thread=False`).

    Any exception says that the store failed. When you do not know, raise; do not return `None`. A
    driver may have an attribute `expires_in` (seconds; default one year) and these optional
    methods:

    * `read_many(session_ids) -> Mapping[str, dict]` and `write_many(Sequence[tuple[str, dict]])`:
      one call per batch. If one raises (but a ConnectionError, a TimeoutError or one of
      actorbot's), it cannot read or store some session of the batch. The batch is then divided,
      until that one is alone; so let `write_many` be all or nothing, or safe to repeat.
    * `compare_and_write(session_id, data, base) -> bool`: write only if the stored
      `data["$actorbot"]["write_ids"][0]` equals *base* (`None`: nothing is stored), and return
      whether it was written. With it, two processes cannot overwrite each other's sessions.
      `write_many`, which compares nothing, is then not called. If you want both, comparing and
      batches, build a `RecordStore`: its `write_many` compares each record of a batch.
    * `ids()`: all session ids, as an iterable or an async iterable of texts. Bytes are read as
      UTF-8, and rows of one column, as cursors give them, as what they hold. `actorbot.stores.copy`
      and the command `actorbot sessions` need it.
    * `read_lease() -> (text or None, now)` and `swap_lease(old, new) -> bool`, both plain `def`s:
      with them one process owns the store, and others wait. docs/stores.md has what they do.
    * `close()`.

    A driver may drop sessions that have expired, a minute after `expires_at` at the earliest. A
    session that was destroyed or dropped leaves nothing behind. So another process that still has
    it in memory may write it again.
    """

    @abstractmethod
    def init(self) -> Awaitable[Any] | Any:
        """Prepare the store. Called before anything else, and again after a close.

        What it returns is ignored.
        """

    @abstractmethod
    def read(self, session_id: str) -> Awaitable[Mapping[str, Any] | None] | Mapping[str, Any] | None:
        """Return what was last written for *session_id*, or `None` if there is nothing.

        The caller may change the dict.
        """

    @abstractmethod
    def write(self, session_id: str, data: dict[str, Any]) -> Awaitable[None] | None:
        """Store *data* for *session_id* in place of what was there.

        When it returns, the data is as safe as this store makes it.
        """

    @abstractmethod
    def destroy(self, session_id: str) -> Awaitable[None] | None:
        """Remove *session_id*; nothing to remove is no error."""


@dataclass(slots=True, unsafe_hash=True)
class Write:
    """One record to write, and what it may replace. Nobody changes it once it is made."""

    record: Record
    base: bytes | None
    """The write id that must be the newest one stored.

    `b""`: nothing must be stored. `None`: anything may be replaced, as by a destroy.
    """
    over_damage: bool = False
    """Whether a damaged record may be replaced: the session is in memory. It is then set aside."""

    def conflict(self, store: str) -> ConflictError:
        """Make the error of a write that met somebody else's."""
        return ConflictError(
            store, "it was written by someone else since it was read", session_id=self.record.session_id
        )


class Verdict(Enum):
    """What a store does with a write, by what it has stored."""

    WRITE = "write"
    """Nobody else has written since: write it."""
    DONE = "done"
    """This very write was applied before, and its reply was lost: there is nothing to do."""
    CONFLICT = "conflict"
    """Somebody else has written since: refuse it with `Write.conflict`."""


class RecordStore(LeaseKeeping, ABC):
    """A store that keeps records, in batches and by compare-and-set: what the built-in stores are.

    `init`, `read_many`, `write_many`, `sweep` and `close` block. They run on threads of actorbot's
    own: reads on one (but see `may_block`), writes on another. `read`, `write` and `destroy` do
    with them what a driver's methods do; they are for tools, and for drivers that wrap a store.

    Build one of your own, rather than a driver of four methods, for a server that several processes
    write to and that takes whole batches: `examples/record_store.py` is complete. It has `name`,
    `expires_in`, `init`, `read_many` and `write_many`; all else is optional. Store
    `record.to_bytes()`, and `record.write_ids` beside it for `judge`. What you may be called with
    twice is a write whose answer was lost: `judge` knows it again. Errors that tell a session from
    a server are worth their lines: only a StoreUnavailableError is an outage.
    `actorbot.testing.StoreContract` has the rules as tests.
    """

    name: ClassVar[str]
    """What errors and logs call it."""

    expires_in: float
    """Seconds after its last event that a session ends."""

    outlives_process: bool = True
    """Whether what it has confirmed is still there when this process has been killed."""

    may_block: bool = True
    """Whether `read_many` may wait for anything.

    If not, it is called where the session's turn runs: on the event loop or in any thread, also
    while another thread writes.
    """

    flaw: str | None = None
    """Why nothing is written or read until somebody sees to it, for `health()`: failing.

    `None`: it can be used. A store whose server does not answer leaves it: that is an outage, which
    the manager notices by itself.
    """

    compares: bool = True
    """Whether a write is refused if somebody else has written since: see `judge`.

    If not, the newest state is always sent, also after a try whose outcome is unknown.
    """

    set_aside: int = 0
    """How many damaged records it has set aside, of sessions that were in memory."""

    reads_at_once: int = 10_000
    """The most records that one `read_many` may be about, so that it ends within a deadline."""

    writes_at_once: int = 10_000
    """The same for `write_many`. Both may change from call to call."""

    @abstractmethod
    def init(self) -> Self:
        """Open the store and check that it can be used. It may be opened twice, and after `close`.

        Raises: StoreUnavailableError, StoreLockedError, InsecureStorageError.
        """

    def look(self) -> str | None:
        """Open the store as `init` does, for who only looks: no folder or collection is made.

        Returns `None`, or says what is missing: "there is no folder …". Then there is nothing to
        read. Raises what `init` raises.
        """
        self.init()
        return None

    @abstractmethod
    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        """Return for each id, in their order, its record, an error, or `None`.

        Expired records and tombstones are returned too.

        Raises: StoreUnavailableError if the store is down. After any other exception the batch is
        divided, as that of `write_many`.
        """

    @abstractmethod
    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        """Write each record if `judge` allows it; return for each `None`, or the error that it met.

        No id stands twice in one call. A damaged record is no record to compare with: a
        CorruptSessionError, unless the write may go `over_damage`.

        Raises: StoreUnavailableError if no record was written, OutcomeUnknownError if some may have
        been: the store is down. All are then sent again later, with the same write ids. Any other
        exception (but a ConnectionError or TimeoutError) says that it cannot store some record of
        the batch. The batch is then divided and sent again, until that record is alone: with one
        such record in 2 log2(n) further calls. If more than 2 + 2 log2(n) calls in a row fail so,
        the store counts as down, too.
        """

    def sweep(self, now: float) -> Iterable[Record]:
        """Remove records whose `expires_at` is at or before *now*; yield those that were sessions.

        *now* is wall-clock seconds. Tombstones are removed and not yielded. It is called now and
        then on the writing thread, at least every ten minutes. By default it does nothing: a server
        may expire records by itself. (The stores with a server look at its clock then.)
        """
        return ()

    @property
    def complaint(self) -> str:
        """What is odd about a place that can be used, for `health()`: degraded. Any thread.

        `""`: nothing.
        """
        return ""

    def note_damage(self, session_id: str, reason: str, place: str) -> None:
        """Count and report a damaged record that was replaced; *place* is where it is kept."""
        self.set_aside += 1
        logger.error(
            "%s: the record of session %r was damaged under the session in memory: %s."
            " The session was written in its place; the damaged record is %s",
            self.name, session_id, reason, place,
            extra={"session_id": session_id},
        )  # fmt: skip

    def scan(self) -> Iterator[Record | ActorbotError]:
        """Yield every record, in no particular order, and an error for each that cannot be read.

        Expired records and tombstones are among them. What is stored all the while is yielded at
        least once (Redis may yield a record twice). What is written or removed meanwhile may be
        missed. For tools: it runs on the caller's thread, and reads a page at a time.

        Raises: StoreUnavailableError; ConfigError if the store cannot list its sessions.
        """
        raise self._unlisted()

    def count(self) -> int:
        """Return about how many records `scan` will yield, without reading them.

        Raises what `scan` raises.
        """
        raise self._unlisted()

    def _unlisted(self) -> ConfigError:
        return ConfigError(
            "store", self.name, "a store that can list its sessions; your own driver needs a method ids()"
        )

    def examine(self) -> Iterable[Finding]:
        """Look at the place where sessions are kept, for `actorbot doctor`; yield what is found.

        It blocks, and opens the store if `init` has not. The caller calls `close`. Raises what
        `init` raises.
        """
        self.init()
        return ()

    def close(self) -> None:  # not every store holds something
        """Release what `init` acquired. Calling it twice is no error."""

    def read(self, session_id: str) -> dict[str, Any] | None:
        """Return the session as a JSON-safe dict (see `SessionStore`), or `None`.

        Expired records are returned too.
        """
        found = self.read_many([session_id])[0]
        if isinstance(found, ActorbotError):
            raise found
        return None if found is None or found.state is None else found.to_document()

    def write(self, session_id: str, data: Mapping[str, Any]) -> None:
        """Store a dict as `read` gives it, or another JSON-like dict, in place of what is there."""
        record = Record.from_document(dict(data), session_id=session_id, store=self.name, expires_in=self.expires_in)
        self._write_over(record.next_write())

    def destroy(self, session_id: str) -> None:
        """Put a tombstone in place of *session_id*: it reads as absent. Twice is no error."""
        self._write_over(Record.tombstone(session_id, now=time.time()))

    def _write_over(self, record: Record) -> None:
        error = self.write_many([Write(record, base=None)])[0]
        if error is not None:
            raise error


def judge(write: Write, stored: bytes | None) -> Verdict:
    """Decide a compare-and-set, in the same transaction as what is then written.

    *stored* is the `write_ids` of the record in the store, `None` if there is none. They tell a
    write whose reply was lost from somebody else's. With one id instead of sixteen, 63 of 600
    events were counted twice under 20 % lost replies; with sixteen none.
    """
    if stored is None or write.base is None:
        return Verdict.WRITE
    if stored[:8] == write.base:
        return Verdict.WRITE
    if has_id(stored, write.record.write_id):
        return Verdict.DONE
    return Verdict.CONFLICT


def check_expires_in(expires_in: float) -> float:
    """Return *expires_in* as `float` seconds, at most a thousand years. Raises: ConfigError."""
    return check_seconds("expires_in", expires_in, most=MAX_EXPIRES_IN)
