"""What a lease says, and what may become of it. Nothing here asks a store or looks at a clock.

A store keeps a lease as text, and replaces it by compare-and-set alone. So whoever decides by an
old text does no harm: the store refuses what comes of it. All times are seconds by the clock of
the server.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any, Final, Literal, Self

from actorbot._runtime.locked import show_time
from actorbot._runtime.process import Process
from actorbot.errors import StoreError

__all__ = ["WATCHED", "Holder", "InTheWay", "Lease", "Lost", "Mode", "renew", "take", "without"]

FORMAT: Final = 1
WATCHED: Final = 0.4
"""The part of a lease for which the same text must be seen before who has it counts as away.

An owner that is alive renews sooner. So a server that was away, or whose clock was set forward,
makes no second owner. And one whose clock was set back keeps nobody out for longer than a lease: by
then an owner that has not renewed it asks before it acknowledges.
"""
AWAY: Final = 24 * 3600.0
"""Seconds for which an owner that is away may come back and write late."""
MOST_AWAY: Final = 100
MOST: Final = 1e12  # seconds that a clock may show

Mode = Literal["exclusive", "shared"]


@dataclass(frozen=True, slots=True)
class Holder:
    """One process, or rather one open store of it, that has the lease."""

    process: Process
    mode: Mode
    lease: float
    """Seconds from a renewal to `until`."""
    epoch: int = 0
    """The number of this stay: each that begins has the next one."""
    since: float = 0.0
    until: float = 0.0
    claims: bool = False
    """Whether others may still write late, who have not given the lease back."""

    def say(self, now: float) -> str:
        """Name it, for people."""
        left = self.until - now
        when = f"for {left:.1f} s unless it renews it" if left > 0 else f"which ran out {-left:.1f} s ago"
        return f"{self.process}, {self.mode}, epoch {self.epoch}, since {show_time(self.since)}, {when}"


@dataclass(frozen=True, slots=True)
class Lease:
    """Who has a store, by the ids of the holders."""

    epoch: int
    holders: Mapping[str, Holder]
    away: Mapping[str, Holder]
    """Who had it, did not give it back, and is not known to have ended."""

    @classmethod
    def parse(cls, text: str | None, store: str) -> Self:
        """Read what a store keeps. Raises: StoreError if it is no lease, or a newer release's."""
        if text is None:
            return cls(0, {}, {})
        try:
            data = json.loads(text)
            written = data["format"]
            if type(written) is not int:
                raise TypeError
            if written == FORMAT:
                return cls(_count(data["epoch"], least=0), _holders(data["holders"]), _holders(data["away"]))
            reason = f"was written by another release of actorbot (format {written:.8g})"
        except (AttributeError, KeyError, TypeError, ValueError, OverflowError, RecursionError):
            reason = "cannot be read: it is damaged, or something else stands in its place"
        raise StoreError(store, f"the lease that says who owns it {reason}. If no bot runs, remove it")

    def to_text(self) -> str:
        """Write it as a store keeps it."""
        data = {"format": FORMAT, "epoch": self.epoch}
        return json.dumps(data | {"holders": _plain(self.holders), "away": _plain(self.away)})


@dataclass(frozen=True, slots=True)
class InTheWay:
    """Why a lease cannot be taken yet."""

    holders: list[Holder]
    may_renew: bool
    """Whether one of them has not run out. If not, it takes a moment to see that all are away."""
    overdue: bool
    """Whether one of them should have renewed it by now."""


@dataclass(frozen=True, slots=True)
class Lost:
    """Somebody else has taken the store since."""

    holder: Holder | None
    """Who; `None` if nobody has it any more."""


