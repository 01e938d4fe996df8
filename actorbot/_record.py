"""A session as it is stored, and its two forms: bytes (memory, file, Redis, journal) and a JSON-safe document (your own driver, MongoDB)."""

from __future__ import annotations

import os
import time
from dataclasses import dataclass, replace
from typing import Any, Final, Self

TOMBSTONE_AGE: Final = 3600.0


@dataclass(frozen=True, slots=True)
class Record:
    """What a store keeps of one session."""

    session_id: str
    version: int
    """How many turns it has committed since it was first created."""
    state: bytes | None
    """The session's values, as `_codec.encode_state` makes them; `None` in a tombstone: it was destroyed."""
    write_ids: bytes
    """The ids of the last 16 writes, 8 random bytes each, newest first; empty for an adopted document."""
    event_ids: bytes
    """The digests of the last 64 event ids, 8 bytes each, oldest first."""
    last_activity: float
    """Wall-clock seconds of the last handled event."""
    expires_at: float
    """Wall-clock seconds at which the record ends."""

    @property
    def write_id(self) -> bytes:
        """The id of the write that stored it, `b""` if it has none."""
        return self.write_ids[:8]

    def next_write(self) -> Self: ...
    @classmethod
    def tombstone(cls, session_id: str) -> Self: ...
    def to_bytes(self) -> bytes: ...
    @classmethod
    def from_bytes(cls, data: bytes, *, session_id: str, store: str) -> Self: ...
    def to_document(self) -> dict[str, Any]: ...
    @classmethod
    def from_document(cls, document: dict[str, Any], *, session_id: str, store: str, expires_in: float) -> Self: ...
