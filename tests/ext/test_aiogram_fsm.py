"""aiogram's states on actorbot: where they live, what they are atomic with, and how replies wait
for them.
"""

from __future__ import annotations

import asyncio
from dataclasses import make_dataclass
from types import MappingProxyType
from typing import Any

import pytest
from aiogram import Dispatcher, F, exceptions
from aiogram.fsm.context import FSMContext
from aiogram.fsm.scene import Scene, SceneRegistry, ScenesManager, on
from aiogram.fsm.state import State, StatesGroup
from aiogram.fsm.storage.base import StorageKey
from aiogram.fsm.storage.memory import MemoryStorage
from aiogram.fsm.strategy import FSMStrategy
from aiogram.methods import SendMessage
from aiogram.types import Chat, Message, Poll, PollOption, Update

from actorbot import Context, MemorySessionStore, Session, SessionManager
from actorbot.errors import ConfigError, DeadlockError, NotEncodableError
from actorbot.ext.aiogram import FSM, AiogramSessions, deliver
from tests.ext.telegram import NOW, make_bot, message
from tests.ext.test_aiogram import build, sid, steps


class Form(StatesGroup):
    name = State()


@pytest.mark.parametrize(
    ("strategy", "session_id"),
    [
        (FSMStrategy.USER_IN_CHAT, "telegram:42:-100:7"),
        (FSMStrategy.CHAT, "telegram:42:-100:-100"),
        (FSMStrategy.GLOBAL_USER, "telegram:42:7:7"),
        (FSMStrategy.USER_IN_TOPIC, "telegram:42:-100:7:topic:3"),
        (FSMStrategy.CHAT_TOPIC, "telegram:42:-100:-100:topic:3"),
    ],
)
async def test_the_fsm_strategy_says_whose_session_it_is(strategy: FSMStrategy, session_id: str) -> None:
    manager = SessionManager()
    sessions = AiogramSessions(manager)
    dispatcher = Dispatcher(storage=sessions.storage, events_isolation=sessions.isolation, fsm_strategy=strategy)
    sessions.install(dispatcher)
    bot, _ = make_bot()

    @dispatcher.message()
    async def handle(_: Message, state: FSMContext, session: Session, turn: Context) -> str:
        session["n"] = 1
        assert sessions.session_id(state.key) == turn.session_id
        return turn.session_id

    topic = {"message_thread_id": 3, "is_topic_message": True}
    async with manager:
        assert await dispatcher.feed_update(bot, message(7, "a", chat=-100, **topic)) == session_id
        assert await manager.peek(session_id) == {"n": 1}


async def test_a_business_connection_has_sessions_of_its_own() -> None:
    manager, _, dispatcher, bot, _ = build()

    @dispatcher.business_message()
    async def handle(_: Message, turn: Context) -> str:
        return turn.session_id

    sent = message(7, "a", business_connection_id="b:1").message
    async with manager:
        assert await dispatcher.feed_update(bot, Update(update_id=1, business_message=sent)) == f"{sid(7)}:business:b:1"


async def test_an_update_about_no_user_has_no_turn() -> None:
    manager, _, dispatcher, bot, _ = build()

    @dispatcher.poll()
    @dispatcher.channel_post()
    async def handle(_: Any, **data: Any) -> bool:
        return "session" in data or "turn" in data

    poll = Poll(
        id="1", question="?", options=[PollOption(persistent_id="1", text="a", voter_count=1)], total_voter_count=1,
        is_closed=False, is_anonymous=True, type="regular", allows_multiple_answers=False, allows_revoting=False,
        members_only=False,
    )  # fmt: skip
    post = Message(message_id=1, date=NOW, chat=Chat(id=-5, type="channel"), text="news")
    async with manager:
        assert await dispatcher.feed_update(bot, Update(update_id=1, poll=poll)) is False
        assert await dispatcher.feed_update(bot, Update(update_id=2, channel_post=post)) is False


async def test_a_state_is_met_by_the_next_update_however_close_it_follows() -> None:
    manager, _, dispatcher, bot, _ = build()
    said: list[str] = []

    @dispatcher.message(Form.name)
    async def name(message: Message, state: FSMContext, raw_state: str) -> None:
        assert raw_state == "Form:name"
        said.append(f"Hello {message.text}")
        await state.clear()

    @dispatcher.message()
    async def ask(_: Message, state: FSMContext) -> None:
        await steps(5)
        await state.set_state(Form.name)
        said.append("Who are you?")

    async with manager:
        await asyncio.gather(*(dispatcher.feed_update(bot, message(1, text)) for text in ("Hi", "Tim")))
        assert said == ["Who are you?", "Hello Tim"]
        assert await manager.peek(sid(1)) == {}  # a cleared state leaves nothing


