"""`actorbot cluster drain`: ask members to leave, and wait until they have."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import Final, Protocol

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from actorbot.cli._cluster_log import Picture, reached
from actorbot.cli._format import clean, count_of
from actorbot.cluster import Member
from actorbot.cluster._log import Log

__all__ = ["command"]

LOOK: Final = 0.2  # seconds between two looks at who is still there


@click.command("drain", short_help="Ask members to leave, and wait.")
@click.argument("url")
@click.argument("name")
@click.argument("members", metavar="[MEMBER]...", nargs=-1)
@click.option("--all", "everybody", is_flag=True, help="All members, so that nobody handles events for the time being.")
@click.option(
    "--timeout",
    type=click.FloatRange(min=0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait.",
)
def command(url: str, name: str, members: tuple[str, ...], everybody: bool, timeout: float) -> None:
    """Ask members of the cluster NAME to leave, and wait until they have.

    A MEMBER is one of those that `status` shows; the beginning of its id will do. It finishes what
    it has in hand, flushes, gives its slots to the others and ends; `actorbot cluster run` does not
    start it again. The exit status is 1 if it has not left when the time is up; it goes on leaving
    all the same.
    """
    if everybody == bool(members):
        raise click.UsageError("name the members that are to leave, or say --all")
    asyncio.run(_drain(url, name, None if everybody else members, timeout))


async def _drain(url: str, name: str, wanted: Sequence[str] | None, timeout: float) -> None:
    async with reached(url, name) as log:
        there = (await Picture.of(log)).members
        if wanted is None:  # one whose lease has run out does not hear of it
            chosen = [member for member in there if member.remaining > 0]
        else:
            chosen = [_named(each, there) for each in dict.fromkeys(wanted)]
        if not chosen:
            click.echo("there is no member that could leave", err=True)
            return
        ids = {member.id for member in chosen}
        if all(member.id in ids or member.leaving or member.remaining <= 0 for member in there):
            click.echo("note: nobody else is there; events wait in the log until a shard is started", err=True)
        await log.drain(ids)
        with _shown(chosen) as shown:
            left = await _until_left(log, ids, timeout, shown)
        if left:
            raise click.ClickException("; ".join(_tell_left(member, timeout) for member in left))
        click.echo(f"{count_of(len(chosen), 'member')} left")


def _named(wanted: str, there: Sequence[Member]) -> Member:
    """Return the one member whose id is, or begins with, *wanted*. Raises: ClickException."""
    found = [member for member in there if member.id == wanted] or [
        member for member in there if wanted and member.id.startswith(wanted)
    ]
    if len(found) == 1:
        return found[0]
    several = ", ".join(member.id for member in found or there)
    if found:
        raise click.ClickException(f"{wanted!r} is the beginning of several members: {several}")
    raise click.ClickException(f"{wanted!r} is no member; there {f'are: {several}' if there else 'is none'}")


async def _until_left(log: Log, ids: set[str], timeout: float, shown: _Shown) -> list[Member]:
    """Wait until none of *ids* is a member; return those that still are when the time is up."""
    until = monotonic() + timeout
    while True:
        left = [member for member in (await Picture.of(log)).members if member.id in ids]
        shown.tell({member.id: member.slots for member in left})
        if not left or monotonic() >= until:
            return left
        await asyncio.sleep(LOOK)


def _tell_left(member: Member, timeout: float) -> str:
    if member.remaining <= 0:
        return (
            f"{member.id}: its lease ran out {-member.remaining:.0f} s ago: it has ended, or is frozen or cut off, and"
            " hears nothing"
        )
    return f"{member.id}: has {count_of(member.slots, 'slot')} after {timeout:g} s, and goes on leaving"


class _Shown(Protocol):
    def tell(self, slots: dict[str, int]) -> None:
        """Show how many slots each member has that has not left."""


@contextmanager
def _shown(members: Sequence[Member]) -> Iterator[_Shown]:
    """Show on stderr how far each is: with bars if that is a terminal, else by lines."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines()
        return
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("slots"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console) as progress:
        yield _Bars(progress, members)


class _Bars:
    def __init__(self, progress: Progress, members: Sequence[Member]) -> None:
        self._progress = progress
        self._tasks = {each.id: (progress.add_task(clean(each.id), total=each.slots), each.slots) for each in members}

    def tell(self, slots: dict[str, int]) -> None:
        for member, (task, total) in self._tasks.items():
            self._progress.update(task, completed=total - slots.get(member, 0))


class _Lines:
    def __init__(self) -> None:
        self._told: dict[str, int | None] = {}

    def tell(self, slots: dict[str, int]) -> None:
        for member in self._told.keys() | slots.keys():
            number = slots.get(member)
            if self._told.get(member, -1) != number:
                self._told[member] = number
                said = "has left" if number is None else f"has {count_of(number, 'slot')}"
                click.echo(f"{clean(member)}: {said}", err=True)
