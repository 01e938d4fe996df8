"""The report's plots, as SVG and PNG.

They need matplotlib, so this module is imported only when a report is written.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure as Drawing
from matplotlib.ticker import FuncFormatter

from benchmarks._drawing import (
    ACTORBOT,
    FLOOR,
    GOAL,
    MARKERS,
    OTHERS,
    STYLE,
    bars,
    beside,
    label,
    name_bars,
    pairs,
    ranges,
    rows_of,
)
from benchmarks._goals import GOALS
from benchmarks._report import Figure, Table, spread
from benchmarks._saved import Collection, Saved

RATES = ("events/s", "events (records) a second")
RATIOS = ("ratio to the floor", "ratio")
LATE = (
    ("p50", "p50 of dispatch"),
    ("p99", "p99 of dispatch"),
    ("p99.9", "p99.9 of dispatch"),
    ("most", "longest dispatch"),
)
RISKS = ("at risk", "a kill costs, events", "stats().events_at_risk")
IN_MS = {"µs": 1e-3, "ms": 1.0, "s": 1e3}
COLUMNS = 4  # panels beside each other


def draw(collection: Collection, folder: Path) -> dict[str, str]:
    """Draw each plot for which there are figures.

    Return the captions, by the names of the files without their endings.
    """
    lines = "the lines reach from the least run to the most"
    plots: Mapping[str, tuple[Callable[[Sequence[Saved]], Drawing | None], str]] = {
        "throughput": (_throughput, f"Events a second, and how many times the floor's; {lines}."),
        "latency": (_latency, f"How late the answers are, all panels on one scale; where there is more than one run, {lines}."),
        "memory": (_memory, f"What an idle resident session takes, and the peak memory of a process during a run; {lines}."),
        "policies": (_policies, f"What a flush policy costs, and what it leaves at risk; {lines}."),
        "peers": (_peers, f"Events a second beside other libraries; {lines}."),
        "cluster": (_cluster, f"A hop to a shard, beside what it is made of and other systems; {lines}."),
    }  # fmt: skip
    found: dict[str, str] = {}
    with matplotlib.rc_context(STYLE):
        for name, (make, caption) in plots.items():
            drawing = make(collection.results)
            if drawing is not None:
                drawing.savefig(folder / f"{name}.svg", metadata={"Date": None})  # the same figures make the same file
                drawing.savefig(folder / f"{name}.png")
                found[name] = caption
    return found


def _throughput(results: Sequence[Saved]) -> Drawing | None:
    rows = rows_of(results, RATES, ("session", "journal"))
    if not rows:
        return None
    drawing = Drawing(figsize=(8, 1.2 + 0.42 * len(rows)), layout="constrained")
    axes = drawing.subplots()
    pairs(axes, rows, 1e3)
    ratios = [ours for _, _, ours in rows_of(results, RATIOS, ("session", "journal"))]
    for place, ((_, floor, ours), ratio) in enumerate(zip(rows, ratios, strict=False)):
        text = f"{median(ratio.values):.2g} \N{MULTIPLICATION SIGN}"
        beside(axes, max(*floor.values, *ours.values) / 1e3, place, text, weight="bold")
    axes.set_xlabel("thousand events a second")
    axes.margins(x=0.1)
    drawing.legend(loc="outside upper center", ncols=2, frameon=False)
    return drawing


def _latency(results: Sequence[Saved]) -> Drawing | None:
    panels = [
        (saved, table)
        for saved in results
        if saved.result.question in ("session", "offered")
        for table in saved.result.tables
    ]
    if not panels:
        return None
    columns = min(COLUMNS, len(panels))
    drawing = Drawing(figsize=(max(2.3 * columns, 5), 2.0 * -(-len(panels) // columns) + 0.6), layout="constrained")
    grid = drawing.subplots(-(-len(panels) // columns), columns, sharex=True, sharey=True, squeeze=False)
    for number, (axes, (saved, table)) in enumerate(zip(grid.flat, panels, strict=False)):
        _percentiles(axes, table)
        axes.set_title(label(saved), fontsize=7.5)
        axes.tick_params(labelbottom=number + columns >= len(panels))  # the lowest of its column
    for axes in grid.flat[len(panels) :]:
        axes.set_visible(False)
    for row in grid:
        row[0].set_ylabel("ms")
    handles = {text: one for axes in grid.flat for one, text in zip(*axes.get_legend_handles_labels(), strict=True)}
    drawing.legend(handles.values(), handles.keys(), loc="outside upper center", ncols=2, frameon=False)
    return drawing


def _percentiles(axes: Axes, table: Table) -> None:
    for of in table.contenders:
        figures = {figure.name: figure for figure in table.figures if figure.of == of}
        shown = [(place, figures[name]) for place, names in enumerate(LATE) for name in names if name in figures]
        late = [
            Figure(figure.name, tuple(value * IN_MS.get(figure.unit, 1.0) for value in figure.values))
            for _, figure in shown
        ]
        how: dict[str, Any] = {"color": FLOOR, "marker": "s", "linestyle": "--", "label": "floor"}
        if of == "actorbot":
            how = {"color": ACTORBOT, "marker": "o", "label": "actorbot"}
        medians = [median(figure.values) for figure in late]
        axes.errorbar([place for place, _ in shown], medians, yerr=ranges(late, 1.0), capsize=2, markersize=4, **how)
    axes.set_yscale("log")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.set_xticks(range(len(LATE)), [names[0] for names in LATE])


def _memory(results: Sequence[Saved]) -> Drawing | None:
    residents = [table for saved in results if saved.result.question == "residents" for table in saved.result.tables]
    rows = rows_of(results, ("peak memory",), ("session",))
    heights = [1.0 + 0.4 * len(residents)] * bool(residents) + [0.8 + 0.42 * len(rows)] * bool(rows)
    if not heights:
        return None
    drawing = Drawing(figsize=(8, sum(heights) + 0.3), layout="constrained")
    grid = drawing.subplots(len(heights), 1, squeeze=False, height_ratios=heights)[:, 0]
    if residents:
        _residents(grid[0], residents)
    if rows:
        pairs(grid[-1], rows, 1.0)
        grid[-1].set_xlabel("peak memory of the process, MB, the workload included")
        drawing.legend(loc="outside lower center", ncols=2, frameon=False)
    return drawing


def _residents(axes: Axes, tables: Sequence[Table]) -> None:
    name = "bytes beyond the encoded record"
    for place, table in enumerate(tables):
        figures = {figure.name: figure for figure in table.figures}
        if name in figures and "encoded record" in figures:
            bars(axes, [place], [figures[name]], 1.0, color=ACTORBOT, height=0.5)
            beyond, record = (median(figures[one].values) for one in (name, "encoded record"))
            beside(axes, max(figures[name].values), place, f"{beyond:,.0f}, and a record of {record:,.0f}")
    name_bars(axes, [table.title for table in tables])
    wanted = next(goal.at_most or 0.0 for goal in GOALS if goal.figure == name)
    axes.axvline(wanted, color=GOAL, linestyle="--")
    axes.set_xlabel(f"bytes of an idle session in memory beyond its encoded record (dashed: the goal, {wanted:,.0f})")


def _policies(results: Sequence[Saved]) -> Drawing | None:
    tables = [table for saved in results if saved.result.question == "policies" for table in saved.result.tables]
    drawing = Drawing(figsize=(8, 4.5), layout="constrained")
    axes, number, unit = drawing.subplots(), 0, ""
    for table in tables:
        for of in table.contenders:
            figures = {figure.name: figure for figure in table.figures if figure.of == of}
            rate, risk = figures.get("events/s"), next((figures[name] for name in RISKS if name in figures), None)
            if rate is None or risk is None:
                continue
            axes.errorbar(
                [median(risk.values)], [median(rate.values) / 1e3], xerr=ranges([risk], 1.0), yerr=ranges([rate], 1e3),
                color=OTHERS[number % len(OTHERS)], marker=MARKERS[number % len(MARKERS)], linestyle="", capsize=2,
                label=table.title.partition(";")[0] if of == "actorbot" and len(tables) > 1 else of,
            )  # fmt: skip
            number, unit = number + 1, f"{risk.name}, {risk.unit}" if risk.unit else risk.name
    if not number:
        return None
    axes.set_xscale("symlog", linthresh=1)  # the policies that risk nothing are at zero
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    axes.set_xlim(left=-0.2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel(unit)
    axes.set_ylabel("thousand events a second")
    drawing.legend(loc="outside lower center", ncols=2, frameon=False)
    return drawing


def _peers(results: Sequence[Saved]) -> Drawing | None:
    tables = [table for saved in results if saved.result.question == "peers" for table in saved.result.tables]
    tables = [table for table in tables if _fastest_first(table)]
    if not tables:
        return None
    heights = [0.9 + 0.35 * len(_fastest_first(table)) for table in tables]
    drawing = Drawing(figsize=(8, sum(heights)), layout="constrained")
    grid = drawing.subplots(len(tables), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, table in zip(grid, tables, strict=True):
        rates = _fastest_first(table)
        colours = [ACTORBOT if rate.of.startswith("actorbot") else FLOOR for rate in rates]
        bars(axes, range(len(rates)), rates, 1e3, color=colours, height=0.7)
        lost = {figure.of: median(figure.values) for figure in table.figures if figure.name == "lost updates"}
        for place, rate in enumerate(rates):
            loses = f", loses {lost[rate.of]:,.0f} updates" if lost.get(rate.of) else ""
            beside(axes, max(rate.values) / 1e3, place, f"{median(rate.values) / 1e3:,.3g} k{loses}")
        name_bars(axes, [rate.of for rate in rates])
        axes.margins(x=0.2)
        axes.set_title(table.title, loc="left")
        axes.set_xlabel("thousand events a second")
    return drawing


def _cluster(results: Sequence[Saved]) -> Drawing | None:
    tables = [table for saved in results if saved.result.question == "cluster" for table in saved.result.tables]
    panels = [found for table in tables for found in _panels(table)]
    if not panels:
        return None
    heights = [0.9 + 0.3 * len(figures) for _, figures in panels]
    drawing = Drawing(figsize=(8, sum(heights)), layout="constrained")
    grid = drawing.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
    for axes, (title, figures) in zip(grid, panels, strict=True):
        colours = [ACTORBOT if figure.of == "actorbot" else FLOOR for figure in figures]
        bars(axes, range(len(figures)), figures, 1.0, color=colours, height=0.7)
        for place, figure in enumerate(figures):
            beside(axes, max(figure.values), place, spread(replace(figure, values=(median(figure.values),))))
        name_bars(axes, [figure.of for figure in figures])
        axes.margins(x=0.2)
        axes.set_title(title, loc="left")
    return drawing


def _panels(table: Table) -> Iterator[tuple[str, list[Figure]]]:
    """Choose what a table of the cluster shows: its first figure, of all who have it."""
    for name in {"2 ÷ 1"} & set(table.rows) or list(table.rows)[:1]:
        figures = [figure for figure in table.figures if figure.name == name]
        yield f"{table.title.partition(', ')[0]}: {name}", figures


def _fastest_first(table: Table) -> list[Figure]:
    rates = [figure for figure in table.figures if figure.name == "events/s"]
    return sorted(rates, key=lambda rate: -median(rate.values))
