"""A connection that says nothing: is its server slow, or is the connection dead?

Firewalls and load balancers forget connections that were idle for some minutes, and drop what comes
on them without a word. An answer would never come.
"""

from __future__ import annotations

import socket
import time
from typing import Any, Final

import redis

__all__ = ["KEEPALIVE", "DeadConnectionError", "await_answer"]

SILENCE: Final = 1.0  # seconds without a byte before a newcomer asks
# So often the machine sends a packet on an idle connection, which keeps most of them in memory.
_SECONDS: Final = {"TCP_KEEPIDLE": 30, "TCP_KEEPALIVE": 30, "TCP_KEEPINTVL": 10, "TCP_KEEPCNT": 3}
KEEPALIVE: Final = {getattr(socket, name): each for name, each in _SECONDS.items() if hasattr(socket, name)}


class DeadConnectionError(redis.ConnectionError):
    """The server answers, but not on this connection."""


def await_answer(connection: Any, pool: Any, patience: float) -> None:
    """Wait at most *patience* seconds for the first byte of an answer on a *connection* of *pool*.

    Redis does one thing after the other. So if it answers a newcomer while somebody still waits,
    the connection of the one who waits is dead. Raises: DeadConnectionError, redis.TimeoutError.
    """
    silence = min(SILENCE, patience / 3)
    began = time.monotonic()
    if connection.can_read(silence):
        return
    if _answers(pool, silence):
        raise DeadConnectionError("its server answers on a new connection, and was silent on this one")
    if not connection.can_read(max(silence, patience - (time.monotonic() - began))):
        raise redis.TimeoutError("Timeout reading from socket")


def _answers(pool: Any, within: float) -> bool:
    """Tell whether the server of *pool* answers on a new connection."""
    timeouts = {"socket_timeout": within, "socket_connect_timeout": within}
    newcomer = pool.connection_class(**pool.connection_kwargs | timeouts)
    try:
        newcomer.connect()
        newcomer.send_command("PING")
        newcomer.read_response()
    except redis.ResponseError:
        return True  # it refuses, which is an answer
    except (redis.RedisError, OSError):
        return False
    finally:
        newcomer.disconnect()
    return True
