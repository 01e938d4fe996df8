"""Make a page with tables, goals and plots from the results in a folder."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from benchmarks._page import page
from benchmarks._saved import NotAResultError, load

PAGE = "report.md"


class NoPlotsError(Exception):
    """What draws the plots is not installed; says how to get it."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("folder", metavar="DIR", type=Path, help="the folder with what --json or `all` have written")
    parser.add_argument(
        "--earlier",
        metavar="DIR",
        type=Path,
        nargs="+",
        default=[],
        help="folders of earlier runs, whose figures stand beside the goals",
    )


def main(args: argparse.Namespace) -> int:
    """Write the report and return the exit status.

    It is 1 if there are gaps or void results, 2 if the report cannot be written.
    """
    try:
        return write(args.folder, args.earlier)
    except (OSError, NoPlotsError) as exc:
        print(exc, file=sys.stderr)
        return 2


def write(folder: Path, earlier: Sequence[Path] = ()) -> int:
    """Write *folder*/report.md and its plots, and return the exit status.

    The goals of the runs in *earlier* stand beside those of this one. Raises: OSError,
    NoPlotsError.
    """
    plots = check_plots()
    try:
        collection, before = load(folder), [load(one) for one in earlier]
    except NotAResultError as exc:
        print(exc, file=sys.stderr)
        return 2
    (folder / PAGE).write_text(page(collection, plots.draw(collection, folder), folder, before))
    print(folder / PAGE)
    return int(bool(collection.index.missing) or any(saved.result.wrong for saved in collection.results))


def check_plots() -> ModuleType:
    """Return the module that draws. Raises: NoPlotsError."""
    try:
        return import_module("benchmarks._plots")
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] != "matplotlib":
            raise
        raise NoPlotsError("the report's plots need matplotlib: pip install '.[bench]'") from exc
