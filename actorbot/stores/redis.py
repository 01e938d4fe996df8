"""Sessions in Redis or Valkey, for any number of processes: a batch is one script call that compares before it writes."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from hashlib import sha1
from typing import Any, ClassVar, Final, Self
from urllib.parse import urlsplit

from actorbot._record import Record
from actorbot.errors import (
    ActorbotError,
    ConfigError,
    ConflictError,
    CorruptSessionError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from actorbot.stores.base import ONE_YEAR, RecordStore, Write, check_expires_in

try:
    import redis
    from redis.backoff import NoBackoff
    from redis.retry import Retry
except ImportError as error:
    raise ImportError("RedisSessionStore needs redis-py: pip install 'actorbot[redis]'") from error

__all__ = ["RedisSessionStore"]

logger = logging.getLogger("actorbot")

CONNECT_TIMEOUT: Final = 1.5  # seconds; with the next, less than the 5 s of `store_deadline`
READ_TIMEOUT: Final = 3.0  # seconds without a byte of the answer
MAX_CONNECTIONS: Final = 20  # more than the calls of one manager that can be under way, those left behind included
GRACE: Final = 300.0  # seconds that the server keeps a record longer: acknowledged state may be on its way
LATEST: Final = 10**15  # milliseconds; beyond the year 30,000, and well inside what the server takes
CALL_BYTES: Final = 16 * 1024**2  # of a batch that are sent in one call
OLDEST: Final = (6, 2)  # the first with SET … PXAT

# A value is the number of write ids, these ids (8 bytes each, newest first), and the record's bytes. For each key three
# arguments: the base ("*": anything may be replaced), the value, and when it goes, in milliseconds. Answers a letter for each:
# written, done before, conflict, or x: the key holds something else. The rules are those of `base.judge`.
SCRIPT: Final = b"""
local answers = {}
for i, key in ipairs(KEYS) do
  local base, value, answer = ARGV[3 * i - 2], ARGV[3 * i - 1], 'w'
  if base ~= '*' then
    local head = redis.pcall('GETRANGE', key, 0, 128)
    if type(head) ~= 'string' then
      answer = 'x'
    elseif head ~= '' and string.sub(head, 2, 1 + 8 * math.min(1, string.byte(head))) ~= base then
      answer = 'c'
      local id = string.sub(value, 2, 9)
      for at = 2, 8 * string.byte(head), 8 do
        if string.sub(head, at, at + 7) == id then answer = 'd' end
      end
    end
  end
  if answer == 'w' then redis.call('SET', key, value, 'PXAT', ARGV[3 * i]) end
  answers[i] = answer
