"""`actorbot chat`: a bot to try a store with."""

from __future__ import annotations

import click

from actorbot import ConsoleBot, Context
from actorbot.cli._store import make_store

__all__ = ["chat"]


@click.command()
@click.option(
    "--store", "url", metavar="URL", default="memory://", show_default=True, help="Where the session is kept."
)
def chat(url: str) -> None:
    """Talk to a bot that remembers your nickname. /session shows what it knows, /quit leaves."""
    bot = ConsoleBot(session_store=make_store(url))
    bot.on_event(_greet)
    bot.run()


async def _greet(context: Context) -> None:
    session = context.session
    session["messages"] = session.get("messages", 0) + 1
    if session.get("asking"):
        session["nickname"] = context.event.message.text
        session["asking"] = False
        await context.send_text(f"Hello {session['nickname']}")
    elif "nickname" in session:
        await context.send_text(f"That was message {session['messages']}, {session['nickname']}")
    else:
        session["asking"] = True
        await context.send_text("Hi, what's your nickname?")
