"""Bots of other libraries whose store another process owns, or takes over: they receive nothing
that they could not handle.
"""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiogram import Dispatcher
from aiohttp import web
from telegram.ext import Application

from actorbot import SessionManager
from actorbot.ext.aiogram import AiogramSessions
from actorbot.ext.discord import in_turn as in_turn_of_discord
from actorbot.ext.line import dispatch_all
from actorbot.ext.line import listener as listener_of_line
from actorbot.ext.ptb import PTBSessions
from actorbot.ext.slack import in_turn as in_turn_of_slack
from tests.ext import telegram as aiogram_api
from tests.ext.slack_api import command, slack_api
from tests.ext.test_ptb import BOT, Telegram, on_text, raw
from tests.ext.test_slack import make_app, send
from tests.leased import LeasedStore, Place
from tests.waiting import SOON, Call, soon, until, until_sync


class Watched(Telegram):
    """Notes how the manager was whenever the bot fetched updates."""

    def __init__(self, manager: SessionManager) -> None:
        super().__init__()
        self.manager = manager
        self.fetched: list[str] = []

    async def do_request(self, url: str, method: str, request_data: Any = None, **more: Any) -> tuple[int, bytes]:
        if url.endswith("getUpdates"):
            await asyncio.sleep(0.001)  # Telegram has nothing new
            self.fetched.append(self.manager.health().status)
        return await super().do_request(url, method, request_data, **more)


class Polling:
    """A python-telegram-bot program, at `run_polling`."""

    def __init__(self, place: Place) -> None:
        self.manager = SessionManager(LeasedStore(place), takeover_timeout=3600.0)  # nothing here waits for its end
        self.telegram = Watched(self.manager)
        self.telegram.waiting.append(raw(1, 7))
        self.handled: list[int] = []
        builder = Application.builder().token(f"{BOT}:x").request(self.telegram).get_updates_request(self.telegram)
        self.application: Any = PTBSessions(self.manager).install(builder).build()
        self.application.add_handler(on_text(self.handle))

    async def handle(self, update: Any, context: Any) -> None:
        context.user_data["n"] = context.user_data.get("n", 0) + 1
        self.handled.append(update.update_id)

    def run(self) -> None:
        loop = asyncio.new_event_loop()
        asyncio.set_event_loop(loop)
        try:
            self.application.run_polling()
        finally:
            asyncio.set_event_loop(None)


def owner_of(place: Place) -> SessionManager:
    return SessionManager(LeasedStore(place)).start_sync()


# --- python-telegram-bot ------------------------------------------------------------------------


def test_ptb_fetches_nothing_before_the_store_is_its_own_and_gives_it_back_on_sigterm() -> None:
    place = Place()
    owner, bot = owner_of(place), Polling(place)

    def hand_over() -> None:
        until_sync(lambda: "waits for the owner" in bot.manager.health().reason)
        assert bot.telegram.fetched == []
        owner.close_sync()
        until_sync(lambda: bot.handled)
        os.kill(os.getpid(), signal.SIGTERM)

    other = Call(hand_over)
    bot.run()
    other.result()

    assert set(bot.telegram.fetched) == {"ready"}
    assert place.owners == 0
    assert place.data[f"telegram:{BOT}:7"]["user_data"] == {"n": 1}


def test_ptb_that_is_told_to_end_while_it_waits_takes_nothing() -> None:
    place = Place()
    owner, bot = owner_of(place), Polling(place)

    def tell() -> None:
        until_sync(lambda: "waits for the owner" in bot.manager.health().reason)
        os.kill(os.getpid(), signal.SIGTERM)

    other = Call(tell)
    bot.run()
    other.result()

    assert bot.telegram.fetched == []
    assert bot.manager.health().reason == "the manager is closed"
    owner.close_sync()
    assert place.owners == 0


def test_ptb_ends_when_another_process_has_its_store(short_lease: None) -> None:
    place = Place()
    bot = Polling(place)

    def take_over() -> None:
        until_sync(lambda: bot.handled)
        place.take_over()

    other = Call(take_over)
    bot.run()  # ends by itself
    other.result()

    assert bot.handled == [1]
    assert not bot.telegram.open


async def test_ptb_ceases_to_fetch_also_where_nobody_handles_sigterm(short_lease: None) -> None:
    place = Place()
    bot = Polling(place)
    async with bot.application:
        await bot.application.start()
        await bot.application.updater.start_polling()
        await until(lambda: bot.handled)
        place.take_over()
        await until(lambda: not bot.application.updater.running)
        await bot.application.stop()


# --- aiogram ------------------------------------------------------------------------------------


