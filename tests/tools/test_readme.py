"""The Python of the README and of the pages about stores and testing runs."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from statistics import median

import pytest

from benchmarks._saved import load, read_result
from tests import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
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


TESTING = (ROOT / "docs" / "testing.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    "program", [block for block in re.findall(r"```python\n(.*?)```", TESTING, re.DOTALL) if "run(" in block]
)
def test_what_the_page_about_testing_prints_is_what_it_says(program: str, tmp_path: Path) -> None:
    said = re.findall(r"print\(.*\)  # (.*)", program)

    assert run(program, "", tmp_path).splitlines() == said


GUARANTEES = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")


def test_the_tests_that_the_readme_and_the_guarantees_name_exist() -> None:
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))

    for name in re.findall(r"`(test_\w+)`", README + GUARANTEES):
        assert f"def {name}(" in tests, name


PAGES = [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), ROOT / "benchmarks" / "README.md"]


@pytest.mark.parametrize("page", [str(page.relative_to(ROOT)) for page in PAGES])
def test_the_links_of_a_page_lead_to_files(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)

    for link in re.findall(r"\]\((?!https?:|#)([^)#\s]+)", text):
        assert (ROOT / page).parent.joinpath(link).exists(), link


REPORT = ROOT / "benchmarks" / "report"
SPEED = (
    ("asyncio, in memory", "a lock per user", "session-memory-loop-1000"),
    ("the same, 10,000 users", "the same", "session-memory-loop-10000"),
    ("asyncio, Redis", "a lock per user, GET and SET", "session-redis-loop-1000"),
    ("the same, 10,000 users", "the same", "session-redis-loop-10000"),
    ("asyncio, MongoDB", "a lock per user, `find_one` and `replace_one`", "session-mongo-loop-1000"),
    ("threads, in memory", "a stock pykka actor per user, `ask`", "session-memory-threads-1000"),
    ("durable before each answer (`journaled`)", "bare transactions of SQLite, and no sessions", "journal-full-1000"),
)


def test_the_report_has_no_wrong_counter_and_lacks_nothing() -> None:
    collection = load(REPORT)

    assert collection.results
    assert all(each.result.wrong == 0 for each in collection.results)
    assert collection.index.missing == []


def speed(setting: str, by_hand: str, file: str) -> str:
    """Return the row that the README must have."""
    figures = read_result(REPORT / f"{file}.json").result.tables[0].figures
    ours = {each.name.removesuffix(" to the floor"): median(each.values) for each in figures if each.of == "actorbot"}
    rate = next(name for name in ours if name.startswith("events"))
    floor = next(median(each.values) for each in figures if each.name == rate and each.of != "actorbot")
    return f"| {setting} | {by_hand} | {floor / 1000:.1f} k | {ours[rate] / 1000:.1f} k | {ours['ratio']:.3g} × |"  # noqa: RUF001


@pytest.mark.parametrize(("setting", "by_hand", "file"), SPEED)
def test_the_readme_states_the_speed_of_the_report(setting: str, by_hand: str, file: str) -> None:
    assert speed(setting, by_hand, file) in README
    figures = read_result(REPORT / f"{file}.json").result.tables[0].figures
    assert {len(each.values) for each in figures if each.name.startswith("events")} == {5}  # runs


def test_the_readme_names_the_fastest_peer_of_the_report() -> None:
    figures = read_result(REPORT / "peers-redis-1000.json").result.tables[0].figures
    ratios = {each.of: median(each.values) for each in figures if each.name == "ratio"}
    sentence = re.search(r"the fastest, (\w+) behind `(\w+)`, takes (.*?) times the time", README)

    assert sentence is not None
    assert ratios[f"{sentence[1]} {sentence[2]}".lower()] == 1
    assert sentence[3] == f"{ratios['actorbot']:.2g}"
