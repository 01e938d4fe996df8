"""A Telegram bot that remembers, with python-telegram-bot.

TELEGRAM_TOKEN=… python examples/with_python_telegram_bot.py, then say /start to it.

Needs `pip install '.[ptb]'` in a clone, and a token from @BotFather. Stop it with Ctrl-C and start
it again: it knows you, and goes on in the middle of the conversation.
"""

import os
import sys
from typing import Any

from telegram import Update
from telegram.ext import (
    Application,
    ApplicationBuilder,
    CommandHandler,
    ContextTypes,
    ConversationHandler,
    MessageHandler,
    filters,
)

from actorbot import FileSessionStore, SessionManager
from actorbot.ext.ptb import PTBSessions


async def deliver(session_id: str, text: str) -> None:
    await sessions.bot.send_message(PTBSessions.chat_id(session_id), text)


sessions = PTBSessions(SessionManager(FileSessionStore(".sessions"), deliver=deliver))


async def ask(update: Update, context: ContextTypes.DEFAULT_TYPE) -> str:
    sessions.held(update).send_text("Hi, what's your nickname?")
    return "asked"


async def remember(update: Update, context: ContextTypes.DEFAULT_TYPE) -> int:
    assert update.message is not None
    assert context.user_data is not None
    context.user_data["nickname"] = update.message.text
    sessions.held(update).send_text(f"Hello {update.message.text}")
    return ConversationHandler.END


async def count(update: Update, context: ContextTypes.DEFAULT_TYPE) -> None:
    assert context.user_data is not None
    context.user_data["n"] = context.user_data.get("n", 0) + 1
    name = context.user_data.get("nickname", "stranger")
    sessions.held(update).send_text(f"That was message {context.user_data['n']}, {name}")


def build(builder: ApplicationBuilder[Any, Any, Any, Any, Any, Any]) -> Application[Any, Any, Any, Any, Any, Any]:
    application = sessions.install(builder).build()
    text = filters.TEXT & ~filters.COMMAND
    application.add_handler(
        ConversationHandler(
            entry_points=[CommandHandler("start", ask)],
            states={"asked": [MessageHandler(text, remember)]},
            fallbacks=[],
            name="nickname",
            persistent=True,
        )
    )
    application.add_handler(MessageHandler(text, count))
    return application


if __name__ == "__main__":
    token = os.environ.get("TELEGRAM_TOKEN")
    if not token:
        sys.exit("Set TELEGRAM_TOKEN to your bot's token; @BotFather on Telegram gives you one.")
    build(Application.builder().token(token)).run_polling()
