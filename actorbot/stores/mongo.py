"""Sessions in MongoDB, as documents that can be queried: `db.sessions.find({"state.nickname": "Tim"})`."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from math import inf
from typing import Any, ClassVar, Final, Self
from urllib.parse import urlsplit

from actorbot._state.record import Record
from actorbot.errors import (
    ActorbotError,
    ConfigError,
    CorruptSessionError,
    NotEncodableError,
    OutcomeUnknownError,
    SessionTooLargeError,
    StoreUnavailableError,
)
from actorbot.stores._finding import Finding, judge_clock
from actorbot.stores._mongo_findings import has_expiry, judge_server
from actorbot.stores.base import ONE_YEAR, RecordStore, Verdict, Write, check_expires_in, judge

try:
    import pymongo
    from bson.raw_bson import RawBSONDocument
    from pymongo.collection import Collection
    from pymongo.driver_info import DriverInfo
    from pymongo.errors import (
        BulkWriteError,
        ConnectionFailure,
        NetworkTimeout,
        OperationFailure,
        PyMongoError,
        ServerSelectionTimeoutError,
        WaitQueueTimeoutError,
    )
    from pymongo.read_preferences import ReadPreference
    from pymongo.uri_parser import parse_uri

    from actorbot.stores._mongo_documents import FORMAT, OPTIONS, RAW, decode_record, encode_record
except ImportError as missing:
    raise ImportError(
        "MongoSessionStore needs the driver pymongo: pip install '.[mongo]' in a clone of actorbot"
    ) from missing

__all__ = ["MongoSessionStore"]

logger = logging.getLogger("actorbot")

CALL: Final = 4.0  # seconds for a call with all its commands, less than the five of `store_deadline`; `timeoutMS=` in the URL is another
# Seconds to wait for a server that takes writes, when none is known: so long until an outage is noticed.
REACH: Final = 1.0
CLOSE: Final = 1.0
TRIES: Final = 3
PAGE: Final = 250  # sessions that a scan reads at a time
OLDEST: Final = 13  # wire version of MongoDB 5.0, the first that keeps keys with `$` where they are nested

_DUPLICATE: Final = 11000
_OTHER_INDEX: Final = frozenset({85, 86})  # there is one of this name, or of these keys, with other options
_UNAUTHORIZED: Final = 13
_AUTHENTICATION: Final = 18


class MongoSessionStore(RecordStore):
    """Keeps each session in a document of *collection_name*, on a standalone server, a replica set or a sharded cluster. MongoDB 5.0+.

    `_id` is the session id, `state` the session's values, and what actorbot must know again stands beside it. What BSON holds exactly
    is kept as it is (also bytes, UUIDs, and decimals of 34 digits); dates, tuples, sets and so on are tagged: `{"$tuple": [1, 2]}`.
    A document that has an `_id` and a `state` and nothing else is adopted as an existing session.

    Writes are confirmed by a majority and journaled, whatever the URL says. The driver retries none of them: the write ids in the
    record tell a write that was applied before. A call ends after four seconds, or after the `timeoutMS=` of the URL, and
    `store_deadline` should be longer. Expired records are removed by the server, through an index that `init` makes, about two minutes
    later. One store may be used from several threads; in a forked process, `init` connects anew.

    Raises: ConfigError.
    """

    name: ClassVar[str] = "mongo"

    def __init__(
        self,
        url: str,
        *,
        database: str = "actorbot",
        collection_name: str = "sessions",
        expires_in: float = ONE_YEAR,
    ) -> None:
        self.expires_in = check_expires_in(expires_in)
        self._hosts = _check_url(url)
        self._url = url
        self._database = _check_name("database", database, ' ."$/\\\0')
        self._collection_name = _check_name("collection_name", collection_name, "$\0")
        if collection_name.startswith((".", "system.")) or collection_name.endswith("."):
            raise ConfigError("collection_name", collection_name, "no dot at its ends, and not `system.`")
        self._opened: Collection[RawBSONDocument] | None = None
        self._patience = CALL
        self._process = 0

    # --- life ---------------------------------------------------------------------------------------------------------

    def init(self) -> Self:
        if self._opened is not None and self._process == os.getpid():
            return self
        self._opened, self._process = (
            None,
            os.getpid(),
        )  # a client from before a fork is the parent's, and stays as it is
        try:
            client: pymongo.MongoClient[RawBSONDocument] = pymongo.MongoClient(
                self._url,
                # The first three for what `_Call` does not bound: the driver's own threads.
                connectTimeoutMS=round(CALL * 1000),
                serverSelectionTimeoutMS=round(CALL * 1000),
                socketTimeoutMS=round(CALL * 1000),
                waitQueueTimeoutMS=round(REACH * 1000),
                maxPoolSize=10,  # the writer, the reader, and the eight calls that a manager may leave behind
                retryWrites=False,  # a standalone server cannot; and the ring of write ids does the same everywhere
                retryReads=False,  # its retry may take as long again
                driver=DriverInfo("actorbot"),
            )
        except (PyMongoError, OSError, TypeError, ValueError) as error:
            raise self._unavailable(error) from error
        self._patience = client.options.timeout or CALL
        try:
            self._opened = self._prepare(client, _Call(self._patience))
        except PyMongoError as error:
            raise self._unavailable(error) from error
        finally:
            if self._opened is None:
                _close(client)
        return self

    def _prepare(self, client: pymongo.MongoClient[RawBSONDocument], call: _Call) -> Collection[RawBSONDocument]:
        database = client[self._database]
        with call.command():
            newest = database.command("hello", codec_options=OPTIONS).get("maxWireVersion", 0)
        if newest < OLDEST:
            raise StoreUnavailableError(self.name, f"{self._hosts} is older than MongoDB 5.0")
        collection = database.get_collection(
            self._collection_name,
            codec_options=RAW,
            read_preference=ReadPreference.PRIMARY,  # what a secondary has may be old, and would be a conflict
            write_concern=pymongo.WriteConcern("majority", j=True),
        )
        try:
            with call.command():
                collection.create_index("expireAt", name="actorbot_expiry", expireAfterSeconds=0)
        except OperationFailure as error:
            if error.code not in _OTHER_INDEX:
                raise
            if not has_expiry(_indexes(collection, call)):
                logger.warning("mongo store: no TTL index on expireAt, so expired sessions are not removed: %s", error)
        return collection

    def examine(self) -> Iterator[Finding]:
        self.init()
        call = _Call(self._patience)
        yield Finding("reach", "ok", f"{self._hosts} answers")
        try:
            yield from self._examine(self._collection, call)
        except PyMongoError as error:
            raise self._unavailable(error) from error

    def _examine(self, collection: Collection[RawBSONDocument], call: _Call) -> Iterator[Finding]:
        database, before = collection.database, time.time()
        with call.command():
            hello = database.command("hello", codec_options=OPTIONS)
        ahead = hello["localTime"].timestamp() - (before + time.time()) / 2
        with call.command():
            version = database.command("buildInfo", codec_options=OPTIONS)["version"]
        try:
            with call.command():
                status = database.client.admin.command("serverStatus", codec_options=OPTIONS)
        except OperationFailure as error:
            if error.code != _UNAUTHORIZED:
                raise
            status = None
        yield from judge_server(hello, version, status, _indexes(collection, call))
        yield judge_clock(ahead)

    def close(self) -> None:
        if self._opened is not None and self._process == os.getpid():
            _close(self._opened.database.client)
        self._opened = None

    @property
    def _collection(self) -> Collection[RawBSONDocument]:
        if self._opened is None or self._process != os.getpid():
            raise StoreUnavailableError(self.name, f"{self._hosts} is not open: init() comes first, also after a fork")
        return self._opened

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        if isinstance(error, OperationFailure) and error.code == _AUTHENTICATION:
            return StoreUnavailableError(self.name, f"{self._hosts} refuses the user or the password of the URL")
        return StoreUnavailableError(self.name, f"{self._hosts} cannot be used: {_short(error)}")

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        collection, call = self._collection, _Call(self._patience)
        try:
            call.reach(collection)
            try:
                return self._find(collection, session_ids, call)
            except NetworkTimeout:
                raise
            except ConnectionFailure:  # perhaps only this one has been closed meanwhile, and reading changes nothing
                call.reach(collection)
                return self._find(collection, session_ids, call)
        except PyMongoError as error:
            raise StoreUnavailableError(self.name, f"reading from {self._hosts} failed: {_short(error)}") from error

    def _find(
        self, collection: Collection[RawBSONDocument], session_ids: Sequence[str], call: _Call
    ) -> list[Record | ActorbotError | None]:
        wanted = {"_id": {"$in": list(session_ids)}}
        with call.command():
            documents = list(collection.find(wanted, {"expireAt": False}, batch_size=len(session_ids) + 1))
        found = dict(decode_record(document.raw, store=self.name, expires_in=self.expires_in) for document in documents)
        return [found.get(session_id) for session_id in session_ids]

    def scan(self) -> Iterator[Record | ActorbotError]:
        last = ""
        while page := self._read_page(last):
            yield from (record for _, record in page)
            last = page[-1][0]

    def _read_page(self, after: str) -> list[tuple[str, Record | CorruptSessionError]]:
        """Read the sessions whose ids come next: what has an `_id` that is no text is none."""
        call = _Call(self._patience)
        try:
            with call.command():
                page = self._collection.find({"_id": {"$gt": after}}, {"expireAt": False}).sort("_id").limit(PAGE)
                return [decode_record(document.raw, store=self.name, expires_in=self.expires_in) for document in page]
        except PyMongoError as error:
            raise StoreUnavailableError(self.name, f"listing {self._hosts} failed: {_short(error)}") from error

    def count(self) -> int:
        try:
            with _Call(self._patience).command():
                return self._collection.estimated_document_count()
        except PyMongoError as error:
            raise StoreUnavailableError(self.name, f"counting in {self._hosts} failed: {_short(error)}") from error

    # --- writing ------------------------------------------------------------------------------------------------------

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        collection, call = self._collection, _Call(self._patience)
        outcomes: list[ActorbotError | None] = [None] * len(writes)
        operations: dict[int, pymongo.ReplaceOne[Any]] = {}
        for n, write in enumerate(writes):
            try:
                operations[n] = self._operation(write)
            except (CorruptSessionError, NotEncodableError, SessionTooLargeError) as error:
                outcomes[n] = error
        sent = False
        try:
            call.reach(collection)
            for _ in range(TRIES):
                if not operations:
                    return outcomes
                refused = self._send(collection, list(operations.values()), call)
                sent = True
                numbers = list(operations)
                errors = {numbers[at]: error for at, error in refused.items()}
                again = self._resolve(collection, writes, outcomes, errors, call)
                operations = {n: operations[n] for n in again}
        except (ServerSelectionTimeoutError, WaitQueueTimeoutError) as error:
            kind = OutcomeUnknownError if sent else StoreUnavailableError
            raise kind(self.name, f"{self._hosts} cannot be reached: {_short(error)}") from error
        except PyMongoError as error:
            raise OutcomeUnknownError(self.name, f"writing to {self._hosts} failed: {_short(error)}") from error
        for n in operations:
            session_id = writes[n].record.session_id
            outcomes[n] = StoreUnavailableError(self.name, "it comes and goes", session_id=session_id)
        return outcomes

    def _operation(self, write: Write) -> pymongo.ReplaceOne[Any]:
        """Replace what the write may replace, else insert: which the unique `_id` refuses where there is anything else."""
        record = write.record
        raw = encode_record(record, store=self.name)
        may_replace: dict[str, Any] = {"_id": record.session_id}
        if write.base is None:
            may_replace["write_ids"] = {"$ne": record.write_id}  # applied before, it would end what has begun since
        elif write.base:
            may_replace |= {"write_ids.0": write.base, "format": FORMAT}
        else:  # a session to be adopted
            may_replace |= {"write_ids": {"$exists": False}, "format": {"$exists": False}, "state": {"$type": "object"}}
        return pymongo.ReplaceOne(may_replace, RawBSONDocument(raw), upsert=True)

    def _send(
        self, collection: Collection[RawBSONDocument], operations: list[Any], call: _Call
    ) -> dict[int, Mapping[str, Any]]:
        """Return the errors by the number of the operation; what has none was applied."""
        try:
            with call.command():
                collection.bulk_write(operations, ordered=False)
        except BulkWriteError as error:
            details = error.details  # the error itself must not be a cause: it quotes the sessions
            unconfirmed = details.get("writeConcernErrors")
            if unconfirmed:
                reason = f"{self._hosts} did not confirm a write as safe: {unconfirmed[0].get('errmsg')}"
                raise OutcomeUnknownError(self.name, reason) from None
            return {each["index"]: each for each in details["writeErrors"]}
        return {}

    def _resolve(
        self,
        collection: Collection[RawBSONDocument],
        writes: Sequence[Write],
        outcomes: list[ActorbotError | None],
        refused: Mapping[int, Mapping[str, Any]],
        call: _Call,
    ) -> list[int]:
        """Note what became of what was *refused*, after one look at what is there; return the numbers of what is to be sent again.

        To be told that an `_id` is taken, the server has waited for a majority to have what is there, as for every write: a write that is
        found to have been applied is as safe as if it had been confirmed.
        """
        compared = []
        for n, error in refused.items():
            if error.get("code") != _DUPLICATE or list(error.get("keyPattern") or ()) != ["_id"]:
                outcomes[n] = StoreUnavailableError(
                    self.name, f"MongoDB refuses it: {_refusal(error)}", session_id=writes[n].record.session_id
                )
            elif writes[n].base is not None:  # else it was applied before, since nothing but its own id keeps it away
                compared.append(n)
        if not compared:
            return []
        again = []
        found = self._find(collection, [writes[n].record.session_id for n in compared], call)
        for n, stored in zip(compared, found, strict=True):
            if isinstance(stored, ActorbotError):
                outcomes[n] = stored
                continue
            verdict = judge(writes[n], None if stored is None else stored.write_ids)
            if verdict is Verdict.WRITE:
                again.append(n)
            elif verdict is Verdict.CONFLICT:
                outcomes[n] = writes[n].conflict(self.name)
        return again


class _Call:
    """What is left of the time of one call, for its commands.

    Under `pymongo.timeout` the driver waits for a server as long as the whole time-out, however much of it has passed already, and for
    longer than `serverSelectionTimeoutMS`. So each command gets a time-out of its own: what is left.
    """

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds

    def command(self, most: float = inf) -> AbstractContextManager[object]:
        return pymongo.timeout(min(most, max(0.05, self._until - time.monotonic())))

    def reach(self, collection: Collection[Any]) -> None:
        """Wait for a server that takes writes; at once if one is known. Raises: ServerSelectionTimeoutError."""
        client = collection.database.client
        if not client.topology_description.has_writable_server():
            with self.command(REACH):
                client.is_mongos  # noqa: B018  # waits for such a server, and sends nothing


def _indexes(collection: Collection[Any], call: _Call) -> list[Mapping[str, Any]]:
    with call.command():
        return list(collection.with_options(codec_options=OPTIONS).index_information().values())


# --- words ------------------------------------------------------------------------------------------------------------


def _close(client: pymongo.MongoClient[Any]) -> None:
    with pymongo.timeout(CLOSE):  # it says good-bye to the server
        client.close()


def _short(error: Exception) -> str:
    """Return the driver's message without its dump of the topology or of the reply, which says the same again at length."""
    text = str(error).partition(", Timeout:")[0].partition(", full error")[0]
    return (text or type(error).__name__)[:300]


