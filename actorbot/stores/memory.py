"""Sessions in this process's memory: the default.

It is for trying things out, and for sessions that may be lost.
"""

from __future__ import annotations

import logging
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, ClassVar, Self

from cachetools import Cache, LRUCache

from actorbot._checks import check_count, check_plain
from actorbot._state.codec import decode_state
from actorbot._state.record import Record
from actorbot.errors import ActorbotError
from actorbot.stores._findings import Finding
from actorbot.stores.base import ONE_YEAR, RecordStore, Verdict, Write, check_expires_in, judge

__all__ = ["MemorySessionStore"]

logger = logging.getLogger("actorbot")


class _Lru(LRUCache[str, Record]):
    """Keeps what it evicts, for its owner to report."""

    def __init__(self, maxsize: int) -> None:
        super().__init__(maxsize)
        self.evicted: list[Record] = []

    def popitem(self) -> tuple[str, Record]:
        session_id, record = super().popitem()
        self.evicted.append(record)
        return session_id, record


class MemorySessionStore(RecordStore):
    """Keeps the *max_sessions* most recently used sessions; nothing outlives the process.

    A session that is evicted to make room is reported by a warning in the log, and to
    `on_evict(session_id, state)` on the writing thread.
    """

    name: ClassVar[str] = "memory"
    outlives_process = False
    may_block = False

    def __init__(
        self,
        max_sessions: int = 10_000,
        *,
        expires_in: float = ONE_YEAR,
        on_evict: Callable[[str, dict[str, Any]], object] | None = None,
    ) -> None:
        check_count("max_sessions", max_sessions, most=sys.maxsize)
        if on_evict is not None:
            check_plain("on_evict", on_evict, "a function of (session_id, state)")
        self.expires_in = check_expires_in(expires_in)
        self._on_evict = on_evict
        # Guards changes of `_sessions` and `_tombstones`. A read changes neither and takes no lock:
        # a turn must not wait for a writer whose thread the interpreter has suspended.
        self._lock = threading.Lock()
        self._sessions = _Lru(max_sessions)
        self._tombstones = _Lru(max_sessions)  # apart: a tombstone must evict no session
        self._moves = 0  # how many ids have gone from one of the two to the other
        self._used: deque[str] = deque(maxlen=max_sessions)  # ids that were read since the last write

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        cls.may_block = vars(cls).get("may_block", True)  # a subclass may do anything

    def init(self) -> Self:
        return self

    def examine(self) -> Iterable[Finding]:
        yield Finding("persistence", "warning", "keeps nothing: sessions end with the process; name a file or a server")

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        return [self._find(session_id) for session_id in session_ids]

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        with self._lock:
            self._note_uses()
            outcomes = [self._write(write) for write in writes]
            evicted, self._sessions.evicted = self._sessions.evicted, []
            self._tombstones.evicted.clear()
        for record in evicted:
            if record.state is not None:
                self._report(record.session_id, record.state)
        return outcomes

    def _find(self, session_id: str) -> Record | None:
        self._used.append(session_id)
        while True:
            moves = self._moves
            found = _look(self._sessions, session_id) or _look(self._tombstones, session_id)
            if found is not None or moves == self._moves:
                return found  # else it may have moved from the second to the first between the looks

    def _note_uses(self) -> None:
        for _ in range(len(self._used)):
            session_id = self._used.popleft()
            self._sessions.get(session_id)
            self._tombstones.get(session_id)

    def _write(self, write: Write) -> ActorbotError | None:
        session_id = write.record.session_id
        stored = _look(self._sessions, session_id) or _look(self._tombstones, session_id)
        verdict = judge(write, None if stored is None else stored.write_ids)
        if verdict is Verdict.CONFLICT:
            return write.conflict(self.name)
        if verdict is Verdict.WRITE:
            into, out_of = self._sessions, self._tombstones
            if write.record.state is None:
                into, out_of = out_of, into
            into[session_id] = write.record
            if session_id in out_of:
                self._moves += 1  # before the old one goes: a reader who has found neither looks again
                del out_of[session_id]
        return None

    def _report(self, session_id: str, state: bytes) -> None:
        logger.warning("memory: a session was evicted to make room", extra={"session_id": session_id})
        if self._on_evict is not None:
            try:
                self._on_evict(session_id, decode_state(state))
            except Exception:
                logger.exception("on_evict failed", extra={"session_id": session_id})

    def scan(self) -> Iterator[Record | ActorbotError]:
        with self._lock:
            found = [*_look_at(self._sessions), *_look_at(self._tombstones)]
        yield from found

    def count(self) -> int:
        with self._lock:
            return len(self._sessions) + len(self._tombstones)

    def sweep(self, now: float) -> Iterable[Record]:
        with self._lock:
            gone = [_remove_ended(records, now) for records in (self._sessions, self._tombstones)]
        return gone[0]


def _remove_ended(records: _Lru, now: float) -> list[Record]:
    ended = [record for record in _look_at(records) if record.is_expired(now)]
    for record in ended:
        del records[record.session_id]
    return ended


def _look_at(records: _Lru) -> list[Record]:
    # Not through LRUCache, for which a look would be a use.
    return [Cache.__getitem__(records, session_id) for session_id in records]


def _look(records: _Lru, session_id: str) -> Record | None:
    try:
        return Cache.__getitem__(records, session_id) if session_id in records else None
    except KeyError:  # it was removed after the test
        return None
