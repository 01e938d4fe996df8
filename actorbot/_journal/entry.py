"""What the journal holds of a session: a row, from and to bytes."""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any, Final

from actorbot._state.codec import pack_fields, unpack_fields
from actorbot._state.committed import Committed, Lineage
from actorbot._state.record import Record
from actorbot._state.values import UndecodableError

__all__ = ["Entry", "pack_entry"]

_FIELDS: Final = (str, int, bytes, bytes, bytes, float, float, bytes)
_TOMBSTONE_FIELDS: Final = (str, int, type(None), bytes, bytes, float, float, bytes)


@dataclass(frozen=True, slots=True)
class Entry:
    """A committed state that the store may not have."""

    record: Record
    """Its `write_ids` are those of the record that the state was made from, as far as was known."""
    lineages: tuple[Lineage, ...]
    """Newest first: that of the record, then those of recovered states that the store may have."""

    @classmethod
    def from_bytes(cls, data: bytes) -> Entry:
        """Read what `pack_entry` made. Raises: UndecodableError."""
        if zlib.crc32(data[4:]).to_bytes(4, "big") != data[:4]:
            raise UndecodableError("the checksum of an entry does not fit")
        fields: Any = unpack_fields(data[4:])
        kinds = tuple(map(type, fields)) if type(fields) is list else ()
        if kinds not in {_FIELDS, _TOMBSTONE_FIELDS}:
            raise UndecodableError("an entry does not hold the fields of one")
        *rest, known = fields
        lineages = [
            Lineage(known[at : at + 8], int.from_bytes(known[at + 8 : at + 16], "big"))
            for at in range(0, len(known), 16)
        ]
        return cls(Record(*rest), tuple(lineages))


def pack_entry(session_id: str, committed: Committed, write_ids: bytes, lineages: tuple[Lineage, ...]) -> bytes:
    """Return the checksum and the fields of an Entry, without making the Entry."""
    version, state, event_ids, seen, ends = committed
    known = b"".join([name + last.to_bytes(8, "big") for name, last in lineages])
    body = pack_fields([session_id, version, state, write_ids, event_ids, float(seen), float(ends), known])
    return zlib.crc32(body).to_bytes(4, "big") + body
