"""python-telegram-bot 22 on actorbot.

Everything is real but Telegram itself: a request object that answers from memory.
"""

from __future__ import annotations

import asyncio
import gc
import json
import runpy
import subprocess
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest
from telegram import Update
from telegram.ext import (
    Application,
    ApplicationHandlerStop,
    CallbackContext,
    ContextTypes,
    ConversationHandler,
    MessageHandler,
    PicklePersistence,
    PollHandler,
    TypeHandler,
    filters,
)
from telegram.request import BaseRequest
from telegram.warnings import PTBUserWarning

from actorbot import FileSessionStore, FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot._manager.embedding import held
from actorbot.ext.ptb import PTBSessions
from actorbot.testing import FaultyStore, ManualClock, RecordingStore
from tests import ROOT
from tests.ext.pages import PAGES, program

EXAMPLE = ROOT / "examples" / "with_python_telegram_bot.py"
BOT = 4242
CHATS = range(1, 11)


class Telegram(BaseRequest):
    """Answers the bot's calls, and notes what it sends."""

    def __init__(self) -> None:
        self.sent: list[tuple[int, str]] = []
        self.waiting: deque[dict[str, Any]] = deque()
        self.open = True

    @property
    def read_timeout(self) -> float | None:
        return None

    async def initialize(self) -> None:
        self.open = True

    async def shutdown(self) -> None:
        self.open = False

    async def do_request(self, url: str, method: str, request_data: Any = None, **_: Any) -> tuple[int, bytes]:
        assert self.open, f"{url} after the bot was shut down"
        told = {} if request_data is None else request_data.parameters
        name = url.rpartition("/")[2]
        result: Any = True
        if name == "getMe":
            result = {"id": BOT, "is_bot": True, "first_name": "Bot", "username": "bot"}
        elif name == "sendMessage":
            self.sent.append((told["chat_id"], told["text"]))
            chat = {"id": told["chat_id"], "type": "private"}
            result = {"message_id": len(self.sent), "date": 0, "chat": chat, "text": told["text"]}
        elif name == "getUpdates":
            await asyncio.sleep(0)
            result = [self.waiting.popleft() for _ in range(len(self.waiting))]
        return 200, json.dumps({"ok": True, "result": result}).encode()


def person(number: int) -> dict[str, Any]:
    return {"id": number, "is_bot": False, "first_name": f"U{number}"}


def raw(number: int, chat: int, user: int | None = None, text: str = "hi", **more: Any) -> dict[str, Any]:
    """One message as Telegram tells it; a negative chat is a group."""
    kind: dict[str, Any] = {"type": "private"} if chat > 0 else {"type": "supergroup", "title": "Group"}
    message = {"message_id": number, "date": 0, "chat": {"id": chat, **kind}, "text": text, **more}
    return {"update_id": number, "message": message | {"from": person(chat if user is None else user)}}


def message(application: Any, number: int, chat: int, user: int | None = None, text: str = "hi", **more: Any) -> Update:
    return Update.de_json(raw(number, chat, user, text, **more), application.bot)


def build(
    manager: SessionManager | None, telegram: Telegram | None = None, *handlers: Any, **types: Any
) -> tuple[Any, Any]:
    """Return an application on actorbot, or the stock one where there is no manager."""
    telegram = telegram or Telegram()
    builder = Application.builder().token(f"{BOT}:x").request(telegram).get_updates_request(telegram)
    sessions = None
    if manager is None:
        builder.concurrent_updates(True)
    else:
        sessions = PTBSessions(manager)
        sessions.install(builder)
    if types:
        builder.context_types(ContextTypes(**types))
    application = builder.build()
    for group, handler in enumerate(handlers):
        application.add_handler(handler if not callable(handler) else on_text(handler), group)
    return application, sessions


def on_text(function: Any, **options: Any) -> MessageHandler[Any, Any]:
    return MessageHandler(filters.TEXT, function, **options)


@asynccontextmanager
async def running(application: Any) -> AsyncIterator[Any]:
    async with application:
        await application.start()
        try:
            yield application
        finally:
            await application.stop()


async def feed(application: Any, *updates: object) -> None:
    """Let updates arrive all at once; return when all were handled."""
    for update in updates:
        application.update_queue.put_nowait(update)
    async with asyncio.timeout(20):
        await application.update_queue.join()


async def settle() -> None:
    for _ in range(50):
        await asyncio.sleep(0)


