"""Asking MongoDB: the client, the time that is left of a call, and what the driver's errors say."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from math import inf
from typing import Any, Final, TypeAlias, TypeVar

import pymongo
from bson.raw_bson import RawBSONDocument
from pymongo.collection import Collection
from pymongo.driver_info import DriverInfo
from pymongo.errors import (
    ConnectionFailure,
    ExecutionTimeout,
    InvalidOperation,
    NetworkTimeout,
    OperationFailure,
    PyMongoError,
    ServerSelectionTimeoutError,
    WaitQueueTimeoutError,
)
from pymongo.read_preferences import ReadPreference
from pymongo.uri_parser import parse_uri

from actorbot.errors import ConfigError, StoreUnavailableError
from actorbot.stores._mongo_documents import RAW
from actorbot.stores._mongo_url import database_of, times_of
from actorbot.stores._scheme import as_drivers_write
from actorbot.stores._secrets import ENCODED, Secrets, has_secret_option, hosts_of

__all__ = ["Call", "Link", "RawCollection", "describe", "describe_refusal", "is_duplicate", "is_too_slow"]

# Seconds for a call with all its commands: less than the five of `store_deadline`.
# `timeoutMS=` in the URL takes its place.
CALL: Final = 4.0
# Seconds to wait for a server that takes writes, when none is known. An outage is noticed after
# that.
REACH: Final = 1.0
# Seconds for the first try of a call: its connection may be dead, forgotten by a firewall.
FIRST: Final = 1.5
IDLE: Final = 60.0  # seconds after which a connection that nobody used is made anew; firewalls wait longer
# The driver's own times, for what `Call` does not bound, in seconds: no URL makes them longer.
TIMES: Final = {
    "connectTimeoutMS": CALL,
    "serverSelectionTimeoutMS": CALL,
    "socketTimeoutMS": CALL,
    "waitQueueTimeoutMS": REACH,
    "maxIdleTimeMS": IDLE,
}
CLOSE: Final = 1.0  # seconds
FAREWELL: Final = 0.1  # seconds to tell a server, on connections that are most likely dead, that they end

_DUPLICATE: Final = 11000
_AUTHENTICATION: Final = 18
_TIME_IS_UP: Final = frozenset({50, 64})  # to do it; to have it confirmed

Answer = TypeVar("Answer")

RawCollection: TypeAlias = "Collection[RawBSONDocument]"
"""A collection whose documents arrive as bytes, for `_mongo_documents` to decode."""


class Link:
    """What a URL leads to: a client, and one collection. A forked process has to `open` its own.

    *url* is checked, and quoted nowhere: it may hold a password. Raises: ConfigError.
    """

    def __init__(self, url: str, database: str | None, collection_name: str) -> None:
        url = as_drivers_write(url)
        error = _flaw_of(url)
        if error is not None:
            raise error
        self.hosts = hosts_of(url, ends="/?") or ""
        self._url = url
        self._secrets = Secrets(url)
        self._asked: dict[str, Any] = {}
        self.database = database_of(url) if database is None else database
        self.collection_name = collection_name
        self.lease_name = f"{collection_name}.lease"  # of the collection beside
        self._client: pymongo.MongoClient[RawBSONDocument] | None = None
        self._collection: RawCollection | None = None
        self._patience = CALL
        self._process = 0
        self._renewing = threading.Lock()  # held while the client is replaced by a new one

    @property
    def is_open(self) -> bool:
        return self._client is not None and self._process == os.getpid()

    def open(self) -> None:
        """Make the client; nothing is sent yet. Raises: StoreUnavailableError."""
        self._client = None  # from before a fork it is the parent's, and stays as it is
        self._renewing = threading.Lock()
        self._asked = times_of(self._url, TIMES)
        self._connect()

    def _connect(self) -> None:
        client = self._make_client()
        if isinstance(client, StoreUnavailableError):
            raise client
        self._collection = client[self.database].get_collection(
            self.collection_name,
            codec_options=RAW,
            read_preference=ReadPreference.PRIMARY,  # a secondary may be behind, which would be a conflict
            write_concern=pymongo.WriteConcern("majority", j=True),
        )
        self._patience = client.options.timeout or CALL
        self._client, self._process = client, os.getpid()

    def _make_client(self) -> pymongo.MongoClient[RawBSONDocument] | StoreUnavailableError:
        try:
            return pymongo.MongoClient(
                self._url,
                **{name: round(most * 1000) for name, most in TIMES.items()} | self._asked,
                maxPoolSize=10,  # the writer, the reader, and eight calls that a manager may leave behind
                retryWrites=False,  # a standalone server cannot; the write ids do the same everywhere
                retryReads=False,  # its retry may take as long again
                driver=DriverInfo("actorbot"),
            )
        except (PyMongoError, OSError, TypeError, ValueError) as error:
            failure = self.unusable(error)
            failure.__cause__ = None if self._secrets.show_in(error) else error
            return failure

    def twice(self, call: Call, act: Callable[[RawCollection], Answer], *, writes: bool = False) -> Answer:
        """Do *act*; if it is the call's first, and its connection turns out to be dead, once more.

        So it must be something that may be done twice. One that *writes* is not done again if the
        connection was closed: its caller does that, at once. Raises:
        StoreUnavailableError, PyMongoError.
        """
        if not call.sent:
            call.reach(self.collection)
            collection = self.collection
            try:
                with call.first_try():
                    return act(collection)
            except (ServerSelectionTimeoutError, WaitQueueTimeoutError):
                call.sent = False
                raise
            except (ConnectionFailure, ExecutionTimeout, InvalidOperation) as error:
                if isinstance(error, NetworkTimeout):
                    self._renew(collection)
                elif writes and isinstance(error, ConnectionFailure):
                    raise
            call.reach(self.collection)
        return act(self.collection)

    def _renew(self, collection: RawCollection) -> None:
        """Connect anew: where one connection is dead, those that were idle with it are, too.

        Nothing is done if *collection* is not the newest one: another thread was here before. What
        goes on with the old client then meets an InvalidOperation, and is done once more.
        """
        with self._renewing:
            if self._collection is collection:
                self._connect()
                with pymongo.timeout(FAREWELL):
                    collection.database.client.close()

    def close(self) -> None:
        if self._client is not None and self.is_open:
            with pymongo.timeout(CLOSE):  # it tells the server that the connections end
                self._client.close()
        self._client = self._collection = None

    @property
    def collection(self) -> RawCollection:
        """The collection. Raises: StoreUnavailableError if the link is not open."""
        if self._collection is None or not self.is_open:
            raise StoreUnavailableError("mongo", f"{self.hosts} is not open: init() comes first, also after a fork")
        return self._collection

    def call(self) -> Call:
        """Begin a call: from now on its time runs."""
        return Call(self._patience, reach=self._asked.get("serverSelectionTimeoutMS", REACH * 1000) / 1000)

    def reach_at_start(self, call: Call) -> None:
        """Wait for a server as long as the URL says, or else as long as a call takes.

        Raises: ServerSelectionTimeoutError.
        """
        if "serverSelectionTimeoutMS" in self._asked:
            call.reach(self.collection)

    def unusable(self, error: Exception) -> StoreUnavailableError:
        """Make the error of a server that could not be opened or examined."""
        if isinstance(error, OperationFailure) and error.code == _AUTHENTICATION:
            return StoreUnavailableError("mongo", f"{self.hosts} refuses the user or the password of the URL")
        return StoreUnavailableError("mongo", f"{self.hosts} cannot be used: {self._secrets.hide(describe(error))}")


class Call:
    """What is left of the time of one call, for its commands.

    Under `pymongo.timeout` the driver waits for a server as long as the whole time-out, however
    much of it has passed, and longer than `serverSelectionTimeoutMS`. So each command gets a
    time-out of its own: what is left.
    """

    def __init__(self, seconds: float, *, reach: float) -> None:
        self._reach = reach
        now = time.monotonic()
        self._first = now + min(FIRST, 0.4 * seconds)
        self._all = now + seconds
        self._until = self._all
        self.sent = False
        """Whether something may have been sent."""

    @contextmanager
    def first_try(self) -> Iterator[None]:
        """Bound the commands of a `with` block so that there is time for another try."""
        self._until = self._first
        self.sent = True
        try:
            yield
        finally:
            self._until = self._all

    @property
    def is_first_try(self) -> bool:
        return self._until < self._all

    def command(self, most: float = inf) -> AbstractContextManager[object]:
        """Bound the commands of a `with` block by what is left, and by *most* seconds."""
        return pymongo.timeout(min(most, max(0.05, self._until - time.monotonic())))

    def reach(self, collection: RawCollection) -> None:
        """Wait for a server that takes writes; return at once if one is known.

        Raises: ServerSelectionTimeoutError.
        """
        client = collection.database.client
        if not client.topology_description.has_writable_server():
            with self.command(self._reach):
                client.is_mongos  # noqa: B018  # waits for such a server, and sends nothing


def describe(error: Exception) -> str:
    """Return the driver's message, without the topology, time-outs and reply that it quotes."""
    text = str(error)
    for quoted in (", Timeout:", ", full error", " (configured timeouts:"):
        text = text.partition(quoted)[0]
    return (text or type(error).__name__)[:300]


