"""The lease of sessions in MongoDB: a document in a collection beside theirs."""

from __future__ import annotations

from datetime import datetime
from typing import Any, Final

from bson import ObjectId
from pymongo.errors import DuplicateKeyError, PyMongoError

from actorbot.errors import OutcomeUnknownError, StoreError, StoreUnavailableError
from actorbot.stores._lease import LeaseFound, LeaseKeeping
from actorbot.stores._mongo_documents import OPTIONS
from actorbot.stores._mongo_link import Link, RawCollection, describe

__all__ = ["MongoLease"]

ID: Final = "lease"


class MongoLease(LeaseKeeping):
    """The part of `MongoSessionStore` that keeps the lease."""

    keeps_lease = True
    _link: Link

    def read_lease(self) -> LeaseFound:
        call = self._link.call()

        def ask(collection: RawCollection) -> tuple[Any, dict[str, Any]]:
            with call.command():
                found = self._beside(collection).find_one({"_id": ID})
            with call.command():
                return found, collection.database.command("hello", codec_options=OPTIONS)

        try:
            found, hello = self._link.twice(call, ask)
        except PyMongoError as error:
            raise StoreUnavailableError(
                "mongo", f"{self._link.hosts}: reading the lease failed: {describe(error)}"
            ) from error
        text = None if found is None else found.get("text")
        if found is not None and not isinstance(text, str):
            place = f"the document {ID!r} of the collection {self._link.collection_name}.lease"
            raise StoreError(
                "mongo", f"the lease that says who owns it: {place} is something else; look at it, and remove it"
            )
        now: datetime = hello["localTime"]
        process = hello.get("topologyVersion", {}).get("processId")
        up = (now - process.generation_time).total_seconds() if isinstance(process, ObjectId) else None
        return LeaseFound(text, now.timestamp(), None if up is None else max(0.0, up))

    def swap_lease(self, old: str | None, new: str) -> bool:
        call = self._link.call()

        def put(collection: RawCollection) -> bool:
            beside = self._beside(collection)
            with call.command():
                if old is not None:
                    return bool(beside.update_one({"_id": ID, "text": old}, {"$set": {"text": new}}).matched_count)
                beside.insert_one({"_id": ID, "text": new})
                return True

        try:
            return self._link.twice(call, put, writes=True)
        except DuplicateKeyError:
            return False
        except PyMongoError as error:
            kind = OutcomeUnknownError if call.sent else StoreUnavailableError
            raise kind("mongo", f"{self._link.hosts}: writing the lease failed: {describe(error)}") from error

    def _beside(self, collection: RawCollection) -> Any:
        name = f"{self._link.collection_name}.lease"
        return collection.database.get_collection(name, codec_options=OPTIONS, write_concern=collection.write_concern)
