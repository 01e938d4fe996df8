"""`actorbot cluster status`: who is there, who owns what, and what waits."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterable, Sequence
from dataclasses import asdict

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from actorbot.cli._cluster_log import Picture, reached
from actorbot.cli._format import clean, count_of, show_when, write_json
from actorbot.cluster import Member

__all__ = ["command"]

HEADINGS = (  # the first for which there is room
    (
        "MEMBER",
        "SLOTS",
        "LAG",
        "IN HAND",
        "HANDLED",
        "RERUNS",
        "CONFLICTS",
        "FENCED",
        "EPOCH",
        "LEASE",
        "PROGRAM",
        "SINCE",
    ),
    ("MEMBER", "SLOTS", "LAG", "IN HAND", "HANDLED", "RERUNS", "CONFLICTS", "FENCED", "EPOCH", "LEASE"),
    ("MEMBER", "SLOTS", "LAG", "IN HAND", "HANDLED", "LEASE"),
)
TEXTS = ("LEASE", "PROGRAM", "SINCE")
UNBOUNDED = 1000  # cells
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
        console = Console(highlight=False, width=UNBOUNDED)  # for grep: one line for each member
    for headings in HEADINGS:
        table = _table(picture, headings)
        if console.measure(table, options=console.options.update(width=UNBOUNDED)).maximum <= console.width:
            break
    console.print(table)


def _table(picture: Picture, headings: Sequence[str]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="")
    for heading in headings:
        if heading == "MEMBER":
            table.add_column(heading, overflow="fold")
        else:
            table.add_column(heading, no_wrap=True, justify="left" if heading in TEXTS else "right")
    for member in picture.members:
        row = _row(picture, member)
        table.add_row(*(row[heading] for heading in headings))
    return table


def _row(picture: Picture, member: Member) -> dict[str, Text]:
    figures = {
        "SLOTS": member.slots,
        "LAG": member.waiting,
        "IN HAND": member.in_hand,
        "HANDLED": member.handled,
        "RERUNS": member.reruns,
        "CONFLICTS": member.conflicts,
        "FENCED": member.fenced,
        "EPOCH": picture.epoch_of(member.id),
    }
    return {heading: Text(f"{figure:,}") for heading, figure in figures.items()} | {
        "MEMBER": Text(clean(member.id)),
        "LEASE": _lease(member),
        "PROGRAM": Text(clean(member.program)),
        "SINCE": Text(show_when(member.since)),
    }


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
