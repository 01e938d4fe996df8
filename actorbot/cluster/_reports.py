"""What a cluster says of itself, as one of its callers sees it."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from actorbot.cluster._log import MemberState

__all__ = ["ClusterStats", "Member", "members_of"]


@dataclass(frozen=True, slots=True)
class ClusterStats:
    """Counters of this caller since its start, and gauges of now."""

    cluster: str
    slots: int
    sent: int
    """Requests that the log has accepted: events, and the other verbs."""
    answered: int
    waiting: int
    """Requests whose answer somebody waits for, receipts left out."""
    unsent: int
    """Requests that are not on their way to the log yet."""
    refused: int
    """Requests for which there was no room."""
    timed_out: int
    appends: int
    """Batches of requests that went to the log."""
    repeated: int
    """Tries to append that had to be repeated, since the log did not answer."""
    silent: float
    """Seconds since the log answered last."""


@dataclass(frozen=True, slots=True)
class Member:
    """A shard of the cluster."""

    id: str
    host: str
    pid: int
    program: str
    slots: int
    """How many slots it owns."""
    waiting: int
    """Entries of these that are accepted and not acknowledged."""
    since: float
    """Wall-clock seconds of its start, by its own clock."""
    remaining: float
    """Seconds until its lease runs out unless it is renewed; below 0.0 if it has."""
    leaving: bool
    handled: int
    """Entries that it has handled since its start, by its last renewal."""
    in_hand: int
    """Entries that it has read and not settled."""
    reruns: int
    """Entries that it has handled again, since the state of the first time was not stored."""
    conflicts: int
    """Sessions whose flush met a write of another shard."""
    fenced: int
    """Times that it was refused, since another shard had taken over the slot."""


def members_of(states: Iterable[MemberState], slots: Iterable[tuple[int, str, int]]) -> list[Member]:
    """Make the members of what the log knows, in the order of their start."""
    owned, entries = Counter[str](), Counter[str]()
    for _, owner, waiting in slots:
        owned[owner] += 1
        entries[owner] += waiting
    members = [_member(each, owned[each.id], entries[each.id]) for each in states]
    return sorted(members, key=lambda member: (member.since, member.id))


def _member(state: MemberState, slots: int, waiting: int) -> Member:
    try:
        said = json.loads(state.info)
    except ValueError:
        said = {}
    info: dict[str, Any] = said if isinstance(said, dict) else {}  # of another release, perhaps
    return Member(
        id=state.id,
        host=str(info.get("host", "")),
        pid=_number(info, "pid"),
        program=str(info.get("program", "")),
        slots=slots,
        waiting=waiting,
        since=float(info["since"]) if isinstance(info.get("since"), int | float) else 0.0,
        remaining=state.remaining,
        leaving=state.leaving,
        handled=_number(info, "handled"),
        in_hand=_number(info, "in_hand"),
        reruns=_number(info, "reruns"),
        conflicts=_number(info, "conflicts"),
        fenced=_number(info, "fenced"),
    )


def _number(info: dict[str, Any], name: str) -> int:
    value = info.get(name)
    return value if type(value) is int else 0
