"""`Log`: what a cluster needs of the server between its callers and its shards.

Five operations: append, read, settle, lease, members. Each is atomic in the server, which alone
decides what the time is, and who owns what. Each raises StoreUnavailableError when the server does
not answer in time; OutcomeUnknownError if it may have done what it was asked.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Answers", "Entry", "Grant", "Log", "MemberState", "Reading", "Settlement", "Standing", "Terms"]

PROTOCOL = 1
"""The version of what is written in the server. Members of another one are refused."""


@dataclass(frozen=True, slots=True)
class Terms:
    """What a cluster was made with. It stands in the server, and holds for all."""

    slots: int
    max_waiting: int
    """Entries that a slot may have."""


class Entry(NamedTuple):
    """An event in the log."""

    slot: int
    id: str
    """Entries of a slot are in the order of their ids."""
    payload: bytes


class Reading(NamedTuple):
    """What a shard reads at once."""

    entries: list[Entry]
    news: bool
    """Whether something has changed since the last `lease`, so that it is time for the next one."""


class Grant(NamedTuple):
    """A slot that the member owns."""

    slot: int
    epoch: int
    claims: bool
    """Whether an earlier owner, who did not give it back, may still write sessions of it."""
    acknowledged: frozenset[str]
    """Entries that were acknowledged by an earlier owner, and may not be in the store."""


@dataclass(frozen=True, slots=True)
class Standing:
    """How a member stands after its lease was renewed."""

    granted: list[Grant]
    """Slots that it owns and did not name as held."""
    lost: list[int]
    """Slots that it named as held, and that are not its own any more."""
    quota: int
    """How many slots it should own: it gives back what is above."""
    drain: bool
    """Whether somebody has asked it to leave."""
    look_again: float
    """Seconds after which another member's lease runs out unless it is renewed."""


class Settlement(NamedTuple):
    """What a shard has done with entries of one slot."""

    slot: int
    epoch: int
    acknowledged: list[str]
    """Entries that are answered, and stay until their session is flushed."""
    done: list[str]
    """Entries that leave the log."""


class Answers(NamedTuple):
    """Answers for one caller; *payload* is the caller's to read."""

    cursor: str
    payloads: list[bytes]


@dataclass(frozen=True, slots=True)
class MemberState:
    """What the log knows of a member."""

    id: str
    info: str
    """What it says of itself: JSON."""
    remaining: float
    """Seconds until its lease runs out; below 0.0 if it has."""
    leaving: bool


class Log(ABC):
    """The log of one cluster. All runs on one event loop."""

    @abstractmethod
    async def open(self) -> Terms | None:
        """Connect; return what the cluster was made with, `None` if no shard was ever started.

        Raises: StoreUnavailableError; ConfigError if the server is too old, or the cluster has
        another version of the protocol.
        """

    @abstractmethod
    async def close(self) -> None:
        """Close the connections. What waits raises StoreUnavailableError."""

    # --- callers ---------------------------------------------------------------------------------

    @abstractmethod
    async def append(self, events: Sequence[tuple[int, bytes]], caller: str = "", batch: int = 0) -> list[bool]:
        """Append an entry for each (slot, payload); `False` where the slot is full.

        The rest is appended all the same, in this order. With a *caller*, its *batch* is appended
        once: again, within two minutes, it does nothing, and returns what became of it. Raises:
        ConfigError if the cluster was made anew with other slots: `open` tells.
        """

    @abstractmethod
    async def answers(self, caller: str, after: str) -> Answers:
        """Wait for answers of *caller* behind the cursor *after* ("0" at first), about a second.

        What lies before *after* is forgotten.
        """

    # --- shards ----------------------------------------------------------------------------------

    @abstractmethod
    async def join(self, member: str, terms: Terms) -> Terms:
        """Make the cluster if it is not there; return what it was made with.

        Raises: as `open`; StoreUnavailableError if the server takes no writes.
        """

    @abstractmethod
    async def read(self, member: str, room: int) -> Reading:
        """Wait for entries of the slots that *member* owns, about a second; at most *room* of them.

        Each entry once, those of a slot in order. After the connection was lost, or a slot was
        granted: from the slot's start, also what was read before.
        """

    @abstractmethod
    async def settle(self, member: str, settlements: Sequence[Settlement], answers: Mapping[str, bytes]) -> list[int]:
        """Settle entries, and send *answers* to their callers: all of it, or nothing.

        Returns the slots that *member* does not own in that epoch; then nothing was done. To do the
        same twice does no harm.
        """

    @abstractmethod
    async def lease(
        self, member: str, lease: float, held: Mapping[int, int], info: str, *, leaving: bool, gone: Iterable[str] = ()
    ) -> Standing:
        """Renew the lease of *member* for *lease* seconds, and take free slots up to its quota.

        *held* has the slots that it knows to own, with their epochs. *info* is JSON for people.
        One that is *leaving* takes nothing more. *gone* are members known to have ended.
        """

    @abstractmethod
    async def release(self, member: str, held: Mapping[int, int], *, leave: bool = False) -> None:
        """Give slots back, in good order: nothing of them is still to be written.

        With *leave*, *member* is no member any more.
        """

    # --- people ----------------------------------------------------------------------------------

    @abstractmethod
    async def members(self) -> list[MemberState]:
        """List the members."""

    @abstractmethod
    async def slots(self) -> list[tuple[int, str, int]]:
        """List for each slot its epoch, its owner ("" if nobody has it), how many entries wait.

        Those that are acknowledged, and stay until they are flushed, do not.
        """

    @abstractmethod
    async def drain(self, members: Iterable[str]) -> None:
        """Ask members to leave."""
