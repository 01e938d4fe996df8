"""A session as it is stored, and its two forms: bytes (memory, file) and a JSON-safe document (your own driver)."""

from __future__ import annotations

import os
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Final, Self

from actorbot._codec import (
    RESERVED,
    UndecodableError,
    decode_state,
    encode_state,
    from_document,
    pack_fields,
    to_document,
    unpack_fields,
)
from actorbot.errors import ActorbotError, CorruptSessionError

__all__ = ["RING_BYTES", "TOMBSTONE_AGE", "Record"]

TOMBSTONE_AGE: Final = 3600.0
"""Seconds that a destroyed session is remembered, so that no older write brings it back."""

RING_BYTES: Final = 16 * 8
MAGIC: Final = b"ABS\x01"  # actorbot session, format version 1
FORMAT: Final = 1
MAX_ADOPTED_BYTES: Final = 16 * 1024**2


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

    def next_write(self) -> Self:
        """Return the same record as a new write: with a fresh write id."""
        return replace(self, write_ids=(os.urandom(8) + self.write_ids)[:RING_BYTES])

    @classmethod
    def tombstone(cls, session_id: str, *, now: float) -> Self:
        """Make the record of a destroyed session."""
        return cls(session_id, 0, None, os.urandom(8), b"", now, now + TOMBSTONE_AGE)

    # --- bytes --------------------------------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Encode: magic with format version, CRC-32 of the rest, the fields.

        The checksum is against accidents (torn writes, flipped bits), for which 32 bits at 1 GB/s will do; it is no signature.
        """
        body = pack_fields(
            [self.session_id, self.version, self.state, self.write_ids, self.event_ids, self.last_activity, self.expires_at]
        )
        return MAGIC + zlib.crc32(body).to_bytes(4, "big") + body

    @classmethod
    def from_bytes(cls, data: bytes, *, session_id: str, store: str) -> Self:
        """Decode. Raises: CorruptSessionError for anything but an intact record of *session_id*."""
        reason = None
        if data[:3] != MAGIC[:3]:
            reason = "it is no record of actorbot's"
        elif data[:4] != MAGIC:
            reason = f"its format version {data[3] if len(data) > 3 else '?'} is unknown to this release"
        elif zlib.crc32(data[8:]).to_bytes(4, "big") != data[4:8]:
            reason = "its checksum does not fit: it is truncated or damaged"
        if reason is None:
            try:
                record = cls(*unpack_fields(data[8:]))  # type: ignore[misc]
            except (UndecodableError, TypeError) as error:
                reason = f"its frame is damaged ({error})"
            else:
                if record.session_id == session_id:
                    return record
                reason = "it belongs to another session"
        raise CorruptSessionError(store, session_id, reason)

    @staticmethod
    def peek_id(data: bytes) -> str:
        """Return the session id inside *data*, or `""`, vouching for nothing."""
        try:
            return str(unpack_fields(data[8:])[0])  # type: ignore[index]
        except (UndecodableError, TypeError, LookupError):
            return ""

    # --- document -----------------------------------------------------------------------------------------------------

    def to_document(self) -> dict[str, Any]:
        """Make a fresh JSON-safe dict: the state at the top level, the rest under `"$actorbot"`."""
        document = {} if self.state is None else to_document(decode_state(self.state))
        rest: dict[str, Any] = {
            "format": FORMAT,
            "version": self.version,
            "write_ids": _split(self.write_ids),
            "event_ids": _split(self.event_ids),
            "last_activity": self.last_activity,
            "expires_at": self.expires_at,
        }
        if self.state is None:
            rest["deleted"] = True
        document[RESERVED] = rest
        return document

    @classmethod
    def from_document(
        cls, document: Mapping[str, Any], *, session_id: str, store: str, expires_in: float, now: float | None = None
    ) -> Self:
        """Read a document; one without `"$actorbot"` is adopted as a session that was active just now. Raises: CorruptSessionError."""
        try:
            rest = document.get(RESERVED)
            state = encode_state(from_document({k: v for k, v in document.items() if k != RESERVED}), MAX_ADOPTED_BYTES)
            if rest is None:
                now = time.time() if now is None else now
                return cls(session_id, 0, state, b"", b"", now, now + expires_in)
            if rest["format"] != FORMAT:
                raise UndecodableError(f"its format version {rest['format']!r} is unknown to this release")
            return cls(
                session_id,
                int(rest["version"]),
                None if rest.get("deleted") else state,
                bytes.fromhex("".join(rest["write_ids"])),
                bytes.fromhex("".join(rest["event_ids"])),
                float(rest["last_activity"]),
                float(rest["expires_at"]),
            )
        except (ActorbotError, ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise CorruptSessionError(store, session_id, f"{type(error).__name__}: {error}") from error


def _split(ids: bytes) -> list[str]:
    return [ids[i : i + 8].hex() for i in range(0, len(ids), 8)]
