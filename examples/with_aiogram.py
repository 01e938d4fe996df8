"""A Telegram bot on aiogram that learns your name. Kill it and start it again: it still knows you.

TELEGRAM_TOKEN=123:abc python examples/with_aiogram.py

Install: pip install '.[aiogram]' in a clone. @BotFather gives tokens.
"""

import asyncio
import os
import sys

from aiogram import Bot, Dispatcher
from aiogram.filters import Command
from aiogram.fsm.context import FSMContext
from aiogram.fsm.state import State, StatesGroup
from aiogram.types import Message

from actorbot import Context, FileSessionStore, Session, SessionManager
from actorbot.ext.aiogram import AiogramSessions, deliver


class Form(StatesGroup):
    nickname = State()


def make_dispatcher(folder: str) -> Dispatcher:
    manager = SessionManager(FileSessionStore(folder), deliver=deliver)
    sessions = AiogramSessions(manager)
    dispatcher = Dispatcher(storage=sessions.storage, events_isolation=sessions.isolation)
    sessions.install(dispatcher)
    dispatcher.startup.register(manager.start)
    dispatcher.shutdown.register(manager.close)

    @dispatcher.message(Command("reset"))
    async def reset(message: Message, turn: Context) -> None:
        turn.end_session()
        turn.send(message.answer("I have forgotten you"))  # is sent when the turn is acknowledged

    @dispatcher.message(Form.nickname)
    async def learn(message: Message, state: FSMContext, session: Session, turn: Context) -> None:
        session["nickname"] = message.text
        await state.clear()
        turn.send(message.answer(f"Hello {message.text}"))

    @dispatcher.message()
    async def greet(message: Message, state: FSMContext, session: Session, turn: Context) -> None:
        if "nickname" in session:
            turn.send(message.answer(f"You said {message.text!r}, {session['nickname']}"))
        else:
            await state.set_state(Form.nickname)
            turn.send(message.answer("Hi, what's your nickname?"))

    return dispatcher


async def main(token: str) -> None:
    await make_dispatcher(".sessions").start_polling(Bot(token))


if __name__ == "__main__":
    if not (token := os.environ.get("TELEGRAM_TOKEN")):
        sys.exit("Set TELEGRAM_TOKEN to your bot's token; @BotFather in Telegram gives you one.")
    asyncio.run(main(token))
