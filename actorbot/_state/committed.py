"""What a turn leaves behind, and the write ids that follow from who made it."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final

__all__ = ["ANYBODYS", "Committed", "Lineage", "write_id_of"]

Committed = tuple[int, "bytes | None", bytes, float, float]
"""What a turn leaves behind, as one immutable value: version, encoded state (`None`: destroyed, or never there), digests of event ids,
wall-clock seconds of the last event, and of the end that it set. The flusher may read it from its own thread while the next turn runs."""

Lineage = tuple[bytes, int]
"""Which versions of a session a process has made: a random id of 8 bytes, which each start of a manager draws, and the last version.
A write id follows from both, so that after a crash a record in the store is recognised as one's own, whatever became of its write."""

ANYBODYS: Final[Lineage] = (bytes(8), 2**63 - 1)
"""Stands for all that anybody has written: what was destroyed may replace it."""


def write_id_of(lineage: bytes, version: int) -> bytes:
    """Return the write id of a *version* made in *lineage*: as good as random, since the lineage is."""
    return blake2b(version.to_bytes(8, "big"), key=lineage, digest_size=8).digest()
