"""Apply each mutant to a copy of the tree and run its test, which must fail.

`python -m tests.mutants [part of a name]`.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from tests import ROOT
from tests.mutants.catalogue import MUTANTS, Mutant

PATIENCE = 600  # seconds for the tests of one mutant; one that hangs is caught, too


def main(wanted: str) -> int:
    survivors = []
    with tempfile.TemporaryDirectory() as folder:
        for mutant in MUTANTS:
            if wanted in mutant.name:
                caught = is_caught(mutant, Path(folder))
                print(f"{'caught  ' if caught else 'SURVIVED'}  {mutant.name}", flush=True)  # noqa: T201
                survivors += [] if caught else [mutant]
    return len(survivors)


def is_caught(mutant: Mutant, folder: Path) -> bool:
    """Tell whether the tests fail with the fault.

    Raises: ValueError if it is not to be found, or they fail without it.
    """
    for name in ("actorbot", "tests", "benchmarks", "examples", "pyproject.toml", "setup.cfg", "README.md", "docs"):
        source, copy = ROOT / name, folder / name
        if copy.is_dir():
            shutil.rmtree(copy)
        if source.is_dir():
            shutil.copytree(source, copy, ignore=shutil.ignore_patterns("__pycache__"))
        elif source.exists():
            shutil.copy(source, copy)
    path = folder / "actorbot" / mutant.file
    text = path.read_text("utf-8")
    if text.count(mutant.right) != 1:
        raise ValueError(f"{mutant.name}: {mutant.file} has {text.count(mutant.right)} places like that; one is needed")
    path.write_text(text.replace(mutant.right, mutant.wrong), "utf-8")
    tests = shlex.split(mutant.test)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests],
            cwd=folder, env=os.environ | {"PYTHONPATH": str(folder)}, capture_output=True, check=False, timeout=PATIENCE,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return True
    if done.returncode not in (0, 1):
        raise ValueError(f"{mutant.name}: pytest ended with {done.returncode}: {done.stdout.decode()[-2000:]}")
    return done.returncode == 1


if __name__ == "__main__":
    sys.exit(main(" ".join(sys.argv[1:])))
