"""The table in CONTRIBUTING.md: which test proves which promise, in which tier."""

from __future__ import annotations

import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest

from tests import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text("utf-8")
PROMISES = [f"G{number}" for number in range(1, 15)]
ROWS = [
    [cell.strip() for cell in row.split("|")[1:-1]]
    for row in re.findall(r"^\| (?:G\d|all at once).*$", PAGE, re.MULTILINE)
]

LOOK = """
import sys, pytest

class Look:
    def pytest_collection_modifyitems(self, items):
        for item in items:
            print("found", "long" if item.get_closest_marker("long") else "quick", item.nodeid)

sys.exit(pytest.main(["--collect-only", "--quiet", "-p", "no:cacheprovider", *sys.argv[1:]], plugins=[Look()]))
"""


def names_in(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def file_of(name: str) -> Path:
    """Return the file of what the table names, which is a file of tests or a function in one."""
    if name.endswith(".py"):
        return ROOT / "tests" / name
    (found,) = [path for path in (ROOT / "tests").rglob("test_*.py") if f"def {name}(" in path.read_text("utf-8")]
    return found


@cache
def cases() -> list[tuple[str, str]]:
    """Return the tier and the node id of each case of each file that the table needs."""
    files = sorted({str(file_of(name)) for row in ROWS for cell in row[1:3] for name in names_in(cell)})
    done = subprocess.run(
        [sys.executable, "-c", LOOK, *files], cwd=ROOT, capture_output=True, text=True, timeout=150, check=True
    )
    found = [line.split(" ", 2)[1:] for line in done.stdout.splitlines() if line.startswith("found ")]
    return [(tier, node) for tier, node in found]


def has_case(name: str, tier: str) -> bool:
    wanted = rf"tests/{re.escape(name)}::" if name.endswith(".py") else rf"::{name}(\[|$)"
    return any(each == tier and re.search(wanted, node) for each, node in cases())


def test_the_table_has_a_row_for_each_promise() -> None:
    assert [row[0].split(" ")[0] for row in ROWS if row[0].startswith("G")] == PROMISES
    assert all(names_in(row[1]) for row in ROWS), "each promise has its first case in `make test`"


@pytest.mark.long  # it collects all those files
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row[0])
def test_what_the_table_names_is_there_in_its_tier(row: list[str]) -> None:
    for tier, cell in (("quick", row[1]), ("long", row[2])):
        for name in names_in(cell):
            assert has_case(name, tier), f"{name} has no case that is {tier}"


def test_what_the_table_gives_to_torture_is_run_by_it() -> None:
    makefile = (ROOT / "Makefile").read_text("utf-8")
    places = re.findall(r"tests/\S+", makefile.partition("ACTORBOT_TORTURE=1")[2].partition("\n")[0])

    for row in ROWS:
        for name in names_in(row[3]):
            assert (ROOT / "tests" / name).is_file()
            assert any(f"tests/{name}".startswith(place) for place in places), name


def test_every_file_of_promises_is_in_the_table() -> None:
    named = {name for row in ROWS for cell in row[1:3] for name in names_in(cell)}

    assert {f"promises/{path.name}" for path in (ROOT / "tests/promises").glob("test_*.py")} <= named