end
return table.concat(answers)
"""
SCRIPT_SHA: Final = sha1(SCRIPT, usedforsecurity=False).hexdigest()

# What the server answers when it does not do what it is asked: nothing was written. All else that fails may have been done.
REFUSALS: Final = (redis.ResponseError, redis.AuthenticationError, redis.BusyLoadingError)


class RedisSessionStore(RecordStore):
    """Keeps each session under the key `<key_prefix><session id>` of a Redis (6.2 or newer) or Valkey server.

    *url* is `redis://[[user]:password@]host[:port][/database]`, `rediss://…` for TLS (`?ssl_ca_certs=/path` and redis-py's other
    `ssl_` options) or `unix:///path`. `?socket_timeout=` and `?socket_connect_timeout=` (seconds; 3 and 1.5) should together stay
    below the policy's `store_deadline`. An ACL user needs `+eval +evalsha +script|load +mget +get +exists +set +getrange`
    on `~<key_prefix>*`; with `+info +config|get` too, `init` warns of a server that may lose sessions.

    A write is sent once: who calls sends it again, with its write id. Connections: at most 20, shared by all threads.

    The server drops a record by itself five minutes after its `expires_at`, or after it was written if that is later.

    Raises: ConfigError.
    """

    name: ClassVar[str] = "redis"

    def __init__(self, url: str, *, key_prefix: str = "actorbot:", expires_in: float = ONE_YEAR) -> None:
        self.expires_in = check_expires_in(expires_in)
        if type(key_prefix) is not str or not 0 < len(key_prefix) <= 256 or not key_prefix.isprintable():
            raise ConfigError("key_prefix", key_prefix, "1 to 256 printable characters, for example 'actorbot:'")
        self.key_prefix = key_prefix
        self._prefix = key_prefix.encode()
        self._url = url
        known = _make_pool(url).connection_kwargs
        self._where = str(known.get("path") or f"{known.get('host', 'localhost')}:{known.get('port', 6379)}")
        self._pool: redis.BlockingConnectionPool | None = None

    def __repr__(self) -> str:
        return f"<RedisSessionStore {self._where}, key_prefix={self.key_prefix!r}>"

    # --- life ---------------------------------------------------------------------------------------------------------

    def init(self) -> Self:
        if self._pool is not None:
            return self
        self._pool = _make_pool(self._url)
        try:
            self._ask("SCRIPT", "LOAD", SCRIPT)
            self._look_at(self._facts())
        except BaseException:
            self.close()
            raise
        return self

    def close(self) -> None:
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.disconnect()

    def _facts(self) -> dict[str, str]:
        """Return what `INFO` and `CONFIG GET` tell, as far as this user may ask."""
        facts: dict[str, str] = {}
        try:
            text = self._ask("INFO").decode("utf-8", "replace")
            facts.update(line.split(":", 1) for line in text.splitlines() if ":" in line)
            setting = self._ask("CONFIG", "GET", "save")
            facts["save"] = (setting if type(setting) is list else [b"", b"unknown"])[-1].decode()
        except StoreUnavailableError as error:
            if not isinstance(error.__cause__, redis.ResponseError):
                raise
            logger.debug("%s: whether the server may lose sessions cannot be told: %s", self.name, error)
        return facts

    def _look_at(self, facts: dict[str, str]) -> None:
        version = facts.get("redis_version", "")
        if version and tuple(int(part) for part in version.split(".")[:2]) < OLDEST:
            raise StoreUnavailableError(
                self.name, f"{self._where} runs Redis {version}; 6.2 is the oldest that will do"
            )
        if facts.get("role") == "slave":
            raise StoreUnavailableError(
                self.name,
                f"{self._where} is a replica, which takes no writes; name its primary,"
                f" {facts.get('master_host')}:{facts.get('master_port')}",
            )
        policy = facts.get("maxmemory_policy", "noeviction")
        if policy != "noeviction":
            logger.warning(
                "%s: %s may evict sessions when its memory is full (maxmemory-policy %s); set it to noeviction",
                self.name, self._where, policy,
            )  # fmt: skip
        if facts.get("aof_enabled") == "0" and "save" in facts:
            logger.warning(
                "%s: %s loses %s; set appendonly to yes",
                self.name, self._where,
                "what came since its last snapshot when it crashes" if facts["save"] else
                "all sessions when it ends: its persistence is off",
            )  # fmt: skip

    # --- reading ------------------------------------------------------------------------------------------------------

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        if not session_ids:
            return []
        keys = [self._key(session_id) for session_id in session_ids]
        values = self._read("MGET", *keys)
        # MGET answers nil too where a key holds something else than a string, and that is not an absent session.
        absent = [key for key, value in zip(keys, values, strict=True) if value is None]
        if absent and self._read("EXISTS", *absent):
            values = [self._read_one(key) if value is None else value for key, value in zip(keys, values, strict=True)]
        return [self._to_record(*each) for each in zip(session_ids, values, strict=True)]

    def _read(self, *command: str | bytes) -> Any:
        """Ask, and ask again if the connection breaks: a read that fails costs its callers their events."""
        began = time.monotonic()
        try:
            return self._ask(*command)
        except StoreUnavailableError as error:
            broke = isinstance(error.__cause__, redis.ConnectionError) and not isinstance(error.__cause__, REFUSALS)
            if not broke or time.monotonic() - began > CONNECT_TIMEOUT / 2:
                raise
        return self._ask(*command)

    def _read_one(self, key: bytes) -> Any:
        try:
            return self._read("GET", key)
        except StoreUnavailableError as error:
            if isinstance(error.__cause__, redis.ResponseError) and "WRONGTYPE" in str(error.__cause__):
                return b""
            raise

    def _to_record(self, session_id: str, value: bytes | None) -> Record | ActorbotError | None:
        if value is None:
            return None
        if not value:
            return self._foreign(session_id)
        head = 1 + 8 * value[0]
        try:
            record = Record.from_bytes(value[head:], session_id=session_id, store=self.name)
        except CorruptSessionError as error:
            return error
        if record.write_ids != value[1:head]:
            return CorruptSessionError(self.name, session_id, "its write ids are not those in front of it")
        return record

    # --- writing ------------------------------------------------------------------------------------------------------

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        answers = b""
        for keys, arguments in self._calls(writes):
            try:
                answers += self._write(len(keys), *keys, *arguments)
            except OutcomeUnknownError:
                raise
            except StoreUnavailableError as error:
                if not answers:
                    raise
                raise OutcomeUnknownError(self.name, f"a part of the batch was not written: {error}") from error
        return [self._outcome(*each) for each in zip(writes, answers.decode(), strict=True)]

    def _calls(self, writes: Sequence[Write]) -> Iterator[tuple[list[bytes], list[bytes | int]]]:
        """Yield keys and arguments for each call: one, unless the batch is very large."""
        soonest = time.time()
        keys: list[bytes] = []
        arguments: list[bytes | int] = []
        size = 0
        for write in writes:
            record = write.record
            value = bytes([len(record.write_ids) // 8]) + record.write_ids + record.to_bytes()
            if keys and size + len(value) > CALL_BYTES:
                yield keys, arguments
                keys, arguments, size = [], [], 0
            goes = min(int((max(record.expires_at, soonest) + GRACE) * 1000), LATEST)
            keys.append(self._key(record.session_id))
            arguments += (b"*" if write.base is None else write.base, value, goes)
            size += len(value)
        if keys:
            yield keys, arguments

    def _write(self, *keys_and_arguments: bytes | int) -> bytes:
        try:
            answers = self._ask("EVALSHA", SCRIPT_SHA, *keys_and_arguments, writes=True)
        except redis.exceptions.NoScriptError:  # restarted, failed over, or flushed
            answers = self._ask("EVAL", SCRIPT, *keys_and_arguments, writes=True)
        return bytes(answers)

    def _outcome(self, write: Write, answer: str) -> ActorbotError | None:
        session_id = write.record.session_id
        if answer == "c":
            return ConflictError(self.name, "it was written by someone else since it was read", session_id=session_id)
        return self._foreign(session_id) if answer == "x" else None

    # --- both ---------------------------------------------------------------------------------------------------------

    def _key(self, session_id: str) -> bytes:
        return self._prefix + session_id.encode()

    def _foreign(self, session_id: str) -> CorruptSessionError:
        return CorruptSessionError(self.name, session_id, "its key holds something that is not a record of actorbot")

    def _ask(self, *command: str | bytes | int, writes: bool = False) -> Any:
        """Send one command, once, and return the answer.

        Raises: StoreUnavailableError; OutcomeUnknownError if it *writes* and may have done so; NoScriptError.
        """
        pool: Any = self._pool  # parts of whose interface are not typed
        if pool is None:
            raise StoreUnavailableError(self.name, f"{self._where} is not open: init() comes first")
        try:
            connection = pool.get_connection()
        except Exception as error:
            raise self._unavailable(error) from _without_arguments(error)
        try:
            connection.send_command(*command)
            return connection.read_response()
        except redis.exceptions.NoScriptError:
            raise
        except REFUSALS as error:
            raise self._unavailable(error) from _without_arguments(error)
        except Exception as error:
            connection.disconnect()  # an answer that comes late must not be taken for that of the next command
            if writes:
                raise OutcomeUnknownError(self.name, f"{self._where} was sent a write, and then: {error}") from error
            raise self._unavailable(error) from error
        except BaseException:
            connection.disconnect()
            raise
        finally:
            pool.release(connection)

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        if isinstance(error, redis.AuthenticationError):
            return StoreUnavailableError(self.name, f"{self._where} does not accept this user or password")
        verb = "refuses" if isinstance(error, REFUSALS) else "does not answer"
        return StoreUnavailableError(self.name, f"{self._where} {verb}: {_without_arguments(error)}")


def _make_pool(url: str) -> redis.BlockingConnectionPool:
    """Make a pool for *url*, and connect nowhere. Raises: ConfigError, which says nothing of a password."""
    reason = "redis://[[user]:password@]host[:port][/database], rediss://… or unix:///path"
    if not isinstance(url, str):
        raise ConfigError("url", type(url), reason)
    try:
        parts = urlsplit(url)
        if parts.scheme != "unix" and parts.path.strip("/") and not parts.path.strip("/").isdecimal():
            raise ValueError
        pool = redis.BlockingConnectionPool.from_url(
            url,
            max_connections=MAX_CONNECTIONS,
            timeout=CONNECT_TIMEOUT,  # to wait for a connection when all are in use
            socket_connect_timeout=CONNECT_TIMEOUT,
            socket_timeout=READ_TIMEOUT,
            socket_keepalive=True,
            retry=Retry(NoBackoff(), 0),  # ten by default, of writes too
            protocol=2,
            driver_info=None,
        )
        pool.connection_class(**pool.connection_kwargs)
    except TypeError as error:
        raise ConfigError("url", _without_secrets(url), f"{reason}; {str(error).partition(') ')[2]}") from None
    except (ValueError, redis.RedisError):  # whose text may hold the password
        raise ConfigError("url", _without_secrets(url), reason) from None
    return pool


def _without_secrets(url: str) -> str:
    scheme, separator, _ = url.partition("://")
    return f"{scheme}://…" if separator else "…"


def _without_arguments(error: Exception) -> Exception:
    """Return *error* without the arguments, data and passwords among them, that a server repeats of a command it does not know."""
    said, separator, _ = str(error).partition(", with args beginning with")
    return redis.ResponseError(said) if separator else error
