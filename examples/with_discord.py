"""A Discord bot with a command that counts for each user: `!count` adds one, `!count 5` five.

DISCORD_TOKEN=... python examples/with_discord.py

The bot needs the intent "Message Content" (Developer Portal, Bot).
Install: pip install '.[discord]' in a clone
"""

import asyncio
import contextlib
import os
import signal
import sys
from typing import Any

import discord
from discord.ext import commands

from actorbot import Context, FileSessionStore, SessionManager
from actorbot.ext.discord import in_turn


def make_bot() -> tuple[commands.Bot, SessionManager]:
    intents = discord.Intents.default()
    intents.message_content = True
    bot = commands.Bot("!", intents=intents)

    async def deliver(session_id: str, text: str) -> None:
        channel = session_id.split(":")[-2]
        await bot.get_partial_messageable(int(channel)).send(text)

    manager = SessionManager(FileSessionStore(".sessions"), deliver=deliver)

    @bot.command()
    @in_turn(manager)
    async def count(ctx: commands.Context[Any], session: Any, turn: Context, amount: int = 1) -> None:
        session["n"] = session.get("n", 0) + amount
        turn.send_text(f"That makes {session['n']}")  # is sent when the count is safe

    return bot, manager


async def main(token: str) -> None:
    bot, manager = make_bot()
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError):  # Windows has no such handler; Ctrl-C works
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with bot, manager:
        await bot.start(token)


if __name__ == "__main__":
    if not os.environ.get("DISCORD_TOKEN"):
        sys.exit("with_discord.py needs the environment variable DISCORD_TOKEN")
    discord.utils.setup_logging()
    try:
        asyncio.run(main(os.environ["DISCORD_TOKEN"]))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("stopped; everything is in the store")
