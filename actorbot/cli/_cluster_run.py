"""`actorbot cluster run`: the shards of a bot on this machine."""

from __future__ import annotations

import asyncio
import logging
import sys

import click

from actorbot._running.shown import is_set_up
from actorbot.cli._laptop import redis_if_none
from actorbot.cli._life import end_with_parent
from actorbot.cli._shards import Shards
from actorbot.cli._target import make_shard
from actorbot.cluster import Shard

__all__ = ["command"]


@click.command("run", short_help="Run one shard of a bot, or several.")
@click.argument("target", metavar="MODULE:FUNCTION")
@click.option(
    "--shards", type=click.IntRange(1, 1000), default=1, show_default=True, metavar="N", help="How many processes."
)
@click.option(
    "--with-redis/--without-redis",
    default=None,
    help="Start a Redis to try it out with, if none answers on this machine. Without either, one is started if the"
    " extra `servers` is installed.",
)
@click.option("--of", "parent", type=int, hidden=True)
def command(target: str, shards: int, with_redis: bool | None, parent: int | None) -> None:
    """Run the shard that MODULE:FUNCTION makes, such as bot:make_shard, or several of them.

    The module is looked for in the current directory first. The function is called without
    arguments, once in each process, and returns an actorbot.cluster.Shard.

    SIGTERM and SIGINT (Ctrl-C) drain: what is in hand is finished and flushed, and the slots go to
    other shards. A second signal hurries. With several, one that ends by mistake is started again.
    The exit status is 0 if all have left in order, 1 if not, and 2 if they could not start.
    """
    if parent is not None:
        end_with_parent(parent)
        _run(make_shard(target))
        return
    shard = make_shard(target)
    with redis_if_none(shard._url, with_redis):
        if shards == 1:
            _run(shard)
        else:
            sys.exit(asyncio.run(Shards(target, shards, shard._drain_timeout).run()))


def _run(shard: Shard) -> None:
    """Run *shard*, and show what it says of itself if its author has set up no logging."""
    if not is_set_up():
        shown = logging.StreamHandler()
        shown.setFormatter(logging.Formatter("%(asctime)s %(process)d %(levelname)s %(message)s"))
        logger = logging.getLogger("actorbot")
        logger.addHandler(shown)
        logger.setLevel(logging.INFO)
    shard.run()
