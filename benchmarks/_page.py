"""The report as Markdown."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from os.path import relpath
from pathlib import Path

from benchmarks._goals import GOALS, decide
from benchmarks._report import Table
from benchmarks._saved import DONE, Collection, Saved

ROOT = Path(__file__).parents[1]
README = ROOT / "benchmarks" / "README.md"
CAVEATS = "What this does not show"


def page(collection: Collection, plots: Mapping[str, str], folder: Path, earlier: Sequence[Collection] = ()) -> str:
    """Return the whole page.

    *plots* are the captions of the drawings that are in *folder*, by their names. The goals of the
    *earlier* runs stand beside those of this one.
    """
    parts = [
        "# Benchmarks",
        _summary(collection),
        "## Goals",
        _goals([*earlier, collection]),
        *(["## Plots"] if plots else []),
        *(f"![{name}]({name}.svg)\n\n{caption} ([PNG]({name}.png))" for name, caption in plots.items()),
        "## Figures",
        "Medians of all runs (least-most).",
        *_figures(collection.results),
        "## How it was measured",
        *_circumstances(collection),
        f"## {CAVEATS}",
        _caveats(folder),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _summary(collection: Collection) -> str:
    index, void = collection.index, [saved for saved in collection.results if saved.result.wrong]
    source = f" of `python -m benchmarks all`, the {index.plan} plan, begun {index.began}" if index.began else ""
    lines = [f"- **Not measured, or not validly:** {_text(one.name)}: {_text(one.outcome)}" for one in index.missing]
    lines += [f"- **Void:** {_text(saved.file.name)}: {saved.result.wrong} counters were wrong" for saved in void]
    return "\n".join([f"{len(collection.results)} results{source}.", *([""] if lines else []), *lines])


def _goals(runs: Sequence[Collection]) -> str:
    """Return the goals, and what became of them in each run."""
    heads, columns = [], []
    for number, run in enumerate(runs, 1):
        said: dict[str, list[str]] = {goal.text: [] for goal in GOALS}
        for one in decide([saved.result for saved in run.results]):
            said[one.goal.text].append(f"{one.reached} **{one.verdict}**".strip())
        columns.append(["; ".join(cells) for cells in said.values()])
        heads.append("median (least-most)" if len(runs) == 1 else f"run {number}")
    goals = [(goal.text, goal.bound) for goal in GOALS]
    return _table(("goal", "wanted", *heads), [(*goal, *cells) for goal, *cells in zip(goals, *columns, strict=True)])


def _figures(results: Sequence[Saved]) -> Iterator[str]:
    for question in dict.fromkeys(saved.result.question for saved in results):
        yield f"### {question}"
        for saved in results:
            if saved.result.question == question:
                for table in saved.result.tables:
                    yield f"**{_text(table.title)}**" + (" (void)" if saved.result.wrong else "")
                    yield _shown(table)


def _shown(table: Table) -> str:
    if table.remarks:
        columns = [*table.rows.values(), [table.remarks.get(of, "") for of in table.contenders]]
        lines = zip(table.contenders, *columns, strict=True)
        return _table(("", *table.rows, ""), lines)
    return _table(("", *table.contenders), [(name, *values) for name, values in table.rows.items()])


def _circumstances(collection: Collection) -> Iterator[str]:
    found = dict.fromkeys(
        ", ".join(f"{name} {value}" for name, value in saved.machine.items()) + f"; seed {saved.seed}"
        for saved in collection.results
    )
    lines = [*found, *(f"server: {version}" for version in collection.index.servers.values())]
    yield "\n".join(f"- {_text(line)}" for line in lines)
    measured = {one.name: one for one in collection.index.settings}
    others = [saved for saved in collection.results if saved.file.stem not in measured]
    rows = [(one.name, f"`{one.command}`", f"{one.seconds:.0f} s", one.outcome) for one in measured.values()]
    rows += [(saved.file.stem, f"`{saved.command}`", "", DONE) for saved in others]
    yield _table(("file", "command", "", ""), rows)


def _caveats(folder: Path) -> str:
    """Name what the section of the README explains, and say where it is."""
    here = folder.resolve()
    where = f"`benchmarks/README.md`, {CAVEATS!r}"
    if here.is_relative_to(ROOT):
        where = f"[{where}]({Path(relpath(README, here)).as_posix()}#{CAVEATS.lower().replace(' ', '-')})"
    section = README.read_text().partition(f"## {CAVEATS}\n")[2].partition("\n## ")[0]
    names = re.findall(r"^- \*\*(.+?)\.\*\*", section, re.MULTILINE)
    return f"{'; '.join(names)}. What is meant: {where}."


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *([_text(cell) for cell in row] for row in rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _text(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
