"""The life of what `actorbot cluster run` starts: how it ends, and that it has not begun."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from typing import Final

import click

__all__ = ["NotStartedError", "end_with_parent"]

PR_SET_PDEATHSIG: Final = 1  # prctl(2)

# Found before a fork: the child must not load anything.
_prctl = getattr(ctypes.CDLL(None), "prctl", None) if sys.platform == "linux" else None


class NotStartedError(click.ClickException):
    """A shard could not be made or started. The exit status is that of every such bot."""

    exit_code = 2


def end_with_parent(parent: int) -> None:
    """Get SIGTERM when the process *parent* has ended, which has started this one.

    Only Linux knows this. Elsewhere who kills (SIGKILL) a parent has to end its children, too.
    """
    if _prctl is not None:
        _prctl(PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    if os.getppid() != parent:  # it has ended before
        os.kill(os.getpid(), signal.SIGTERM)
