"""The page about logging has a row for each message in the code, with its level and its fields."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests import ROOT

LEVELS = {
    "critical": "CRITICAL",
    "debug": "DEBUG",
    "info": "INFO",
    "warning": "WARNING",
    "error": "ERROR",
    "exception": "ERROR",
}


@dataclass(frozen=True)
class Call:
    """A message in the code."""

    where: str
    level: str | None
    """`None`: a variable says so."""
    message: str
    has_session: bool
    has_trace: bool


@dataclass(frozen=True)
class Row:
    """A message on the page."""

    level: str
    message: str
    carries: str

    def is_about(self, call: Call) -> bool:
        if self.message.endswith("…"):
            return call.message.startswith(self.message.removesuffix("…").rstrip())
        return call.message == self.message


def calls_in(path: Path) -> Iterator[Call]:
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)):
            continue
        name, of = node.func.attr, node.func.value
        if not (isinstance(of, ast.Name) and of.id == "logger" and name in {*LEVELS, "log"}):
            continue
        message = node.args[1 if name == "log" else 0]
        given = {keyword.arg for keyword in node.keywords}
        yield Call(
            f"{path.relative_to(ROOT)}:{node.lineno}",
            LEVELS.get(name),
            ast.literal_eval(message),
            "extra" in given,
            name == "exception" or "exc_info" in given,
        )


CALLS = [call for path in sorted((ROOT / "actorbot").rglob("*.py")) for call in calls_in(path)]
ROWS = [
    Row(level, message, carries)
    for level, message, carries in re.findall(
        r"^\| ((?:CRITICAL|ERROR|WARNING|INFO|DEBUG)[^|]*?) \| `(.*?)` \| ([^|]*?) ?\|",
        (ROOT / "docs" / "logging.md").read_text("utf-8"),
        re.MULTILINE,
    )
]


@pytest.mark.parametrize("call", CALLS, ids=lambda call: call.where)
def test_every_message_has_its_row(call: Call) -> None:
    rows = [row for row in ROWS if row.is_about(call)]

    assert len(rows) == 1, f"a row of docs/logging.md for {call.message!r}, please"
    assert call.level is None or call.level in rows[0].level.split(", ")
    assert ("session_id" in rows[0].carries) == call.has_session
    assert ("traceback" in rows[0].carries) == call.has_trace


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.message)
def test_every_row_is_about_a_message(row: Row) -> None:
    assert any(row.is_about(call) for call in CALLS)


def test_there_is_one_logger() -> None:
    for path in (ROOT / "actorbot").rglob("*.py"):
        assert set(re.findall(r"getLogger\((.*?)\)", path.read_text("utf-8"))) <= {'"actorbot"'}, path
