"""The lease of sessions in Redis: a key beside theirs, with a text that says who owns them."""

from __future__ import annotations

import re
from typing import Any, Final

from actorbot.errors import StoreError, StoreUnavailableError
from actorbot.stores._lease import LeaseFound, LeaseKeeping
from actorbot.stores._redis_link import Link, is_forbidden, is_refused

__all__ = ["NAME", "RedisLease"]

NAME: Final = b"\x00lease"
"""Behind the key prefix. No session id has such a character."""

_SWAP: Final = b"""
local old = redis.call('GET', KEYS[1])
if (old or '') ~= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[2])
return 1
"""
# A full server refuses writes; but not this small one, so that a bot starts and can read. Redis
# before 7.0 does not know such a first line.
_SWAP_IN_ANY_CASE: Final = b"#!lua flags=allow-oom" + _SWAP
_UP: Final = re.compile(rb"uptime_in_seconds:(\d+)")


class RedisLease(LeaseKeeping):
    """The part of `RedisSessionStore` that keeps the lease."""

    keeps_lease = True
    _link: Link
    _prefix: bytes

    def read_lease(self) -> LeaseFound:
        key = self._prefix + NAME
        text, time, info = self._link.run([(key, ("GET", key)), (key, ("TIME",)), (key, ("INFO", "server"))])
        for answer in (text, time):
            self._check_lease(answer)
        up = _UP.search(info) if isinstance(info, bytes) else None
        try:
            now = int(time[0]) + int(time[1]) / 1e6
            return LeaseFound(None if text is None else text.decode(), now, None if up is None else float(up[1]))
        except (TypeError, ValueError, IndexError, AttributeError):
            raise self._link.misunderstood(StoreUnavailableError) from None

    def swap_lease(self, old: str | None, new: str) -> bool:
        key = self._prefix + NAME
        for script in (_SWAP_IN_ANY_CASE, _SWAP):
            command = ("EVAL", script, 1, key, (old or "").encode(), new.encode())
            answer = self._link.run([(key, command)], writes=True)[0]
            if not (is_refused(answer) and "compiling script" in str(answer)):
                break
        self._check_lease(answer)
        return bool(answer == 1)

    def _check_lease(self, answer: Any) -> None:
        if is_refused(answer) and "WRONGTYPE" in str(answer):
            reason = (
                "the lease that says who owns it: its key holds something else; look at it, and rename or remove it"
            )
            raise StoreError("redis", f"{reason} ({self._prefix + NAME!r})")
        if is_forbidden(answer):
            raise StoreUnavailableError(
                "redis", f"{self._link.where} does not let this user keep a lease, which needs +get +set +eval +time"
            ) from answer
        if isinstance(answer, StoreError):
            raise answer
