"""Results as files: what `--json` and `all` have written, read back and checked."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal, TypeVar, cast

from benchmarks._report import Figure, Result, Table

INDEX = "index.json"

T = TypeVar("T")


class NotAResultError(Exception):
    """A file is not what a question or `all` writes; says which, and what is wrong with it."""


@dataclass(frozen=True, slots=True)
class Saved:
    """One result, and what its file says about how it came about."""

    file: Path
    result: Result
    command: str
    machine: Mapping[str, str]
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one setting of a plan."""

    name: str
    """Of its file, without the ending."""
    command: str
    seconds: float
    outcome: str
    """DONE, or why there is nothing, or nothing valid."""


DONE = "measured"


@dataclass(frozen=True, slots=True)
class Index:
    """What `all` did."""

    plan: str = ""
    began: str = ""
    """In ISO 8601, UTC."""
    servers: Mapping[str, str] = field(default_factory=dict)
    """The version of each server that was measured with, by the name of its store."""
    settings: tuple[Outcome, ...] = ()

    @property
    def missing(self) -> list[Outcome]:
        return [one for one in self.settings if one.outcome != DONE]

    def write(self, folder: Path) -> None:
        (folder / INDEX).write_text(json.dumps(asdict(self), indent=2) + "\n")


@dataclass(frozen=True, slots=True)
class Collection:
    """The results of one file, or of a folder, in the order of its index."""

    results: tuple[Saved, ...]
    index: Index


def load(path: Path) -> Collection:
    """Read a result, or all results of a folder; the path of the index stands for its folder, too.

    Raises: NotAResultError.
    """
    if not path.is_dir() and path.name != INDEX:
        return Collection((read_result(path),), Index())
    folder = path if path.is_dir() else path.parent
    index = read_index(folder)
    order = {one.name: number for number, one in enumerate(index.settings)}
    files = sorted(folder.glob("*.json"), key=lambda file: (order.get(file.stem, len(order)), file.name))
    results = tuple(read_result(file) for file in files if file.name != INDEX)
    if not results and not index.settings:
        raise NotAResultError(f"{folder}: there is no result in this folder")
    return Collection(results, index)


def read_index(folder: Path) -> Index:
    """Read the index of a folder; an empty one if it has none. Raises: NotAResultError."""
    file = folder / INDEX
    if not file.exists():
        return Index()
    found = _read(file)
    return Index(
        plan=_take(found, "plan", str, file),
        began=_take(found, "began", str, file),
        servers=_take(found, "servers", dict, file),
        settings=tuple(
            Outcome(
                name=_take(one, "name", str, file),
                command=_take(one, "command", str, file),
                seconds=_number(_take(one, "seconds", object, file), file),
                outcome=_take(one, "outcome", str, file),
            )
            for one in _take(found, "settings", list, file)
        ),
    )


def read_result(file: Path) -> Saved:
    """Read what `Result.as_json` made. Raises: NotAResultError."""
    found = _read(file)
    return Saved(
        file=file,
        result=Result(
            question=_take(found, "question", str, file),
            options=_take(found, "options", dict, file),
            tables=tuple(_table(one, file) for one in _take(found, "tables", list, file)),
            wrong=_take(found, "wrong", int, file),
            details=_take(found, "details", dict, file),
        ),
        command=_take(found, "command", str, file),
        machine=_take(found, "machine", dict, file),
        seed=_take(found, "seed", int, file),
    )


def _table(found: Any, file: Path) -> Table:
    figures = tuple(_figure(one, file) for one in _take(found, "figures", list, file))
    remarks = _take(found, "remarks", dict, file) if "remarks" in found else {}
    return Table(_take(found, "title", str, file), figures, remarks)


def _figure(found: Any, file: Path) -> Figure:
    name, better = _take(found, "name", str, file), _take(found, "better", str, file)
    values = tuple(_number(value, file) for value in _take(found, "values", list, file))
    if not values:
        raise NotAResultError(f"{file}: the figure {name!r} has no values")
    if better not in ("higher", "lower", ""):
        raise NotAResultError(f"{file}: better is {better!r} in the figure {name!r}; expected 'higher', 'lower' or ''")
    direction = cast(Literal["higher", "lower", ""], better)
    return Figure(name, values, _take(found, "of", str, file), _take(found, "unit", str, file), direction)


def _read(file: Path) -> Any:
    try:
        return json.loads(file.read_text())
    except OSError as exc:
        raise NotAResultError(f"{file}: {exc.strerror}") from exc
    except ValueError as exc:  # of the encoding, too
        raise NotAResultError(f"{file}: this is not JSON ({exc})") from exc


def _take(found: Any, name: str, kind: type[T], file: Path) -> T:
    if not isinstance(found, dict) or name not in found:
        raise NotAResultError(f"{file}: no {name!r} where a result of the benchmarks has one")
    value = found[name]
    if not isinstance(value, kind):
        raise NotAResultError(
            f"{file}: {name!r} is {type(value).__name__}; a result of the benchmarks has {kind.__name__}"
        )
    return value


def _number(value: object, file: Path) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not isfinite(value):
        raise NotAResultError(f"{file}: {value!r} is not a number that a run can have measured")
    return value
