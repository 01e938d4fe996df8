"""A line to the server of a cluster: a connection that is made when it is needed, and made again
when it was lost; and what its failures are to who asks.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Coroutine
from copy import copy
from typing import Any, Final

from actorbot.cluster._place import NowhereError, Place
from actorbot.cluster._scripts import ALL, RIGHTS, TRIAL, Script
from actorbot.cluster._wire import LostError, Part, RefusedError, Wire
from actorbot.errors import ActorbotError, ConfigError, OutcomeUnknownError, StoreUnavailableError
from actorbot.stores._secrets import Secrets

__all__ = ["Line"]

TRIES: Final = 3  # of a command that the server has refused because another one has the keys now

_READ_ONLY: Final = re.compile("READONLY|read[- ]only replica")
_PASSWORD: Final = re.compile("WRONGPASS|invalid password|invalid username-password|AUTH <password>")
_NO_RIGHT: Final = re.compile("NOPERM|The user executing the script|ACL failure")
_MOVED: Final = re.compile(r"MOVED \d+ (\S+)")


class Line:
    """One connection at a time. Who waits at the server has a line of his own."""

    def __init__(self, place: Place, base: bytes, name: str, secrets: Secrets) -> None:
        self._place = place
        self._base = base
        self._name = name
        self._secrets = secrets
        self._wire: Wire | None = None
        self._where = place.where
        self._attempt: asyncio.Task[Wire | ActorbotError] | None = None  # to connect
        self._closed = False
        self.made = 0
        """How many connections were made: another number, another connection."""

    @property
    def where(self) -> str:
        """What a message calls the server."""
        return self._where

    def close(self) -> None:
        self._closed = True
        self._drop()
        if self._attempt is not None:
            self._attempt.cancel()

    @property
    def open_wire(self) -> Wire | None:
        """The connection, if there is one."""
        return self._wire if self._wire is not None and self._wire.is_open else None

    async def wire(self) -> Wire:
        """Return the connection. Raises: StoreUnavailableError, ConfigError."""
        wire = self._wire
        if wire is not None and wire.is_open:
            return wire
        self._check_open()
        if self._attempt is None or self._attempt.done():
            self._attempt = asyncio.get_running_loop().create_task(self._connect())
        attempt = self._attempt
        await asyncio.wait([attempt])  # the same one for all who ask; a cancelled one leaves it alone
        self._check_open()
        outcome = attempt.result()
        if isinstance(outcome, Wire):
            return outcome
        raise copy(outcome)

    def run(self, script: Script, *args: Part, writes: bool = True) -> Coroutine[Any, Any, Any]:
        """Run *script*, as `ask` does."""
        return self.ask(b"EVALSHA", script.sha, 1, self._base, *args, writes=writes)

    async def ask(self, *command: Part, writes: bool = False) -> Any:
        """Send *command*; return the answer.

        Raises: StoreUnavailableError; OutcomeUnknownError if it *writes* and may have done so.
        """
        for _ in range(TRIES):
            wire = await self.wire()
            answer = await wire.call(*command)
            if not isinstance(answer, Exception):
                return answer
            self.note(wire, answer)
            if not self._may_go_on(answer):
                break
        raise self.failure(answer, writes=writes)

    def note(self, wire: Wire, answer: Exception) -> None:
        """Take from *answer* what it says of the connection that it came by."""
        text = str(answer)
        if moved := _MOVED.search(text):
            self._place.moved(moved[1])
        # After NOSCRIPT, too: all scripts are loaded when a connection is made.
        if wire is self._wire and self._may_go_on(answer):
            self._wire = None
            wire.retire()

    def _drop(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    @staticmethod
    def _may_go_on(answer: Exception) -> bool:
        """Tell whether the same may be asked again at once: nothing was done."""
        if isinstance(answer, LostError):
            return not answer.sent
        text = str(answer)
        return bool(_MOVED.search(text) or _READ_ONLY.search(text) or "NOSCRIPT" in text)

    # --- connecting ------------------------------------------------------------------------------

    def _check_open(self) -> None:
        if self._closed:
            self._drop()
            raise StoreUnavailableError(self._name, "the log is closed")

    async def _connect(self) -> Wire | ActorbotError:
        for left in reversed(range(TRIES)):
            self._where = self._place.where
            try:
                wire, self._where = await self._place.connect()
                try:
                    await self._prepare(wire)
                except BaseException:
                    wire.close()
                    raise
            except (OSError, RefusedError, LostError, NowhereError) as error:
                moved = _MOVED.search(str(error))
                if not moved or not left:
                    return self.failure(error, writes=False)
                self._place.moved(moved[1])
            except ConfigError as error:
                return error
            else:
                self._wire = wire
                self.made += 1
                return wire
        raise AssertionError

    async def _prepare(self, wire: Wire) -> None:
        """See whether the server will do, and have it learn the scripts: one round trip."""
        key = self._base + b":none"
        asked = wire.call_all(
            *((b"SCRIPT", b"LOAD", script.text) for script in ALL),
            (b"XRANGE", key, b"(0-1", b"+"),  # Redis 6.2 is the first to know `(`
            (b"BLPOP", key, b"x"),  # a time that is none: it is refused
            (b"XREAD", b"STREAMS", key, b"0"),
            (b"EVALSHA", TRIAL.sha, 1, self._base),
        )
        for answer in await asyncio.gather(*asked):
            if isinstance(answer, LostError) or (isinstance(answer, RefusedError) and _is_fatal(answer)):
                raise answer
        *loading, bound, bell, answers, trial = asked
        tried = [("+xrange", bound), ("+blpop", bell), ("+xread", answers)]
        said = bound.result()
        if isinstance(said, RefusedError) and "stream ID" in str(said):
            raise ConfigError("url", self._where, f"Redis 6.2 or newer, or Valkey; this server says {said}")
        for each in (*loading, trial):
            if isinstance(each.result(), RefusedError):
                raise each.result()
        found = trial.result()
        if isinstance(found, bytes):
            raise RefusedError(found.decode(errors="replace"))
        missing = [
            right for right, each in tried if isinstance(each.result(), RefusedError) and _forbids(each.result())
        ]
        missing += [right.decode() for right in found] if isinstance(found, list) else []
        if missing:
            raise RefusedError(f"NOPERM {' '.join(missing)}")

    # --- what a failure is to who asks -----------------------------------------------------------

    def failure(self, error: Exception, *, writes: bool) -> StoreUnavailableError:
        """Return what is raised for *error*, which quotes no password."""
        told, cause = self._secrets.tell(error)
        said = told.partition(": ")[2] or told
        if isinstance(error, LostError):
            if writes and error.sent:
                failure: StoreUnavailableError = OutcomeUnknownError(
                    self._name, f"{self._where} was asked for a change, and then: {said}"
                )
            else:
                failure = StoreUnavailableError(self._name, f"{self._where} does not answer: {said}")
        elif isinstance(error, RefusedError):
            failure = StoreUnavailableError(self._name, f"{self._where} {self._refusal(said)}")
        elif isinstance(error, NowhereError):
            failure = StoreUnavailableError(self._name, f"{self._where}: {said}")
        else:
            failure = StoreUnavailableError(self._name, f"{self._where} does not answer: {told}")
        failure.__cause__ = cause
        return failure

    def _refusal(self, said: str) -> str:
        if _READ_ONLY.search(said):
            return "is a replica, which takes no writes: name its primary, its Sentinels, or a name that moves with it"
        if _NO_RIGHT.search(said):
            keys = f"~{self._base.decode()}*"
            return f"does not let this user do what a cluster needs ({said}); run ACL SETUSER <user> {keys} {RIGHTS}"
        if said.startswith("NOAUTH"):
            return "asks for a user or password: name them in the URL, as redis://user:password@host"
        if _PASSWORD.search(said):
            return "does not accept this user or password"
        if said.startswith(("ASK", "TRYAGAIN")):
            return f"hands the keys of the cluster over to another node ({said}): nothing is done until it has"
        if "unknown command" in said:
            said += "; if it is a Sentinel, write redis+sentinel://host:26379/name-of-the-primary"
        return f"refuses: {said}"


def _forbids(answer: Exception) -> bool:
    return _NO_RIGHT.search(str(answer)) is not None


def _is_fatal(answer: RefusedError) -> bool:
    """Tell whether a server that refuses one thing so refuses all."""
    return str(answer).startswith(("LOADING", "MASTERDOWN", "CLUSTERDOWN", "MOVED", "NOAUTH", "ASK", "BUSY"))
