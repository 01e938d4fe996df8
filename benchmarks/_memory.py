"""The process's resident memory and its threads, as the operating system counts them."""

from __future__ import annotations

import resource
import sys
from pathlib import Path

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")


def rss() -> int:
    """Return the resident memory in bytes; where there is no /proc, its peak."""
    return _status("VmRSS") or peak_rss()


def peak_rss() -> int:
    """Return the highest resident memory, in bytes, since `reset_peak_rss`.

    Where there is no /proc: since the process began.
    """
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return _status("VmHWM") or (peak if sys.platform == "darwin" else peak * 1024)


def reset_peak_rss() -> None:
    """Let the peak begin again, where the system can do that (Linux)."""
    if _CLEAR_REFS.exists():
        _CLEAR_REFS.write_text("5")


def threads() -> int:
    """Return the number of threads of the process, also of those that extension modules started.

    0 where there is no /proc.
    """
    return _status("Threads")


def _status(field: str) -> int:
    if not _STATUS.exists():
        return 0
    value = _STATUS.read_text().partition(f"{field}:")[2].split(maxsplit=2)
    return int(value[0]) * (1024 if value[1] == "kB" else 1)
