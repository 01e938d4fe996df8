"""The command `actorbot`, for people who run a bot and its store. It needs the extra `cli`."""

from __future__ import annotations

import sys
from importlib import import_module

__all__ = ["main"]


def main() -> None:
    """Run the command with the arguments of this process, and end it."""
    try:
        # Only now: the extra may be missing, and then the answer is a sentence.
        command = import_module("actorbot.cli._command").command
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in {"click", "rich"}:
            raise
        print(
            "actorbot: the command line needs two more packages: pip install '.[cli]' in a clone of actorbot",
            file=sys.stderr,
        )
        sys.exit(2)
    command(prog_name="actorbot")
