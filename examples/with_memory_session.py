"""The bot of the first page: it asks for a nickname.

It remembers the nickname for as long as the program runs.
"""

from actorbot import ConsoleBot, Context

bot = ConsoleBot()  # memory store, since none is given


@bot.on_event
async def greet(context: Context) -> None:
    if context.session.get("asking"):
        context.session["nickname"] = context.event.message.text
        context.session["asking"] = False
        await context.send_text(f"Hello {context.session['nickname']}")
    else:
        context.session["asking"] = True
        await context.send_text("Hi, what's your nickname?")


if __name__ == "__main__":
    bot.run()