def take(
    lease: Lease, me: str, holder: Holder, now: float, watched: float, *, is_gone: Callable[[str, Holder], bool]
) -> Lease | InTheWay:
    """Take the *lease* for *me*, as *holder*, or tell who is in the way.

    *watched* is for how many seconds the same text has been seen, while the server answered.
    *is_gone* tells of an id and its holder whether that is known to have ended.
    """
    mine = lease.holders.get(me)  # of another manager of this process, which has the same store open
    if mine is not None and (mine.mode == "exclusive" or holder.mode == "shared"):
        return _with(lease, me, replace(mine, until=now + mine.lease))
    away = {name: other for name, other in lease.away.items() if now < other.until + AWAY and not is_gone(name, other)}
    kept, in_the_way, ended = {}, [], False
    for name, other in _others(lease.holders, me).items():
        if is_gone(name, other):
            ended = True
        elif other.mode == holder.mode == "shared":  # in nobody's way, whether it is there or not
            if now < other.until + AWAY:
                kept[name] = other
        elif watched < other.lease and (now < other.until or watched < WATCHED * other.lease):
            in_the_way.append(other)
        else:
            away[name] = other
    if in_the_way:
        may_renew = any(now < other.until for other in in_the_way)
        overdue = any(now >= other.until - (1 - WATCHED) * other.lease for other in in_the_way)
        return InTheWay(in_the_way, may_renew, overdue)
    for _, name in sorted((other.until, name) for name, other in kept.items() if now >= other.until)[:-MOST_AWAY]:
        away[name] = kept.pop(name)
    claims = ended or bool(away)
    if mine is not None:  # the same stay: the other manager goes on under its epoch
        mine = replace(mine, mode=holder.mode, until=now + mine.lease, claims=claims or mine.claims)
        return Lease(lease.epoch, {**kept, me: mine}, _newest(away))
    epoch = lease.epoch + 1
    mine = replace(holder, epoch=epoch, since=now, until=now + holder.lease, claims=claims)
    return Lease(epoch, {**kept, me: mine}, _newest(away))


def renew(lease: Lease, me: str, mine: Holder, now: float) -> Lease | Lost:
    """Renew the *lease* of *me*, also if it had run out, as long as nobody has taken it since.

    If the server has gone back to an older lease, or to none, it is put back under its old epoch.
    """
    found = lease.holders.get(me)
    if found is not None and found.epoch == mine.epoch:
        return _with(lease, me, replace(found, until=now + found.lease))  # its mode may be another by now
    mine = replace(mine, until=now + mine.lease)
    others = _others(lease.holders, me)
    newest = max(others.values(), key=lambda other: other.epoch, default=None)
    shared = mine.mode == "shared" and all(other.mode == "shared" for other in others.values())
    if found is not None or (lease.epoch >= mine.epoch and not shared):
        return Lost(newest)  # an equal one is another's, too: it would say so if it was this one's
    if shared:
        return _with(lease, me, mine)
    if newest is not None and newest.since > mine.since:
        return Lost(newest)  # it took a store that had lost its lease, and with it the epochs
    return Lease(mine.epoch, {me: mine}, _newest({**_others(lease.away, me), **others}))


def without(lease: Lease, me: str) -> Lease:
    """Give the *lease* of *me* back, or say that it writes no more. The epochs go on from there."""
    return Lease(lease.epoch, _others(lease.holders, me), _others(lease.away, me))


def _with(lease: Lease, me: str, mine: Holder) -> Lease:
    holders, away = {**lease.holders, me: mine}, _others(lease.away, me)
    return Lease(max(lease.epoch, mine.epoch), holders, away)


def _newest(away: Mapping[str, Holder]) -> dict[str, Holder]:
    return dict(list(away.items())[-MOST_AWAY:])


def _others(holders: Mapping[str, Holder], me: str) -> dict[str, Holder]:
    return {name: other for name, other in holders.items() if name != me}


def _plain(holders: Mapping[str, Holder]) -> dict[str, dict[str, Any]]:
    return {name: asdict(holder) for name, holder in holders.items()}


def _holders(data: Mapping[str, Mapping[str, Any]]) -> dict[str, Holder]:
    return {name: _holder(dict(fields)) for name, fields in data.items()}


def _holder(fields: dict[str, Any]) -> Holder:
    if fields["mode"] not in ("exclusive", "shared") or type(fields["claims"]) is not bool:
        raise ValueError
    process = Process.from_fields(fields.pop("process"))
    holder = Holder(process, **fields)
    _count(holder.epoch)
    for seconds in (holder.lease, holder.since, holder.until):
        if type(seconds) not in (int, float) or not abs(seconds) < MOST:
            raise ValueError
    if holder.lease <= 0:
        raise ValueError
    return holder


def _count(value: Any, *, least: int = 1, most: int = 2**53) -> int:
    if type(value) is not int or not least <= value < most:
        raise ValueError
    return value
