"""What a turn leaves behind, and the write ids that follow from who made it."""

from __future__ import annotations

from hashlib import blake2b
from typing import Final, NamedTuple

__all__ = [
    "ANYBODYS",
    "ENDS",
    "EVENT_IDS",
    "NOTHING",
    "OWNER_BYTES",
    "SEEN",
    "STATE",
    "VERSION",
    "Committed",
    "Lineage",
    "digest_of",
    "write_id_of",
]

Committed = tuple[int, "bytes | None", bytes, float, float]
"""What a turn leaves behind, as one immutable value.

The flusher may read it from its own thread while the next turn runs. It is an exact tuple, whose
places have the names below. The garbage collector forgets such a tuple; it would walk over 100,000
NamedTuples or objects with slots. Making one takes 36 ns; a NamedTuple takes 227.
"""

VERSION: Final = 0
"""How many turns the session has committed since it was first created."""
STATE: Final = 1
"""The encoded values; `None` if the session was destroyed, or never there."""
EVENT_IDS: Final = 2
"""The digests of the last event ids, 8 bytes each, oldest first."""
SEEN: Final = 3
"""Wall-clock seconds of the last event."""
ENDS: Final = 4
"""Wall-clock seconds of the end that this event set."""


NOTHING: Final[Committed] = (0, None, b"", 0.0, 0.0)
"""Of a session that was never there."""


class Lineage(NamedTuple):
    """Which versions of a session a process has made.

    A write id follows from a lineage's name and a version. So after a crash, a process recognises
    its own records in the store, whatever became of their writes.
    """

    name: bytes
    """8 random bytes, drawn at each start of a manager. The first 4 are its owner."""
    last: int
    """The last version."""


ANYBODYS: Final = Lineage(bytes(8), 2**63 - 1)
"""All that anybody has written. The end of a session may replace any of it."""


OWNER_BYTES: Final = 4
"""Of a write id: they say which start of a manager has made it."""


def digest_of(event_id: str) -> bytes:
    """Return what a session remembers of an event's id."""
    return blake2b(str(event_id).encode("utf-8", "surrogatepass"), digest_size=8).digest()


def write_id_of(lineage: bytes, version: int) -> bytes:
    """Return the write id of a *version* made in *lineage*: its owner, and a number."""
    number = (int.from_bytes(lineage[OWNER_BYTES:], "big") + version) & 0xFFFF_FFFF
    return lineage[:OWNER_BYTES] + number.to_bytes(4, "big")
