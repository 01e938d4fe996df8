"""Damaged documents in MongoDB: set aside, in a collection beside that of the sessions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Final

import bson
from bson.raw_bson import RawBSONDocument
from pymongo.errors import PyMongoError

from actorbot._state.record import Record
from actorbot.errors import CorruptSessionError, StoreUnavailableError
from actorbot.stores._mongo_documents import LENIENT
from actorbot.stores._mongo_link import Call, RawCollection, describe
from actorbot.stores.base import ASIDE_AGE

__all__ = ["SHAPE", "set_aside"]

SHAPE: Final[Mapping[str, Any]] = {
    "$or": [
        {"state": {"$type": "object"}, "deleted": {"$ne": True}},
        {"state": {"$exists": False}, "deleted": True},
    ],
    "version": {"$type": "number"},
    "write_ids": {"$not": {"$elemMatch": {"$not": {"$type": "binData"}}}},
    "event_ids": {"$type": "binData"},
    "last_activity": {"$type": ["number", "date"]},
    "expires_at": {"$type": ["number", "date"]},
}
"""What a document of a session looks like, as far as the server can tell.

A write replaces no other: what it finds in its place is read first.
"""


def set_aside(
    collection: RawCollection,
    call: Call,
    session_id: str,
    decode: Callable[[RawBSONDocument], tuple[str, Record | CorruptSessionError]],
    note: Callable[[str, str, str], None],
) -> dict[str, Any] | None:
    """Copy the session's document, if it is damaged, into the collection beside.

    Returns what finds this very document; `None` if it is not damaged. Raises:
    StoreUnavailableError.
    """
    try:
        with call.command():
            document = collection.find_one({"_id": session_id})
        found = None if document is None else decode(document)[1]
        if document is None or not isinstance(found, CorruptSessionError):
            return None
        aside = collection.database[f"{collection.name}.damaged"]
        with call.command():
            aside.create_index("set_aside_at", expireAfterSeconds=int(ASIDE_AGE))
        kept: Any = {"session_id": session_id, "set_aside_at": datetime.now(UTC), "document": document}
        with call.command():
            aside.insert_one(kept)
    except PyMongoError as error:
        reason = f"its damaged document cannot be set aside: {describe(error)}"
        raise StoreUnavailableError("mongo", reason, session_id=session_id) from error
    note(session_id, found.reason, f"kept for a week in the collection {aside.name!r}")
    fields = bson.decode(document.raw, LENIENT)
    same = {"$eq": fields["write_ids"]} if "write_ids" in fields else {"$exists": False}
    return {"_id": session_id, "write_ids": same}
