"""The lease of sessions in Redis: a key beside theirs, with a text that says who owns them."""

from __future__ import annotations

import re
from typing import Any, Final

from actorbot.errors import StoreError, StoreUnavailableError
from actorbot.stores._lease import LeaseFound, LeaseKeeping
from actorbot.stores._redis_link import Link, is_forbidden, is_refused

__all__ = ["RedisLease"]

NAME: Final = b"\x00lease"
"""Behind the key prefix. No session id and no prefix has such a character."""

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
        # In a cluster, all three are asked of the node that has the key.
        text, time, info = self._link.run([(key, ("GET", key)), (key, ("TIME",)), (key, ("INFO", "server"))])
        for answer in (text, time):
            if is_forbidden(answer):
                right = "+time" if answer is time else "+get"
                raise StoreUnavailableError(
                    "redis",
                    f"{self._link.where} does not give this user the right {right}, which a lease needs; run"
                    f" ACL SETUSER <user> {right}, or start with ownership='none'",
                ) from answer.__cause__
            self._check_lease(answer)
        up = _UP.search(info) if isinstance(info, bytes) else None  # else this user may not ask
        try:
            now = int(time[0]) + int(time[1]) / 1e6
            # What is no text is no lease either, and whoever reads it says so.
            found = None if text is None else text.decode(errors="replace")
            return LeaseFound(found, now, None if up is None else float(up[1]))
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
            raise StoreError(
                "redis",
                f"the lease that says who owns it: its key {self._prefix + NAME!r} holds something else;"
                " look at it, and rename or remove it",
            )
        if isinstance(answer, StoreError):
            raise answer

    @staticmethod
    def is_lease(key: bytes) -> bool:
        """Tell whether *key* is that of a lease: this store's, or of one with a longer prefix."""
        return key.endswith(NAME)
