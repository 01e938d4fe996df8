"""The Python of the README and of the pages about stores and testing runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
PROGRAMS = [block for block in BLOCKS if "run(" in block]
SAID = ["Hello Tim", "list:ann hi", "telegram:42 That was number 1"]


def run(program: str, lines: str, folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program], input=lines, cwd=folder, capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize(("program", "says"), list(zip(PROGRAMS, SAID, strict=True)))
def test_the_readme_s_programs_run(program: str, says: str, tmp_path: Path) -> None:
    assert says in run(program, "Hi\nTim\n", tmp_path)


TESTING = (Path(__file__).parent.parent / "docs" / "testing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "program", [block for block in re.findall(r"```python\n(.*?)```", TESTING, re.DOTALL) if "run(" in block]
)
def test_what_the_page_about_testing_prints_is_what_it_says(program: str, tmp_path: Path) -> None:
    said = re.findall(r"print\(.*\)  # (.*)", program)

    assert run(program, "", tmp_path).splitlines() == said


GUARANTEES = (Path(__file__).parent.parent / "docs" / "guarantees.md").read_text(encoding="utf-8")


def test_the_tests_that_the_readme_and_the_guarantees_name_exist() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parent.rglob("test_*.py"))

    for name in re.findall(r"`(test_\w+)`", README + GUARANTEES):
        assert f"def {name}(" in tests, name
