"""An aiogram bot on actorbot: aiogram's own dispatcher; only the connection to Telegram is ours."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from aiogram import Bot, Dispatcher
from aiogram.fsm.context import FSMContext
from aiogram.fsm.storage.base import StorageKey
from aiogram.types import ErrorEvent, Message
from aiogram.webhook.aiohttp_server import SimpleRequestHandler, setup_application
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer

from actorbot import Context, FileSessionStore, MemorySessionStore, Session, SessionManager
from actorbot.errors import HandlerTimeoutError, TurnEndedError
from actorbot.ext.aiogram import FSM, AiogramSessions, deliver
from actorbot.testing import ManualClock
from examples.with_aiogram import make_dispatcher
from tests.ext.pages import program
from tests.ext.telegram import Telegram, edit, hundred, make_bot, message

Everything = tuple[SessionManager, AiogramSessions, Dispatcher, Bot, Telegram]


def build(store: Any = None, **options: Any) -> Everything:
    """A bot as the page shows it; the test says what it handles."""
    manager = SessionManager(store, **options)
    sessions = AiogramSessions(manager)
    dispatcher = Dispatcher(storage=sessions.storage, events_isolation=sessions.isolation)
    sessions.install(dispatcher)
    return manager, sessions, dispatcher, *make_bot()


def sid(user: int) -> str:
    return f"telegram:42:{user}:{user}"


async def feed_all(dispatcher: Dispatcher, bot: Bot, updates: Any) -> list[Any]:
    return await asyncio.gather(*(dispatcher.feed_update(bot, update) for update in updates), return_exceptions=True)


async def steps(count: int = 20) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def counted(bot_program: str) -> int:
    """Drive a program of the page with 100 messages to 10 chats at once; return how many it has
    counted, by its replies.
    """
    names: dict[str, Any] = {}
    exec(compile(bot_program, "page", "exec"), names)
    dispatcher: Dispatcher = names["dispatcher"]
    bot, telegram = make_bot()
    await dispatcher.emit_startup(bot=bot)
    await feed_all(dispatcher, bot, hundred())
    await dispatcher.emit_shutdown(bot=bot)
    highest: dict[int, int] = {}
    for chat, text in telegram.sent:
        highest[chat] = max(highest.get(chat, 0), int(text.rsplit(" ", 1)[1]))
    return sum(highest.values())


async def test_the_bot_of_the_page_loses_updates_before_and_none_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    stock = await counted(program("aiogram", "Before"))
    ours = await counted(program("aiogram", "After"))

    print(f"100 updates over 10 chats: stock aiogram counted {stock}, with actorbot {ours}")
    assert stock < 100
    assert ours == 100
    async with SessionManager(FileSessionStore(".sessions")) as manager:  # as the next start of the bot finds it
        for user in range(1, 11):
            assert await manager.peek(sid(user)) == {FSM: {"default": {"data": {"n": 10}}}}


async def test_a_users_updates_are_handled_in_order_and_users_side_by_side() -> None:
    manager, _, dispatcher, bot, _ = build()
    inside, most = 0, 0
    everybody = asyncio.Event()

    @dispatcher.message()
    async def handle(message: Message, session: Session) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        if inside == 10:
            everybody.set()
        seen = session.get("seen", "")
        await everybody.wait()  # passes only if ten users are inside at once
        session["seen"] = seen + message.text
        inside -= 1

    async with manager:
        await feed_all(dispatcher, bot, hundred())
        assert most == 10
        for user in range(1, 11):
            assert await manager.peek(sid(user)) == {"seen": "0123456789"}


async def test_a_failing_handler_leaves_no_trace_also_if_the_error_is_answered() -> None:
    manager, _, dispatcher, bot, _ = build()
    met: list[Any] = []

    @dispatcher.message()
    async def handle(message: Message, state: FSMContext, session: Session) -> None:
        session["n"] = session.get("n", 0) + 1
        await state.set_state("form")
        await state.update_data(text=message.text)
        if message.text == "fail":
            raise RuntimeError("broken")

    @dispatcher.errors()
    async def answer(event: ErrorEvent, state: FSMContext, **data: Any) -> str:
        met.append((str(event.exception), await state.get_data(), "session" in data, "turn" in data))
        await state.update_data(apology=True)
        return "answered"

    async with manager:
        await dispatcher.feed_update(bot, message(1, "a"))
        assert await dispatcher.feed_update(bot, message(1, "fail")) == "answered"
        await dispatcher.feed_update(bot, message(2, "b"))

        assert met == [("broken", {"text": "a"}, False, False)]
        assert await manager.peek(sid(1)) == {
            "n": 1, FSM: {"default": {"state": "form", "data": {"text": "a", "apology": True}}},
        }  # fmt: skip
        assert await manager.peek(sid(2)) == {"n": 1, FSM: {"default": {"state": "form", "data": {"text": "b"}}}}


async def test_an_update_delivered_twice_counts_once_and_a_failed_one_may_come_again() -> None:
    manager, _, dispatcher, bot, _ = build()
    broken = True

    @dispatcher.message()
    async def handle(message: Message, session: Session) -> None:
        n = session.get("n", 0)
        await steps(3)
        session["n"] = n + 1
        if message.text == "flaky" and broken:
            raise RuntimeError("broken")

    async with manager:
        await feed_all(dispatcher, bot, [message(1, "a", update_id=7), message(1, "a", update_id=7)])
        raw = message(1, "a", update_id=7).model_dump(mode="json", exclude_none=True)
        assert await dispatcher.feed_webhook_update(bot, raw) is None
        assert await manager.peek(sid(1)) == {"n": 1}

        with pytest.raises(RuntimeError, match="broken"):
            await dispatcher.feed_webhook_update(bot, message(1, "flaky", update_id=8))
        broken = False
        await dispatcher.feed_webhook_update(bot, message(1, "flaky", update_id=8))
        assert await manager.peek(sid(1)) == {"n": 2}
        assert manager.stats().duplicates == 2


async def test_a_duplicate_met_inside_a_handler_is_its_own_failure() -> None:
    manager, _, dispatcher, bot, _ = build()

    @dispatcher.message()
    async def handle(_: Message, session: Session) -> None:
        session["n"] = 1
        async with manager.turn("purse", event_id="once"):
            pass

    async with manager:
        await dispatcher.feed_update(bot, message(1, "a"))
        with pytest.raises(Exception, match="handled before"):
            await dispatcher.feed_update(bot, message(2, "a"))
        assert await manager.peek(sid(2)) is None


async def test_a_slow_handler_delays_nobody_else_and_an_idle_session_leaves_memory_and_comes_back() -> None:
    clock = ManualClock()
    manager, _, dispatcher, bot, _ = build(clock=clock, idle_timeout=60.0)
    inside, answer = asyncio.Event(), asyncio.Event()

    @dispatcher.message()
    async def handle(message: Message, session: Session) -> None:
        if message.text == "slow":
            inside.set()
            await answer.wait()
        session["n"] = session.get("n", 0) + 1

    async with manager:
        slow = asyncio.create_task(dispatcher.feed_update(bot, message(1, "slow")))
        await inside.wait()
        await clock.advance(15.0)
        await feed_all(dispatcher, bot, [message(2, "quick") for _ in range(10)])
        assert await manager.peek(sid(2)) == {"n": 10}
        await clock.advance(15.0)
        answer.set()
        await slow
        assert await manager.peek(sid(1)) == {"n": 1}

        await clock.advance(120.0)
        assert list(manager.resident()) == []
        await dispatcher.feed_update(bot, message(2, "quick"))
        assert await manager.peek(sid(2)) == {"n": 11}


async def test_a_handler_that_overruns_keeps_nothing_and_can_store_nothing_any_more() -> None:
    clock = ManualClock()
    manager, sessions, dispatcher, bot, _ = build(clock=clock, handler_timeout=30.0)
    inside, late = asyncio.Event(), asyncio.Event()
    refused: list[str] = []

    @dispatcher.message()
    async def handle(message: Message, state: FSMContext, session: Session) -> None:
        session["n"] = session.get("n", 0) + 1
        if message.text == "slow":
            inside.set()
            await late.wait()
            await sessions.storage.set_state(StorageKey(42, 2, 2), "told")  # about somebody else it may
            async with manager.turn(sid(3)) as turn:
                turn.session["told"] = True
            for store in (state.update_data({"half": True}), state.set_state("half"), state.get_data()):
                try:
                    await store
                except TurnEndedError as error:
                    refused.append(str(error))

    async with manager:
        slow = asyncio.create_task(dispatcher.feed_update(bot, message(1, "slow")))
        await inside.wait()
        await clock.advance(31.0)
        await dispatcher.feed_update(bot, message(1, "next"))  # the session is free again
        late.set()
        with pytest.raises(TimeoutError, match="handler_timeout"):
            await slow
        assert len(refused) == 3
        assert await manager.peek(sid(1)) == {"n": 1}


async def test_an_overrunning_handler_takes_nothing_from_the_one_that_follows() -> None:
    clock = ManualClock()
    manager, sessions, dispatcher, bot, _ = build(clock=clock, handler_timeout=30.0)
    inside = {text: asyncio.Event() for text in ("slow", "next")}
    go_on = {text: asyncio.Event() for text in ("slow", "next")}

    @dispatcher.message()
    async def handle(message: Message, session: Session) -> None:
        assert message.text
        inside[message.text].set()
        await go_on[message.text].wait()
        if message.text == "next":
            async with sessions.isolation.lock(StorageKey(42, 1, 1)):
                session["n"] = session.get("n", 0) + 1

    async with manager:
        slow = asyncio.create_task(dispatcher.feed_update(bot, message(1, "slow")))
        await inside["slow"].wait()
        await clock.advance(31.0)
        following = asyncio.create_task(dispatcher.feed_update(bot, message(1, "next")))
        await inside["next"].wait()
        go_on["slow"].set()
        with pytest.raises(HandlerTimeoutError) as told:
            await slow
        assert not isinstance(told.value.__cause__, KeyError)
        go_on["next"].set()
        await following
        assert await manager.peek(sid(1)) == {"n": 1}


async def test_an_error_handler_may_reset_the_state_after_an_overrun() -> None:
    clock = ManualClock()
    manager, _, dispatcher, bot, _ = build(clock=clock, handler_timeout=30.0)
    inside, go_on = asyncio.Event(), asyncio.Event()

    @dispatcher.message()
    async def handle(message: Message, state: FSMContext) -> None:
        await state.set_state("asked")
        inside.set()
        await go_on.wait()

    @dispatcher.errors()
    async def start_again(event: ErrorEvent, state: FSMContext) -> None:
        assert isinstance(event.exception, HandlerTimeoutError)
        assert await state.get_state() is None
        await state.update_data(late=True)

    async with manager:
        slow = asyncio.create_task(dispatcher.feed_update(bot, message(1, "slow")))
        await inside.wait()
        await clock.advance(31.0)
        go_on.set()
        await slow
        assert await manager.peek(sid(1)) == {FSM: {"default": {"data": {"late": True}}}}


async def test_cancelling_an_update_rolls_it_back_and_frees_the_session() -> None:
    manager, _, dispatcher, bot, _ = build()
    inside = asyncio.Event()

    @dispatcher.message()
    async def handle(message: Message, session: Session) -> None:
        session["n"] = session.get("n", 0) + 1
        if message.text == "hang":
            inside.set()
            await asyncio.Event().wait()

    async with manager:
        gone = asyncio.create_task(dispatcher.feed_webhook_update(bot, message(1, "hang")))
        await inside.wait()
        waiting = asyncio.create_task(dispatcher.feed_update(bot, message(1, "waits")))
        withdrawn = asyncio.create_task(dispatcher.feed_update(bot, message(1, "leaves the line")))
        await steps()
        withdrawn.cancel()
        gone.cancel()  # the web server cancels the request of a client that has gone
        await waiting
        assert (await asyncio.wait_for(asyncio.gather(gone, withdrawn, return_exceptions=True), 5.0)) != []
        assert await manager.peek(sid(1)) == {"n": 1}


async def test_the_bots_state_survives_a_restart(tmp_path: Path) -> None:
    for n in (1, 2):
        manager, _, dispatcher, bot, _ = build(FileSessionStore(tmp_path))

        @dispatcher.message()
        async def handle(_: Message, state: FSMContext, session: Session) -> None:
            session["n"] = session.get("n", 0) + 1
            await state.update_data(n=(await state.get_value("n", 0)) + 1)

        async with manager:
            await dispatcher.feed_update(bot, message(1, "a"))
            assert await manager.peek(sid(1)) == {"n": n, FSM: {"default": {"data": {"n": n}}}}


async def test_polling_ends_with_the_running_handler_finished_and_everything_in_the_store() -> None:
    store = MemorySessionStore()
    manager, _, dispatcher, bot, telegram = build(store, deliver=deliver)
    telegram.updates = list(hundred())
    dispatcher.startup.register(manager.start)
    dispatcher.shutdown.register(manager.close)

    @dispatcher.message()
    async def handle(message: Message, session: Session, turn: Context) -> None:
        n = session.get("n", 0)
        if message.text == "9":
            await dispatcher.storage.close()  # closes nothing of ours
            if message.chat.id == 10:
                asyncio.get_running_loop().call_soon(polling_stops.set)
            await steps(50)
        session["n"] = n + 1
        turn.send(message.answer("done"))

    polling_stops = asyncio.Event()

    async def stop() -> None:
        await polling_stops.wait()
        await dispatcher.stop_polling()

    stopping = asyncio.create_task(stop())
    await dispatcher.start_polling(bot, handle_signals=False)
    await stopping

    assert telegram.closed
    assert len(telegram.sent) == 100
    assert manager.health().status == "failing"
    async with SessionManager(store) as after:
        assert [await after.peek(sid(user)) for user in range(1, 11)] == [{"n": 10}] * 10


async def test_behind_aiograms_web_server_the_bot_is_closed_after_the_manager_if_it_is_registered_last() -> None:
    manager, _, dispatcher, bot, telegram = build(deliver=deliver)
    dispatcher.startup.register(manager.start)
    dispatcher.shutdown.register(manager.close)
    inside, closed = asyncio.Event(), []

    @dispatcher.message()
    async def handle(message: Message, turn: Context) -> None:
        inside.set()
        await steps()
        turn.send(message.answer("done"))
        closed.append(telegram.closed)

    app = web.Application()
    setup_application(app, dispatcher, bot=bot)
    SimpleRequestHandler(dispatcher, bot, handle_in_background=True).register(app, "/hook")
    update = message(1, "hi").model_dump_json(exclude_none=True)
    async with TestClient(TestServer(app)) as client:
        await client.post("/hook", data=update, headers={"Content-Type": "application/json"})
        await inside.wait()

    assert telegram.sent == [(1, "done")]
    assert (closed, telegram.closed) == ([False], True)


def test_without_aiogram_the_module_says_what_to_install() -> None:
    script = "import sys; sys.modules['aiogram'] = None; import actorbot.ext.aiogram"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr.endswith(
        "ImportError: actorbot.ext.aiogram needs aiogram 3: pip install '.[aiogram]' in a clone of actorbot\n"
    )


async def test_the_page_shows_how_a_handler_takes_the_session(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    for heading in ("After", "The session in a handler"):
        exec(compile(program("aiogram", heading), heading, "exec"), names)
    bot, _ = make_bot()
    await names["dispatcher"].emit_startup(bot=bot)
    edits = []
    for _ in range(4):
        await names["dispatcher"].feed_update(bot, edit(1))
        edits.append(await names["manager"].peek(sid(1)))
    await names["dispatcher"].emit_shutdown(bot=bot)
    assert edits == [{"edits": 1}, {"edits": 2}, None, {"edits": 1}]


async def test_the_example_holds_its_dialogue_and_remembers_it(tmp_path: Path) -> None:
    for said in (["Hi", "Tim"], ["It rains", "/reset", "Hi"]):
        dispatcher = make_dispatcher(str(tmp_path))
        bot, telegram = make_bot()
        await dispatcher.emit_startup(bot=bot)
        await feed_all(dispatcher, bot, [message(1, text) for text in said])
        await dispatcher.emit_shutdown(bot=bot)
        if said[0] == "Hi":
            assert telegram.sent == [(1, "Hi, what's your nickname?"), (1, "Hello Tim")]
    assert telegram.sent == [
        (1, "You said 'It rains', Tim"), (1, "I have forgotten you"), (1, "Hi, what's your nickname?"),
    ]  # fmt: skip
