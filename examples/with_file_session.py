"""A console bot that remembers: its sessions are files in `.sessions`.

`make run` starts this bot.
"""

from actorbot import ConsoleBot, Context, FileSessionStore

bot = ConsoleBot(session_store=FileSessionStore(".sessions"))


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
