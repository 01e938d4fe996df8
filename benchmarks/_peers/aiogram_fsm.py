"""aiogram 3: a `Dispatcher` gets the updates; the session is the data of the FSM context.

Nothing is faked: no reply is sent.
"""

from __future__ import annotations

import asyncio
from itertools import count
from typing import Any

from aiogram import Bot, Dispatcher
from aiogram.fsm.context import FSMContext
from aiogram.fsm.storage.base import BaseStorage, DefaultKeyBuilder, StorageKey
from aiogram.fsm.storage.memory import DisabledEventIsolation, MemoryStorage, SimpleEventIsolation
from aiogram.fsm.storage.pymongo import PyMongoStorage
from aiogram.fsm.storage.redis import RedisStorage
from aiogram.types import Message

from benchmarks._peers._drive import Job, drive, number_of, read_job, update_of


def make_storage(job: Job) -> BaseStorage:
    if job.store == "memory":
        return MemoryStorage()
    if job.store == "redis":
        return RedisStorage.from_url(job.url, key_builder=DefaultKeyBuilder(prefix=job.place))
    return PyMongoStorage.from_url(job.url, db_name=job.database, collection_name=job.place)


async def main() -> None:
    job = read_job()
    change = job.change

    async def handle(message: Message, state: FSMContext) -> None:
        session = await state.get_data()
        await change(session, message.text or "")
        await state.set_data(session)

    storage = make_storage(job)
    isolation = SimpleEventIsolation() if job.variant == "simple" else DisabledEventIsolation()
    dispatcher = Dispatcher(storage=storage, events_isolation=isolation)
    dispatcher.message.register(handle)
    bot, update_ids = Bot("1:a-token-that-is-never-sent"), count(1)

    async def dispatch(user: str, text: str) -> Any:
        return await dispatcher.feed_raw_update(bot, update_of(user, text, next(update_ids)))

    try:
        measured = await drive(job, dispatch)
        counters = {}
        for user in job.users:
            key = StorageKey(bot_id=bot.id, chat_id=number_of(user), user_id=number_of(user))
            counters[user] = int((await storage.get_data(key)).get("n", 0))
        measured.print(counters)
    finally:
        await storage.close()


asyncio.run(main())
