"""Programs that tests run as processes."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import textwrap
from pathlib import Path
from time import monotonic
from typing import Any

import pytest

from actorbot import FileSessionStore, SessionManager
from tests.waiting import HANGS

PROGRAM = """
import asyncio, os, signal, sys, threading
from actorbot import FileSessionStore, FlushPolicy, SessionManager

def handle(context):
    context.session["n"] = context.session.get("n", 0) + 1
    return context.session["n"]

behind = FlushPolicy.write_behind(max_delay=600.0)
def manager(**options):
    return SessionManager(FileSessionStore("s"), handler=handle, flush=behind, close_timeout=1.0, **options)
"""

started: list[subprocess.Popen[bytes]] = []
"""All that a test has started, for its end."""


def start(code: str, folder: Path, **options: Any) -> subprocess.Popen[bytes]:
    """Run *code* as a process in *folder*."""
    options = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    process = subprocess.Popen([sys.executable, "-W", "ignore::DeprecationWarning", "-c", code], cwd=folder, **options)
    started.append(process)
    return process


def run(code: str, folder: Path, **options: Any) -> tuple[int, str, str]:
    """Run *code*, which must end by itself; return its exit status and what it said."""
    process = start(code, folder, **options)
    try:
        out, err = process.communicate(timeout=HANGS)
    except subprocess.TimeoutExpired:
        pytest.fail("the process hangs")
    return process.returncode, out.decode(), err.decode()


def stored(folder: Path, session_id: str = "console:1") -> Any:
    """Return the count that a program has left in its store in *folder*."""
    with SessionManager(FileSessionStore(folder / "s")) as manager:
        return (manager.peek_sync(session_id) or {}).get("n")


def run_program(program: str) -> subprocess.CompletedProcess[str]:
    """Run *program*, which must end by itself, and return what it said."""
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, timeout=HANGS, check=False
    )


def wait_for(stream: Any, text: bytes) -> bytes:
    """Read until *text* has come; return all that came. Its line may not be at its end yet."""
    got, ends = b"", monotonic() + HANGS
    while text not in got:
        assert select.select([stream], [], [], max(0.0, ends - monotonic()))[0], f"never said {text!r}, only {got!r}"
        new = os.read(stream if isinstance(stream, int) else stream.fileno(), 4096)
        assert new, f"ended before it said {text!r}: {got!r}"
        got += new
    return got


def ended(process: subprocess.Popen[bytes]) -> int:
    try:
        return process.wait(HANGS)
    except subprocess.TimeoutExpired:
        pytest.fail("the process hangs")
