"""A session's write, from what its turn has committed to what the store is handed; and what the flusher is told."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any, Protocol

from actorbot._runtime.home import new_future
from actorbot._state.committed import Committed, Lineage
from actorbot._state.record import RING_BYTES, Record
from actorbot.stores.base import Write

__all__ = [
    "Committed",
    "End",
    "Flush",
    "FlushDue",
    "Flushable",
    "Goal",
    "Hurry",
    "PendingWrite",
    "Relieve",
    "RetryDue",
    "Returned",
    "Spill",
    "WriteThrough",
    "is_lost",
]


class Flushable(Protocol):
    """What the flusher keeps about a session, on the session's actor."""

    session_id: str
    committed: Committed | None
    decoded: tuple[bytes, dict[str, Any]] | None
    """The committed state with what it holds, if that is kept; the flusher lets it go."""
    flushed: int
    """The version that the store has confirmed. Written by the flusher while a write of the session is out."""
    write_ids: bytes
    """The write ids of the record in the store, newest first."""
    dirty: bool
    """Whether the flusher has been told of it and has not yet begun to write it."""
    charged: int
    """How many bytes of the bound on unflushed state it takes."""
    unanswered: int
    """The version of a write-through that met a conflict after a try that had no answer, until its turn has looked into it; else 0."""
    losses: tuple[int, ...]
    """For each conflict that took unflushed state of it, the version that the store had confirmed until then."""
    spilled: bool
    """Whether it has left memory, and the journal has what the store has not."""
    lineages: tuple[Lineage, ...]
    """Of a session that came from the journal, until the store has been compared with it: who may have made what is stored."""


Goal = tuple[Flushable, int, int]
"""What somebody wants to be in the store: a session, its version, and how many `losses` there were when it had that."""


def is_lost(session: Flushable, version: int, losses: int) -> bool:
    """Tell whether a conflict has taken *version*, which *session* had when there had been so many *losses*; from any thread."""
    if len(session.losses) > losses:
        return version > session.losses[losses]
    return session.committed is None and version > session.flushed


@dataclass(slots=True, eq=False)
class PendingWrite:
    """One session's write on its way; sent again, after a failure that may have been none, with the same write id."""

    session: Flushable
    write: Write
    made: float
    through: WriteThrough | None  # None: a flush
    tries: int = 0  # that have failed
    unknown: bool = False  # whether one of them may have been done all the same
    set_back: bool = False  # whether the store has this and more of the process that has left it in the journal

    @classmethod
    def make(
        cls, session: Flushable, committed: Committed, write_id: bytes, now: float, through: WriteThrough | None = None
    ) -> PendingWrite:
        """Make the write of *committed* over the record that the store has confirmed, or, if it is forced, over any."""
        version, state, event_ids, last_activity, expires_at = committed
        base = None if through is not None and through.forced else session.write_ids[:8]
        write_ids = (write_id + session.write_ids)[:RING_BYTES]
        record = Record(session.session_id, version, state, write_ids, event_ids, last_activity, expires_at)
        return cls(session, Write(record, base), now, through)

    def renew(self, committed: Committed, write_id: bytes, now: float) -> None:
        """Write *committed* in its place; only while it is known that no try of it was done."""
        self.write, self.made = PendingWrite.make(self.session, committed, write_id, now).write, now


# --- what the flusher is told -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class FlushDue:
    """`max_delay` has run out for some session."""

    done: Future[None] = field(default_factory=new_future)


@dataclass(frozen=True, slots=True)
class Hurry:
    """Write the sessions now that are in a hurry."""


@dataclass(frozen=True, slots=True)
class Flush:
    """Write these sessions now; *done* when the store has these versions, or all has been tried and some could not be written."""

    goals: list[Goal]
    done: Future[None] = field(default_factory=new_future)


@dataclass(frozen=True, slots=True)
class Relieve:
    """Write this session now; *done* when that is done, or when it turns out that it cannot be."""

    session: Flushable
    done: Future[None] = field(default_factory=new_future)


@dataclass(frozen=True, slots=True)
class Spill:
    """Let go of this session: it has left memory, and the journal has what the store has not."""

    session: Flushable


@dataclass(slots=True, eq=False)
class WriteThrough:
    """Write what a turn wants to commit, and nothing if that fails."""

    session: Flushable
    committed: Committed
    forced: bool
    done: Future[None] = field(default_factory=new_future)
    job: PendingWrite | None = None
    """Once it has been tried."""


@dataclass(frozen=True, slots=True)
class Returned:
    """A call that was left behind has come back: nothing of it is still to come."""

    jobs: list[PendingWrite]


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The pause of these is over, or, where there are none, that of all."""

    jobs: list[PendingWrite]
    done: Future[None] = field(default_factory=new_future)


@dataclass(frozen=True, slots=True)
class End:
    """Write nothing any more."""
