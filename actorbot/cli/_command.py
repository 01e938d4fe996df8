"""The command itself: its parts, and what it says when something fails."""

from __future__ import annotations

from importlib.metadata import version

import click

from actorbot.cli._chat import chat
from actorbot.cli._cluster import cluster
from actorbot.cli._doctor import doctor
from actorbot.cli._format import clean, hide_secrets_of, redact, shows_secret
from actorbot.cli._sessions import sessions
from actorbot.errors import ActorbotError

__all__ = ["command"]


class _Command(click.Group):
    """Says an error of actorbot in one line on stderr (exit status 1), and never a password."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        hide_secrets_of(ctx, args)
        return super().parse_args(ctx, args)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except click.UsageError as error:
            if redact(error.message) == error.message:
                raise
            raise click.UsageError(redact(error.format_message()), error.ctx) from error
        except click.ClickException as error:
            told = click.ClickException(clean(error.format_message()))
            told.exit_code = error.exit_code  # type: ignore[misc]  # of the class, says click; it reads it here
            raise told from error
        except ActorbotError as error:
            raise click.ClickException(clean(str(error))) from error
        except Exception as error:
            # A traceback helps with an error of ours, unless it shows a password. One of the system
            # is about the output, or from a store of somebody else.
            leaves = isinstance(error, BrokenPipeError)  # who reads the output, as `head` does
            if leaves or not (isinstance(error, OSError) or shows_secret(error)):
                raise
            raise click.ClickException(clean(f"{type(error).__name__}: {error}")) from error


@click.group(cls=_Command, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(version("actorbot"), prog_name="actorbot", message="%(prog)s %(version)s")
def command() -> None:
    """Look after the sessions of a bot.

    A store is named by its URL, as in file:///var/lib/bot/sessions,
    redis://localhost/0?key_prefix=bot:, mongodb://localhost/bot; other packages may add
    schemes of their own.
    """


for each in (chat, cluster, doctor, sessions):
    command.add_command(each)
