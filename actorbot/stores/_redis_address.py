"""What the URL of a Redis says of a connection, for who makes connections of his own."""

from __future__ import annotations

import ssl
from dataclasses import dataclass, replace
from typing import Any, Self

import redis.asyncio
from redis.crc import key_slot

from actorbot.errors import ConfigError
from actorbot.stores._redis_pool import CONNECT_TIMEOUT, READ_TIMEOUT, make_pool
from actorbot.stores._redis_silence import KEEPALIVE
from actorbot.stores._scheme import as_drivers_write

__all__ = ["Address", "key_slot"]


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server is, and as whom to connect to it. Its text has no password."""

    host: str
    port: int
    path: str
    """Of a unix socket; else "", and the host counts."""
    database: int
    username: str | None
    password: str | None
    tls: ssl.SSLContext | None
    connect_timeout: float = CONNECT_TIMEOUT
    read_timeout: float = READ_TIMEOUT

    @classmethod
    def of(cls, url: str) -> Self:
        """Return what *url* says. Raises: ConfigError, which quotes no password."""
        found = cls._of(as_drivers_write(url))
        if isinstance(found, ConfigError):
            raise found  # away from the driver's error, whose text may quote one
        return found

    @classmethod
    def _of(cls, url: str) -> Self | ConfigError:
        pool: Any = make_pool(url)
        if isinstance(pool, ConfigError):
            return pool
        said = pool.connection_kwargs
        try:
            tls = _context(said) if url.startswith("rediss://") else None
        except (OSError, TypeError, ValueError, redis.RedisError) as error:
            return ConfigError("url", "rediss://…", f"TLS options that can be used ({type(error).__name__}: {error})")
        return cls(
            said.get("host", "localhost"),
            said.get("port", 6379),
            said.get("path", ""),
            int(said.get("db") or 0),
            said.get("username"),
            said.get("password"),
            tls,
            said.get("socket_connect_timeout") or CONNECT_TIMEOUT,
            said.get("socket_timeout") or READ_TIMEOUT,
        )

    def at(self, host: str, port: int) -> Self:
        """Return the same for another server."""
        return replace(self, host=host, port=port, path="")

    @property
    def keepalive(self) -> dict[int, int]:
        """The options of its sockets, by which a machine finds that the other one has gone."""
        return {} if self.path else KEEPALIVE

    def __str__(self) -> str:
        return self.path or f"{self.host}:{self.port}"

    def __repr__(self) -> str:
        return f"<Address {self}>"


def _context(said: dict[str, Any]) -> ssl.SSLContext:
    options = {name: value for name, value in said.items() if name.startswith("ssl_")}
    context: ssl.SSLContext = redis.asyncio.SSLConnection(**options).ssl_context.get()
    return context
