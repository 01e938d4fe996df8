"""Sessions in MongoDB, as documents.

They can be queried: `db.sessions.find({"state.nickname": "Tim"})`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, ClassVar, Final, Self

from actorbot._state.record import Record
from actorbot.errors import (
    ActorbotError,
    CorruptSessionError,
    NotEncodableError,
    OutcomeUnknownError,
    SessionTooLargeError,
    StoreUnavailableError,
)
from actorbot.stores._findings import Finding
from actorbot.stores._server_clock import ServerClock
from actorbot.stores.base import ONE_YEAR, RecordStore, Verdict, Write, check_expires_in, judge

try:
    import pymongo
    from bson.raw_bson import RawBSONDocument
    from pymongo.errors import (
        BulkWriteError,
        ExecutionTimeout,
        PyMongoError,
        ServerSelectionTimeoutError,
        WaitQueueTimeoutError,
    )

    from actorbot.stores._mongo_damage import SHAPE, set_aside
    from actorbot.stores._mongo_documents import FORMAT, decode_record, encode_record, literal_id
    from actorbot.stores._mongo_lease import MongoLease
    from actorbot.stores._mongo_link import (
        Call,
        Link,
        RawCollection,
        describe,
        describe_refusal,
        is_duplicate,
        is_too_slow,
    )
    from actorbot.stores._mongo_server import check_version, examine, make_index, prepare, time_of, what_is_missing
    from actorbot.stores._mongo_url import check_names
except ImportError as missing:
    raise ImportError(
        "MongoSessionStore needs the driver pymongo: pip install '.[mongo]' in a clone of actorbot"
    ) from missing

__all__ = ["MongoSessionStore"]

logger = logging.getLogger("actorbot")

TRIES: Final = 3
PAGE: Final = 250  # sessions that a scan reads at a time


class MongoSessionStore(MongoLease, RecordStore):
    """Keeps each session in a document of *collection_name*. MongoDB 5.0 or newer.

    The database is *database*, or else the one behind the host in *url*, or else `actorbot`.
    (`admin`, `config` and `local` in a URL only say where its user is known.)

    The server may be standalone, a replica set or a sharded cluster. `_id` is the session id,
    `state` holds the session's values, and actorbot's own fields stand beside them. What BSON holds
    exactly is kept as it is, also bytes, UUIDs, and decimals of 34 digits. Dates, tuples, sets and
    so on are tagged: `{"$tuple": [1, 2]}`. A document that has an `_id` and a `state` and nothing
    else is adopted as an existing session.

    Writes are confirmed by a majority and journaled, whatever the URL says. The driver retries none
    of them: by the write ids in a record, a write that was applied before is recognised. A call
    ends after four seconds, or after the `timeoutMS=` of the URL; `store_deadline` should be
    longer. Shorter times in the URL hold, such as `serverSelectionTimeoutMS=`. If there was no
    answer after a second and a half, it goes on with new connections.

    The server removes expired records about two minutes later, by an index that `init` makes. Ends
    are kept by the server's clock. One store may be used from several threads. In a forked process,
    call `init` again: it connects anew.

    Raises: ConfigError.
    """

    name: ClassVar[str] = "mongo"

    def __init__(
        self,
        url: str,
        *,
        database: str | None = None,
        collection_name: str = "sessions",
        expires_in: float = ONE_YEAR,
    ) -> None:
        self.expires_in = check_expires_in(expires_in)
        check_names(database, collection_name)
        self._link = Link(url, database, collection_name)
        self._clock = ServerClock(self.name, self._ask_time)
        self._only_looked = False

    def __repr__(self) -> str:
        return f"<MongoSessionStore {self._link.hosts}, {self._link.database}.{self._link.collection_name}>"

    # --- life ------------------------------------------------------------------------------------

    def init(self) -> Self:
        if not self._link.is_open or self._only_looked:
            self._open(prepare)
            self._only_looked = False
        return self

    def look(self) -> str | None:
        if not self._link.is_open:
            self._open()
            self._only_looked = True
        try:
            return what_is_missing(self._link)
        except PyMongoError as error:
            raise self._link.unusable(error) from error

    def _open(self, make_ready: Callable[[Link], object] = lambda link: None) -> None:
        try:
            if not self._link.is_open:
                self._link.open()
            check_version(self._link)
            make_ready(self._link)
            self._clock.measure()
        except PyMongoError as error:
            self._link.close()
            raise self._link.unusable(error) from error
        except BaseException:
            self._link.close()
            raise

    def close(self) -> None:
        self._link.close()

    def examine(self) -> Iterator[Finding]:
        missing = self.look()
        yield Finding("reach", "ok", f"{self._link.hosts} answers")
        try:
            yield from examine(self._link)
        except PyMongoError as error:
            raise self._link.unusable(error) from error
        yield self._clock.measure()
        if missing is not None:
            text = f"{missing}; a bot makes it when it starts; look at the URL if you expected it"
            yield Finding("collection", "warning", text)

    def sweep(self, now: float) -> Sequence[Record]:
        self._clock.keep()
        try:
            make_index(self._link)  # the collection may have been dropped
        except PyMongoError as error:
            raise self._link.unusable(error) from error
        return ()

    @property
    def complaint(self) -> str:
        return self._clock.complaint

    def _ask_time(self) -> float | None:
        try:
            return time_of(self._link)
        except PyMongoError as error:
            raise self._link.unusable(error) from error

    # --- reading ---------------------------------------------------------------------------------

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        self._clock.keep_if_set()
        call = self._link.call()
        try:
            return self._link.twice(call, partial(self._find, session_ids, call))
        except PyMongoError as error:
            raise StoreUnavailableError(
                self.name, f"reading from {self._link.hosts} failed: {describe(error)}"
            ) from error

    def _find(
        self, session_ids: Sequence[str], call: Call, collection: RawCollection
    ) -> list[Record | ActorbotError | None]:
        wanted = {"_id": {"$in": list(session_ids)}}
        with call.command():
            stored = list(collection.find(wanted, {"expireAt": False}, batch_size=len(session_ids) + 1))
        found = dict(map(self._decode, stored))
        return [found.get(session_id) for session_id in session_ids]

    def _decode(self, document: RawBSONDocument) -> tuple[str, Record | CorruptSessionError]:
        now = self._clock.now()
        session_id, found = decode_record(document.raw, store=self.name, now=now, expires_in=self.expires_in)
        return session_id, found if isinstance(found, CorruptSessionError) else self._clock.here(found)

    def scan(self) -> Iterator[Record | ActorbotError]:
        after: Mapping[str, Any] | None = None
        while page := self._read_page(after):
            yield from (self._decode(document)[1] for document in page)
            after = literal_id(bytes(page[-1].raw))

    def _read_page(self, after: Mapping[str, Any] | None) -> list[RawBSONDocument]:
        """Read the next documents, in the order of their `_id`, which may be anything."""
        wanted = {} if after is None else {"$expr": {"$gt": ["$_id", after]}}
        try:
            with self._link.call().command():
                return list(self._link.collection.find(wanted, {"expireAt": False}).sort("_id").limit(PAGE))
        except PyMongoError as error:
            raise StoreUnavailableError(self.name, f"listing {self._link.hosts} failed: {describe(error)}") from error

    def count(self) -> int:
        try:
            with self._link.call().command():
                return self._link.collection.estimated_document_count()
        except PyMongoError as error:
            raise StoreUnavailableError(
                self.name, f"counting in {self._link.hosts} failed: {describe(error)}"
            ) from error

    # --- writing ---------------------------------------------------------------------------------

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        self._clock.keep_if_set()
        call = self._link.call()
        outcomes: list[ActorbotError | None] = [None] * len(writes)
        operations: dict[int, pymongo.ReplaceOne[Any]] = {}
        for n, write in enumerate(writes):
            try:
                operations[n] = self._operation(write, call)
            except (CorruptSessionError, NotEncodableError, SessionTooLargeError, StoreUnavailableError) as error:
                outcomes[n] = error
        try:
            for _ in range(TRIES):
                if not operations:
                    return outcomes
                refused, inserted = self._link.twice(
                    call, partial(self._send, list(operations.values()), call), writes=True
                )
                numbers = list(operations)
                self._note_gone(sum(bool(writes[numbers[at]].base) for at in inserted))
                errors = {numbers[at]: error for at, error in refused.items()}
                again = self._resolve(writes, outcomes, errors, call)
                operations = {n: operations[n] for n in again}
        except (ServerSelectionTimeoutError, WaitQueueTimeoutError) as error:
            kind = OutcomeUnknownError if call.sent else StoreUnavailableError
            raise kind(self.name, f"{self._link.hosts} cannot be reached: {describe(error)}") from error
        except PyMongoError as error:
            raise OutcomeUnknownError(self.name, f"writing to {self._link.hosts} failed: {describe(error)}") from error
        for n in operations:
            session_id = writes[n].record.session_id
            reason = f"it was there and gone again, {TRIES} times"
            outcomes[n] = StoreUnavailableError(self.name, reason, session_id=session_id)
        return outcomes

    def _operation(self, write: Write, call: Call) -> pymongo.ReplaceOne[Any]:
        """Make the operation: replace what the write may replace, and insert where nothing matches.

        Where another document has the `_id`, the server refuses the insert, for `_id` is unique.
        Raises: StoreUnavailableError if a damaged document could not be set aside.
        """
        record = write.record
        raw = encode_record(self._clock.there(record), store=self.name)
        may_replace: dict[str, Any] = {"_id": record.session_id}
        damaged = None
        if write.over_damage:
            damaged = set_aside(self._link.collection, call, record.session_id, self._decode, self.note_damage)
        if damaged is not None:
            may_replace = damaged
        elif write.base is None:
            # If this write was applied before, a session may have begun since, and must not end.
            may_replace["write_ids"] = {"$ne": record.write_id}
        elif write.base:
            may_replace |= {"write_ids.0": write.base, "format": FORMAT, **SHAPE}
        else:  # a session to be adopted
            may_replace |= {"write_ids": {"$exists": False}, "format": {"$exists": False}, "state": {"$type": "object"}}
        return pymongo.ReplaceOne(may_replace, RawBSONDocument(raw), upsert=True)

    def _note_gone(self, number: int) -> None:
        """Note that so many sessions in memory had no document any more.

        Perhaps somebody has dropped the collection, and the index with it. It was made again by the
        first write, but without the index.
        """
        if not number:
            return
        logger.warning("mongo: %d sessions were gone, and are written again from memory", number)
        try:
            make_index(self._link)
        except (PyMongoError, StoreUnavailableError) as error:  # the writes are done, and the sweep tries it again
            logger.warning("mongo: the index could not be made again: %s", describe(error))

    def _send(
        self, operations: list[Any], call: Call, collection: RawCollection
    ) -> tuple[dict[int, Mapping[str, Any]], list[int]]:
        """Send *operations*; return the errors by number, and the numbers of those that inserted.

        What has no error was applied. Raises: OutcomeUnknownError, PyMongoError.
        """
        try:
            with call.command():
                result = collection.bulk_write(operations, ordered=False)
        except BulkWriteError as error:
            details = error.details  # the error itself quotes the sessions, so it is no `__cause__`
            unconfirmed = details.get("writeConcernErrors")
            if call.is_first_try and is_too_slow([*details["writeErrors"], *(unconfirmed or ())]):
                raise ExecutionTimeout("not all was done in the time of the first try") from None
            if unconfirmed:
                reason = f"{self._link.hosts} did not confirm a write as safe: {unconfirmed[0].get('errmsg')}"
                raise OutcomeUnknownError(self.name, reason) from None
            refused = {each["index"]: each for each in details["writeErrors"]}
            return refused, [each["index"] for each in details["upserted"]]
        return {}, list(result.upserted_ids or ())

    def _resolve(
        self,
        writes: Sequence[Write],
        outcomes: list[ActorbotError | None],
        refused: Mapping[int, Mapping[str, Any]],
        call: Call,
    ) -> list[int]:
        """Look at what is stored in place of the *refused* writes, and note what became of each.

        Returns the numbers of those that are to be sent again. A write that turns out to have been
        applied before is as safe as a confirmed one: before a server says that an `_id` is taken,
        it waits until a majority has what is there, as it does for every write.
        """
        compared = []
        for n, error in refused.items():
            if not is_duplicate(error):
                outcomes[n] = StoreUnavailableError(
                    self.name, f"MongoDB refuses it: {describe_refusal(error)}", session_id=writes[n].record.session_id
                )
            elif writes[n].base is not None:  # else only its own write id can refuse it: it was applied
                compared.append(n)
        if not compared:
            return []
        again = []
        found = self._find([writes[n].record.session_id for n in compared], call, self._link.collection)
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
