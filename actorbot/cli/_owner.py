"""Who owns a store, for people who look. Nothing is taken or changed, and nobody is waited for."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import click

from actorbot._ownership.lease import Holder, Lease
from actorbot._runtime.process import is_gone
from actorbot.cli._format import clean
from actorbot.errors import ActorbotError
from actorbot.stores import Finding, RecordStore

__all__ = ["judge_owner", "tell_owner", "warn_of_owner"]


@dataclass(frozen=True, slots=True)
class Owners:
    """Who has a store, and who may still write to it late; each as a sentence."""

    holders: list[str]
    away: list[str]
    all_well: bool
    """Whether each of them can be expected to go on."""

    def __str__(self) -> str:
        late = [f"may still write late: {each}" for each in self.away]
        return "; ".join([*(self.holders or ["nobody"]), *late])


def _look(store: RecordStore) -> Owners | None:
    """Return who owns the store; `None` if it keeps no lease. Raises: what `read_lease` does."""
    if not store.keeps_lease:
        return None
    found = store.read_lease()
    lease = Lease.parse(found.text, store.name)
    holders = list(lease.holders.values())
    away = [each for each in lease.away.values() if not is_gone(each.process)]
    all_well = not away and all(found.now < each.until and not is_gone(each.process) for each in holders)
    return Owners([_say(each, found.now) for each in holders], [_say(each, found.now) for each in away], all_well)


def _say(holder: Holder, now: float) -> str:
    ended = ", and has ended without giving it back: the next start takes it at once"
    return holder.say(now) + (ended if is_gone(holder.process) else "")


def judge_owner(store: RecordStore) -> Iterator[Finding]:
    """Yield what `actorbot doctor` says of the owner."""
    try:
        owners = _look(store)
    except ActorbotError as error:  # then no bot can start
        yield Finding("owner", "failure", str(error))
        return
    if owners is not None:
        yield Finding("owner", "ok" if owners.all_well else "warning", str(owners))


def tell_owner(store: RecordStore) -> None:
    """Say on stderr who owns the store, if it keeps a lease."""
    owners = _look_or_tell(store)
    if owners is not None:
        click.echo(f"owner: {clean(str(owners))}", err=True)


def warn_of_owner(store: RecordStore, costs: str) -> None:
    """Say on stderr who owns the store, if somebody does, and what that *costs*."""
    owners = _look_or_tell(store)
    if owners is not None and (owners.holders or owners.away):
        click.echo(f"note: {store.name} is owned by {clean(str(owners))}. {costs}", err=True)


def _look_or_tell(store: RecordStore) -> Owners | None:
    try:
        return _look(store)
    except ActorbotError as error:
        click.echo(f"note: who owns it cannot be told: {clean(str(error))}", err=True)
        return None