def _refusal(error: Mapping[str, Any]) -> str:
    if error.get("code") == _DUPLICATE:  # whose message quotes the values
        return f"a unique index on {', '.join(error.get('keyPattern') or ['another field'])}"
    return f"{str(error.get('errmsg'))[:200]} (code {error.get('code')})"


def _check_url(url: str) -> str:
    """Return the hosts of *url*. Raises: ConfigError, which does not quote a URL that may hold a password."""
    given: object = url
    if not isinstance(given, str) or not given.startswith(("mongodb://", "mongodb+srv://")):
        raise ConfigError(
            "url", "…" if isinstance(given, str) else type(given), "mongodb://host:port/ or mongodb+srv://…"
        )
    if given.startswith("mongodb://"):  # the other needs the network
        try:
            parse_uri(given, warn=False)
        except (PyMongoError, TypeError, ValueError) as error:
            secret = "@" in given or "password" in given.lower()
            reason = "user and password percent-encoded" if secret else str(error)
            raise ConfigError("url", "mongodb://…", f"a URL that pymongo understands: {reason}") from None
    return urlsplit(given).netloc.rpartition("@")[2]


def _check_name(field: str, name: str, forbidden: str) -> str:
    given: object = name
    if not isinstance(given, str) or not given or set(given) & set(forbidden):
        raise ConfigError(field, given, f"text without any of {forbidden!r}")
    return given