@pytest.mark.parametrize("handle_signals", [True, False], ids=["signals", "no signals"])
async def test_aiogram_begins_to_poll_with_its_store_and_ends_when_it_has_lost_it(
    handle_signals: bool, short_lease: None, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place()
    owner = SessionManager(LeasedStore(place))
    await owner.start()
    manager = SessionManager(LeasedStore(place))
    sessions = AiogramSessions(manager)
    dispatcher = Dispatcher(storage=sessions.storage, events_isolation=sessions.isolation)
    sessions.install(dispatcher)
    dispatcher.startup.register(manager.start)
    dispatcher.shutdown.register(manager.close)
    bot, telegram = aiogram_api.make_bot()
    telegram.updates = [aiogram_api.message(1, "hi")]
    handled = asyncio.Event()

    @dispatcher.message()
    async def handle(_: Any) -> None:
        assert manager.health().status == "ready"
        handled.set()

    polling = asyncio.create_task(dispatcher.start_polling(bot, handle_signals=handle_signals))
    await until(lambda: "waits for the owner" in manager.health().reason)
    assert caplog.text.count("not ready yet") == 1
    assert telegram.updates
    await owner.close()
    await soon(handled.wait())
    place.take_over()

    await soon(polling)
    assert telegram.closed


# --- discord.py, Slack's Bolt -------------------------------------------------------------------


def handlers_of_discord(manager: SessionManager) -> None:
    for _ in range(2):

        @in_turn_of_discord(manager)
        async def handle(message: Any) -> None: ...


def handlers_of_slack(manager: SessionManager) -> None:
    for _ in range(2):

        @in_turn_of_slack(manager)
        async def handle(ack: Any) -> None: ...


def listeners_of_line(manager: SessionManager) -> None:
    for _ in range(2):
        listener_of_line(manager)


async def deliveries_of_line(manager: SessionManager) -> None:
    for _ in range(2):
        await dispatch_all(manager, [])


@pytest.mark.parametrize(
    "make_handlers", [handlers_of_discord, handlers_of_slack, listeners_of_line, deliveries_of_line]
)
async def test_a_program_with_handlers_in_turns_is_told_once_to_end_when_it_has_lost_its_store(
    make_handlers: Callable[[SessionManager], Awaitable[None] | None], told: list[int], short_lease: None
) -> None:
    place = Place()
    manager = SessionManager(LeasedStore(place))
    if (made := make_handlers(manager)) is not None:
        await made
    async with manager:
        place.take_over()
        await until(lambda: told)

    assert told == [signal.SIGTERM]


def test_the_web_server_of_bolt_and_aiogram_takes_nothing_when_it_is_told_to_end_while_it_waits() -> None:
    place = Place()
    owner = owner_of(place)
    manager = SessionManager(LeasedStore(place), takeover_timeout=3600.0)
    app = web.Application()

    async def keep_sessions(_: web.Application) -> AsyncIterator[None]:
        async with manager:
            yield

    def tell() -> None:
        until_sync(lambda: "waits for the owner" in manager.health().reason)
        os.kill(os.getpid(), signal.SIGTERM)

    app.cleanup_ctx.append(keep_sessions)
    other, loop = Call(tell), asyncio.new_event_loop()
    web.run_app(app, host="127.0.0.1", port=0, print=None, loop=loop)
    other.result()

    assert manager.health().reason == "the manager is closed"
    owner.close_sync()
    assert place.owners == 0


def test_a_program_whose_main_thread_waits_hears_that_it_is_to_end(told: list[int], short_lease: None) -> None:
    place, ends = Place(), threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: ends.set())
    with SessionManager(LeasedStore(place)) as manager:
        listeners_of_line(manager)
        place.take_over()
        assert ends.wait(SOON)


@pytest.mark.parametrize("end", ["lost", "closed", "not started"])
async def test_what_slack_sends_is_not_acknowledged_without_the_store(
    end: str, told: list[int], short_lease: None
) -> None:
    place = Place()
    manager = SessionManager(LeasedStore(place))
    ends: dict[str, Callable[[], Awaitable[Any]]] = {"lost": lambda: until(lambda: told), "closed": manager.close}
    with slack_api() as api:
        app = make_app(api)

        @app.command("/count")
        @in_turn_of_slack(manager)
        async def count(session: Any) -> None:
            session["n"] = session.get("n", 0) + 1

        if end != "not started":
            await manager.start()
            assert await send(app, command("/count")) == 200
            if end == "lost":
                place.take_over()
            await ends[end]()
        assert await send(app, command("/count")) == 500
        await manager.close()
