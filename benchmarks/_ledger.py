"""What a kill would cost at this moment.

That is the events that callers have an answer to, less those that the store or the journal has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter
from typing import Any

from actorbot._journal.entry import Entry
from actorbot._journal.file import JournalFile
from actorbot.errors import ActorbotError
from actorbot.stores.base import Record, RecordStore, Write
from actorbot.testing import FaultyStore

Rows = Sequence[tuple[int, bytes]]


class Ledger(FaultyStore):
    """Stands around a store and notes what the store has confirmed; can be told to be down."""

    def __init__(self, inner: RecordStore) -> None:
        super().__init__(inner)
        self.confirmed: dict[str, Record] = {}
        """The newest record of each session that was written."""
        self.longest_call = 0.0
        """Seconds that each writing call took."""

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        began = perf_counter()
        outcomes = super().write_many(writes)
        for write, outcome in zip(writes, outcomes, strict=True):
            if outcome is None:
                self.confirmed[write.record.session_id] = write.record
        self.longest_call = max(self.longest_call, perf_counter() - began)
        return outcomes


@contextmanager
def noting_commits(note: Callable[[Rows], object]) -> Iterator[None]:
    """Call *note* with the rows of each transaction of a journal.

    It is called on the journal's thread, when the transaction has been committed.
    """
    commit: Any = JournalFile.commit

    def noted(file: JournalFile, rows: Rows, *rest: Any) -> None:
        commit(file, rows, *rest)
        note(rows)

    both: Any = JournalFile
    both.commit = noted
    try:
        yield
    finally:
        both.commit = commit


@dataclass(frozen=True, slots=True)
class Instant:
    """Who knew what at one moment.

    Taken on the loop of the callers, in one step, and read when the run is over.
    """

    acknowledged: Counter[str]
    """Events of each session that callers have an answer to."""
    journal: dict[int, bytes]
    """The journal's rows."""
    confirmed: dict[str, Record]

    @classmethod
    def take(cls, acknowledged: Counter[str], journal: dict[int, bytes], store: Ledger) -> Instant:
        """Copy all three: the journal first, since what leaves it is in the store by then."""
        return cls(acknowledged.copy(), dict(journal), dict(store.confirmed))

    def lost(self) -> Counter[str]:
        """Return how many acknowledged events of each session a kill would have cost."""
        kept = Counter({one: count_of(record) for one, record in self.confirmed.items()})
        for data in self.journal.values():
            if data:  # a row is emptied when the store has it
                record = Entry.from_bytes(data).record
                kept[record.session_id] = max(kept[record.session_id], count_of(record))
        return self.acknowledged - kept


def count_of(record: Record) -> int:
    """Return the counter of the session workload."""
    return int(record.to_document()["n"])
