"""The house rules that no tool checks: pyproject.toml and setup.cfg do not say the same thing
twice.
"""

from __future__ import annotations

import configparser
import importlib.metadata
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests import ROOT, ranges
from tests.backends import STORES
from tests.mutants.catalogue import MUTANTS, Mutant

PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_setup_cfg_says_nothing_about_the_project():
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")

    assert not setup.has_section("metadata")
    assert not setup.has_option("options", "install_requires")


def test_pyproject_says_nothing_about_the_build():
    assert "setuptools" not in PYPROJECT["tool"]


def test_the_installed_version_is_the_one_in_pyproject():
    assert importlib.metadata.version("actorbot") == PYPROJECT["project"]["version"]


@pytest.mark.skipif(shutil.which("make") is None, reason="no make")
def test_make_help_lists_what_there_is_to_make():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    targets = set(" ".join(re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)).split())
    help_ = subprocess.run(["make", "-s", "help"], cwd=ROOT, capture_output=True, text=True, timeout=30, check=True)
    listed = dict(line.split(maxsplit=1) for line in help_.stdout.splitlines())

    assert listed.keys() == targets
    assert all(len(line) <= 100 for line in help_.stdout.splitlines())
    for page in ("README.md", "CONTRIBUTING.md"):
        assert set(re.findall(r"`make ([a-z-]+)", (ROOT / page).read_text("utf-8"))) <= targets, page


def test_every_seeded_fault_has_its_place():
    for mutant in MUTANTS:
        text = (ROOT / "actorbot" / mutant.file).read_text("utf-8")
        assert text.count(mutant.right) == 1, mutant.name


def test_everything_that_pyproject_asks_for_has_a_version_in_the_constraints():
    lines = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    pins = [Requirement(line) for line in lines if not line.startswith("#")]
    extras = PYPROJECT["project"]["optional-dependencies"]
    build = PYPROJECT["build-system"]["requires"]

    for asked in map(Requirement, sum(extras.values(), PYPROJECT["project"]["dependencies"] + build)):
        name = asked.name.lower().replace(".", "-")
        versions = [next(iter(pin.specifier)).version for pin in pins if pin.name == name]
        assert name == "actorbot" or versions, f"{asked}: run `make constraints`"
        assert all(asked.specifier.contains(version) for version in versions), f"{asked}: run `make constraints`"


def test_hints_to_install_an_extra_name_one_that_exists_and_not_the_package_index():
    extras = PYPROJECT["project"]["optional-dependencies"]
    places = ("actorbot", "benchmarks", "docs", "examples")
    pages = [page for place in places for kind in ("*.py", "*.md") for page in (ROOT / place).rglob(kind)]

    for page in (*pages, ROOT / "README.md", ROOT / "CHANGELOG.md"):
        for where, extra in re.findall(r"pip install (?:-e )?'([\w.]*)\[(\w+)\]'", page.read_text("utf-8")):
            assert where == ".", f"{page}: actorbot is not on the package index yet"
            assert extra in extras, page


@pytest.mark.parametrize("room", sorted((ROOT / "actorbot").glob("_*/__init__.py")), ids=lambda page: page.parent.name)
def test_a_room_has_a_word_about_each_of_its_files(room: Path) -> None:
    said = room.read_text("utf-8")

    assert [page.stem for page in room.parent.glob("*.py") if page != room and f"`{page.stem}`" not in said] == []


def test_the_files_that_contributing_names_are_there() -> None:
    named = re.findall(r"`([\w/]+\.py)`", (ROOT / "CONTRIBUTING.md").read_text("utf-8"))
    places = [ROOT, ROOT / "actorbot", ROOT / "tests"]

    assert len(named) > 30
    assert [name for name in named if not any((place / name).is_file() for place in places)] == []


def test_the_changelog_says_each_thing_once() -> None:
    entries = re.findall(r"^- (.*?)(?=^- |^#|\Z)", (ROOT / "CHANGELOG.md").read_text("utf-8"), re.MULTILINE | re.DOTALL)
    sentences = [each for entry in entries for each in re.split(r"(?<=[.;:]) ", " ".join(entry.split()))]

    assert len(entries) > 20
    assert [each for each in sentences if sentences.count(each) > 1] == []


def test_tests_look_into_a_manager_in_one_place() -> None:
    reach = re.compile(r"\b(?:manager|ours|theirs|heir|other)\._[a-z]|setattr\((?:manager|ours|heir), [\"']_")

    for page in (ROOT / "tests").rglob("*.py"):
        if page.name != "inside.py":
            assert reach.search(page.read_text("utf-8")) is None, page


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_every_seeded_fault_names_tests_that_exist(mutant: Mutant) -> None:
    places, _, part = mutant.test.partition(" -k ")
    files = [file for place in places.split() for file in files_of(ROOT / place)]

    assert files
    for word in re.findall(r"\w+", part):
        assert word in {"or", "and", "not", *STORES} or any(word in file.read_text("utf-8") for file in files), word


def files_of(place: Path) -> list[Path]:
    """Return the files of tests that a place named in the catalogue stands for."""
    return [place] if place.is_file() else sorted(place.rglob("test_*.py"))


def test_every_extra_is_tested_at_both_ends_of_its_range() -> None:
    asked = PYPROJECT["project"]["optional-dependencies"]

    no_ranges = {"all", "dev", "more-servers", "release", "servers", "types"}  # other extras, and our own tools
    assert set(ranges.TESTS) == {"core", *asked} - no_ranges
    for extra in ranges.TESTS:
        assert ranges.lowest(extra)
