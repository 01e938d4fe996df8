"""What Telegram would send, and a connection to it that answers by itself: the one thing about
aiogram's bots that is made up.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncGenerator, Sequence
from datetime import UTC, datetime
from typing import Any

from aiogram import Bot
from aiogram.client.session.base import BaseSession
from aiogram.methods import AnswerCallbackQuery, GetMe, GetUpdates, SendMessage, TelegramMethod
from aiogram.types import Chat, Message, Update, User

NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Telegram(BaseSession):
    """Notes what is sent, in order; hands out `updates` once to a bot that polls."""

    def __init__(self) -> None:
        super().__init__()
        self.sent: list[tuple[int, str]] = []
        self.updates: list[Update] = []
        self.closed = False
        self._ids = itertools.count(1)

    async def make_request(self, bot: Bot, method: TelegramMethod[Any], timeout: int | None = None) -> Any:
        for _ in range(3):
            await asyncio.sleep(0)
        if isinstance(method, SendMessage):
            self.sent.append((int(method.chat_id), method.text))
            return Message(message_id=next(self._ids), date=NOW, chat=Chat(id=int(method.chat_id), type="private"))
        if isinstance(method, GetMe):
            return User(id=bot.id, is_bot=True, first_name="bot", username="bot")
        if isinstance(method, GetUpdates):
            if not self.updates:
                await asyncio.Event().wait()
            taken, self.updates = self.updates, []
            return taken
        assert isinstance(method, AnswerCallbackQuery)
        return True

    async def stream_content(self, *_: Any, **__: Any) -> AsyncGenerator[bytes, None]:
        yield b""

    async def close(self) -> None:
        self.closed = True


def make_bot() -> tuple[Bot, Telegram]:
    telegram = Telegram()
    return Bot("42:TEST", session=telegram), telegram


_update_ids = itertools.count(1)


def message(user: int, text: str, *, update_id: int | None = None, chat: int | None = None, **more: Any) -> Update:
    """A user's message, as Telegram sends it; in the private chat unless another is named."""
    update_id = next(_update_ids) if update_id is None else update_id
    where = Chat(id=user, type="private") if chat is None else Chat(id=chat, type="supergroup")
    return Update(
        update_id=update_id,
        message=Message(
            message_id=update_id,
            date=NOW,
            chat=where,
            from_user=User(id=user, is_bot=False, first_name=f"u{user}"),
            text=text,
            **more,
        ),
    )


def edit(user: int) -> Update:
    sent = message(user, "edited")
    return Update(update_id=sent.update_id, edited_message=sent.message)


def hundred() -> Sequence[Update]:
    """Ten messages to each of ten chats."""
    return [message(1 + i % 10, str(i // 10)) for i in range(100)]
