"""`actorbot cluster`: run the shards of a bot, look at them, and have them leave."""

from __future__ import annotations

from importlib import import_module
from typing import Any, Final

import click

__all__ = ["cluster"]

COMMANDS: Final = {"drain": "_cluster_drain", "run": "_cluster_run", "status": "_cluster_status"}


class _Commands(click.Group):
    """Imports its commands when they are wanted: a cluster needs the extra `redis`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        try:
            found: Any = import_module(f"actorbot.cli.{COMMANDS[cmd_name]}")
        except ImportError as error:
            raise click.ClickException(str(error)) from error
        command: click.Command = found.command
        return command


@click.group(cls=_Commands)
def cluster() -> None:
    """Run a bot in several processes, on one machine or more.

    A cluster is named by the URL of the Redis that its members share, and by its name there.
    """
