"""What has changed between two results: better, worse, or the same within the spread.

A figure has changed if its medians differ by more than --percent and its ranges, from the lowest
value to the highest, do not overlap. With fewer than three values on a side there is no range: too
few runs.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table as RichTable

from benchmarks._report import Figure, Table, spread
from benchmarks._saved import Collection, NotAResultError, Saved, load

TOO_FEW, SAME, BETTER, WORSE, CHANGED = "too few runs", "the same within the spread", "better", "worse", "changed"
LEAST_RUNS = 3

Key = tuple[str, str]
"""A question, and the title of one of its tables."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One figure, before and after."""

    before: Figure
    after: Figure

    @property
    def ratio(self) -> str:
        before, after = median(self.before.values), median(self.after.values)
        return f"{after / before:.3g}" if before else "1" if not after else "-"

    def verdict(self, percent: float) -> str:
        """Judge by the rule above; CHANGED if neither direction is an improvement."""
        before, after = self.before.values, self.after.values
        if min(len(before), len(after)) < LEAST_RUNS:
            return TOO_FEW
        rise = median(after) - median(before)
        apart = min(before) > max(after) or min(after) > max(before)
        if not apart or abs(rise) <= abs(median(before)) * percent / 100:
            return SAME
        if not self.after.better:
            return CHANGED
        return BETTER if (rise > 0) == (self.after.better == "higher") else WORSE


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "before", metavar="A", type=Path, help="a file written with --json, or a folder written by `all`"
    )
    parser.add_argument("after", metavar="B", type=Path, help="the same, of another version or machine")
    parser.add_argument(
        "--percent",
        type=float,
        default=5.0,
        metavar="X",
        help="percent that medians may differ by, whatever the ranges (%(default)s)",
    )
    parser.add_argument("--fail", action="store_true", help="end with exit status 1 if B is worse anywhere, or void")


def main(args: argparse.Namespace) -> int:
    """Compare, print, and return the exit status.

    It is 2 if a file is no result; with --fail, 1 if anything got worse.
    """
    try:
        before, after = load(args.before), load(args.after)
        ours, theirs = tables_of(before), tables_of(after)
    except NotAResultError as exc:
        print(exc, file=sys.stderr)
        return 2
    for line in (*conditions(before, after), *options(ours, theirs)):
        print(line)
    verdicts: list[str] = []
    for key in [key for key in ours if key in theirs]:
        verdicts += _compare(key, ours[key][1], theirs[key][1], args.percent)
    for side, these, others in (("A", ours, theirs), ("B", theirs, ours)):
        for question, title in [key for key in these if key not in others]:
            print(f"only in {side}: {question}: {title}")
    void = [saved.file for saved in after.results if saved.result.wrong]
    counted = ", ".join(f"{verdicts.count(one)} {one}" for one in (BETTER, WORSE, CHANGED, SAME, TOO_FEW))
    print(f"{len(verdicts)} figures: {counted}")
    print(
        f"(better, worse: the medians differ by more than {args.percent:g} % and the ranges do not overlap; "
        f"too few runs: fewer than {LEAST_RUNS} on a side)"
    )
    return int(args.fail and (WORSE in verdicts or bool(void)))


def tables_of(collection: Collection) -> dict[Key, tuple[Saved, Table]]:
    """Return the tables, each by the key that it is matched by.

    Raises: NotAResultError, if two tables have the same key.
    """
    found: dict[Key, tuple[Saved, Table]] = {}
    for saved in collection.results:
        for table in saved.result.tables:
            key = (saved.result.question, table.title)
            if key in found:
                raise NotAResultError(f"{saved.file} and {found[key][0].file}: both have the table {table.title!r}")
            found[key] = (saved, table)
    return found


def conditions(before: Collection, after: Collection) -> Iterator[str]:
    """Say what else differs: machine, versions, seed; and which results are void."""
    for side, collection in (("A", before), ("B", after)):
        for saved in collection.results:
            if saved.result.wrong:
                yield f"VOID: {side}: {saved.file}: {saved.result.wrong} counters were wrong"
    yield from _differences("", _circumstances(before), _circumstances(after))


def _circumstances(collection: Collection) -> dict[str, str]:
    found: dict[str, set[str]] = {}
    for saved in collection.results:
        for name, value in {**saved.machine, "seed": saved.seed}.items():
            found.setdefault(name, set()).add(str(value))
    servers = {f"server of {name}": version for name, version in collection.index.servers.items()}
    return {name: " and ".join(sorted(values)) for name, values in found.items()} | servers


def options(ours: Mapping[Key, tuple[Saved, Table]], theirs: Mapping[Key, tuple[Saved, Table]]) -> Iterator[str]:
    """Say which options differ where the tables have the same title.

    The address of a server does not count.
    """
    for key in [key for key in ours if key in theirs]:
        both = ({**saved[key][0].result.options, "url": None} for saved in (ours, theirs))
        yield from _differences(f"{key[0]}, {key[1]}: ", *both)


def _differences(where: str, before: Mapping[str, Any], after: Mapping[str, Any]) -> Iterator[str]:
    for name in dict.fromkeys((*before, *after)):
        if before.get(name) != after.get(name):
            yield f"different: {where}{name}: {before.get(name, '-')} in A, {after.get(name, '-')} in B"


def _compare(key: Key, before: Table, after: Table, percent: float) -> list[str]:
    """Print one table; return its verdicts."""
    shown = RichTable("", "A", "B", "B/A", "", title=f"{key[0]}: {key[1]}", title_justify="left", box=SIMPLE)
    verdicts = []
    a, b = ({(figure.name, figure.of): figure for figure in table.figures} for table in (before, after))
    of = ""
    for one in sorted(a | b, key=lambda one: one[1]):  # a stable sort: the figures of each keep their order
        if one[1] != of:
            of = one[1]
            shown.add_row(of, style="bold")
        if one in a and one in b:
            pair = Pair(a[one], b[one])
            verdicts.append(pair.verdict(percent))
            rest = (spread(pair.before), spread(pair.after), pair.ratio, verdicts[-1])
        elif one in a:
            rest = (spread(a[one]), "", "", "only in A")
        else:
            rest = ("", spread(b[one]), "", "only in B")
        shown.add_row(f"  {one[0]}", *rest)
    Console().print(shown)
    return verdicts
