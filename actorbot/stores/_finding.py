"""What somebody who looks at a store has found."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

__all__ = ["Finding", "judge_clock"]

CLOCK_WARNS: Final = 1.0  # seconds that two clocks may differ; that much is the patience of an NTP that has just begun
CLOCK_FAILS: Final = 60.0  # what a server keeps of a record beyond its end is hardly more


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing about a store, and how good that is for sessions."""

    what: str
    """What was looked at, in a word or two."""
    level: Literal["ok", "warning", "failure"]
    """`failure`: no bot can keep its sessions here. `warning`: it can, and may lose some."""
    text: str
    """What was found, and what to do about it."""


def judge_clock(ahead: float) -> Finding:
    """Judge that the clock of the server is *ahead* seconds ahead of this machine's, or behind it."""
    off = abs(ahead)
    level: Literal["ok", "warning", "failure"] = "ok"
    if off > CLOCK_WARNS:
        level = "failure" if off > CLOCK_FAILS else "warning"
    text = f"{off:.3f} s {'ahead of' if ahead >= 0 else 'behind'} the clock here"
    if level != "ok":
        text += ", so sessions end too early or too late; let both follow a time server (NTP)"
    return Finding("clock", level, text)
