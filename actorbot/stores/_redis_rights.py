"""What a user of Redis may do, found out by trying each command on a key that is not there.

Redis looks at the rights of a command before all else. So a command that fails for another reason
was allowed, and nothing is left behind. This is so in all versions, and without a right to ask.
"""

from __future__ import annotations

import logging
import re
import secrets
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from actorbot.errors import StoreUnavailableError
from actorbot.stores._findings import Finding
from actorbot.stores._redis_link import Command, Link, is_forbidden, is_read_only

__all__ = ["Rights", "try_rights"]

logger = logging.getLogger("actorbot")

# A server's word that a key may not be touched, rather than that a command may not be run.
_ABOUT_KEY: Final = re.compile(r"access (a|one of the) key")


class Rights(NamedTuple):
    """The rights that a user lacks, as ACL SETUSER writes them."""

    needed: list[str]
    """Without them no session can be kept."""
    useful: list[str]
    """Without them a bot knows less of its server, or a tool cannot do all it does."""

    def check(self, where: str) -> None:
        """Raises: StoreUnavailableError if a right is missing that every bot needs."""
        if self.needed:
            raise StoreUnavailableError("redis", f"{where} {self._say(self.needed)}")
        if "+time" in self.useful:
            logger.warning("redis: %s does not tell its time without +time: sessions end by the clock here", where)
        if self.useful:
            logger.info("redis: the user at %s lacks, for the tools: %s", where, " ".join(self.useful))

    def judge(self) -> Iterator[Finding]:
        """Yield what is to be said of it."""
        if self.needed:
            yield Finding("rights", "failure", self._say([*self.needed, *self.useful]))
        elif self.useful:
            yield Finding("rights", "warning", self._say(self.useful))

    def _say(self, rights: list[str]) -> str:
        listed = " ".join(rights)
        return f"does not give this user the rights {listed}; run ACL SETUSER <user> {listed}"


def try_rights(link: Link, *, script: bytes, sha: str, prefix: bytes) -> Rights:
    """Try what a bot and the tools do under the key *prefix*, on each server that is known.

    The *script* is known to all of them afterwards. Raises: StoreUnavailableError.
    """
    key = prefix + b"actorbot-rights:" + secrets.token_hex(8).encode()
    needed: dict[str, Command] = {
        "+eval": ("EVAL", script, 0),
        "+evalsha": ("EVALSHA", sha, 0),
        "+script|load": ("SCRIPT", "LOAD", script),
        "+mget": ("MGET", key),
        "+get": ("GET", key),
        "+exists": ("EXISTS", key),
        "+set": ("SET", key, "", "PX", 0),  # a time that is none: it is refused
    }
    useful: dict[str, Command] = {
        "+time": ("TIME",),
        "+info": ("INFO", "server"),
        "+config|get": ("CONFIG", "GET", "save"),
        "+scan": ("SCAN", 0, "MATCH", key, "COUNT", 1),
        "+renamenx": ("RENAMENX", key, key),
        "+expire": ("EXPIRE", key, 1),
    }
    missing: dict[str, None] = {}  # in place of a set, for the order
    for answers in link.ask_each([*needed.values(), *useful.values()]):
        if not link.is_cluster and any(map(is_read_only, answers)):
            raise next(answer for answer in answers if is_read_only(answer))
        missing |= dict.fromkeys(_lacking({**needed, **useful}, answers, f"~{prefix.decode()}*"))
    return Rights([each for each in missing if each not in useful], [each for each in missing if each in useful])


def _lacking(commands: Mapping[str, Command], answers: list[Any], keys: str) -> list[str]:
    lacking = []
    for right, answer in zip(commands, answers, strict=True):
        if is_forbidden(answer):
            lacking.append(keys if _ABOUT_KEY.search(str(answer)) else right)
    return lacking
