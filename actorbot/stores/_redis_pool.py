"""The connections to a Redis: how many, how patient, and what its URL says of them."""

from __future__ import annotations

from contextlib import suppress
from queue import Empty
from typing import Any, Final
from urllib.parse import urlsplit

import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from actorbot.errors import ConfigError
from actorbot.stores._redis_silence import KEEPALIVE
from actorbot.stores._secrets import ENCODED, has_secret_option, hosts_of

__all__ = ["CONNECT_TIMEOUT", "MAX_CONNECTIONS", "READ_TIMEOUT", "close_idle", "make_pool", "pool_like"]

CONNECT_TIMEOUT: Final = 1.5  # seconds; with READ_TIMEOUT less than the 5 s of `store_deadline`
READ_TIMEOUT: Final = 3.0  # seconds without a byte of the answer
# To each server. More than the calls that can be under way, those left behind included.
MAX_CONNECTIONS: Final = 20


def pool_like(pool: Any, **changes: Any) -> Any:
    """Make a pool of new connections with the settings of *pool*, but for *changes*."""
    make: Any = redis.BlockingConnectionPool
    return make(MAX_CONNECTIONS, CONNECT_TIMEOUT, pool.connection_class, **pool.connection_kwargs | changes)


def close_idle(pool: Any) -> None:
    """Close the connections of *pool* that nobody uses. Any thread."""
    idle = []
    with suppress(Empty):
        while True:
            idle.append(pool.pool.get_nowait())
    for connection in idle:
        if connection is not None:
            connection.disconnect()
        pool.pool.put_nowait(None)  # in its place another one may be made


def make_pool(url: str) -> redis.BlockingConnectionPool | ConfigError:
    """Make a pool for *url*, and connect nowhere; or return the error, which quotes no password.

    The caller raises it, away from the driver's error, whose text may quote one.
    """
    expected = "redis://[[user]:password@]host[:port][/database], rediss://… or unix:///path"
    given: object = url
    if not isinstance(given, str):
        return ConfigError("url", type(given), expected)
    if hosts_of(url) is None:
        return ConfigError("url", _without_secrets(url), ENCODED)
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
            **({} if parts.scheme == "unix" else {"socket_keepalive": True, "socket_keepalive_options": KEEPALIVE}),
            retry=Retry(NoBackoff(), 0),  # ten by default, of writes too
            # Each connection begins with CLIENT SETINFO, whose refusal redis-py ignores. Leave it
            # on: with TLS 1.3, before an answer was read, redis-py takes the session tickets for
            # data of an earlier command and gives up the connection.
            protocol=2,
        )
        pool.connection_class(**pool.connection_kwargs)
    except TypeError as error:
        said = str(error).partition(") ")[2].replace("got an unexpected keyword argument", "redis-py has no option")
        reason = "" if has_secret_option(url) else f"; {said}"
        return ConfigError("url", _without_secrets(url), expected + reason)
    except (ValueError, redis.RedisError):  # their texts may quote the password
        return ConfigError("url", _without_secrets(url), expected)
    return pool


def _without_secrets(url: str) -> str:
    scheme = url.partition("://")[0]
    return f"{scheme}://…" if scheme in {"redis", "rediss", "unix"} else "…"
