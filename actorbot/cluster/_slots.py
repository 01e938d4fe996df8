"""Which slot a session belongs to: sessions change hands by the slot."""

from __future__ import annotations

from hashlib import blake2b

__all__ = ["slot_of"]


def slot_of(session_id: str, slots: int) -> int:
    """Return the slot of a session, from 0 to *slots* - 1: the same in every process."""
    return int.from_bytes(blake2b(session_id.encode(), digest_size=4).digest()) % slots
