"""Build what a release uploads, into dist/, and check it: `make release-check`. Arguments go to
pytest in the source's tests.

What is left to do by hand before an upload is said at the end, and fails nothing.
"""

from __future__ import annotations

import email
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
import zipfile
from pathlib import Path

from tests import ROOT

DIST = ROOT / "dist"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
NAME = f"actorbot-{PROJECT['version']}"

# What git has and the source distribution has not.
LEFT_OUT = re.compile(r"\.(ci|github)/|\.gitignore|\.pre-commit-config\.yaml|.*\.(png|svg)")
# What the build makes.
MADE = re.compile(r"PKG-INFO|actorbot\.egg-info/.*|setup\.cfg")

# Build with the setuptools of constraints.txt. Newer pips read the second variable, older ones the
# first.
PINS = {"PIP_CONSTRAINT": "constraints.txt", "PIP_BUILD_CONSTRAINT": "constraints.txt"}

DIALOGUE = "You > Hi\nBot > Hi, what's your nickname?\nYou > Tim\nBot > Hello Tim\nYou > /quit\n"


def main(arguments: list[str]) -> None:
    for made in (DIST, ROOT / "actorbot.egg-info"):  # the second lists what earlier builds took, and would be believed
        shutil.rmtree(made, ignore_errors=True)
    wheel, source = DIST / f"{NAME}-py3-none-any.whl", DIST / f"{NAME}.tar.gz"
    run("Build", sys.executable, "-m", "build", "--outdir", DIST, **PINS)  # the wheel from the source distribution
    run("What a package index would say", sys.executable, "-m", "twine", "check", "--strict", wheel, source)
    with tempfile.TemporaryDirectory() as folder:
        check_wheel(wheel)
        tree = check_source(source, Path(folder))
        check_dialogue(wheel, Path(folder))
        python = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
        run("The tests of the source", "make", "test", f"PYTHON={python}", f"ARGS={' '.join(arguments)}", cwd=tree)
    say(f"Checked: {wheel.relative_to(ROOT)} and {source.relative_to(ROOT)}. Before they are uploaded:")
    say("\n".join(f"- {each}" for each in left_to_do()) or "- nothing is left to do")


def check_wheel(wheel: Path) -> None:
    """The package and what describes it, nothing else, and no link that leads nowhere on a package
    index.
    """
    with zipfile.ZipFile(wheel) as archive:
        files = {name for name in archive.namelist() if ".dist-info/" not in name}
        about = email.message_from_bytes(archive.read(f"{NAME}.dist-info/METADATA"))
        licensed = f"{NAME}.dist-info/licenses/LICENSE" in archive.namelist()
    description = about.get_payload()
    compare("the wheel", files, {name for name in tracked() if name.startswith("actorbot/")})
    links = re.findall(r"\]\((.*?)\)", description)
    check("the licence is in the wheel", licensed)
    check("the description has absolute links", bool(links) and all(re.match("https?:", link) for link in links))
    lead_to = [link.partition(f"/blob/v{PROJECT['version']}/")[2] for link in links if link.startswith(source_url())]
    check("each of them leads to a file of this tree", all((ROOT / path).is_file() for path in lead_to))


def check_source(source: Path, folder: Path) -> Path:
    """What git has, but for what is left out on purpose; return the tree, unpacked in *folder*."""
    with tarfile.open(source) as archive:
        archive.extractall(folder, filter="data")
    tree = folder / NAME
    found = {str(path.relative_to(tree)) for path in tree.rglob("*") if path.is_file()}
    compare(
        "the source distribution",
        {name for name in found if not MADE.fullmatch(name)},
        {name for name in tracked() if not (LEFT_OUT.match(name) or MADE.fullmatch(name))},
    )
    return tree


def check_dialogue(wheel: Path, folder: Path) -> None:
    """Install the wheel as a user does, with the newest of what it needs, and talk to the bot of
    the README.
    """
    run("A fresh environment", sys.executable, "-m", "venv", folder / "venv")
    python = folder / "venv" / "bin" / "python"
    run("Install the wheel", python, "-m", "pip", "install", "--quiet", wheel)
    shutil.copy(ROOT / "examples" / "with_file_session.py", folder)
    done = subprocess.run(
        [python, "-W", "error", "with_file_session.py"], cwd=folder, input="Hi\nTim\n/quit\n",
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    say(done.stdout + done.stderr)
    check("the bot answers as the README says", (done.stdout, done.stderr, done.returncode) == (DIALOGUE, "", 0))


def left_to_do() -> list[str]:
    """What no program can decide, and what would be wrong on a package index for ever."""
    changes = (ROOT / "CHANGELOG.md").read_text("utf-8")
    readme = (ROOT / "README.md").read_text("utf-8")
    changed = subprocess.run(["git", "status", "--porcelain"], cwd=ROOT, capture_output=True, text=True, check=True)
    marks = {
        f"commit what has changed:\n{changed.stdout}": bool(changed.stdout),
        f"[project.urls] in pyproject.toml says {source_url()}, which leads nowhere": ".example" in source_url(),
        f"CHANGELOG.md has no `## {PROJECT['version']} (` with a date": not re.search(
            rf"^## {re.escape(PROJECT['version'])} \(\d{{4}}-\d\d-\d\d\)$", changes, re.MULTILINE
        ),
        "README.md says that actorbot is not on PyPI, and hints say `pip install '.[…]'`": "not on PyPI yet" in readme,
    }
    return [text for text, holds in marks.items() if holds]


def source_url() -> str:
    return PROJECT["urls"]["Source"]


def tracked() -> set[str]:
    """Return the files that git has, or will have with the next commit."""
    done = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True)
    return {name for name in done.stdout.splitlines() if (ROOT / name).exists()}


def compare(what: str, files: set[str], expected: set[str]) -> None:
    for title, names in (("missing", expected - files), ("too much", files - expected)):
        for name in sorted(names):
            say(f"{title}: {name}")
    check(f"{what} has what it should: {len(expected)} files", files == expected)


def check(what: str, holds: bool) -> None:
    """Say what was looked at, and end here if it is not so."""
    say(f"{'ok' if holds else 'WRONG'}: {what}")
    if not holds:
        sys.exit(1)


def run(title: str, *command: str | Path, cwd: Path = ROOT, **variables: str) -> None:
    """Run *command* with *variables* added to the environment, and end here if it fails."""
    say(f"\n== {title}")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")} | variables
    check(title, subprocess.run(command, cwd=cwd, env=environment, check=False).returncode == 0)


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
