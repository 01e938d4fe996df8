"""Stores for tests, each around another store.

One writes down what it is asked; one fails when it is told to.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Self

from actorbot.errors import (
    ActorbotError,
    ConfigError,
    CorruptSessionError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from actorbot.stores import Finding
from actorbot.stores.base import LeaseFound, Record, RecordStore, Write
from actorbot.stores.memory import MemorySessionStore

__all__ = ["FaultyStore", "RecordingStore"]

PATIENCE = 60.0  # real seconds; after them a held call goes on, so that no test hangs


class _Around(RecordStore):
    name: str  # type: ignore[misc]  # the inner store's

    def __init__(self, inner: RecordStore | None = None) -> None:
        self.inner = MemorySessionStore() if inner is None else inner
        if not isinstance(self.inner, RecordStore):
            raise ConfigError(
                "inner", type(inner), "one of actorbot's stores; a driver of four methods can be made to fail by itself"
            )
        self.name = self.inner.name
        self.expires_in = self.inner.expires_in
        self.outlives_process = self.inner.outlives_process
        self.compares = self.inner.compares
        self.keeps_lease = self.inner.keeps_lease

    @property
    def set_aside(self) -> int:  # type: ignore[override]
        return self.inner.set_aside

    @property
    def reads_at_once(self) -> int:  # type: ignore[override]
        return self.inner.reads_at_once

    @property
    def writes_at_once(self) -> int:  # type: ignore[override]
        return self.inner.writes_at_once

    @property
    def flaw(self) -> str | None:  # type: ignore[override]
        return self.inner.flaw

    def note_damage(self, session_id: str, reason: str, place: str) -> None:
        self.inner.note_damage(session_id, reason, place)

    def init(self) -> Self:
        self.inner.init()
        return self

    def look(self) -> str | None:
        return self.inner.look()

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        return self.inner.read_many(session_ids)

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        return self.inner.write_many(writes)

    def sweep(self, now: float) -> Iterable[Record]:
        return self.inner.sweep(now)

    @property
    def complaint(self) -> str:
        return self.inner.complaint

    def scan(self) -> Iterator[Record | ActorbotError]:
        return self.inner.scan()

    def count(self) -> int:
        return self.inner.count()

    def examine(self) -> Iterable[Finding]:
        return self.inner.examine()

    def read_lease(self) -> LeaseFound:
        return self.inner.read_lease()

    def swap_lease(self, old: str | None, new: str) -> bool:
        return self.inner.swap_lease(old, new)

    def close(self) -> None:
        self.inner.close()


class RecordingStore(_Around):
    """Writes down what it is asked, in order: `reads` (ids) and `writes` (records).

    `read_batches` and `write_batches` are the same in batches.
    """

    def __init__(self, inner: RecordStore | None = None) -> None:
        super().__init__(inner)
        self.read_batches: list[list[str]] = []
        self.write_batches: list[list[Record]] = []

    @property
    def reads(self) -> list[str]:
        return [session_id for batch in self.read_batches for session_id in batch]

    @property
    def writes(self) -> list[Record]:
        return [record for batch in self.write_batches for record in batch]

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        self.read_batches.append(list(session_ids))
        return super().read_many(session_ids)

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        self.write_batches.append([write.record for write in writes])
        return super().write_many(writes)


class FaultyStore(_Around):
    """Fails when it is told to, from any thread.

    `read_calls` and `write_calls` count the calls, also refused ones.
    """

    def __init__(self, inner: RecordStore | None = None) -> None:
        super().__init__(inner)
        self._down = False
        self._failing_reads = self._failing_writes = self._lost_replies = 0
        self._corrupt: set[str] = set()
        self.read_calls = self.write_calls = 0
        self._open = threading.Event()
        self._open.set()

    def outage(self) -> None:
        """Refuse every call until `restore`, also about the lease."""
        self._down = True

    def restore(self) -> None:
        """Answer again."""
        self._down = False

    def fail_reads(self, calls: int) -> None:
        """Refuse the next *calls* reads of sessions."""
        self._failing_reads = calls

    def fail_writes(self, calls: int) -> None:
        """Refuse the next *calls* writes of sessions."""
        self._failing_writes = calls

    def lose_replies(self, calls: int) -> None:
        """Apply the next *calls* writes, and raise OutcomeUnknownError."""
        self._lost_replies = calls

    def corrupt(self, session_id: str) -> None:
        """Let the record of *session_id* be damaged, until `mend` or a destroy.

        It is replaced only by a session that is in memory, as in every store.
        """
        self._corrupt.add(session_id)

    def mend(self, session_id: str) -> None:
        """Undo `corrupt`."""
        self._corrupt.discard(session_id)

    def hold(self) -> None:
        """Let calls wait until `release`, also about the lease."""
        self._open.clear()

    def release(self) -> None:
        """Let held calls go on."""
        self._open.set()

    def init(self) -> Self:
        if self._down:
            raise StoreUnavailableError(self.name, "told to be out")
        return super().init()

    def look(self) -> str | None:
        if self._down:
            raise StoreUnavailableError(self.name, "told to be out")
        return super().look()

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        self.read_calls += 1
        self._open.wait(PATIENCE)
        if self._down or self._failing_reads > 0:
            self._failing_reads -= 1
            raise StoreUnavailableError(self.name, "told to fail")
        found = super().read_many(session_ids)
        return [
            self._damage(session_id) if session_id in self._corrupt else record
            for session_id, record in zip(session_ids, found, strict=True)
        ]

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        self.write_calls += 1
        self._open.wait(PATIENCE)
        if self._down or self._failing_writes > 0:
            self._failing_writes -= 1
            raise StoreUnavailableError(self.name, "told to fail")
        over = self._corrupt & {write.record.session_id for write in writes if write.over_damage}
        for session_id in over:
            self.note_damage(session_id, "told to be damaged", "not kept")
        writes = [replace(write, base=None) if write.record.session_id in over else write for write in writes]
        self._corrupt -= {write.record.session_id for write in writes if write.base is None}
        ids = [write.record.session_id for write in writes]
        damaged = self._corrupt.intersection(ids)
        outcomes = iter(super().write_many([write for write in writes if write.record.session_id not in damaged]))
        if self._lost_replies > 0:
            self._lost_replies -= 1
            raise OutcomeUnknownError(self.name, "told to lose the reply")
        return [self._damage(each) if each in damaged else next(outcomes) for each in ids]

    def read_lease(self) -> LeaseFound:
        self._reach()
        return super().read_lease()

    def swap_lease(self, old: str | None, new: str) -> bool:
        self._reach()
        return super().swap_lease(old, new)

    def _reach(self) -> None:
        self._open.wait(PATIENCE)
        if self._down:
            raise StoreUnavailableError(self.name, "told to be out")

    def _damage(self, session_id: str) -> CorruptSessionError:
        return CorruptSessionError(self.name, session_id, "told to be damaged")
