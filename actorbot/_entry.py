"""What the journal holds of a session, and what may become of it in the store after a crash."""

from __future__ import annotations

import zlib
from dataclasses import dataclass, replace
from hashlib import blake2b
from typing import Any, Final

from actorbot._state.codec import pack_fields, unpack_fields
from actorbot._state.record import RING_BYTES, Record, has_id
from actorbot._state.values import UndecodableError
from actorbot.errors import ActorbotError, ConflictError
from actorbot.stores.base import Write

__all__ = ["ANYBODYS", "Committed", "Entry", "Lineage", "pack_entry", "rebase", "write_id_of"]

Committed = tuple[int, "bytes | None", bytes, float, float]
"""What a turn leaves behind, as one immutable value: version, encoded state (`None`: destroyed, or never there), digests of event ids,
wall-clock seconds of the last event, and of the end that it set. The flusher may read it from its own thread while the next turn runs."""

Lineage = tuple[bytes, int]
"""Which versions of a session a process has made: a random id of 8 bytes, which each start of a manager draws, and the last version.
A write id follows from both, so that after a crash a record in the store is recognised as one's own, whatever became of its write."""

ANYBODYS: Final[Lineage] = (bytes(8), 2**63 - 1)
"""Stands for all that anybody has written: what was destroyed may replace it."""

_FIELDS: Final = (str, int, bytes, bytes, bytes, float, float, bytes)
_TOMBSTONE_FIELDS: Final = (str, int, type(None), bytes, bytes, float, float, bytes)


def write_id_of(lineage: bytes, version: int) -> bytes:
    """Return the write id of a *version* made in *lineage*: as good as random, since the lineage is."""
    return blake2b(version.to_bytes(8, "big"), key=lineage, digest_size=8).digest()


@dataclass(frozen=True, slots=True)
class Entry:
    """A committed state that the store may not have."""

    record: Record
    """Its `write_ids` are those of the record that the state was made from, as far as was known."""
    lineages: tuple[Lineage, ...]
    """Newest first: that of the record, and those of what was recovered from a journal and not yet found in the store."""

    @property
    def committed(self) -> Committed:
        """What the turn left behind that made it."""
        record = self.record
        return record.version, record.state, record.event_ids, record.last_activity, record.expires_at

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
            (known[at : at + 8], int.from_bytes(known[at + 8 : at + 16], "big")) for at in range(0, len(known), 16)
        ]
        return cls(Record(*rest), tuple(lineages))


def pack_entry(session_id: str, committed: Committed, write_ids: bytes, lineages: tuple[Lineage, ...]) -> bytes:
    """Return the checksum and the fields of an Entry, which need not be made for this."""
    version, state, event_ids, seen, ends = committed
    known = b"".join([name + last.to_bytes(8, "big") for name, last in lineages])
    body = pack_fields([session_id, version, state, write_ids, event_ids, float(seen), float(ends), known])
    return zlib.crc32(body).to_bytes(4, "big") + body


def rebase(write: Write, lineages: tuple[Lineage, ...], stored: Record | ActorbotError | None, store: str) -> Any:
    """Decide about the write of a recovered state, the store being seen for the first time since.

    Returns the Write that may be tried, `None` if it has been done already, what is stored if it is the same process's and newer, as after
    a power loss that has set the journal back, or an error: what is stored is somebody else's, or broken.
    """
    forced = ANYBODYS in lineages
    if stored is None:
        return replace(write, base=b"") if forced else write
    if isinstance(stored, ActorbotError):
        return replace(write, base=None) if forced else stored
    record = write.record
    if has_id(stored.write_ids, record.write_id):
        return None
    if (
        forced
        or stored.write_id == record.write_ids[8:16]
        or (
            stored.write_id and has_id(record.write_ids[8:], stored.write_id)
        )  # it has gone back: restored from a copy, or failed over
        or any(
            stored.version <= last and stored.write_id == write_id_of(name, stored.version) for name, last in lineages
        )
    ):
        write_ids = (record.write_id + stored.write_ids)[:RING_BYTES]
        return Write(replace(record, write_ids=write_ids), stored.write_id)
    name, last = lineages[0]
    if stored.version > last and stored.write_id == write_id_of(name, stored.version):
        return stored
    return ConflictError(store, "it was written by someone else since it was read", session_id=record.session_id)
