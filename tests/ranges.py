"""Run the tests of every extra with the lowest and with the highest versions that pyproject.toml
allows: `make ranges`, a part of `make torture`. Arguments name some of the extras; `core` is what
actorbot needs itself.

Each run has a fresh environment of this Python. What the extra asks for is pinned to its lowest
versions, or is the newest. What else the tests need is the newest.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Final

from packaging.requirements import Requirement

from tests import ROOT

PROJECT: Final = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
ASKED: Final[dict[str, list[str]]] = {"core": PROJECT["dependencies"]} | PROJECT["optional-dependencies"]

# Each extra with its tests, and with what these need besides.
TESTS: Final[dict[str, tuple[str, str]]] = {
    "core": ("tests/unit tests/promises -m 'not long'", ""),
    "bench": ("tests/tools/test_benchmarks.py tests/tools/test_benchmarks_report.py -m 'not long'", ""),
    "agents": ("tests/ext/test_agents.py", ".[aiogram]"),
    "aiogram": ("tests/ext/test_aiogram.py tests/ext/test_aiogram_fsm.py", ""),
    "cli": ("tests/tools/test_cli.py tests/tools/test_cli_sessions.py -m 'not long'", ""),
    "discord": ("tests/ext/test_discord.py", ""),
    "line": ("tests/ext/test_line.py", ".[web]"),
    "mongo": ("tests/servers/test_mongo_store.py -m 'not long'", ""),
    "ptb": ("tests/ext/test_ptb.py", "python-telegram-bot[job-queue]"),
    "redis": (
        "tests/servers/test_redis_store.py tests/unit/cluster/test_places_of_the_log.py -m 'not long'",
        "",
    ),
    "slack": ("tests/ext/test_slack.py tests/ext/test_slack_by_either_way.py", ".[web]"),
    "web": ("tests/ext/test_asgi.py tests/ext/test_webhooks.py tests/ext/test_webhook_process.py", ""),
}
ALL_NEED: Final = ".[mongo,redis,servers] aiohttp httpx hypothesis pytest pytest-timeout"


def main(extras: list[str]) -> None:
    failed = [
        f"{extra}, {end}" for extra in extras or TESTS for end in ("lowest", "highest") if not is_well(extra, end)
    ]
    if failed:
        sys.exit(f"versions that pyproject.toml allows, and that fail: {'; '.join(failed)}")


def is_well(extra: str, end: str) -> bool:
    """Install *extra* in a fresh environment, and run its tests there."""
    tests, besides = TESTS[extra]
    with tempfile.TemporaryDirectory() as folder:
        pins = Path(folder, "pins.txt")
        pins.write_text("\n".join(lowest(extra)) if end == "lowest" else "")
        say(f"\n== {extra}, {end}: {' '.join(pins.read_text().split()) or ' '.join(ASKED[extra])}")
        python = Path(folder, "venv", "bin", "python")
        what = [*ALL_NEED.split(), *besides.split(), *([] if extra == "core" else [f".[{extra}]"])]
        what = [part for each in what for part in (("--editable", each) if each.startswith(".") else (each,))]
        return (
            run(sys.executable, "-m", "venv", python.parents[1])
            and run(python, "-m", "pip", "install", "--quiet", "--constraint", pins, *what)
            and run(python, "-m", "pytest", "-q", *shlex.split(tests))
        )


def lowest(extra: str) -> list[str]:
    """Return a pin for each requirement of *extra*: the lowest version that it allows."""
    pins = []
    for asked in map(Requirement, ASKED[extra]):
        if asked.name == "actorbot":
            continue  # of other extras, which have runs of their own
        (least,) = [each.version for each in asked.specifier if each.operator in {">=", "=="}]
        pins.append(f"{asked.name}=={least}")
    return pins


def run(*command: str | Path) -> bool:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    environment |= {"PYTHONPATH": str(ROOT)}
    return subprocess.run(command, cwd=ROOT, env=environment, check=False).returncode == 0


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


if __name__ == "__main__":
    main(sys.argv[1:])
