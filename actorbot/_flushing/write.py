"""A session's write: from what its turn has committed to what the store is handed."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from actorbot._runtime.home import new_future
from actorbot._runtime.mailbox import Mailbox
from actorbot._state.committed import VERSION, Committed, Lineage
from actorbot._state.record import RING_BYTES, Record
from actorbot.errors import ActorbotError, ConflictError, OutcomeUnknownError
from actorbot.stores.base import Write

__all__ = ["Flushable", "PendingWrite", "WriteThrough"]


class Flushable(Mailbox):
    """The flusher's part of a session, on the session's actor.

    The states that a session goes through:

    | state      | how to tell                                | what ends it                       |
    |------------|--------------------------------------------|------------------------------------|
    | clean      | `flushed` is the committed version         | a turn commits: dirty              |
    | dirty      | `dirty`; DirtySessions has the session     | its batch is made: on its way      |
    | on its way | a PendingWrite of it is at the store       | the answer: clean, failed or lost  |
    | failed     | Retries has the PendingWrite               | its pause ends: on its way         |
    | lost       | `committed` is None, `losses` has one more | its next turn reads it: clean      |
    | spilled    | `spilled`; the journal has its state       | nothing: it has left memory        |
    | abandoned  | `abandoned`; what it had was handed over   | nothing: it has left memory        |

    A turn may commit while the session is on its way, or failed: then it is dirty as well. A
    session that only the journal has may leave memory while the store is down: then it is spilled.
    """

    __slots__ = ("charged", "committed", "decoded", "dirty", "flushed", "session_id", "write_ids")

    session_id: str
    committed: Committed | None
    """What the last turn left behind; `None`: the session is to be read before its next turn."""
    decoded: tuple[bytes, dict[str, Any]] | None
    """The committed state and what it holds, where that is kept. The flusher lets it go."""
    flushed: int
    """The version that the store has confirmed. While a write is out, only the flusher sets it."""
    write_ids: bytes
    """The write ids of the record in the store, newest first."""
    dirty: bool
    """Whether the flusher has been told of a change that it has not yet begun to write."""
    charged: int
    """How many bytes of `max_dirty_bytes` the session takes."""

    # These have no slots: hardly any session ever has one, and then it takes a dict.
    unanswered: int = 0
    """The version of a write-through that met a conflict after a try without an answer, else 0.

    The session's turn then looks whether that try was done.
    """
    losses: tuple[int, ...] = ()
    """For each conflict that took unflushed state: the version that the store had confirmed."""
    company: int = 0
    """How many sessions may go to the store with it in one call, itself included; 0: any number.

    It was in a batch that was refused. See `Division`.
    """
    spilled: bool = False
    """Whether the session has left memory while the store had not its newest state."""
    abandoned: ActorbotError | None = None
    """Why nothing of the session is written any more, whatever is committed from now on."""
    handed_over: bool = False
    """Whether what the session had then was taken from it; what is committed later is dropped."""
    doubted: Committed | None = None
    """The state before a write without an answer: it counts if the store turns out to be older."""
    lineages: tuple[Lineage, ...] = ()
    """Of a session that came from the journal: who may have made what the store has.

    Empty again when the store has been compared with the session.
    """

    def __init__(self, session_id: str) -> None:
        super().__init__()
        self.session_id = session_id
        self.committed = None
        self.decoded = None
        self.flushed = 0
        self.write_ids = b""
        self.dirty = False
        self.charged = 0

    def behind(self) -> int:
        """Return how many turns the store does not have yet. Any thread."""
        committed = self.committed
        return 0 if committed is None else committed[VERSION] - self.flushed


@dataclass(slots=True, eq=False)
class PendingWrite:
    """One session's write on its way.

    If its outcome is unknown, it is sent again with the same write id.
    """

    session: Flushable
    write: Write
    made: float
    through: WriteThrough | None  # None: a flush
    tries: int = 0  # that have failed
    unknown: bool = False  # whether a failed try may have been done all the same
    journal_behind: bool = False  # whether the store is ahead of the journal that the session came from

    @classmethod
    def make(
        cls, session: Flushable, committed: Committed, write_id: bytes, now: float, through: WriteThrough | None = None
    ) -> PendingWrite:
        """Make the write of *committed* over the record that the store has confirmed.

        A forced write goes over whatever is there.
        """
        version, state, event_ids, last_activity, expires_at = committed
        base = None if through is not None and through.forced else session.write_ids[:8]
        write_ids = (write_id + session.write_ids)[:RING_BYTES]
        record = Record(session.session_id, version, state, write_ids, event_ids, last_activity, expires_at)
        return cls(session, Write(record, base), now, through)

    def renew(self, committed: Committed, write_id: bytes, now: float) -> None:
        """Write *committed* in its place; only while it is known that no try of it was done."""
        self.write, self.made = PendingWrite.make(self.session, committed, write_id, now).write, now


@dataclass(slots=True, eq=False)
class WriteThrough:
    """To the flusher: write what a turn wants to commit, and commit nothing if that fails."""

    session: Flushable
    committed: Committed
    forced: bool
    done: Future[None] = field(default_factory=new_future)
    job: PendingWrite | None = None
    """Its write, once one has been made."""

    def fail(self, error: BaseException, store: str) -> None:
        """Tell who waits that this will not be tried again."""
        if self.job is not None and self.job.unknown and not isinstance(error, OutcomeUnknownError | ConflictError):
            unknown = OutcomeUnknownError(
                store, f"a try had no answer, the last: {error}", session_id=self.session.session_id
            )
            unknown.__cause__ = error
            error = unknown
        self.done.set_exception(error)
