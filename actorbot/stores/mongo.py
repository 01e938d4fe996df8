"""Sessions in MongoDB, as documents that can be queried: `db.sessions.find({"state.nickname": "Tim"})`."""

from __future__ import annotations

import json
import logging
import os
import time
from base64 import b64decode
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from datetime import UTC
from math import inf, isfinite
from typing import Any, ClassVar, Final, Self
from urllib.parse import urlsplit
from uuid import UUID

from actorbot._codec import decode_state, encode_state
from actorbot._document import from_document, to_document
from actorbot._record import Record
from actorbot._values import UndecodableError
from actorbot.errors import (
    ActorbotError,
    ConfigError,
    ConflictError,
    CorruptSessionError,
    NotEncodableError,
    OutcomeUnknownError,
    SessionTooLargeError,
    StoreUnavailableError,
)
from actorbot.stores.base import ONE_YEAR, RecordStore, Write, check_expires_in, judge

try:
    import bson
    import pymongo
    from bson.binary import UuidRepresentation
    from bson.codec_options import CodecOptions, DatetimeConversion
    from bson.datetime_ms import DatetimeMS
    from bson.decimal128 import Decimal128
    from bson.errors import BSONError
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
except ImportError as missing:
    raise ImportError("MongoSessionStore needs the driver pymongo: pip install 'actorbot[mongo]'") from missing

__all__ = ["MongoSessionStore"]

logger = logging.getLogger("actorbot")

FORMAT: Final = 1
CALL: Final = 4.0  # seconds for a call with all its commands, less than the five of `store_deadline`; `timeoutMS=` in the URL is another
REACH: Final = (
    1.0  # seconds to wait for a server that takes writes, when none is known: so long until an outage is noticed
)
CLOSE: Final = 1.0
GRACE: Final = (
    120.0  # seconds that the server keeps a record longer than it lives: its next write may still be on its way
)
TRIES: Final = 3
MAX_BYTES: Final = 16 * 1024**2
MAX_LEVELS: Final = 90  # of documents and arrays; beyond them a value is kept as text. MongoDB takes 100
OLDEST: Final = 13  # wire version of MongoDB 5.0, the first that keeps keys with `$` where they are nested
LATEST: Final = 253_402_300_799.0  # the end of the year 9999: what dates can say

_DUPLICATE: Final = 11000
_OTHER_INDEX: Final = frozenset({85, 86})  # there is one of this name, or of these keys, with other options
_AUTHENTICATION: Final = 18

