"""The lease of sessions in MongoDB: a document in a collection beside theirs."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any, Final

from bson import ObjectId
from bson.errors import BSONError
from pymongo.errors import DuplicateKeyError, PyMongoError
from pymongo.read_preferences import ReadPreference

from actorbot.errors import OutcomeUnknownError, StoreError, StoreUnavailableError
from actorbot.stores._lease import LeaseFound, LeaseKeeping
from actorbot.stores._mongo_documents import OPTIONS
from actorbot.stores._mongo_link import Link, RawCollection, describe
from actorbot.stores._mongo_rights import check_lease_rights

__all__ = ["MongoLease"]

ID: Final = "lease"


class MongoLease(LeaseKeeping):
    """The part of `MongoSessionStore` that keeps the lease."""

    keeps_lease = True
    _link: Link
    _may_lease = False  # whether this user was seen to have the rights

    def read_lease(self) -> LeaseFound:
        call = self._link.call()

        def ask(collection: RawCollection) -> tuple[Mapping[str, Any] | None, Mapping[str, Any]]:
            with call.command():
                found = self._beside(collection).find_one({"_id": ID}, {"text": True})
            with call.command():
                return found, collection.database.command("hello", codec_options=OPTIONS)

        try:
            if not self._may_lease:
                check_lease_rights(self._link)
                self._may_lease = True
            found, hello = self._link.twice(call, ask)
        except PyMongoError as error:
            raise self._failed(StoreUnavailableError, "reading", error) from error
        except BSONError as error:
            raise self._something_else() from error
        text = None if found is None else found.get("text")
        if found is not None and not isinstance(text, str):
            raise self._something_else()
        now = hello.get("localTime")
        if not isinstance(now, datetime):
            raise StoreUnavailableError("mongo", f"{self._link.hosts} does not tell its time, which a lease needs")
        return LeaseFound(text, now.timestamp(), _up(hello, now))

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
            raise self._failed(OutcomeUnknownError if call.sent else StoreUnavailableError, "writing", error) from error

    def _failed(self, kind: type[StoreUnavailableError], what: str, error: PyMongoError) -> StoreUnavailableError:
        return kind("mongo", f"{self._link.hosts}: {what} the lease failed: {describe(error)}")

    def _beside(self, collection: RawCollection) -> Any:
        """Return the collection of the lease: read and written as that of the sessions."""
        return collection.database.get_collection(
            self._link.lease_name,
            codec_options=OPTIONS,
            read_preference=ReadPreference.PRIMARY,
            write_concern=collection.write_concern,
        )

    def _something_else(self) -> StoreError:
        place = f"the document {ID!r} of the collection {self._link.lease_name!r}"
        return StoreError(
            "mongo", f"the lease that says who owns it: {place} is something else; look at it, and remove it"
        )


def _up(hello: Mapping[str, Any], now: datetime) -> float | None:
    """Return for how many seconds the server has been up, `None` if it does not tell.

    Its process has an id with the time in it when it began.
    """
    version = hello.get("topologyVersion")
    process = version.get("processId") if isinstance(version, Mapping) else None
    return max(0.0, (now - process.generation_time).total_seconds()) if isinstance(process, ObjectId) else None
