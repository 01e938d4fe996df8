"""A console bot that remembers in Redis or Valkey: at REDIS_URL, or on this machine.

Needs `pip install '.[redis]'` in a clone.
"""

import os

from actorbot import ConsoleBot, Context, RedisSessionStore

URL = os.environ.get("REDIS_URL", "redis://localhost:6379/0")

bot = ConsoleBot(session_store=RedisSessionStore(URL, key_prefix="actorbot:", expires_in=30 * 24 * 3600))


@bot.on_event
async def greet(context: Context) -> None:
    session = context.session
    if session.get("asking"):
        session["nickname"] = context.event.message.text
        session["asking"] = False
        await context.send_text(f"Hello {session['nickname']}")
    elif "nickname" in session:
        await context.send_text(f"You said {context.event.message.text!r}, {session['nickname']}")
    else:
        session["asking"] = True
        await context.send_text("Hi, what's your nickname?")


if __name__ == "__main__":
    bot.run()
