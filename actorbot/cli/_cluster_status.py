"""`actorbot cluster status`: who is there, who owns what, and what waits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actorbot.cli._cluster_log import Picture, reached
from actorbot.cli._format import clean, count_of, show_when, write_json
from actorbot.cluster import Member

__all__ = ["command"]

HEADINGS = ("SLOTS", "LAG", "IN HAND", "HANDLED", "RERUNS", "CONFLICTS", "FENCED", "EPOCH")
RANGES = 8  # of slots without an owner, that are told


@click.command("status", short_help="Show the members and what waits.")
@click.argument("url")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(url: str, name: str, as_json: bool) -> None:
    """Show the members of the cluster NAME at the server of URL.

    LAG counts the events that are accepted and not answered: they wait, or are in hand. EPOCH is
    the highest of a member's slots: each owner of a slot has the next one. The exit status is 1 if
    a slot has no owner, since nobody handles its events.
    """
    picture = asyncio.run(_look(url, name))
    if as_json:
        write_json(_as_json(name, picture))
        sys.exit(bool(picture.unowned))
    _show(picture)
    click.echo(
        f"cluster {clean(name)}: {count_of(len(picture.slots), 'slot')}, {len(picture.unowned)} without an owner;"
        f" {_waiting(picture.slots)}"
    )
    if picture.unowned:
        raise click.ClickException(_tell_unowned(picture))


async def _look(url: str, name: str) -> Picture:
    async with reached(url, name) as log:
        return await Picture.of(log)


def _as_json(name: str, picture: Picture) -> dict[str, object]:
    return {
        "cluster": name,
        "slots": len(picture.slots),
        "unowned": picture.unowned,
        "lag": sum(waiting for _, _, waiting in picture.slots),
        "members": [asdict(member) | {"epoch": picture.epoch_of(member.id)} for member in picture.members],
        "leases": [
            {"slot": number, "epoch": epoch, "owner": owner or None, "waiting": waiting}
            for number, (epoch, owner, waiting) in enumerate(picture.slots)
        ],
    }


def _show(picture: Picture) -> None:
    if not picture.members:
        click.echo("there is no member", err=True)
        return
    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=1000)  # for grep: one line for each member
    table = _table(picture, dates=True)
    if console.measure(table).maximum > console.width:
        table = _table(picture, dates=False)
    console.print(table)


def _table(picture: Picture, *, dates: bool) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    table.add_column("MEMBER", overflow="fold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("LEASE", no_wrap=True)
    if dates:
        table.add_column("PROGRAM", no_wrap=True)
        table.add_column("SINCE", no_wrap=True)
    for member in picture.members:
        figures = (member.slots, member.waiting, member.in_hand, member.handled, member.reruns, member.conflicts,
                   member.fenced, picture.epoch_of(member.id))  # fmt: skip
        row: list[Text | str] = [Text(clean(member.id)), *(f"{each:,}" for each in figures), _lease(member)]
        if dates:
            row += [Text(clean(member.program)), Text(show_when(member.since))]
        table.add_row(*row)
    return table


def _lease(member: Member) -> Text:
    if member.remaining <= 0:
        return Text(f"ran out {-member.remaining:.1f} s ago", "red")
    if member.leaving:
        return Text("is leaving", "yellow")
    return Text(f"{member.remaining:.1f} s")


def _tell_unowned(picture: Picture) -> str:
    slots = picture.unowned
    if len(slots) == len(picture.slots):
        which = "no slot has an owner"
    else:
        which = f"{count_of(len(slots), 'slot')} without an owner ({_ranges(slots)})"
    waiting = _waiting(picture.slots[number] for number in slots)
    return f"{which}; {waiting} there until a shard takes them: `actorbot cluster run` starts one"


def _waiting(slots: Iterable[tuple[int, str, int]]) -> str:
    events = sum(waiting for _, _, waiting in slots)
    return "1 event waits" if events == 1 else f"{events:,} events wait"


def _ranges(numbers: Iterable[int]) -> str:
    ranges: list[list[int]] = []
    for number in numbers:
        if ranges and number == ranges[-1][1] + 1:
            ranges[-1][1] = number
        else:
            ranges.append([number, number])
    told = [f"{first}" if first == last else f"{first}-{last}" for first, last in ranges[:RANGES]]
    return ", ".join(told) + (", …" if len(ranges) > RANGES else "")