class Result(Scene, state="result"):
    @on.message()
    async def leave(self, _: Message) -> None:
        await self.wizard.back()


class Quiz(Scene, state="quiz"):
    @on.message.enter()
    async def enter(self, _: Message, state: FSMContext) -> None:
        await state.update_data(question=1)

    @on.message()
    async def answer(self, message: Message) -> None:
        await self.wizard.goto(Result)
        if message.text == "fail":
            raise RuntimeError("broken")


async def test_scenes_and_their_history_are_part_of_the_turn() -> None:
    manager, _, dispatcher, bot, _ = build()

    @dispatcher.message(F.text == "start")
    async def start(_: Message, scenes: ScenesManager) -> None:
        await scenes.enter(Quiz)

    SceneRegistry(dispatcher).add(Quiz, Result)
    async with manager:
        await dispatcher.feed_update(bot, message(1, "start"))
        entered = await manager.peek(sid(1))
        assert entered is not None
        assert entered[FSM]["default"] == {"state": "quiz", "data": {"question": 1}}

        with pytest.raises(RuntimeError, match="broken"):
            await dispatcher.feed_update(bot, message(1, "fail"))
        assert await manager.peek(sid(1)) == entered

        await dispatcher.feed_update(bot, message(1, "go on"))
        left = await manager.peek(sid(1))
        assert left is not None
        assert left[FSM]["default"]["state"] == "result"
        assert left[FSM]["scenes_history"]["data"]["history"][-1] == {"state": "quiz", "data": {"question": 1}}

        await dispatcher.feed_update(bot, message(1, "back"))
        assert await manager.peek(sid(1)) == entered


async def test_a_background_job_stores_states_in_turns_of_its_own() -> None:
    manager, sessions, dispatcher, bot, _ = build()
    inside, go_on = asyncio.Event(), asyncio.Event()

    @dispatcher.message()
    async def handle(message: Message, state: FSMContext, session: Session) -> None:
        session["n"] = 1
        inside.set()
        await go_on.wait()
        await state.update_data(by_handler=True)

    async with manager:
        context = dispatcher.fsm.get_context(bot, chat_id=1, user_id=1)
        assert (await context.get_state(), await context.get_data()) == (None, {})
        running = asyncio.create_task(dispatcher.feed_update(bot, message(1, "a")))
        await inside.wait()
        job = asyncio.create_task(context.update_data(by_job=True))
        await steps()
        assert not job.done()  # it waits for the turn, so that neither update is lost
        assert await context.get_data() == {}  # reading does not
        go_on.set()
        await asyncio.gather(running, job)
        assert await context.get_data() == {"by_handler": True, "by_job": True}

        with pytest.raises(RuntimeError, match="broken"):
            async with manager.turn(sessions.session_id(context.key)):  # several steps, all or nothing
                await context.set_state(Form.name)
                await context.update_data(more=True)
                raise RuntimeError("broken")
        assert await context.get_state() is None
        assert await context.get_data() == {"by_handler": True, "by_job": True}


async def test_data_that_no_store_could_keep_is_refused_by_name_and_rolled_back() -> None:
    manager, _, dispatcher, bot, _ = build()

    @dispatcher.message()
    async def handle(message: Message, state: FSMContext, session: Session) -> None:
        session["n"] = 1
        await state.update_data(who=message.from_user)

    async with manager:
        with pytest.raises(NotEncodableError, match=r"\['aiogram:fsm'\]\['default'\]\['data'\]\['who'\]"):
            await dispatcher.feed_update(bot, message(1, "a"))
        assert await manager.peek(sid(1)) is None


