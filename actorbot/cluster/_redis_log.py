"""`RedisLog`: the log of a cluster in a Redis 6.2 or newer, or a Valkey.

Two connections, made when they are needed: at one, a reader waits for what is new; by the other
goes all that is answered at once.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from typing import Any, Final

from actorbot.cluster import _scripts as scripts
from actorbot.cluster._line import Line
from actorbot.cluster._log import (
    PROTOCOL,
    Answers,
    Entry,
    Grant,
    Log,
    MemberState,
    Reading,
    Settlement,
    Standing,
    Terms,
)
from actorbot.cluster._place import Place
from actorbot.cluster._wire import Part
from actorbot.errors import ConfigError, StoreUnavailableError
from actorbot.stores._secrets import Secrets

__all__ = ["RedisLog"]

logger = logging.getLogger("actorbot")

WAIT: Final = 1.0  # seconds that a reader waits at the server for something new
AT_ONCE: Final = 1_000  # answers


class RedisLog(Log):
    """See `Log`. All of it runs on the loop on which it was made."""

    def __init__(self, url: str, cluster: str) -> None:
        """Connect nowhere yet. Raises: ConfigError for a name or a URL that is none."""
        _check_name(cluster)
        self._name = f"cluster {cluster}"
        self._base = f"actorbot-cluster:{{{cluster}}}".encode()  # not the key prefix of a store
        place = Place(url, self._base)
        self._asking = Line(place, self._base, self._name, Secrets(url))
        self._reading = Line(place, self._base, self._name, Secrets(url))
        self._terms: Terms | None = None
        self._answers_by = 0  # the connection by which answers were read last
        self._read_by = 0
        self._gen = b""
        self._known: set[int] = set()  # slots that the member was told to own
        self._anew: set[int] = set()  # those of them that the next read begins from their start
        self._left = False  # whether the last read has left entries behind

    async def open(self) -> Terms | None:
        found = await self._asking.ask(b"HMGET", self._key("meta"), b"protocol", b"slots", b"max_waiting")
        if found[0] is not None:
            self._terms = self._checked(found)
        return self._terms

    async def close(self) -> None:
        self._asking.close()
        self._reading.close()

    def _key(self, kind: str, name: str = "") -> bytes:
        return self._base + f":{kind}:{name}".encode() if name else self._base + f":{kind}".encode()

    def _checked(self, found: list[Any]) -> Terms:
        protocol, slots, max_waiting = map(int, found)
        if protocol != PROTOCOL:
            raise ConfigError(
                "cluster",
                self._name.removeprefix("cluster "),
                f"a cluster of protocol {PROTOCOL}, but this one was made with {protocol}; update actorbot on all"
                " machines, or use another name",
            )
        return Terms(slots, max_waiting)

    def _forgotten(self) -> StoreUnavailableError:
        return StoreUnavailableError(self._name, "the server does not know this cluster: no shard has been started")

    # --- callers ---------------------------------------------------------------------------------

    async def append(self, events: Sequence[tuple[int, bytes]], caller: str = "", batch: int = 0) -> list[bool]:
        slots = self._terms.slots if self._terms is not None else 0
        args: list[Part] = [slots, caller, batch]
        for event in events:
            args += event
        outcomes = await self._asking.run(scripts.APPEND, *args)
        if isinstance(outcomes, bytes):
            if outcomes == b"no cluster":
                raise self._forgotten()
            raise ConfigError("slots", slots, f"{int(outcomes)}, with which the cluster was made; open it again")
        return [outcome == 1 for outcome in outcomes]

    async def answers(self, caller: str, after: str) -> Answers:
        key = self._key("answers", caller)
        wire = await self._reading.wire()
        if self._answers_by != self._reading.made:
            # Another server may have a clock that is behind: its ids may be below those seen.
            self._answers_by, after = self._reading.made, "0"
        forget: tuple[Part, ...] = (b"XTRIM", key, b"MINID", after)
        read: tuple[Part, ...] = (b"XREAD", b"COUNT", AT_ONCE, b"BLOCK", int(WAIT * 1000), b"STREAMS", key, after)
        found = await wire.call_all(*([] if after == "0" else [forget]), read, blocks=WAIT)[-1]
        if isinstance(found, Exception):
            self._reading.note(wire, found)
            raise self._reading.failure(found, writes=False)
        if not found:
            return Answers(after, [])
        ((_, entries),) = found
        return Answers(entries[-1][0].decode(), [fields[1] for _, fields in entries])

    # --- shards ----------------------------------------------------------------------------------

    async def join(self, member: str, terms: Terms) -> Terms:
        joined = await self._join(terms, again=False, lease=0.0)
        await self._warn()
        return joined

    async def _warn(self) -> None:
        """Warn of a server that may lose events, as far as its user may ask."""
        with suppress(StoreUnavailableError):  # whoever needs the server next says what is the matter
            told = await self._asking.ask(b"INFO")
            where = self._asking.where
            if b"aof_enabled:0" in told:
                text = "loses accepted events when it crashes, since it logs no writes; set appendonly to yes"
                logger.warning("%s: %s %s", self._name, where, text)
            if found := re.search(rb"maxmemory_policy:(allkeys-\S+)", told):
                text = f"drops events when its memory is full (maxmemory-policy {found[1].decode()})"
                logger.warning("%s: %s %s", self._name, where, f"{text}; set it to noeviction")

    async def _join(self, terms: Terms, *, again: bool, lease: float) -> Terms:
        found = await self._asking.run(
            scripts.JOIN, PROTOCOL, terms.slots, terms.max_waiting, int(again), int(lease * 1000)
        )
        joined = self._checked(found)
        if joined.slots != terms.slots:
            raise ConfigError("slots", terms.slots, f"{joined.slots}, with which the {self._name} was made")
        self._terms = joined
        return joined

    async def read(self, member: str, room: int) -> Reading:
        wire = await self._reading.wire()
        if self._read_by != self._reading.made:  # what came by the last one may be lost
            self._read_by = self._reading.made
            self._anew = set(self._known)
        anew, self._anew = self._anew, set()
        blocks = not anew and (not self._left or room <= 0)
        wait: tuple[Part, ...] = (b"BLPOP", self._key("bell", member), str(WAIT))
        read: tuple[Part, ...] = (b"EVALSHA", scripts.READ.sha, 1, self._base, member, room, self._read_by, *anew)
        bell, asked = wire.call_all(wait, read, blocks=WAIT) if blocks else (None, wire.call(*read))
        try:
            found = await asked
        except asyncio.CancelledError:
            self._anew = set(self._known)
            raise
        if bell is not None and isinstance(bell.result(), Exception):
            found = bell.result()  # who may not wait would ask without a pause
        if isinstance(found, Exception):
            self._anew = set(self._known)
            self._reading.note(wire, found)
            raise self._reading.failure(found, writes=False)
        gen, left, parts = found
        self._left = left > 0
        news, self._gen = gen != self._gen, gen
        # A slot may be read before the answer of `lease` has granted it. Then it is read anew, and
        # until then nothing of it counts: the cursor may have moved past what was not known then.
        parts = iter(parts)
        entries = [
            Entry(slot, entry.decode(), payload)
            for slot, entry, payload in zip(map(int, parts), parts, parts, strict=True)
            if slot in self._known and slot not in self._anew
        ]
        return Reading(entries, news)

    async def settle(self, member: str, settlements: Sequence[Settlement], answers: Mapping[str, bytes]) -> list[int]:
        args: list[Part] = [member, len(settlements)]
        for slot, epoch, acknowledged, done in settlements:
            args += (slot, epoch, len(acknowledged), len(done), *acknowledged, *done)
        for answer in answers.items():
            args += answer
        refused = await self._asking.run(scripts.SETTLE, *args)
        if isinstance(refused, bytes):
            raise StoreUnavailableError(self._name, "the server has lost its leases: its members put them back")
        return [int(slot) for slot in refused]

    async def lease(
        self, member: str, lease: float, held: Mapping[int, int], info: str, *, leaving: bool, gone: Iterable[str] = ()
    ) -> Standing:
        pairs = [part for pair in held.items() for part in pair]
        args: tuple[Part, ...] = (member, int(lease * 1000), int(leaving), info, len(held), *pairs, *gone)
        found = await self._asking.run(scripts.LEASE, *args)
        if isinstance(found, bytes):
            if self._terms is None:
                raise self._forgotten()
            await self._join(self._terms, again=True, lease=lease)
            found = await self._asking.run(scripts.LEASE, *args)
            if isinstance(found, bytes):
                raise self._forgotten()
        self._gen, quota, drain, look, lost, told = found
        granted = [
            Grant(int(slot), int(epoch), claims == 1, frozenset(each.decode() for each in acked))
            for slot, epoch, claims, acked in told
        ]
        standing = Standing(sorted(granted), [int(slot) for slot in lost], quota, drain == 1, look / 1000)
        self._take(member, held, standing)
        return standing

    def _take(self, member: str, held: Mapping[int, int], standing: Standing) -> None:
        """Have the next read begin anew with the slots that were granted."""
        now = (set(held) - set(standing.lost)) | {grant.slot for grant in standing.granted}
        fresh = (now - self._known) | {grant.slot for grant in standing.granted}
        self._known = now
        self._anew = (self._anew & now) | fresh
        if fresh:
            self._wake(member)

    def _wake(self, member: str) -> None:
        """Have the reader look again at once."""
        wire = self._asking.open_wire
        if wire is not None:
            wire.call(b"RPUSH", self._key("bell", member), 1)

    async def release(self, member: str, held: Mapping[int, int], *, leave: bool = False) -> None:
        pairs = [part for pair in held.items() for part in pair]
        self._known = set() if leave else self._known - set(held)
        await self._asking.run(scripts.RELEASE, member, int(leave), *pairs)

    # --- people ----------------------------------------------------------------------------------

    async def members(self) -> list[MemberState]:
        found = await self._asking.run(scripts.MEMBERS, writes=False)
        return [
            MemberState(member.decode(), info.decode(errors="replace"), float(remaining) / 1000, leaving == 1)
            for member, info, remaining, leaving in found
        ]

    async def slots(self) -> list[tuple[int, str, int]]:
        found = await self._asking.run(scripts.SLOTS, writes=False)
        return [(int(epoch), owner.decode(), entries) for _, epoch, owner, entries in found]

    async def drain(self, members: Iterable[str]) -> None:
        await self._asking.run(scripts.DRAIN, *members)


def _check_name(cluster: object) -> None:
    if (
        not isinstance(cluster, str)
        or not 1 <= len(cluster) <= 100
        or not cluster.isprintable()
        or any(each in "{}: " for each in cluster)
    ):
        raise ConfigError(
            "cluster", cluster, "a name of 1 to 100 printable characters without '{', '}', ':' and spaces"
        )
