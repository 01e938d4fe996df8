"""Where sessions are kept.

The rest of actorbot knows a store as a `RecordStore`, and a driver of your own as a `SessionStore`.
"""

from actorbot.stores._copy import CopyReport, copy
from actorbot.stores._findings import Finding
from actorbot.stores.base import ONE_YEAR, Record, RecordStore, SessionStore, Verdict, Write, judge
from actorbot.stores.file import FileSessionStore
from actorbot.stores.memory import MemorySessionStore
from actorbot.stores.url import store_from_url

__all__ = [
    "ONE_YEAR",
    "CopyReport",
    "FileSessionStore",
    "Finding",
    "MemorySessionStore",
    "Record",
    "RecordStore",
    "SessionStore",
    "Verdict",
    "Write",
    "copy",
    "judge",
    "store_from_url",
]
