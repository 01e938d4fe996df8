"""Programs in processes of their own, that take orders one at a time."""

from __future__ import annotations

import json
import os
import select
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks._peer_env import MissingPeerError, reason_of

PATIENCE = 60.0  # seconds for a program to be ready, to answer (beyond those of the order), or to end


class Program:
    """A program that runs until the `with` block ends. `benchmarks/_hops/_orders.py` is inside."""

    def __init__(self, command: Sequence[str], settings: Mapping[str, str], job: Mapping[str, Any]) -> None:
        self._command = command
        self._settings = settings
        self._job = job

    def __enter__(self) -> Self:
        """Start the program. Raises: MissingPeerError."""
        self._said = tempfile.TemporaryFile()
        # A process session of its own, so that Ctrl-C does not reach it: it ends with its input.
        self._process = subprocess.Popen(
            self._command, env={**os.environ, **self._settings}, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
            stderr=self._said, start_new_session=True,
        )  # fmt: skip
        try:
            self.ready = self.ask(self._job)
        except BaseException:
            self.__exit__(None, None, None)
            raise
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Close its input, and wait until it has ended."""
        try:
            self._process.communicate(timeout=PATIENCE)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
        finally:
            self._said.close()

    @property
    def pid(self) -> int:
        return self._process.pid

    def tell(self, order: Mapping[str, Any]) -> None:
        """Send an order. Raises: MissingPeerError if nobody is there."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(order).encode() + b"\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            raise self._failed("has ended") from None

    def hear(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Wait for the answer to an order. Raises: MissingPeerError."""
        assert self._process.stdout is not None
        patience = PATIENCE + float(order.get("seconds", 0.0))
        readable, _, _ = select.select([self._process.stdout], [], [], patience)
        if not readable:
            raise self._failed(f"did not answer within {patience:g} s")
        line = self._process.stdout.readline()  # a program writes whole lines
        if not line:
            raise self._failed("has ended")
        answer: dict[str, Any] = json.loads(line)
        return answer

    def ask(self, order: Mapping[str, Any]) -> dict[str, Any]:
        """Send an order, and wait for the answer. Raises: MissingPeerError."""
        self.tell(order)
        return self.hear(order)

    def _failed(self, what: str) -> MissingPeerError:
        self._said.seek(0)
        said = reason_of(self._said.read().decode(errors="replace"))
        return MissingPeerError(f"{Path(self._command[-1]).name} {what}: {said}")


def cpu_seconds(pid: int) -> float:
    """Return the processor time of a process so far; 0.0 where there is no /proc."""
    stat = Path(f"/proc/{pid}/stat")
    if not stat.exists():
        return 0.0
    fields = stat.read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def pss(pid: int) -> int:
    """Return the bytes of memory that a process has; those that it shares with others in part.

    0 where there is no /proc.
    """
    rollup = Path(f"/proc/{pid}/smaps_rollup")
    if not rollup.exists():
        return 0
    return int(rollup.read_text().partition("Pss:")[2].split(maxsplit=1)[0]) * 1024
