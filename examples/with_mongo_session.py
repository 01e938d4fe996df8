"""A console bot that remembers in MongoDB: at MONGO_URL, or on this machine.

Needs `pip install '.[mongo]'` in a clone.
"""

import os

from actorbot import ConsoleBot, Context, MongoSessionStore

URL = os.environ.get("MONGO_URL", "mongodb://localhost:27017/")

bot = ConsoleBot(session_store=MongoSessionStore(URL, collection_name="sessions"))


@bot.on_event
async def greet(context: Context) -> None:
    session = context.session
    if session.get("asking"):
        session["nickname"] = context.event.message.text
        session["asking"] = False
        await context.send_text(f"Hello {session['nickname']}")
    elif "nickname" in session:  # in mongosh: db.sessions.find({"state.nickname": "Tim"})
        await context.send_text(f"You said {context.event.message.text!r}, {session['nickname']}")
    else:
        session["asking"] = True
        await context.send_text("Hi, what's your nickname?")


if __name__ == "__main__":
    bot.run()