@pytest.mark.parametrize("data", [[], [("a", 1)], "text", 5, None, {1, 2}])
async def test_data_that_is_no_mapping_is_refused_as_aiogram_refuses_it(data: Any) -> None:
    key = StorageKey(bot_id=42, chat_id=1, user_id=1)
    async with SessionManager() as manager:
        storage = AiogramSessions(manager).storage
        await storage.set_data(key, MappingProxyType({"a": 1}))
        refuses = getattr(exceptions, "DataNotDictLikeError", None)  # older versions have none
        for store in (storage, MemoryStorage()) if refuses else (storage,):
            with pytest.raises(refuses or TypeError, match="dict or dict-like"):
                await store.set_data(key, data)
        assert await storage.get_data(key) == {"a": 1}


async def test_a_reply_that_is_returned_or_sent_by_the_turn_waits_and_one_that_is_awaited_does_not() -> None:
    manager, _, dispatcher, bot, telegram = build(deliver=deliver)

    @dispatcher.message()
    async def handle(message: Message, session: Session, turn: Context) -> SendMessage:
        turn.send(message.answer("gated"))
        await message.answer("at once")
        if message.text == "fail":
            session["bad"] = object()
        return message.answer("returned")

    async def poll(text: str) -> None:
        await dispatcher._process_update(bot, message(1, text))  # what polling runs as a task

    async with manager:
        await poll("fail")
        assert telegram.sent == [(1, "at once")]
        await poll("good")
        await manager.delivered(sid(1))
        assert sorted(telegram.sent) == [(1, "at once"), (1, "at once"), (1, "gated"), (1, "returned")]


async def test_a_bots_own_session_and_middlewares_stay_as_they_were() -> None:
    manager = SessionManager()
    sessions = AiogramSessions(manager)
    dispatcher = Dispatcher(storage=sessions.storage, events_isolation=sessions.isolation, session="a database's")
    bot, _ = make_bot()
    order: list[str] = []

    @dispatcher.update.outer_middleware()
    async def first(handler: Any, event: Any, data: dict[str, Any]) -> Any:
        order.append(f"first: {data['turn'].session_id}, {data['raw_state']}")
        return await handler(event, data)

    sessions.install(dispatcher)

    @dispatcher.update.outer_middleware()
    async def second(handler: Any, event: Any, data: dict[str, Any]) -> Any:
        order.append("second")
        return await handler(event, data)

    @dispatcher.message()
    async def handle(_: Message, session: str, turn: Context) -> str:
        turn.session["n"] = 1
        return session

    async with manager:
        assert await dispatcher.feed_update(bot, message(1, "a")) == "a database's"
        assert order == [f"first: {sid(1)}, None", "second"]
        assert await manager.peek(sid(1)) == {"n": 1}


async def test_a_lock_of_the_isolation_is_a_turn_and_joins_the_one_that_is_held() -> None:
    manager, sessions, dispatcher, bot, _ = build()
    key = StorageKey(42, 1, 1)

    @dispatcher.message()
    async def handle(msg: Message, session: Session) -> None:
        async with sessions.isolation.lock(key):  # as a library of dialogs does
            session["n"] = 1
        other = asyncio.create_task(dispatcher.feed_update(bot, message(1, "from inside")))
        with pytest.raises(DeadlockError):
            await other

        async def lock_elsewhere() -> None:
            async with sessions.isolation.lock(key):
                raise AssertionError("two at once")

        with pytest.raises(DeadlockError):
            await asyncio.create_task(lock_elsewhere())

    async with manager:
        await dispatcher.feed_update(bot, message(1, "a"))
        async with sessions.isolation.lock(key):
            await sessions.storage.set_state(key, Form.name)
            assert await manager.peek(sid(1)) == {"n": 1}  # not committed yet
        assert await sessions.storage.get_state(key) == "Form:name"


async def test_the_fsm_may_be_switched_off() -> None:
    manager = SessionManager(MemorySessionStore())
    dispatcher = Dispatcher(disable_fsm=True)
    AiogramSessions(manager).install(dispatcher)
    bot, _ = make_bot()

    @dispatcher.message()
    async def handle(_: Message, session: Session) -> None:
        n = session.get("n", 0)
        await steps(3)
        session["n"] = n + 1

    async with manager:
        await asyncio.gather(*(dispatcher.feed_update(bot, message(1, "a")) for _ in range(10)))
        assert await manager.peek(sid(1)) == {"n": 10}


def test_a_session_type_is_refused_when_the_bot_is_built() -> None:
    with pytest.raises(ConfigError, match="session_type"):
        AiogramSessions(SessionManager(session_type=make_dataclass("Visitor", [])))
