"""A session as it is stored.

It has two forms: bytes (memory, file, Redis, journal) and a JSON-safe document.
"""

from __future__ import annotations

import os
import re
import time
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Any, Final, Self

from actorbot._state.codec import decode_state, encode_state, pack_fields, unpack_fields
from actorbot._state.committed import OWNER_BYTES, Committed
from actorbot._state.document import RESERVED, from_document, to_document
from actorbot._state.values import UndecodableError
from actorbot.errors import CorruptSessionError, NotEncodableError, SessionTooLargeError

__all__ = ["BY_HAND", "RING_BYTES", "TOMBSTONE_AGE", "Record", "find_flaw", "has_id", "is_of_another_release"]

TOMBSTONE_AGE: Final = 3600.0
"""Seconds that a destroyed session is remembered, so that no older write brings it back."""

BY_HAND: Final = bytes(OWNER_BYTES)
"""The owner of writes that no manager makes: of tools, and of programs that call a store."""

RING_BYTES: Final = 16 * 8
FORMAT: Final = 1
MAGIC: Final = b"ABS" + bytes([FORMAT])
MAX_ADOPTED_BYTES: Final = 16 * 1024**2

_OTHER_RELEASE: Final = re.compile(r"its format version is \d+,")

_FIELDS: Final = (str, int, bytes, bytes, bytes, float, float)
_TOMBSTONE_FIELDS: Final = (str, int, type(None), bytes, bytes, float, float)


def has_id(ids: bytes, one: bytes) -> bool:
    """Tell whether *one* is among *ids*: 8 bytes each, joined."""
    at = ids.find(one)
    while at > 0 and at % 8:
        at = ids.find(one, at + 1)
    return at >= 0


def is_of_another_release(error: object) -> bool:
    """Tell whether a record could not be read because a newer release has written it.

    Then it is no damage, and nothing goes over it.
    """
    return isinstance(error, CorruptSessionError) and _OTHER_RELEASE.match(error.reason) is not None


@dataclass(slots=True, unsafe_hash=True)
class Record:
    """What a store keeps of one session. Nobody changes it once it is made.

    It is not `frozen`, which saves 0.9 of the 4 us that making a write takes.
    """

    session_id: str
    version: int
    """How many turns it has committed since it was first created."""
    state: bytes | None
    """The session's values, as `codec.encode_state` makes them; `None` in a tombstone."""
    write_ids: bytes
    """The ids of the last 16 writes, 8 bytes each, newest first.

    In an id, 4 bytes say who has written, and 4 which of his writes it is. Empty for an adopted
    document.
    """
    event_ids: bytes
    """The digests of the last 64 event ids, 8 bytes each, oldest first."""
    last_activity: float
    """Wall-clock seconds of the last handled event."""
    expires_at: float
    """Wall-clock seconds at which the record ends."""

    @property
    def committed(self) -> Committed:
        """What the turn that made this record left behind."""
        return self.version, self.state, self.event_ids, self.last_activity, self.expires_at

    @property
    def write_id(self) -> bytes:
        """The id of the write that stored the record; `b""` if there is none."""
        return self.write_ids[:8]

    def is_expired(self, now: float) -> bool:
        """Tell whether the record has ended at *now*, in wall-clock seconds."""
        return now >= self.expires_at

    def next_write(self) -> Self:
        """Return the same record as a new write: with a fresh write id."""
        return replace(self, write_ids=(_new_id() + self.write_ids)[:RING_BYTES])

    @classmethod
    def tombstone(cls, session_id: str, *, now: float) -> Self:
        """Make the record of a destroyed session."""
        return cls(session_id, 0, None, _new_id(), b"", now, now + TOMBSTONE_AGE)

    # --- bytes -----------------------------------------------------------------------------------

    def to_bytes(self) -> bytes:
        """Return the magic with the format version, a CRC-32 of the rest, and the fields.

        The checksum finds accidents: torn writes and flipped bits. For those, 32 bits are enough,
        computed at 1 GB/s. It is no signature: who may write to the store may write sessions.
        """
        seen, ends = float(self.last_activity), float(self.expires_at)  # a clock may count in int
        body = pack_fields(
            [self.session_id, self.version, self.state, self.write_ids, self.event_ids, seen, ends],
        )
        return MAGIC + zlib.crc32(body).to_bytes(4, "big") + body

    @classmethod
    def from_bytes(cls, data: bytes, *, session_id: str, store: str) -> Self:
        """Return the record of *session_id*.

        The checksum covers the state; the turn decodes it.

        Raises: CorruptSessionError.
        """
        reason = find_flaw(data)
        if reason is None:
            try:
                fields = unpack_fields(data[8:])
            except UndecodableError as error:
                reason = f"its frame is {error}"
            else:
                reason = _misfit(fields)
                if reason is None and fields[0] != session_id:
                    reason = f"it is the record of session {fields[0]!r}"
                if reason is None:
                    return cls(*fields)
        raise CorruptSessionError(store, session_id, reason)

    @staticmethod
    def peek_id(data: bytes) -> str:
        """Return the session id inside *data*, or `""`. Nothing is checked."""
        try:
            fields = unpack_fields(data[8:])
        except UndecodableError:
            return ""
        return fields[0] if type(fields) is list and fields and type(fields[0]) is str else ""

    # --- document --------------------------------------------------------------------------------

    def to_document(self) -> dict[str, Any]:
        """Return a fresh JSON-safe dict: the state at the top level, the rest under `"$actorbot"`.

        Raises: UndecodableError if the state cannot be decoded, although the checksum is right.
        """
        document = {} if self.state is None else to_document(decode_state(self.state))
        rest: dict[str, Any] = {
            "format": FORMAT,
            "version": self.version,
            "write_ids": _split(self.write_ids),
            "event_ids": _split(self.event_ids),
            "last_activity": float(self.last_activity),
            "expires_at": float(self.expires_at),
        }
        if self.state is None:
            rest["deleted"] = True
        document[RESERVED] = rest
        return document

    @classmethod
    def from_document(
        cls,
        document: Mapping[str, Any],
        *,
        session_id: str,
        store: str,
        expires_in: float,
        now: float | None = None,
    ) -> Self:
        """Read a document. One without `"$actorbot"` is adopted, as a session that was active now.

        Raises: CorruptSessionError.
        """
        try:
            state = encode_state(from_document(document), MAX_ADOPTED_BYTES)
            if RESERVED in document:
                return cls(session_id, *_read_rest(document[RESERVED], state))
        except (UndecodableError, NotEncodableError, SessionTooLargeError) as error:
            raise CorruptSessionError(store, session_id, str(error)) from error
        now = time.time() if now is None else now
        return cls(session_id, 0, state, b"", b"", now, now + expires_in)


