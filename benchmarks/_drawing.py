"""What the report's plots have in common: colours, labels, and bars with their spread."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from matplotlib.axes import Axes

from benchmarks._report import Figure
from benchmarks._saved import Saved

# Colours of Okabe and Ito, which colour-blind readers can tell apart. The floor is hatched, too,
# so that the two differ in print.
ACTORBOT, FLOOR, GOAL = "#0072B2", "#E69F00", "#D55E00"
OTHERS = (ACTORBOT, GOAL, "#009E73", "#CC79A7", "#56B4E9", FLOOR, "#000000")
MARKERS = "osD^vP*X"
STYLE: dict[Any, Any] = {
    "font.size": 9, "axes.titlesize": 9, "text.color": "#111111", "axes.labelcolor": "#111111", "axes.edgecolor": "#444444",
    "xtick.color": "#111111", "ytick.color": "#111111", "axes.spines.top": False, "axes.spines.right": False,
    "axes.grid": True, "grid.color": "#dddddd", "axes.axisbelow": True, "hatch.linewidth": 0.6,
    "svg.hashsalt": "actorbot", "savefig.dpi": 130,
}  # fmt: skip
SIDES = (("floor: by hand, without any promise", FLOOR, "////", -0.2), ("actorbot", ACTORBOT, "", 0.2))

Row = tuple[str, Figure, Figure]
"""A setting, and a figure of the floor's and of actorbot's."""


def label(saved: Saved) -> str:
    """Name a setting briefly, by the options in which the settings differ."""
    options = saved.result.options
    users = f"{options.get('users'):,} users" if isinstance(options.get("users"), int) else ""
    policy = str(options.get("policy", ""))
    parts = {
        "journal": ["journal", options.get("sync"), users],
        "offered": ["steady", f"{options.get('rate')}/s", options.get("store"), "frozen" if options.get("freeze") else ""],
        "session": [
            options.get("home"), options.get("store"), users,
            "zipf" if options.get("distribution") == "zipf" else "", "awaits" if options.get("handler") == "awaits" else "",
            "" if policy.startswith("write-behind") else policy,
        ],
    }  # fmt: skip
    return ", ".join(str(part) for part in parts.get(saved.result.question, [saved.file.stem]) if part)


def rows_of(results: Sequence[Saved], names: Sequence[str], questions: Sequence[str]) -> list[Row]:
    """Return the figures of these names, each setting's as a pair."""
    rows = []
    for saved in results:
        if saved.result.question in questions:
            for table in saved.result.tables:
                these = [figure for figure in table.figures if figure.name in names]
                ours = [figure for figure in these if figure.of == "actorbot"]
                floors = [figure for figure in these if figure.of != "actorbot"]
                rows += [(label(saved), floor, our) for floor, our in zip(floors, ours, strict=False)]
    return rows


def pairs(axes: Axes, rows: Sequence[Row], unit: float) -> None:
    """Draw two bars for each setting, the first setting on top.

    *unit* is what 1 on the axis stands for.
    """
    for (name, colour, hatch, aside), figures in zip(SIDES, list(zip(*rows, strict=True))[1:], strict=True):
        places = [place + aside for place in range(len(rows))]
        bars(axes, places, figures, unit, label=name, color=colour, hatch=hatch, height=0.38)
    name_bars(axes, [row[0] for row in rows])


def bars(axes: Axes, places: Sequence[float], figures: Sequence[Any], unit: float, **how: Any) -> None:
    """Draw the medians as bars, each with a line from the lowest to the highest."""
    medians, line = [median(figure.values) / unit for figure in figures], {"ecolor": "#111111", "capsize": 2}
    axes.barh(places, medians, xerr=ranges(figures, unit), error_kw=line, edgecolor="white", **how)


def ranges(figures: Sequence[Figure], unit: float) -> list[list[float]]:
    """Return how far the lowest and the highest are from the medians."""
    below = [(median(figure.values) - min(figure.values)) / unit for figure in figures]
    return [below, [(max(figure.values) - median(figure.values)) / unit for figure in figures]]


def name_bars(axes: Axes, names: Sequence[str]) -> None:
    axes.set_yticks(range(len(names)), list(names))
    axes.set_ylim(len(names) - 0.4, -0.6)
    axes.grid(axis="y", visible=False)


def beside(axes: Axes, x: float, place: float, text: str, **how: Any) -> None:
    """Write to the right of a bar."""
    axes.annotate(text, (x, place), (6, 0), textcoords="offset points", va="center", **how)
