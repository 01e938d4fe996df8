"""Sessions that are in a store before a run begins, and how they are counted afterwards.

Each has the workload's ten texts.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import time
from typing import Any

from actorbot import ONE_YEAR
from actorbot.errors import ActorbotError
from actorbot.stores.base import Record, RecordStore, Write
from benchmarks._workload import make_texts, remember

TEXTS = 10
"""The counter of a session that was stored here."""

BATCH = 1_000  # records in one call of a store


def stored_state() -> dict[str, Any]:
    state: dict[str, Any] = {}
    for text in make_texts(TEXTS):
        remember(state, text)
    return state


def stored_record(now: float) -> Record:
    """Make the record of such a session; its id is replaced later."""
    record = Record.from_document(stored_state(), session_id="-", store="-", expires_in=ONE_YEAR, now=now)
    return record.next_write()


def fill(store: RecordStore, session_ids: Sequence[str]) -> None:
    """Write each session into *store*, which is open and does not have it yet.

    Raises: ActorbotError.
    """
    record = stored_record(time())
    for batch in in_batches(session_ids):
        writes = [Write(replace(record, session_id=one).next_write(), base=b"") for one in batch]
        for error in store.write_many(writes):
            if error is not None:
                raise error


def wrong_counters(store: RecordStore, expected: dict[str, int]) -> dict[str, int]:
    """Return the sessions whose counter in *store* is wrong, and how many events are missing."""
    missing = {}
    for batch in in_batches(list(expected)):
        for session_id, record in zip(batch, store.read_many(batch), strict=True):
            if isinstance(record, ActorbotError):
                raise record
            missing[session_id] = expected[session_id] - (0 if record is None else record.to_document()["n"])
    return {session_id: count for session_id, count in missing.items() if count}


def in_batches(items: Sequence[str]) -> Iterator[Sequence[str]]:
    for first in range(0, len(items), BATCH):
        yield items[first : first + BATCH]
