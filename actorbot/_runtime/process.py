"""Which process this is, so that another one can tell whether it is still there."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self

__all__ = ["Process", "is_gone", "is_same", "this_process"]

_PROC: Final = Path("/proc")
_STATE, _STARTED = 0, 19  # places in /proc/<pid>/stat, counted behind the name (proc_pid_stat(5))
_ENDED: Final = frozenset("ZX")  # states of a process that has ended: nobody has asked how, or dead
_MOST: Final = 2**31  # above each process id


@dataclass(frozen=True, slots=True)
class Process:
    """A process, as others can recognise it. What this platform does not tell is empty."""

    host: str
    pid: int
    program: str
    """What was started: the name of a script or module."""
    started: str = ""
    """When it started, by the kernel's own count: a process id is given again."""
    namespace: str = ""
    """The namespace that its id belongs to: containers have their own."""
    kernel: str = ""
    """Which start of which kernel it runs on."""

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Self:
        """Read it from what `dataclasses.asdict` made. Raises: TypeError, ValueError."""
        process = cls(**fields)
        if type(process.pid) is not int or not 0 < process.pid < _MOST:
            raise ValueError("this is no process id")
        texts: tuple[object, ...] = (
            process.host, process.program, process.started, process.namespace, process.kernel,
        )  # fmt: skip
        if not all(isinstance(each, str) and each.isprintable() for each in texts):
            raise TypeError("a process is described by text")
        return process

    def __str__(self) -> str:
        return f"process {self.pid} on {self.host} ({self.program})"


def this_process() -> Process:
    """Describe the running process."""
    pid = os.getpid()
    return Process(
        host=_printable(socket.gethostname()),
        pid=pid,
        program=_program(),
        started=fields[_STARTED] if (fields := _fields(pid)) else "",
        namespace=_namespace(),
        kernel=_kernel(),
    )


def is_same(process: Process, other: Process) -> bool:
    """Tell whether two descriptions are known to be of one process.

    `False` where the platform does not tell: two sandboxes may have the same names and numbers.
    """
    place = process.kernel, process.namespace, process.started, process.pid
    return all(place) and place == (other.kernel, other.namespace, other.started, other.pid)


def is_gone(process: Process) -> bool:
    """Tell whether *process* is known to have ended.

    `False` for one of another machine, of another container, or where the platform does not tell:
    only Linux does.
    """
    if not (process.kernel and process.namespace and process.started):
        return False
    if (process.kernel, process.namespace) != (_kernel(), _namespace()):
        return False
    try:
        os.kill(process.pid, 0)  # sends nothing
    except ProcessLookupError:
        return True
    except OSError:
        pass  # it is another user's, and there
    fields = _fields(process.pid)
    return bool(fields) and (fields[_STATE] in _ENDED or fields[_STARTED] != process.started)


def _fields(pid: int) -> list[str]:
    """Return what the kernel tells of a process, from its state on; `[]` if it tells nothing."""
    try:
        return (_PROC / str(pid) / "stat").read_text(errors="replace").rpartition(")")[2].split()
    except OSError:
        return []  # it may be there all the same: `hidepid` hides those of other users


def _program() -> str:
    started = Path(sys.argv[0] if sys.argv else "")
    name = started.parent.name if started.name == "__main__.py" else started.name  # of `python -m …`
    return _printable(name[:100]) or "python"


def _printable(text: str) -> str:
    """Replace what no terminal should be sent, as an undecodable byte of a file's name."""
    return "".join(each if each.isprintable() else "?" for each in text)


def _namespace() -> str:
    try:
        if str((_PROC / "self").readlink()) != str(os.getpid()):
            return ""  # what is mounted there numbers processes in another way
        return str((_PROC / "self" / "ns" / "pid").readlink())
    except OSError:
        return ""


def _kernel() -> str:
    try:
        return (_PROC / "sys" / "kernel" / "random" / "boot_id").read_text().strip()
    except OSError:
        return ""