def _new_id() -> bytes:
    return BY_HAND + os.urandom(4)


def find_flaw(data: bytes) -> str | None:
    """Say what is wrong with *data* before anything in it is decoded; `None` if nothing is."""
    if data[:3] != MAGIC[:3]:
        return "it is not a record of actorbot" if len(data) >= 3 else "it is truncated"
    if len(data) < 8:
        return "it is truncated"
    if data[3] != FORMAT:
        return f"its format version is {data[3]}, and this release reads {FORMAT}"
    if zlib.crc32(data[8:]).to_bytes(4, "big") != data[4:8]:
        return "its checksum does not fit: it is truncated or damaged"
    return None


def _misfit(fields: Any) -> str | None:
    """Say why *fields*, whose checksum is right, are not those of a record."""
    kinds = tuple(map(type, fields)) if type(fields) is list else ()
    if kinds not in {_FIELDS, _TOMBSTONE_FIELDS}:
        return "its frame does not hold the fields of a record"
    _, version, _, write_ids, event_ids, last_activity, expires_at = fields
    if version < 0 or len(write_ids) % 8 or len(event_ids) % 8 or not isfinite(last_activity + expires_at):
        return "a field of its frame is out of range"
    return None


def _split(ids: bytes) -> list[str]:
    return [ids[i : i + 8].hex() for i in range(0, len(ids), 8)]


def _join(ids: list[Any]) -> bytes:
    if any(type(one) is not str or len(one) != 16 for one in ids):
        raise ValueError("an id is not 16 hexadecimal digits")
    joined = bytes.fromhex("".join(ids))
    if len(joined) != 8 * len(ids):  # fromhex skips spaces
        raise ValueError("an id is not 16 hexadecimal digits")
    return joined


def _read_rest(rest: Any, state: bytes) -> tuple[int, bytes | None, bytes, bytes, float, float]:
    """Return all fields after the session id, from what is under `"$actorbot"`.

    Raises: UndecodableError.
    """
    if not isinstance(rest, dict):
        raise UndecodableError(f'"{RESERVED}" is {type(rest).__name__}, not a dict')
    if rest.get("format") != FORMAT:
        raise UndecodableError(f"its format version is {rest.get('format')!r}, and this release reads {FORMAT}")
    try:
        version, deleted = rest["version"], rest.get("deleted", False)
        if not isinstance(version, int) or not 0 <= version < 2**63 or type(deleted) is not bool:
            raise ValueError("version or deleted is out of range")
        last_activity, expires_at = (float(rest[name]) for name in ("last_activity", "expires_at"))
        if not isfinite(last_activity + expires_at):
            raise ValueError("a time is not finite")
        write_ids, event_ids = (_join(list(rest[name])) for name in ("write_ids", "event_ids"))
    except KeyError as error:
        raise UndecodableError(f'"{RESERVED}" has no {error}') from error
    except (OverflowError, TypeError, ValueError) as error:
        raise UndecodableError(f'"{RESERVED}" is malformed: {error}') from error
    return int(version), None if deleted else state, write_ids, event_ids, last_activity, expires_at