def is_duplicate(error: Mapping[str, Any]) -> bool:
    """Tell whether a write was refused because its `_id` is taken."""
    return error.get("code") == _DUPLICATE and list(error.get("keyPattern") or ()) == ["_id"]


def is_too_slow(errors: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether one of the *errors* of a batch is that the time was up."""
    return any(error.get("code") in _TIME_IS_UP for error in errors)


def describe_refusal(error: Mapping[str, Any]) -> str:
    """Say why a write was refused, without quoting the session."""
    if error.get("code") == _DUPLICATE:  # its message quotes the values
        return f"a unique index on {', '.join(error.get('keyPattern') or ['another field'])}"
    return f"{str(error.get('errmsg'))[:200]} (code {error.get('code')})"


def _flaw_of(url: str) -> ConfigError | None:
    """Return what is wrong with *url*, in words that quote no password.

    The caller raises it, away from the driver's error, whose text may quote one.
    """
    given: object = url
    if not isinstance(given, str) or not given.startswith(("mongodb://", "mongodb+srv://")):
        shown = "…" if isinstance(given, str) else type(given)
        return ConfigError("url", shown, "mongodb://host:port/ or mongodb+srv://…")
    scheme = given.partition("://")[0]
    hosts = hosts_of(given, ends="/?")
    if hosts is None or (scheme == "mongodb+srv" and ":" in hosts):
        return ConfigError("url", f"{scheme}://…", ENCODED)
    if scheme == "mongodb":  # the other needs the network
        try:
            parse_uri(given, warn=False)
        except (PyMongoError, TypeError, ValueError) as error:
            secret = "@" in given or has_secret_option(given)
            reason = "user and password percent-encoded" if secret else str(error).partition(" Refer to")[0]
            return ConfigError("url", "mongodb://…", f"a URL that pymongo understands: {reason}")
    return None