def hundred(application: Any) -> list[Update]:
    """A hundred updates over ten chats, taking turns."""
    return [message(application, 1000 + n, CHATS[n % 10], text=str(n // 10)) for n in range(100)]


def sid(number: int) -> str:
    return f"telegram:{BOT}:{number}"


async def count(update: Update, context: Any) -> None:
    n = context.user_data.get("n", 0)
    for _ in range(3):
        await asyncio.sleep(0)
    context.user_data["n"] = n + 1


def gather_errors(application: Any) -> list[BaseException]:
    gathered: list[BaseException] = []

    async def note(update: object, context: Any) -> None:
        gathered.append(context.error)

    application.add_error_handler(note)
    return gathered


# --- the workload -------------------------------------------------------------------------------


async def test_no_update_of_a_user_is_lost_as_the_library_alone_loses_them() -> None:
    stock, _ = build(None, None, count)
    async with running(stock):
        await feed(stock, *hundred(stock))
    alone = [stock.user_data[chat]["n"] for chat in CHATS]

    store = MemorySessionStore()
    application, _ = build(SessionManager(store), None, count)
    async with running(application):
        await feed(application, *hundred(application))
    counted = [store.read(sid(chat))["user_data"]["n"] for chat in CHATS]

    print(f"10 updates in each of 10 chats: python-telegram-bot alone counted {alone}, with actorbot {counted}")
    assert counted == [10] * 10
    assert sum(alone) < 100


async def test_a_chat_is_handled_in_order_and_others_meanwhile() -> None:
    seen: dict[int, list[str]] = {}
    inside: Counter[int] = Counter()
    most: Counter[str] = Counter()
    everybody = asyncio.Barrier(10)

    async def look(update: Update, context: Any) -> None:
        chat = update.effective_chat.id
        inside[chat] += 1
        most["same"] = max(most["same"], inside[chat])
        most["all"] = max(most["all"], inside.total())
        if update.message.text == "0":
            await everybody.wait()
        await asyncio.sleep(0)
        seen.setdefault(chat, []).append(update.message.text)
        inside[chat] -= 1

    application, _ = build(SessionManager(), None, look)
    async with running(application):
        await feed(application, *hundred(application))

    assert seen == {chat: [str(n) for n in range(10)] for chat in CHATS}
    assert most == {"same": 1, "all": 10}


async def test_a_handler_that_takes_half_a_minute_delays_no_other_chat() -> None:
    clock, slow, go_on = ManualClock(), asyncio.Event(), asyncio.Event()
    others = asyncio.Barrier(101)

    async def handle(update: Update, context: Any) -> None:
        if update.message.text == "slow":
            slow.set()
            await go_on.wait()
        await count(update, context)
        if update.effective_chat.id != 1:
            await others.wait()

    manager = SessionManager(clock=clock)
    application, _ = build(manager, None, handle)
    async with running(application):
        for n in range(150):  # more than a mailbox takes
            application.update_queue.put_nowait(message(application, n, 1, text="slow" if n == 0 else "hi"))
        await slow.wait()
        await clock.advance(15.0)
        for chat in range(2, 102):
            application.update_queue.put_nowait(message(application, 1000 + chat, chat))
        async with asyncio.timeout(20):
            await others.wait()
        await clock.advance(15.0)
        await settle()
        counted = [await manager.peek(sid(chat)) for chat in range(2, 102)]
        waiting = await manager.peek(sid(1))
        go_on.set()
        await application.update_queue.join()
        after = await manager.peek(sid(1))

    assert counted == [{"user_data": {"n": 1}}] * 100
    assert waiting is None
    assert after == {"user_data": {"n": 150}}  # and nothing of the 150 was refused


# --- the turn -----------------------------------------------------------------------------------


async def test_a_failing_handler_leaves_no_trace_and_the_next_goes_on() -> None:
    telegram = Telegram()
    later: list[str] = []

    async def handle(update: Update, context: Any) -> None:
        context.user_data["n"] = context.user_data.get("n", 0) + 1
        context.chat_data["last"] = update.message.text
        sessions.session(update)["mine"] = update.message.text
        sessions.held(update).send_text(f"gated {update.message.text}")
        if update.message.text == "bad":
            raise ValueError("a bug")

    async def deliver(session_id: str, text: str) -> None:
        await application.bot.send_message(PTBSessions.chat_id(session_id), text)

    async def log(update: Update, context: Any) -> None:
        later.append(update.message.text)

    store = MemorySessionStore()
    application, sessions = build(SessionManager(store, deliver=deliver), telegram, handle, log)
    told = gather_errors(application)
    async with running(application):
        await feed(application, *(message(application, n, 7, text=text) for n, text in enumerate(["a", "bad", "c"])))
        await feed(application, message(application, 9, 8, text="bad"), message(application, 10, 9, text="d"))

    state = store.read(sid(7))
    del state["$actorbot"]
    assert state == {"user_data": {"n": 2}, "chat_data": {"last": "c"}, "mine": "c"}
    assert store.read(sid(8)) is None
    assert [str(error) for error in told] == ["a bug"] * 2
    assert later == ["a", "c", "d"]  # no later group works on what is rolled back
    assert telegram.sent == [(7, "gated a"), (7, "gated c"), (9, "gated d")]


async def test_stopping_an_update_is_no_failure() -> None:
    async def stop(update: Update, context: Any) -> None:
        context.user_data["stopped"] = True
        raise ApplicationHandlerStop

    manager = SessionManager()
    application, _ = build(manager, None, stop, count)
    async with running(application):
        await feed(application, message(application, 1, 7))
        assert await manager.peek(sid(7)) == {"user_data": {"stopped": True}}


async def test_an_update_delivered_twice_counts_once_but_a_failed_one_may_come_again() -> None:
    failing = True

    async def handle(update: Update, context: Any) -> None:
        await count(update, context)
        if update.update_id == 2 and failing:
            raise ValueError("a bug")

    manager = SessionManager()
    application, _ = build(manager, None, handle)
    gather_errors(application)
    async with running(application):
        again = message(application, 1, 7)
        await feed(application, again, again, message(application, 2, 7))
        failing = False
        await feed(application, again, message(application, 2, 7))
        await application.process_update(again)  # as a web framework's route would
        assert await manager.peek(sid(7)) == {"user_data": {"n": 2}}


async def test_an_update_whose_caller_goes_away_is_rolled_back_and_holds_nothing() -> None:
    inside = asyncio.Event()

    async def handle(update: Update, context: Any) -> None:
        await count(update, context)
        if update.message.text == "hang":
            inside.set()
            await asyncio.Event().wait()

    manager = SessionManager()
    application, _ = build(manager, None, handle)
    async with running(application):
        request = asyncio.create_task(application.process_update(message(application, 1, -5, 7, text="hang")))
        waiting = asyncio.create_task(application.process_update(message(application, 2, -5, 8)))
        await inside.wait()
        waiting.cancel()
        request.cancel()
        await asyncio.wait([request, waiting])
        assert request.cancelled()
        assert waiting.cancelled()
        await feed(application, message(application, 3, -5, 7), message(application, 1, -5, 7))
        assert await manager.peek(sid(7)) == {"user_data": {"n": 2}}
        assert await manager.peek(sid(8)) is None


async def test_a_handler_that_runs_too_long_loses_its_session_and_the_bot_is_told() -> None:
    clock, inside, go_on = ManualClock(), asyncio.Event(), asyncio.Event()
    ended: list[BaseException] = []

    async def handle(update: Update, context: Any) -> None:
        if update.update_id == 1:
            inside.set()
            await go_on.wait()
            with pytest.raises(errors.TurnEndedError) as caught:
                context.user_data["late"] = True
            ended.append(caught.value)
        else:
            context.user_data["next"] = True

    manager = SessionManager(clock=clock, handler_timeout=60.0)
    application, _ = build(manager, None, handle)
    told = gather_errors(application)
    async with running(application):
        application.update_queue.put_nowait(message(application, 1, 7))
        await inside.wait()
        await clock.advance(61.0)
        application.update_queue.put_nowait(message(application, 2, 7))
        await settle()
        assert await manager.peek(sid(7)) == {"user_data": {"next": True}}
        go_on.set()
        await application.update_queue.join()
        assert await manager.peek(sid(7)) == {"user_data": {"next": True}}

    assert len(ended) == 1
    assert [type(error) for error in told] == [errors.HandlerTimeoutError]


async def test_what_a_session_cannot_keep_and_a_store_that_is_away_reach_the_error_handlers() -> None:
    async def handle(update: Update, context: Any) -> None:
        context.user_data["n"] = object() if update.message.text == "bad" else 1

    store = FaultyStore()
    application, _ = build(SessionManager(store), None, handle)
    told = gather_errors(application)
    async with running(application):
        await feed(application, message(application, 1, 7, text="bad"))
        store.outage()
        await feed(application, message(application, 2, 8))
        store.restore()
        await feed(application, message(application, 3, 9))

    assert [type(error) for error in told] == [errors.NotEncodableError, errors.StoreUnavailableError]
    assert store.read(sid(9))["user_data"] == {"n": 1}


async def test_gated_replies_of_a_shutdown_leave_before_the_bot_does() -> None:
    telegram, inside, go_on = Telegram(), asyncio.Event(), asyncio.Event()

    async def handle(update: Update, context: Any) -> None:
        inside.set()
        await go_on.wait()
        sessions.held(update).send_text("done")

    async def deliver(session_id: str, text: str) -> None:
        await settle()
        await application.bot.send_message(PTBSessions.chat_id(session_id), text)

    application, sessions = build(SessionManager(deliver=deliver), telegram, handle)
    async with running(application):
        application.update_queue.put_nowait(message(application, 1, 7))
        await inside.wait()
        go_on.set()

    assert telegram.sent == [(7, "done")]


# --- groups -------------------------------------------------------------------------------------


async def test_a_user_is_one_across_his_chats_and_a_group_is_one_for_its_users() -> None:
    async def handle(update: Update, context: Any) -> None:
        await count(update, context)
        n = context.chat_data.get("n", 0)
        await asyncio.sleep(0)
        context.chat_data["n"] = n + 1

    store = MemorySessionStore()
    application, _ = build(SessionManager(store), None, handle)
    told = gather_errors(application)
    chats = [(chat, user) for chat in (-1, -2, -3, 5) for user in (4, 5, 6) for _ in range(8)]
    async with running(application):
        await feed(application, *(message(application, n, chat, user) for n, (chat, user) in enumerate(chats)))

    assert told == []
    assert [store.read(sid(chat))["chat_data"]["n"] for chat in (-1, -2, -3, 5)] == [24] * 4
    assert [store.read(sid(user))["user_data"]["n"] for user in (4, 5, 6)] == [32] * 3
    assert set(store.read(sid(-1))) == {"chat_data", "$actorbot"}


async def test_a_group_keeps_its_order_also_while_a_user_of_it_is_busy_elsewhere() -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    async def handle(update: Update, context: Any) -> None:
        if update.message.text == "slow":
            inside.set()
            await go_on.wait()
        seen.append(update.message.text)

    application, _ = build(SessionManager(), None, handle)
    async with running(application):
        application.update_queue.put_nowait(message(application, 1, 7, text="slow"))
        await inside.wait()
        for n, user in enumerate([7, 8]):
            application.update_queue.put_nowait(message(application, 2 + n, -1, user, text=f"by {user}"))
        await settle()
        go_on.set()
        await application.update_queue.join()

    assert seen == ["slow", "by 7", "by 8"]


async def test_who_waits_for_room_in_a_line_holds_no_turn_meanwhile() -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()
    seen: list[str] = []

    async def handle(update: Update, context: Any) -> None:
        seen.append(update.message.text)
        if update.message.text == "slow":
            inside.set()
            await go_on.wait()
            async with sessions.turn(-1) as turn:
                turn.session["told"] = True

    manager = SessionManager(max_mailbox=2)
    application, sessions = build(manager, None, handle)
    told = gather_errors(application)
    async with running(application):
        application.update_queue.put_nowait(message(application, 1, 7, text="slow"))
        await inside.wait()
        for n, user in enumerate([7, 8, 7]):
            application.update_queue.put_nowait(message(application, 2 + n, -1, user, text=f"{n} by {user}"))
        await settle()
        go_on.set()
        async with asyncio.timeout(20):
            await application.update_queue.join()
        assert await manager.peek(sid(-1)) == {"told": True}

    assert told == []
    assert seen == ["slow", "0 by 7", "1 by 8", "2 by 7"]


async def test_an_update_in_a_group_changes_both_sessions_or_none() -> None:
    async def handle(update: Update, context: Any) -> None:
        await count(update, context)
        context.chat_data["last"] = object() if update.message.text == "bad" and len(told) < 1 else "kept"

    manager = SessionManager()
    application, _ = build(manager, None, handle)
    told = gather_errors(application)
    async with running(application):
        bad = message(application, 1, -5, 7, text="bad")
        await feed(application, bad)
        assert [await manager.peek(sid(number)) for number in (-5, 7)] == [None, None]
        await feed(application, bad)  # so it may come again
        assert [await manager.peek(sid(-5)), await manager.peek(sid(7))] == [
            {"chat_data": {"last": "kept"}},
            {"user_data": {"n": 1}},
        ]
    assert [type(error) for error in told] == [errors.NotEncodableError]


async def test_a_group_whose_time_is_up_first_takes_its_users_change_with_it() -> None:
    clock = ManualClock()
    inside, go_on = [asyncio.Event() for _ in range(3)], [asyncio.Event() for _ in range(3)]

    async def handle(update: Update, context: Any) -> None:
        inside[update.update_id].set()
        await go_on[update.update_id].wait()
        await count(update, context)

    manager = SessionManager(clock=clock, handler_timeout=60.0)
    application, _ = build(manager, None, handle)
    told = gather_errors(application)
    async with running(application):
        go_on[0].set()
        await feed(
            application, message(application, 0, -5, 8)
        )  # so that the group is in memory, its turn there at once
        application.update_queue.put_nowait(message(application, 1, 7))
        await inside[1].wait()
        application.update_queue.put_nowait(message(application, 2, -5, 7))  # has the group, waits for its user
        await settle()
        await clock.advance(40.0)
        go_on[1].set()
        await inside[2].wait()
        await clock.advance(30.0)  # of the group's 60 s 70 have passed, of the user's 30
        go_on[2].set()
        async with asyncio.timeout(20):
            await application.update_queue.join()
        assert await manager.peek(sid(7)) == {"user_data": {"n": 1}}
    assert [type(error) for error in told] == [errors.HandlerTimeoutError]


async def test_a_caller_that_goes_away_between_two_commits_tears_nothing() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    class Slow:
        """A driver of four methods whose writes take their time."""

        kept: ClassVar[dict[str, Any]] = {}

        async def init(self) -> None: ...

        async def read(self, session_id: str) -> Any:
            return self.kept.get(session_id)

        async def write(self, session_id: str, session: Any) -> None:
            begun.set()
            await go_on.wait()
            self.kept[session_id] = session

        async def destroy(self, session_id: str) -> None: ...

    async def handle(update: Update, context: Any) -> None:
        context.user_data["n"] = context.chat_data["n"] = 1

    application, _ = build(SessionManager(Slow(), flush=FlushPolicy.write_through()), None, handle)
    async with running(application):
        request = asyncio.create_task(application.process_update(message(application, 1, -5, 7)))
        await begun.wait()
        request.cancel()
        with pytest.raises(asyncio.CancelledError):
            await request
        go_on.set()

    assert [Slow.kept[sid(7)]["user_data"], Slow.kept[sid(-5)]["chat_data"]] == [{"n": 1}] * 2


async def test_if_the_replies_of_one_session_find_no_room_the_others_change_nothing_either() -> None:
    there = asyncio.Event()

    async def deliver(*_: Any) -> None:
        await there.wait()

    manager = SessionManager(deliver=deliver, max_replies=1)
    application, sessions = build(manager)
    async with running(application):
        async with sessions.turn(-5) as turn:
            turn.send_text("1")
        with pytest.raises(errors.OverloadedError):
            async with sessions.turn(-5, 7) as turn:
                user = held(manager, sid(7))
                assert user is not None
                user.session["n"] = 1
                turn.send_text("2")
        assert await manager.peek(sid(7)) is None
        there.set()


async def test_turns_of_several_sessions_never_wait_in_a_circle() -> None:
    manager = SessionManager()
    application, sessions = build(manager)

    async def swap(first: int, second: int) -> None:
        async with sessions.turn(first, second) as turn:
            await asyncio.sleep(0)
            turn.session["first"] = turn.session.get("first", 0) + 1

    async with running(application), asyncio.timeout(20):
        await asyncio.gather(*(swap(*pair) for _ in range(20) for pair in ((5, 7), (7, 5), (-1, 7), (7, -1))))
        assert [await manager.peek(sid(n)) for n in (5, 7, -1)] == [{"first": 20}, {"first": 40}, {"first": 20}]


async def test_a_group_that_becomes_a_supergroup_takes_its_data_along() -> None:
    async def handle(update: Update, context: Any) -> None:
        context.chat_data["title"] = "ours"

    async def migrate(update: Update, context: Any) -> None:
        context.application.migrate_chat_data(message=update.message)

    store = MemorySessionStore()
    moved = MessageHandler(filters.StatusUpdate.MIGRATE, migrate)
    application, _ = build(SessionManager(store), None, moved, handle)
    async with running(application):
        await feed(application, message(application, 1, -5, 7))
        away = message(application, 2, -5, 7, text="", migrate_to_chat_id=-1005)
        here = message(application, 3, -1005, 7, text="", migrate_from_chat_id=-5)
        await feed(application, away, here)

    assert store.read(sid(-5))["chat_data"] == {}
    assert store.read(sid(-1005))["chat_data"] == {"title": "ours"}


# --- memory and restarts ------------------------------------------------------------------------


async def test_a_quiet_user_leaves_memory_and_comes_back_with_his_data() -> None:
    clock, store = ManualClock(), RecordingStore()
    manager = SessionManager(store, clock=clock, idle_timeout=60.0)
    application, _ = build(manager, None, count)
    async with running(application):
        await feed(application, *(message(application, n, n) for n in range(1, 51)))
        await clock.advance(121.0)
        assert list(manager.resident()) == []
        gc.collect()
        kept = {
            name: getattr(application, name)
            for name in application.__class__.__mro__[1].__slots__
            if "_in_persistence" in name
        }
        assert kept == {name: set() for name in kept}
        assert len(application._user_data) == len(application._chat_data) == 0
        read = len(store.reads)
        await feed(application, message(application, 99, 7))
        assert list(store.reads)[read:] == [sid(7)]
        assert await manager.peek(sid(7)) == {"user_data": {"n": 2}}


async def test_everything_is_there_after_a_restart(tmp_path: Path) -> None:
    for n in range(3):
        application, _ = build(SessionManager(FileSessionStore(tmp_path / "s")), None, count)
        async with running(application):
            await feed(application, *(message(application, 10 * n + chat, chat) for chat in (1, 2)))
    async with SessionManager(FileSessionStore(tmp_path / "s")) as manager:
        assert await manager.peek(sid(1)) == await manager.peek(sid(2)) == {"user_data": {"n": 3}}


async def test_a_manager_that_was_started_before_is_left_to_its_owner() -> None:
    async with SessionManager() as manager:
        application, _ = build(manager, None, count)
        async with running(application):
            await feed(application, message(application, 1, 7))
        assert await manager.peek(sid(7)) == {"user_data": {"n": 1}}


def test_run_polling_starts_and_closes_the_manager(tmp_path: Path) -> None:
    telegram, store = Telegram(), RecordingStore()
    telegram.waiting.extend(raw(n, 7) for n in range(5))

    async def handle(update: Update, context: Any) -> None:
        await count(update, context)
        if update.update_id == 4:
            context.application.stop_running()

    manager = SessionManager(store, flush=FlushPolicy.write_behind(max_delay=60.0))
    application, _ = build(manager, telegram, handle)
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        application.run_polling(stop_signals=None)
    finally:
        asyncio.set_event_loop(None)

    assert store.read(sid(7))["user_data"] == {"n": 5}
    assert not telegram.open
    assert manager.health().reason == "the manager is closed"


# --- conversations ------------------------------------------------------------------------------


def conversation(**options: Any) -> ConversationHandler[Any]:
    """Asks for a name, then for an age, then ends."""

    async def begin(update: Update, context: Any) -> str:
        await asyncio.sleep(0)
        return "name"

    async def name(update: Update, context: Any) -> str:
        if update.message.text == "bad":
            raise ValueError("a bug")
        context.user_data["name"] = update.message.text
        return "age"

    async def age(update: Update, context: Any) -> int:
        context.user_data["age"] = update.message.text
        return ConversationHandler.END

    begins, states = [on_text(begin)], {"name": [on_text(name)], "age": [on_text(age)]}
    return ConversationHandler(begins, states, [], **({"name": "who", "persistent": True} | options))


async def test_a_conversation_lives_in_its_users_session_and_goes_on_after_a_restart(tmp_path: Path) -> None:
    for n, text in enumerate(["hi", "Tim", "42"]):
        manager = SessionManager(FileSessionStore(tmp_path / "s"))
        application, _ = build(manager, None, conversation())
        async with running(application):
            await feed(application, *(message(application, 10 * n + user, -1, user, text=text) for user in (7, 8)))
            states = [(await manager.peek(sid(user)))["conversations"] for user in (7, 8)]
            stored = {"hi": "name", "Tim": "age"}.get(text)
            assert states == ([{f"who (-1, {user})": stored} for user in (7, 8)] if stored else [{}, {}])
    async with SessionManager(FileSessionStore(tmp_path / "s")) as manager:
        for user in (7, 8):
            assert (await manager.peek(sid(user)))["user_data"] == {"name": "Tim", "age": "42"}


async def test_a_conversation_goes_back_with_its_turn() -> None:
    async def fail(update: Update, context: Any) -> None:
        if update.message.text == "bad later":
            raise ValueError("a bug in another group")

    manager = SessionManager()
    application, _ = build(manager, None, conversation(), fail)
    told = gather_errors(application)
    async with running(application):
        await feed(
            application, *(message(application, n, 7, text=text) for n, text in enumerate(["hi", "bad", "bad later"]))
        )
        state = await manager.peek(sid(7))
        await feed(application, *(message(application, n, 7, text=text) for n, text in enumerate(["Tim", "42"], 10)))
        after = await manager.peek(sid(7))

    assert len(told) == 2
    assert state == {"conversations": {"who (7, 7)": "name"}}
    assert after["user_data"] == {"name": "Tim", "age": "42"}


async def test_a_group_has_conversations_of_its_own_where_they_are_not_per_user() -> None:
    manager = SessionManager()
    application, _ = build(manager, None, conversation(per_user=False))
    async with running(application):
        await feed(application, message(application, 1, -1, 7), message(application, 2, -1, 8, text="Tim"))
        assert (await manager.peek(sid(-1)))["conversations"] == {"who (-1,)": "age"}
        assert (await manager.peek(sid(8)))["user_data"] == {"name": "Tim"}


async def test_a_conversation_with_a_handler_in_the_background_takes_its_state_when_that_is_done() -> None:
    go_on = asyncio.Event()

    async def begin(update: Update, context: Any) -> str:
        await go_on.wait()
        return "open"

    async def end(update: Update, context: Any) -> int:
        return ConversationHandler.END

    states: Any = {"open": [MessageHandler(filters.Regex("end"), end)]}
    handler = ConversationHandler([on_text(begin, block=False)], states, [], name="slow", persistent=True)
    manager = SessionManager()
    application, _ = build(manager, None, handler)
    async with running(application):
        await feed(application, message(application, 1, 7), message(application, 2, 7))
        go_on.set()
        await settle()
        await feed(application, message(application, 3, 7, text="nothing"))
        assert (await manager.peek(sid(7)))["conversations"] == {"slow (7, 7)": "open"}
        await feed(application, message(application, 4, 7, text="end"))
        assert (await manager.peek(sid(7)))["conversations"] == {}


async def test_a_conversation_inside_another_is_kept_too() -> None:
    async def begin(update: Update, context: Any) -> str:
        return "outer"

    handler = ConversationHandler(
        [MessageHandler(filters.Regex("begin"), begin)],
        {"outer": [conversation(map_to_parent={ConversationHandler.END: ConversationHandler.END})]},
        [], name="parent", persistent=True,
    )  # fmt: skip
    manager = SessionManager()
    application, _ = build(manager, None, handler)
    async with running(application):
        await feed(
            application, *(message(application, n, 7, text=text) for n, text in enumerate(["begin", "hi", "Tim"]))
        )
        states = {"parent (7, 7)": "outer", "who (7, 7)": "age"}
        assert (await manager.peek(sid(7)))["conversations"] == states
        await feed(application, message(application, 5, 7, text="42"))
        assert (await manager.peek(sid(7)))["conversations"] == {}


# --- outside of a turn --------------------------------------------------------------------------


async def test_a_job_has_no_turn_and_takes_one() -> None:
    manager = SessionManager()
    application, sessions = build(manager, None, count)
    async with running(application):
        await feed(application, message(application, 1, 7))
        job = CallbackContext(application, chat_id=7, user_id=7)  # as the job queue makes it
        await job.refresh_data()
        with pytest.raises(errors.TurnEndedError, match=r"async with sessions\.turn\(7\)"):
            job.user_data["n"] = 0
        async with sessions.turn(7) as turn:
            assert job.user_data == {"n": 1}
            job.user_data["n"] += 1
            turn.session["seen"] = True
        with pytest.raises(errors.TurnEndedError):
            application.drop_user_data(7)
        assert await manager.peek(sid(7)) == {"user_data": {"n": 2}, "seen": True}
        async with sessions.turn(7):
            application.drop_user_data(7)
        assert await manager.peek(sid(7)) == {"user_data": {}, "seen": True}
        with pytest.raises(TypeError, match="cannot be listed"):
            list(application.user_data)


async def test_a_handler_in_the_background_is_told_when_its_turn_is_over() -> None:
    go_on = asyncio.Event()

    async def handle(update: Update, context: Any) -> None:
        await go_on.wait()
        context.user_data["late"] = True

    manager = SessionManager()
    application, _ = build(manager, None, on_text(handle, block=False), count)
    told = gather_errors(application)
    async with running(application):
        await feed(application, message(application, 1, 7))
        go_on.set()
        await settle()
        assert [type(error) for error in told] == [errors.TurnEndedError]
        assert await manager.peek(sid(7)) == {"user_data": {"n": 1}}


async def test_a_task_that_fails_on_its_own_fails_no_turn() -> None:
    async def fail() -> None:
        raise ValueError("a bug")

    async def handle(update: Update, context: Any) -> None:
        await asyncio.wait([context.application.create_task(fail(), update=update)])
        await count(update, context)

    manager = SessionManager()
    application, _ = build(manager, None, handle)
    told = gather_errors(application)
    async with running(application):
        await feed(application, message(application, 1, 7))
        assert [str(error) for error in told] == ["a bug"]
        assert await manager.peek(sid(7)) == {"user_data": {"n": 1}}


async def test_an_update_inside_another_fails_alone() -> None:
    async def handle(update: Update, context: Any) -> None:
        await count(update, context)
        inner = {"inner fails": "bad", "outer fails": "good"}.get(update.message.text)
        if inner is not None:
            await context.application.process_update(message(application, update.update_id + 10, 8, text=inner))
        if update.message.text in ("bad", "outer fails"):
            raise ValueError("a bug")

    manager = SessionManager()
    application, _ = build(manager, None, handle)
    told = gather_errors(application)
    async with running(application):
        await feed(application, message(application, 1, 7, text="inner fails"))
        assert [await manager.peek(sid(n)) for n in (7, 8)] == [{"user_data": {"n": 1}}, None]
        await feed(application, message(application, 2, 7, text="outer fails"))
        assert [await manager.peek(sid(n)) for n in (7, 8)] == [{"user_data": {"n": 1}}] * 2
    assert len(told) == 2


async def test_updates_of_nobody_run_without_a_turn() -> None:
    seen: list[object] = []

    async def poll(update: Update, context: Any) -> None:
        seen.append(context.user_data)
        with pytest.raises(ValueError, match="has no session"):
            sessions.session(update)

    async def other(update: object, context: Any) -> None:
        seen.append(update)

    application, sessions = build(SessionManager(), None, PollHandler(poll), TypeHandler(str, other))
    told = gather_errors(application)
    flags = ("is_closed", "is_anonymous", "allows_multiple_answers", "allows_revoting", "members_only")
    facts = dict.fromkeys(flags, False) | {"id": "1", "question": "?", "options": [], "type": "regular"}
    async with running(application):
        told_of = {"update_id": 1, "poll": facts | {"total_voter_count": 0}}
        await feed(application, Update.de_json(told_of, application.bot), "mine")

    assert told == []
    assert seen == [None, "mine"]


async def test_a_handler_that_has_the_bot_process_another_update_of_its_chat_is_refused_at_once() -> None:
    async def handle(update: Update, context: Any) -> None:
        await count(update, context)
        if update.update_id == 1:
            await context.application.process_update(message(application, 2, 7))

    manager = SessionManager()
    application, _ = build(manager, None, handle)
    told = gather_errors(application)
    async with running(application):
        await feed(application, message(application, 1, 7))
        assert [type(error) for error in told] == [errors.DeadlockError]
        assert await manager.peek(sid(7)) == {"user_data": {"n": 1}}


async def test_it_is_refused_at_once_also_while_more_updates_wait_than_a_mailbox_takes() -> None:
    inside, go_on = asyncio.Event(), asyncio.Event()

    async def handle(update: Update, context: Any) -> None:
        await count(update, context)
        if update.update_id == 0:
            inside.set()
            await go_on.wait()
            await context.application.process_update(message(application, 200, 7))

    manager = SessionManager(max_mailbox=10)
    application, _ = build(manager, None, handle)
    told = gather_errors(application)
    async with running(application):
        application.update_queue.put_nowait(message(application, 0, 7))
        await inside.wait()
        for n in range(1, 31):
            application.update_queue.put_nowait(message(application, n, 7))
        await settle()
        go_on.set()
        async with asyncio.timeout(20):
            await application.update_queue.join()
        assert await manager.peek(sid(7)) == {"user_data": {"n": 31}}
    assert [type(error) for error in told] == [errors.DeadlockError]


# --- what is refused ----------------------------------------------------------------------------


async def test_what_cannot_work_is_refused_at_the_start() -> None:
    @dataclass
    class Values:
        n: int = 0

    with pytest.raises(errors.ConfigError, match="session_type"):
        PTBSessions(SessionManager(session_type=Values))
    with pytest.raises(errors.ConfigError, match=r"context_types\.user_data"):
        build(SessionManager(), None, user_data=Values)
    with pytest.raises(RuntimeError, match="install"):
        PTBSessions(SessionManager()).session_id(7)
    application, _ = build(SessionManager(), None, conversation(conversation_timeout=5))
    with pytest.raises(errors.ConfigError, match="conversation_timeout"):
        async with application:
            pass


async def test_an_application_that_is_started_again_says_that_its_manager_is_closed() -> None:
    application, _ = build(SessionManager())
    async with application:
        pass
    with pytest.raises(errors.ManagerClosedError):
        async with application:
            pass


async def test_a_conversation_that_comes_too_late_is_told_of() -> None:
    application, _ = build(SessionManager())
    told = gather_errors(application)
    async with running(application):
        with pytest.warns(PTBUserWarning, match="after `Application.initialize` was called"):
            application.add_handler(conversation())
        await settle()
        await feed(application, message(application, 1, 7))
        await application.update_persistence()
    assert [str(error) for error in told] == [
        "the conversation 'who' was added after initialize(): its states are not kept"
    ]


def test_a_missing_library_is_named_with_the_command_that_installs_it() -> None:
    code = "import sys; sys.modules['telegram'] = None; import actorbot.ext.ptb"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr.endswith(
        "ImportError: actorbot.ext.ptb needs python-telegram-bot: pip install '.[ptb]' in a clone of actorbot\n"
    )


# --- the page and the example -------------------------------------------------------------------


async def test_the_bots_of_the_page_count_as_it_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    counted: dict[str, list[int]] = {}
    for heading in ("Before", "After"):
        names: dict[str, Any] = {"__name__": "bot"}
        exec(program("python-telegram-bot", heading), names)
        telegram = Telegram()
        builder = Application.builder().token(f"{BOT}:x").request(telegram).get_updates_request(telegram)
        async with running(names["build"](builder)) as application:
            await feed(application, *hundred(application))
            if heading == "Before":
                counted[heading] = [application.user_data[chat]["n"] for chat in CHATS]
        assert len(telegram.sent) == 100
    async with SessionManager(FileSessionStore(tmp_path / ".sessions")) as manager:
        states = [await manager.peek(sid(chat)) for chat in CHATS]
        counted["After"] = [state["user_data"]["n"] for state in states if state is not None]

    assert counted == {"Before": [1] * 10, "After": [10] * 10}


async def test_the_job_of_the_page_takes_a_turn_and_one_that_takes_none_is_told() -> None:
    pytest.importorskip("apscheduler", reason="the job queue of python-telegram-bot is an extra of its own")
    text = (PAGES / "python-telegram-bot.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {}
    exec("async def remind" + text.split("```python\nasync def remind")[1].split("```")[0], names)
    ended: asyncio.Queue[object] = asyncio.Queue()

    async def remind(context: Any) -> None:
        await names["remind"](context)
        ended.put_nowait("reminded")

    async def forget(context: Any) -> None:
        context.user_data.clear()

    async def note(update: object, context: Any) -> None:
        ended.put_nowait(type(context.error))

    async def plan(update: Update, context: Any) -> None:
        await count(update, context)
        context.job_queue.run_once(remind, 0, user_id=7)
        context.job_queue.run_once(forget, 0, user_id=7)

    manager = SessionManager()
    application, names["sessions"] = build(manager, None, plan)
    application.add_error_handler(note)
    async with running(application), asyncio.timeout(20):
        await feed(application, message(application, 1, 7))
        assert {await ended.get(), await ended.get()} == {"reminded", errors.TurnEndedError}
        assert await manager.peek(sid(7)) == {"user_data": {"n": 1, "reminded": 1}}


async def test_what_a_pickle_holds_is_taken_over_as_the_page_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    old = PicklePersistence("bot.pickle")
    await old.update_user_data(7, {"n": 41})
    await old.flush()
    text = (PAGES / "python-telegram-bot.md").read_text(encoding="utf-8")
    names: dict[str, Any] = {"PicklePersistence": PicklePersistence}
    exec("async def take_over" + text.split("```python\nasync def take_over")[1].split("```")[0], names)
    manager = SessionManager()
    application, names["sessions"] = build(manager, None, count)
    async with running(application):
        await names["take_over"](application)
        await feed(application, message(application, 1, 7))
        assert await manager.peek(sid(7)) == {"user_data": {"n": 42}}


async def test_the_example_remembers_its_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    telegram = Telegram()
    command = {"entities": [{"type": "bot_command", "offset": 0, "length": 6}]}
    for n in (0, 10):  # the second run goes on in the middle of the conversation
        names = runpy.run_path(str(EXAMPLE), run_name="bot")
        builder = Application.builder().token(f"{BOT}:x").request(telegram).get_updates_request(telegram)
        async with running(names["build"](builder)) as application:
            if n == 0:
                await feed(application, message(application, 1, 7, text="/start", **command))
            else:
                await feed(
                    application, *(message(application, n + i, 7, text=text) for i, text in enumerate(["Tim", "hey"]))
                )

    assert telegram.sent == [(7, "Hi, what's your nickname?"), (7, "Hello Tim"), (7, "That was message 1, Tim")]
