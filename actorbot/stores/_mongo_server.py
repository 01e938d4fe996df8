"""What a MongoDB server must be and have, and what it says of itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from typing import Any, Final

from pymongo.errors import OperationFailure

from actorbot.errors import StoreUnavailableError
from actorbot.stores._findings import Finding, has_expiry, judge_mongo
from actorbot.stores._mongo_documents import OPTIONS
from actorbot.stores._mongo_link import Call, Link, RawCollection

__all__ = ["check_version", "examine", "make_index", "time_of", "what_is_missing"]

logger = logging.getLogger("actorbot")

OLDEST: Final = 13  # wire version of MongoDB 5.0, the first that keeps nested keys with `$`

# An index of this name, or on these keys, is there with other options.
_OTHER_INDEX: Final = frozenset({85, 86})
_UNAUTHORIZED: Final = 13


def check_version(link: Link) -> None:
    """Raises: StoreUnavailableError if the server is too old; PyMongoError."""
    if _hello(link.collection, link.call()).get("maxWireVersion", 0) < OLDEST:
        raise StoreUnavailableError("mongo", f"{link.hosts} is older than MongoDB 5.0")


def what_is_missing(link: Link) -> str | None:
    """Say that the collection is not there; `None` if it is, or if this user may not ask.

    Raises: StoreUnavailableError, PyMongoError.
    """
    database, name = link.collection.database, link.collection_name
    try:
        with link.call().command():
            # In this form any user may ask who may read the collection.
            only: dict[str, Any] = {"nameOnly": True, "authorizedCollections": True, "filter": {"name": name}}
            told = database.command("listCollections", codec_options=OPTIONS, **only)
    except OperationFailure as error:
        if error.code != _UNAUTHORIZED:
            raise
        return None
    return (
        None if told["cursor"]["firstBatch"] else f"there is no collection {name!r} in the database {database.name!r}"
    )


def make_index(link: Link) -> None:
    """Make the index by which the server removes what has expired.

    Raises: StoreUnavailableError, PyMongoError.
    """
    collection, call = link.collection, link.call()
    try:
        with call.command():
            collection.create_index("expireAt", name="actorbot_expiry", expireAfterSeconds=0)
    except OperationFailure as error:
        if error.code not in _OTHER_INDEX:
            raise
        if not has_expiry(_indexes(collection, call)):
            logger.warning("mongo store: no TTL index on expireAt, so expired sessions are not removed: %s", error)


def time_of(link: Link) -> float | None:
    """Return the server's wall-clock seconds; anybody may ask.

    Raises: StoreUnavailableError, PyMongoError.
    """
    told = _hello(link.collection, link.call()).get("localTime")
    return None if told is None else float(told.timestamp())


def examine(link: Link) -> Iterator[Finding]:
    """Yield how good the server is for sessions. Raises: StoreUnavailableError, PyMongoError."""
    collection, call = link.collection, link.call()
    database = collection.database
    hello = _hello(collection, call)
    with call.command():
        version = database.command("buildInfo", codec_options=OPTIONS)["version"]
    try:
        with call.command():
            status = database.client.admin.command("serverStatus", codec_options=OPTIONS)
    except OperationFailure as error:
        if error.code != _UNAUTHORIZED:
            raise
        status = None
    yield from judge_mongo(hello, version, status, _indexes(collection, call))


def _hello(collection: RawCollection, call: Call) -> dict[str, Any]:
    with call.command():
        return collection.database.command("hello", codec_options=OPTIONS)


def _indexes(collection: RawCollection, call: Call) -> list[Mapping[str, Any]]:
    with call.command():
        return list(collection.with_options(codec_options=OPTIONS).index_information().values())
