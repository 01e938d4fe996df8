"""Asking Redis: one server, or the nodes of a cluster.

A command is sent once (one that only reads: perhaps twice). Its answer, a refusal and no answer are
three different things.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any, Final

from actorbot.errors import ConfigError, OutcomeUnknownError, StoreUnavailableError
from actorbot.stores._scheme import as_drivers_write
from actorbot.stores._secrets import Secrets

try:
    import redis
    from redis.crc import key_slot
    from redis.exceptions import AskError, NoPermissionError, NoScriptError

    from actorbot.stores._redis_pool import CONNECT_TIMEOUT, READ_TIMEOUT, close_idle, make_pool, pool_like
    from actorbot.stores._redis_silence import DeadConnectionError, await_answer
except ImportError as error:
    raise ImportError("RedisSessionStore needs redis-py: pip install '.[redis]' in a clone of actorbot") from error

__all__ = ["Command", "Link", "is_about_script", "is_forbidden", "is_read_only", "is_refused"]

# A server that answers this has not done what it was asked. After any other failure it may have.
REFUSALS: Final = (redis.ResponseError, redis.AuthenticationError, redis.BusyLoadingError)

# The kinds of error that are told apart, the narrower ones first.
KINDS: Final = (
    *REFUSALS[1:],
    NoPermissionError,
    redis.ResponseError,
    redis.TimeoutError,
    redis.ConnectionError,
    redis.RedisError,
)

# A script's error has more words in front, and another class.
_READ_ONLY: Final = re.compile("READONLY|read[- ]only replica")
REPLICA: Final = "is a replica, which takes no writes"

Command = tuple["str | bytes | int", ...]


class Link:
    """What a URL leads to. All but `open` and `close` may run in several threads at once."""

    def __init__(self, url: str) -> None:
        url = as_drivers_write(url)
        pool = make_pool(url)
        if isinstance(pool, ConfigError):
            raise pool
        self._first = _Server(pool, Secrets(url))
        self._lock = threading.Lock()  # guards changes of `_others` and `_slots`
        self._others: dict[tuple[str, int], _Server] = {}
        self._slots: list[tuple[int, int, _Server]] | None = None  # first, last, whose; None: no cluster
        self._stale = False  # whether the slots should be learned again
        self._is_open = False

    @property
    def where(self) -> str:
        return self._first.where

    @property
    def is_cluster(self) -> bool:
        return self._slots is not None

    def open(self) -> None:
        """Connect, and see whether this is a cluster. Raises: StoreUnavailableError."""
        self._is_open = True
        answer = self._first.ask([("CLUSTER", "SLOTS")])[0]
        if isinstance(answer, list):
            self._take(answer)
        elif not is_refused(answer):  # a server without slots refuses, and one whose user may not ask
            raise answer if isinstance(answer, StoreUnavailableError) else self.misunderstood(StoreUnavailableError)

    def close(self) -> None:
        self._is_open = False
        for server in (self._first, *self._others.values()):
            server.pool.disconnect()
        self._others, self._slots = {}, None

    def misunderstood(self, kind: type[StoreUnavailableError]) -> StoreUnavailableError:
        """Make an error of that *kind*, for an answer that no Redis gives."""
        return kind("redis", f"{self.where} answers something else than a Redis would")

    def ask(self, *command: str | bytes | int) -> Any:
        """Ask the server of the URL. Raises: StoreUnavailableError."""
        answer = self._first.ask([command])[0]
        if isinstance(answer, StoreUnavailableError):
            raise answer
        return answer

    def ask_each(self, commands: Sequence[Command]) -> Iterator[list[Any]]:
        """Ask each server that is known; yield its answers, or refusals.

        A node of a cluster that does not answer is left out. Raises: StoreUnavailableError if the
        server of the URL does not.
        """
        yield self._first.ask(commands)
        for server in list(self._others.values()):
            with suppress(StoreUnavailableError):
                yield server.ask(commands)

    def group(self, keys: Sequence[bytes]) -> list[list[int]]:
        """Return the numbers of *keys*, grouped: one command may be about one group.

        In a cluster, a group is the keys of one slot.
        """
        if self._slots is None:
            return [list(range(len(keys)))] if keys else []
        slots: dict[int, list[int]] = {}
        for number, key in enumerate(keys):
            slots.setdefault(key_slot(key), []).append(number)
        return list(slots.values())

    def run(self, calls: Sequence[tuple[bytes, Command]], *, writes: bool = False) -> list[Any]:
        """Run commands, each with a key that it is about; all that are for one server go together.

        Returns for each its answer or a StoreUnavailableError. For a command that *writes* and may
        have done so, this is an OutcomeUnknownError.
        """
        if not self._is_open:
            raise StoreUnavailableError("redis", f"{self.where} is not open: init() comes first")
        answers = self._run(calls, writes)
        moved = [n for n, answer in enumerate(answers) if is_refused(answer) and isinstance(answer.__cause__, AskError)]
        if moved:
            if not writes:  # what goes with such a key is asked of its new server, too
                keys = {calls[n][0] for n in moved}
                moved = [n for n, (key, _) in enumerate(calls) if key in keys]
            self._stale = True
            for n, answer in zip(moved, self._run([calls[n] for n in moved], writes), strict=True):
                answers[n] = answer
        return answers

    def scan(self, pattern: bytes, at_once: int) -> Iterator[list[bytes]]:
        """Yield the keys that match *pattern*, some at a time, from each server that has slots.

        Raises: StoreUnavailableError.
        """
        servers = [self._first]
        if self._slots is not None:
            self._learn()
            servers = list(dict.fromkeys(server for _, _, server in self._slots))
        for server in servers:
            cursor: bytes | int = 0
            while cursor != b"0":
                answer = server.ask([("SCAN", cursor, "MATCH", pattern, "COUNT", at_once)])[0]
                if isinstance(answer, StoreUnavailableError):
                    raise answer
                cursor, keys = answer
                yield list(dict.fromkeys(keys))

    def _run(self, calls: Sequence[tuple[bytes, Command]], writes: bool) -> list[Any]:
        if self._stale and self._slots is not None:
            self._learn()
        shares: dict[_Server, list[int]] = {}
        for n, (key, _) in enumerate(calls):
            shares.setdefault(self._server_of(key), []).append(n)
        answers: list[Any] = [None] * len(calls)
        until = time.monotonic() + READ_TIMEOUT
        for server, numbers in shares.items():
            pool = server.pool
            try:
                if time.monotonic() > until:
                    raise StoreUnavailableError("redis", f"{server.where} was not asked: no time was left")
                given = server.ask([calls[n][1] for n in numbers], writes=writes)
            except StoreUnavailableError as error:
                self._stale = True  # a replica may have taken its place
                given = [error] * len(numbers)
            if server.pool is not pool:  # its connections were dead, and so are those to the others, most likely
                for other in shares.keys() - {server}:
                    other.renew(other.pool)
            for n, answer in zip(numbers, given, strict=True):
                answers[n] = answer
        return answers

    # --- the cluster -----------------------------------------------------------------------------

    def _server_of(self, key: bytes) -> _Server:
        if self._slots is not None:
            slot = key_slot(key)
            for first, last, server in self._slots:
                if first <= slot <= last:
                    return server
        return self._first  # in a cluster, nobody has the slot: this server says what is the matter

    def _learn(self) -> None:
        """Ask who has which slot now. If nobody answers, the old answer stays in use."""
        for server in (self._first, *list(self._others.values())):
            try:
                answer = server.ask([("CLUSTER", "SLOTS")])[0]
            except StoreUnavailableError:
                continue
            if isinstance(answer, list):
                self._take(answer)
                return

    def _take(self, ranges: list[Any]) -> None:
        with self._lock:
            self._slots = [(first, last, self._node(node)) for first, last, node, *_ in ranges]
            self._stale = False

    def _node(self, node: list[Any]) -> _Server:
        settings = self._first.pool.connection_kwargs
        host = (node[0] or b"").decode() or settings.get("host", "localhost")
        address = (host, int(node[1]))
        if address == (settings.get("host", "localhost"), settings.get("port", 6379)):
            return self._first
        if address not in self._others:
            pool = pool_like(self._first.pool, host=host, port=address[1])
            self._others[address] = _Server(pool, self._first.secrets)
        return self._others[address]


class _Server:
    """One server and the connections to it."""

    # *pool* is a BlockingConnectionPool, parts of whose interface are not typed.
    def __init__(self, pool: Any, secrets: Secrets) -> None:
        self.pool = pool
        self.secrets = secrets
        settings = pool.connection_kwargs
        self.where = str(settings.get("path") or f"{settings.get('host', 'localhost')}:{settings.get('port', 6379)}")

    def ask(self, commands: Sequence[Command], *, writes: bool = False) -> list[Any]:
        """Send *commands* together; return for each its answer, or a StoreUnavailableError.

        If the connection breaks, commands that only read are sent again: a failed read costs its
        callers their events. If it turns out to be dead, *writes* are too: the server knows those
        that it has done. Raises: StoreUnavailableError; OutcomeUnknownError for *writes* that may
        have been done.
        """
        began, pool = time.monotonic(), self.pool
        try:
            return self._ask(commands, writes)
        except StoreUnavailableError as error:
            dead = self.pool is not pool
            broke = isinstance(error.__cause__, redis.ConnectionError) and not is_refused(error)
            if not dead and (writes or not broke or time.monotonic() - began > CONNECT_TIMEOUT / 2):
                raise
        return self._ask(commands, writes)

    def renew(self, pool: Any) -> None:
        """Use new connections from now on, if they are still those of *pool*."""
        if self.pool is pool:
            self.pool = pool_like(pool)
            close_idle(pool)

    def _ask(self, commands: Sequence[Command], writes: bool) -> list[Any]:
        answers = self._exchange(commands, writes)
        if isinstance(answers, StoreUnavailableError):
            raise answers  # here the driver's error is no `__context__`, which may show a secret
        return answers

    def _exchange(self, commands: Sequence[Command], writes: bool) -> list[Any] | StoreUnavailableError:
        pool = self.pool
        try:
            connection = pool.get_connection()
        except Exception as error:
            return self._failure(error)
        try:
            connection.send_packed_command(connection.pack_commands(commands))
            await_answer(connection, pool, connection.socket_timeout or READ_TIMEOUT)
            answers = [self._receive(connection) for _ in commands]
            if any(map(is_read_only, answers)):
                self.renew(pool)  # the name of this server may lead to another one now
            return answers
        except Exception as error:
            if isinstance(error, DeadConnectionError):
                self.renew(pool)  # its other connections are dead too, most likely
            connection.disconnect()  # a late answer must not be taken for that of the next command
            return self._unknown(error) if writes else self._failure(error)
        except BaseException:
            connection.disconnect()
            raise
        finally:
            if self.pool is not pool:
                connection.disconnect()
            pool.release(connection)

    def _receive(self, connection: Any) -> Any:
        try:
            return connection.read_response()
        except REFUSALS as error:
            return self._failure(error)

    def _unknown(self, error: Exception) -> OutcomeUnknownError:
        said, cause = self._told(error)
        failure = OutcomeUnknownError("redis", f"{self.where} was sent a write, and then: {said}")
        failure.__cause__ = cause
        return failure

    def _failure(self, error: Exception) -> StoreUnavailableError:
        said, cause = self._told(error)
        if isinstance(error, redis.AuthenticationError):
            said = f"{self.where} does not accept this user or password"
        elif isinstance(error, redis.ResponseError) and _READ_ONLY.search(str(error)):
            said = f"{self.where} {REPLICA}: name its primary, or a name that moves with the primary"
        else:
            said = f"{self.where} {'refuses' if isinstance(error, REFUSALS) else 'does not answer'}: {said}"
        failure = StoreUnavailableError("redis", said)
        failure.__cause__ = cause
        return failure

    def _told(self, error: Exception) -> tuple[str, Exception]:
        """Return what *error* says, and what may be a `__cause__`: both show no secret.

        A server that does not know a command repeats its arguments, data and passwords among them.
        """
        said, repeats, _ = str(error).partition(", with args beginning with")
        if not repeats and not self.secrets.show_in(error):
            return said, error
        said = self.secrets.hide(said)
        return said, next((kind(said) for kind in KINDS if isinstance(error, kind)), OSError(said))


def is_refused(answer: object) -> bool:
    """Tell whether *answer* is a server's refusal to do what it was asked."""
    return isinstance(answer, StoreUnavailableError) and isinstance(answer.__cause__, REFUSALS)


def is_forbidden(answer: object) -> bool:
    """Tell whether *answer* is a server's word that this user lacks a right."""
    return isinstance(answer, StoreUnavailableError) and isinstance(answer.__cause__, NoPermissionError)


def is_read_only(answer: object) -> bool:
    """Tell whether *answer* is a replica's word that it takes no writes."""
    return is_refused(answer) and REPLICA in str(answer)


def is_about_script(answer: object) -> bool:
    """Tell whether *answer* is a server's word that it does not know the script."""
    return isinstance(answer, StoreUnavailableError) and isinstance(answer.__cause__, NoScriptError)