# Read strictly, so that what is damaged is noticed; leniently only to learn whose record it is.
_OPTIONS: Final = CodecOptions[dict[str, Any]](
    tz_aware=True, tzinfo=UTC, uuid_representation=UuidRepresentation.STANDARD
)
_LENIENT: Final = CodecOptions[dict[str, Any]](
    unicode_decode_error_handler="replace", datetime_conversion=DatetimeConversion.DATETIME_MS
)
_RAW: Final = CodecOptions(document_class=RawBSONDocument, uuid_representation=UuidRepresentation.STANDARD)


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
            newest = database.command("hello", codec_options=_OPTIONS).get("maxWireVersion", 0)
        if newest < OLDEST:
            raise StoreUnavailableError(self.name, f"{self._hosts} is older than MongoDB 5.0")
        collection = database.get_collection(
            self._collection_name,
            codec_options=_RAW,
            read_preference=ReadPreference.PRIMARY,  # what a secondary has may be old, and would be a conflict
            write_concern=pymongo.WriteConcern("majority", j=True),
        )
        try:
            with call.command():
                collection.create_index("expireAt", name="actorbot_expiry", expireAfterSeconds=0)
        except OperationFailure as error:
            if error.code not in _OTHER_INDEX:
                raise
            with call.command():
                indexes = collection.with_options(codec_options=_OPTIONS).index_information().values()
            if not any(each["key"] == [("expireAt", 1)] and "expireAfterSeconds" in each for each in indexes):
                logger.warning("mongo store: no TTL index on expireAt, so expired sessions are not removed: %s", error)
        return collection

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
        found = dict(self._read_raw(document.raw) for document in documents)
        return [found.get(session_id) for session_id in session_ids]

    def _read_raw(self, raw: bytes | memoryview) -> tuple[str, Record | ActorbotError]:
        try:
            document = bson.decode(raw, _OPTIONS)
        except (BSONError, ArithmeticError, ValueError) as error:
            session_id = bson.decode(raw, _LENIENT)["_id"]
            return session_id, CorruptSessionError(self.name, session_id, f"its BSON is malformed: {error}")
        session_id = document.pop("_id")
        try:
            return session_id, _to_record(session_id, document, self.expires_in)
        except (UndecodableError, NotEncodableError, SessionTooLargeError) as error:
            return session_id, CorruptSessionError(self.name, session_id, str(error))

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
        raw = self._to_raw(record)
        if len(raw) > MAX_BYTES:
            raise SessionTooLargeError(
                "session", f"takes {len(raw)} bytes as BSON, more than the {MAX_BYTES} of MongoDB", limit=MAX_BYTES
            )
        may_replace: dict[str, Any] = {"_id": record.session_id}
        if write.base is None:
            may_replace["write_ids"] = {"$ne": record.write_id}  # applied before, it would end what has begun since
        elif write.base:
            may_replace |= {"write_ids.0": write.base, "format": FORMAT}
        else:  # a session to be adopted
            may_replace |= {"write_ids": {"$exists": False}, "format": {"$exists": False}, "state": {"$type": "object"}}
        return pymongo.ReplaceOne(may_replace, RawBSONDocument(raw), upsert=True)

    def _to_raw(self, record: Record) -> bytes:
        document: dict[str, Any] = {"_id": record.session_id}
        try:
            if record.state is None:
                document["deleted"] = True
            else:
                # Part by part: at the top level of a session nothing is a tag, whatever its only key is called.
                parts = to_document(decode_state(record.state)).items()
                document["state"] = {_to_key(key): _to_bson(part, 3) for key, part in parts}
            document |= {
                "format": FORMAT,
                "version": record.version,
                "write_ids": [record.write_ids[i : i + 8] for i in range(0, len(record.write_ids), 8)],
                "event_ids": record.event_ids,
                "last_activity": float(record.last_activity),
                "expires_at": float(record.expires_at),
                "expireAt": DatetimeMS(round(min(max(record.expires_at, 0.0) + GRACE, LATEST) * 1000)),
            }
            return bson.encode(document, codec_options=_OPTIONS)
        except UndecodableError as error:
            raise CorruptSessionError(self.name, record.session_id, str(error)) from error
        except (BSONError, ArithmeticError, ValueError) as error:  # whose texts may quote the session
            raise NotEncodableError("session", f"BSON cannot hold it ({type(error).__name__})") from None

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
            verdict = self._judge(writes[n], stored)
            if verdict is True:
                again.append(n)
            elif verdict is not False:
                outcomes[n] = verdict
        return again

    def _judge(self, write: Write, stored: Record | ActorbotError | None) -> ConflictError | ActorbotError | bool:
        if isinstance(stored, ActorbotError):
            return stored
        return judge(self.name, write, None if stored is None else stored.write_ids)


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


# --- documents --------------------------------------------------------------------------------------------------------


def _exact_decimal(text: str) -> Decimal128 | None:
    try:
        value = Decimal128(text)
    except ArithmeticError:
        return None
    return value if str(value.to_decimal()) == text else None  # a large exponent would be folded into zeros


