"""What a MongoDB server must be and have, and what it says of itself."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final

from pymongo.errors import OperationFailure

from actorbot.errors import ConfigError, StoreUnavailableError
from actorbot.stores._findings import Finding, has_expiry, judge_mongo
from actorbot.stores._mongo_documents import OPTIONS
from actorbot.stores._mongo_link import Call, Link, RawCollection
from actorbot.stores._mongo_rights import check_rights, judge_rights

__all__ = ["check_version", "examine", "make_index", "prepare", "time_of", "what_is_missing"]

logger = logging.getLogger("actorbot")

OLDEST: Final = 13  # wire version of MongoDB 5.0, the first that keeps nested keys with `$`

# Ids that some collations take for the same: by case, accent, punctuation, the value of a number.
DIFFERENT: Final = (("a", "A"), ("e", "é"), ("a:b", "ab"), ("1", "01"))

# An index of this name, or on these keys, is there with other options.
_OTHER_INDEX: Final = frozenset({85, 86})
_UNAUTHORIZED: Final = 13


def check_version(link: Link) -> None:
    """Raises: StoreUnavailableError if the server is too old; PyMongoError."""
    call = link.call()
    link.reach_at_start(call)
    if _hello(link.collection, call).get("maxWireVersion", 0) < OLDEST:
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


def prepare(link: Link) -> None:
    """Check rights and collection, and make the index.

    Raises: ConfigError, StoreUnavailableError, PyMongoError.
    """
    check_rights(link)
    _check_collation(link.collection, link.call())
    make_index(link)


def make_index(link: Link) -> None:
    """Make the index by which expired sessions are removed.

    Raises: StoreUnavailableError, PyMongoError.
    """
    collection, call = link.collection, link.call()
    try:
        with call.command():
            collection.create_index("expireAt", name="actorbot_expiry", expireAfterSeconds=0)
    except OperationFailure as error:
        if error.code not in _OTHER_INDEX:
            raise
        if not _removes_expired(collection, call):
            logger.warning("mongo: no TTL index on expireAt, so expired sessions are not removed: %s", error)


def _check_collation(collection: RawCollection, call: Call) -> None:
    """Raises: ConfigError if the collection takes different session ids for the same."""
    same = [{"$eq": [{"$literal": one}, {"$literal": other}]} for one, other in DIFFERENT]
    # `$facet` makes a document out of nothing, by the collation of the collection.
    pipeline: list[Any] = [{"$match": {"_id": {"$in": []}}}, {"$facet": {"none": [{"$limit": 1}]}}]
    with call.command():
        answers = collection.with_options(codec_options=OPTIONS).aggregate([*pipeline, {"$project": {"same": same}}])
        taken = next(
            (pair for answer in answers for pair in zip(DIFFERENT, answer["same"], strict=True) if pair[1]), None
        )
    if taken is not None:
        one, other = taken[0]
        expected = (
            f"a collection that tells {one!r} from {other!r}: by its collation they are one session."
            " Name another collection, or move its documents into one with the collation { locale: 'simple' }"
        )
        raise ConfigError("collection_name", collection.name, expected)


def time_of(link: Link) -> float | None:
    """Return the server's wall-clock seconds; anybody may ask.

    Raises: StoreUnavailableError, PyMongoError.
    """
    call = link.call()
    told = link.twice(call, partial(_hello, call=call)).get("localTime")
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
    try:
        indexes: Sequence[Mapping[str, Any]] | None = _indexes(collection, call)
    except OperationFailure as error:
        if error.code != _UNAUTHORIZED:
            raise
        indexes = None
    yield from judge_mongo(hello, version, status, indexes)
    yield from judge_rights(link)


def _removes_expired(collection: RawCollection, call: Call) -> bool:
    try:
        return has_expiry(_indexes(collection, call))
    except OperationFailure as error:
        if error.code != _UNAUTHORIZED:
            raise
        return False  # nobody can tell


def _hello(collection: RawCollection, call: Call) -> dict[str, Any]:
    with call.command():
        return collection.database.command("hello", codec_options=OPTIONS)


def _indexes(collection: RawCollection, call: Call) -> list[Mapping[str, Any]]:
    with call.command():
        return list(collection.with_options(codec_options=OPTIONS).index_information().values())