# The tags of `_document` that BSON has a type for, and how their text becomes it.
_NATIVE: Final[Mapping[str, Callable[[str], Any]]] = {
    "$bytes": b64decode,
    "$uuid": UUID,
    "$decimal": _exact_decimal,
}
_TEXT: Final = "$json"
_ODD: Final = "$key:"  # in front of a key that BSON or the driver would not give back; behind it `%00` stands for NUL
_TAKEN: Final = frozenset({_TEXT, "$ref", "$id", "$db"})  # the last three look like a reference to the driver


def _to_bson(value: Any, level: int) -> Any:
    """Return a part of a JSON-safe document as BSON keeps it: natively where it comes back exactly."""
    kind = type(value)
    if kind is dict:
        if len(value) == 1:
            ((key, only),) = value.items()
            if key in _NATIVE and (native := _NATIVE[key](only)) is not None:
                return native
        if level <= MAX_LEVELS:
            return {_to_key(key): _to_bson(part, level + 1) for key, part in value.items()}
    elif kind is list:
        if level <= MAX_LEVELS:
            return [_to_bson(part, level + 1) for part in value]
    else:
        return value
    return {_TEXT: json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))}


def _from_bson(value: Any) -> Any:
    kind = type(value)
    if kind is dict:
        if len(value) == 1 and type(text := value.get(_TEXT)) is str:
            return json.loads(text)
        return {_from_key(key): _from_bson(part) for key, part in value.items()}
    if kind is list:
        return [_from_bson(part) for part in value]
    return value.to_decimal() if kind is Decimal128 else value


def _to_key(key: str) -> str:
    if "\0" in key or key in _TAKEN or key.startswith(_ODD):
        return _ODD + key.replace("%", "%25").replace("\0", "%00")
    return key


def _from_key(key: str) -> str:
    return key[len(_ODD) :].replace("%00", "\0").replace("%25", "%") if key.startswith(_ODD) else key


def _to_record(session_id: str, document: dict[str, Any], expires_in: float) -> Record:
    """Return the record of a document without its `_id`. Raises: UndecodableError, NotEncodableError, SessionTooLargeError."""
    state = None
    if document.get("deleted") is not True:
        if type(document.get("state")) is not dict:
            raise UndecodableError("it has no state")
        try:
            values = _from_bson(document["state"])
        except (RecursionError, ValueError) as error:
            raise UndecodableError(f"malformed text: {type(error).__name__}") from None
        state = encode_state(from_document(values), 2 * MAX_BYTES)  # as bytes it is smaller than as BSON
    elif "state" in document:
        raise UndecodableError("it is deleted and has a state")
    if document.keys() == {"state"}:
        now = time.time()
        return Record(session_id, 0, state, b"", b"", now, now + expires_in)
    return Record(session_id, *_read_rest(document, state))


def _read_rest(
    document: Mapping[str, Any], state: bytes | None
) -> tuple[int, bytes | None, bytes, bytes, float, float]:
    """Return all fields behind the session id. Raises: UndecodableError."""
    if document.get("format") != FORMAT:
        raise UndecodableError(f"its format version is {document.get('format')!r}, and this release reads {FORMAT}")
    try:
        version = document["version"]
        write_ids, event_ids = document["write_ids"], document["event_ids"]
        last_activity, expires_at = document["last_activity"], document["expires_at"]
    except KeyError as error:
        raise UndecodableError(f"it has no {error}") from None
    if not isinstance(version, int) or isinstance(version, bool) or version < 0:
        raise UndecodableError("its version is out of range")
    if type(write_ids) is not list or any(type(one) is not bytes or len(one) != 8 for one in write_ids):
        raise UndecodableError("its write_ids are not ids of 8 bytes")
    if type(event_ids) is not bytes or len(event_ids) % 8:
        raise UndecodableError("its event_ids are not ids of 8 bytes")
    if type(last_activity) is not float or type(expires_at) is not float or not isfinite(last_activity + expires_at):
        raise UndecodableError("one of its times is no finite number")
    return int(version), state, b"".join(write_ids), event_ids, last_activity, expires_at


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
