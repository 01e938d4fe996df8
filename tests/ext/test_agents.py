"""Agents whose memory is in actorbot's sessions: the SDK's own runner, only the model behind it is
made up.
"""

from __future__ import annotations

import asyncio
import subprocess
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import make_dataclass
from itertools import chain
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from agents import Agent, Runner, function_tool, set_tracing_disabled
from agents.memory import Session
from aiogram.fsm.context import FSMContext
from aiogram.types import Message

from actorbot import DUPLICATE, Context, Event, FileSessionStore, SessionManager
from actorbot.errors import (
    ConfigError,
    HandlerTimeoutError,
    ManagerClosedError,
    SessionTooLargeError,
    StoreUnavailableError,
    TurnEndedError,
)
from actorbot.ext.agents import ITEMS, AgentSession
from actorbot.ext.aiogram import FSM
from actorbot.testing import FaultyStore, ManualClock
from examples.with_openai_agents import agent, make_bot
from tests.ext.model import CountingModel, plain
from tests.ext.pages import program
from tests.ext.telegram import message
from tests.ext.test_aiogram import build as telegram_bot


@pytest.fixture(autouse=True)
def nothing_is_traced() -> Iterator[None]:
    set_tracing_disabled(True)
    yield
    set_tracing_disabled(False)


class Bot:
    """A manager whose handler runs an agent on what was said, and counts in the session's own
    values.
    """

    def __init__(self, store: Any = None, *, max_items: int | None = None, **options: Any) -> None:
        self.model = CountingModel()
        self.agent = Agent(name="Helper", model=self.model, tools=[function_tool(self.look)])
        self.max_items = max_items
        self.manager = SessionManager(store, handler=self.answer, **options)

    def look(self) -> str:
        """Look around."""
        return "all is well"

    def memory(self, user: str) -> AgentSession:
        return AgentSession(self.manager, user, max_items=self.max_items)

    async def answer(self, context: Context) -> Any:
        context.session["n"] = context.session.get("n", 0) + 1
        result = await Runner.run(self.agent, context.event, session=self.memory(context.session_id))
        return result.final_output

    async def say(self, user: str, *texts: str) -> list[Any]:
        return [await self.manager.dispatch(user, text) for text in texts]

    async def remembered(self, user: str) -> list[str]:
        return plain(((await self.manager.peek(user)) or {}).get(ITEMS, []))


def conversation(length: int) -> list[str]:
    return [line for n in range(length) for line in (f"user: {n}", f"assistant: {n + 1}")]


async def hundred(on_message: Any) -> list[Any]:
    """Ten messages of each of ten users, all at once."""
    return await asyncio.gather(*(on_message(f"u{i % 10}", str(i // 10)) for i in range(100)))


@pytest.mark.timeout(180)  # the library's own store syncs a file for each message, which a busy disk makes slow
async def test_the_bot_of_the_page_mixes_conversations_before_and_none_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    before: dict[str, Any] = {}
    exec(compile(program("openai-agents", "Before"), "page", "exec"), before)
    before["agent"].model = CountingModel()
    answers = await hundred(before["on_message"])
    whole = sum(answer == str(1 + i // 10) for i, answer in enumerate(answers))
    mixed = 0
    for memory in before["memories"].values():
        mixed += plain(await memory.get_items()) != conversation(10)
        memory.close()

    after: dict[str, Any] = {}
    exec(compile(program("openai-agents", "After"), "page", "exec"), after)
    model = after["agent"].model = CountingModel()
    async with after["manager"]:
        ours = await hundred(after["on_message"])
    known = sum(answer == str(1 + i // 10) for i, answer in enumerate(ours))
    print(
        f"100 messages of 10 users, answered knowing what came before: SQLiteSession {whole} ({mixed} of 10 memories mixed),"
        f" with actorbot {known}"
    )
    assert whole < 100
    assert mixed > 0
    assert ours == [str(1 + i // 10) for i in range(100)]
    assert model.most == 10  # users side by side
    async with SessionManager(FileSessionStore(".sessions")) as manager:  # as the next start of the bot finds it
        for user in range(10):
            session = await manager.peek(f"chat:u{user}")
            assert session is not None
            assert plain(session[ITEMS]) == conversation(10)


async def test_a_run_that_fails_in_a_turn_leaves_no_trace() -> None:
    bot = Bot()
    async with bot.manager:
        await bot.say("ann", "0")
        for text in ("break", "tool and break"):
            with pytest.raises(RuntimeError, match="the model is down"):
                async with bot.manager.turn("ann") as turn:
                    turn.session["n"] = 100
                    if text != "break":
                        await Runner.run(bot.agent, "tool", session=bot.memory("ann"))
                    await Runner.run(bot.agent, "break", session=bot.memory("ann"))
        assert await bot.manager.peek("ann") == {"n": 1, ITEMS: (await bot.memory("ann").get_items())}
        assert await bot.remembered("ann") == conversation(1)
        assert await bot.say("ann", "1") == ["2"]


async def test_a_slow_run_delays_nobody_else_and_an_idle_conversation_leaves_memory_and_comes_back() -> None:
    clock = ManualClock()
    bot = Bot(clock=clock, idle_timeout=60.0)
    async with bot.manager:
        slow = asyncio.create_task(bot.manager.dispatch("ann", "hold"))
        await bot.model.inside.wait()
        await clock.advance(15.0)
        assert await bot.say("bob", "0", "1") == ["1", "2"]
        await clock.advance(15.0)
        bot.model.go_on.set()
        assert await slow == "1"

        await clock.advance(120.0)
        assert list(bot.manager.resident()) == []
        assert await bot.say("bob", "2") == ["3"]


async def test_a_run_that_overruns_is_ended_and_remembers_nothing() -> None:
    clock = ManualClock()
    bot = Bot(clock=clock, handler_timeout=300.0)
    async with bot.manager:
        await bot.say("ann", "0")
        slow = asyncio.create_task(bot.manager.dispatch("ann", "hold"))
        await bot.model.inside.wait()
        await clock.advance(301.0)
        with pytest.raises(HandlerTimeoutError):
            await slow

        async def borrowed() -> None:
            async with bot.manager.turn("ann"):  # nobody can cancel what is done in here
                with pytest.raises(TurnEndedError):
                    await Runner.run(bot.agent, "hold", session=bot.memory("ann"))

        bot.model.inside.clear()
        slow = asyncio.create_task(borrowed())
        await bot.model.inside.wait()
        await clock.advance(301.0)
        bot.model.go_on.set()
        with pytest.raises(HandlerTimeoutError):
            await slow
        assert await bot.remembered("ann") == conversation(1)


async def test_cancelling_a_run_rolls_it_back_and_frees_the_session() -> None:
    bot = Bot()
    async with bot.manager:
        gone = asyncio.create_task(bot.manager.dispatch("ann", "hold"))
        await bot.model.inside.wait()
        gone.cancel()
        assert await asyncio.wait_for(bot.say("ann", "0"), 5.0) == ["1"]
        assert gone.cancelled()
        assert await bot.remembered("ann") == conversation(1)


async def test_a_message_delivered_twice_is_answered_and_paid_for_once() -> None:
    bot = Bot()
    async with bot.manager:
        answers = await asyncio.gather(*(bot.manager.dispatch("ann", "0", event_id="m1") for _ in range(2)))
        assert answers == ["1", DUPLICATE]
        assert bot.model.calls == 1


async def test_a_conversation_goes_on_after_a_restart(tmp_path: Path) -> None:
    for n in range(3):
        bot = Bot(FileSessionStore(tmp_path))
        async with bot.manager:
            assert await bot.say("ann", str(n)) == [str(n + 1)]
    assert bot.model.calls == 1


async def test_a_streamed_run_is_part_of_the_turn_too() -> None:
    bot = Bot()
    async with bot.manager:
        with pytest.raises(RuntimeError, match="rolled back"):
            async with bot.manager.turn("ann"):
                async for _ in Runner.run_streamed(bot.agent, "tool", session=bot.memory("ann")).stream_events():
                    pass
                raise RuntimeError("rolled back")
        async with bot.manager.turn("ann"):
            async for _ in Runner.run_streamed(bot.agent, "tool", session=bot.memory("ann")).stream_events():
                pass
            assert await bot.remembered("ann") == []
        assert await bot.remembered("ann") == ["user: tool", "function_call", "function_call_output", "assistant: 1"]


async def test_inside_an_aiogram_handler_it_is_part_of_the_updates_turn() -> None:
    manager, _, dispatcher, bot, _ = telegram_bot()
    helper = Agent(name="Helper", model=CountingModel())

    @dispatcher.message()
    async def answer(message: Message, state: FSMContext, turn: Context) -> str:
        await state.set_state("talking")
        result = await Runner.run(helper, message.text or "", session=AgentSession(manager, turn.session_id))
        return str(result.final_output)

    async with manager:
        assert await dispatcher.feed_update(bot, message(1, "0")) == "1"
        kept = await manager.peek("telegram:42:1:1")
        assert kept is not None
        assert set(kept) == {ITEMS, FSM}
        with pytest.raises(RuntimeError, match="the model is down"):
            await dispatcher.feed_update(bot, message(1, "break"))
        with pytest.raises(RuntimeError, match="the model is down"):
            await dispatcher.feed_update(bot, message(2, "break"))
        assert await manager.peek("telegram:42:1:1") == kept
        assert await manager.peek("telegram:42:2:2") is None


async def test_outside_a_turn_each_change_is_a_turn_of_its_own() -> None:
    bot = Bot()
    memory = bot.memory("ann")
    async with bot.manager:
        assert isinstance(memory, Session)
        await memory.add_items([])
        assert (await memory.get_items(), await bot.manager.peek("ann")) == ([], None)
        assert (await Runner.run(bot.agent, "0", session=memory)).final_output == "1"
        assert await bot.remembered("ann") == conversation(1)
        with pytest.raises(RuntimeError, match="the model is down"):
            await Runner.run(bot.agent, "break", session=memory)
        if await bot.remembered("ann") == conversation(1):  # older SDKs add what was said at the end of a run
            await memory.add_items([{"role": "user", "content": "break"}])
        assert await bot.remembered("ann") == [*conversation(1), "user: break"]

        last = await memory.pop_item()
        assert last is not None
        assert plain([last]) == ["user: break"]
        assert plain(await memory.get_items(limit=1)) == ["assistant: 1"]
        assert [await memory.get_items(limit=limit) for limit in (0, 9)] == [[], await memory.get_items()]
        memory.session_settings = SimpleNamespace(limit=1)  # of the SDK, SessionSettings, which older ones have not
        assert plain(await memory.get_items()) == ["assistant: 1"]

        await bot.say("ann", "1")
        await memory.clear_session()
        assert await bot.manager.peek("ann") == {"n": 1}
        assert await memory.pop_item() is None


async def test_before_the_manager_is_started_and_after_a_start_that_failed_it_says_so() -> None:
    async def refuse() -> None:
        for call in (memory.get_items(), memory.add_items([{"role": "user", "content": "hi"}])):
            with pytest.raises(ManagerClosedError):
                await call

    store = FaultyStore()
    store.outage()
    manager = SessionManager(store)
    memory = AgentSession(manager, "ann")
    await refuse()
    with pytest.raises(StoreUnavailableError):
        await manager.start()
    await refuse()


async def test_what_is_handed_in_and_out_is_a_copy() -> None:
    bot = Bot()
    item: Any = {"role": "user", "content": "0"}
    async with bot.manager, bot.manager.turn("ann"):
        memory = bot.memory("ann")
        await memory.add_items([item])
        item["content"] = "changed"
        for read in await memory.get_items():
            read["content"] = "changed"  # type: ignore[typeddict-unknown-key, index]
        assert plain(await memory.get_items()) == ["user: 0"]


def call(number: int, size: int = 10, *, asked: int = 2) -> list[Any]:
    """One call of a tool, with its result."""
    return [
        {"type": "function_call", "call_id": f"c{number}", "name": "read", "arguments": "a" * asked},
        {"type": "function_call_output", "call_id": f"c{number}", "output": "z" * size},
    ]


def said(text: str, role: str = "user") -> Any:
    return {"role": role, "content": text}


def is_whole(items: Any) -> bool:
    """Whether every call has its result, and every result its call before it."""
    calls = [item["call_id"] for item in items if item.get("type") == "function_call"]
    results = [item["call_id"] for item in items if item.get("type") == "function_call_output"]
    return calls == results


@pytest.mark.parametrize("max_items", [None, 4, 40])
async def test_a_long_conversation_never_outgrows_its_session(max_items: int | None) -> None:
    bot = Bot(max_items=max_items, max_session_bytes=2_000)
    async with bot.manager:
        await bot.say("ann", *(str(n) for n in range(30)))

        kept = await bot.remembered("ann")
        assert kept[-2].startswith("user: 29")
        assert [line.split(":")[0] for line in kept] == ["user", "assistant"] * (len(kept) // 2)
        assert len(kept) == 4 if max_items == 4 else len(kept) > 4


@pytest.mark.parametrize("max_items", [None, 40])
@pytest.mark.parametrize("in_turn", [True, False])
async def test_large_results_of_tools_make_old_exchanges_go_and_no_run_fails(
    max_items: int | None, in_turn: bool
) -> None:
    manager = SessionManager()
    async with manager:
        memory = AgentSession(manager, "ann", max_items=max_items)
        for n in range(30):
            async with manager.turn("ann") if in_turn else nullcontext():
                for items in ([said(f"read {n}")], call(n, 30_000), [said("done", "assistant")]):
                    await memory.add_items(items)
            items = await memory.get_items()
            assert is_whole(items)
            assert items[0].get("role") == "user"
            assert plain(items)[-1] == "assistant: done"
        assert len(items) == 4 * 6  # six results of 30,000 bytes are less than three quarters of 262,144
        assert manager.stats().nearly_full == 0


@pytest.mark.parametrize("at_once", [True, False])
@pytest.mark.parametrize("begins_with", ["user", "developer"])
async def test_one_run_that_is_too_long_forgets_its_oldest_calls_and_no_half_of_one(
    at_once: bool, begins_with: str, caplog: pytest.LogCaptureFixture
) -> None:
    manager = SessionManager(max_session_bytes=20_000)
    async with manager:
        memory = AgentSession(manager, "ann")
        await memory.add_items([said("before"), said("yes", "assistant"), said("go", begins_with)])
        steps = [call(n, 500, asked=700) for n in range(100)]
        for items in [[*chain.from_iterable(steps)]] if at_once else steps:
            await memory.add_items(items)
            assert is_whole(await memory.get_items())
        await memory.add_items([said("done", "assistant")])

        items = await memory.get_items()
        texts = plain(items)
        if begins_with == "user":
            assert texts[0] == "user: go"
        assert texts[-1] == "assistant: done"
        assert items[-2].get("call_id") == "c99"
        assert 20 < len(items) < 40
        assert "a run is too large" in caplog.text


async def test_a_result_that_no_session_can_keep_is_left_out_with_its_call() -> None:
    manager = SessionManager(max_session_bytes=20_000)
    async with manager:
        memory = AgentSession(manager, "ann")
        await memory.add_items([said("read it")])
        await memory.add_items(call(1, 300_000))
        await memory.add_items([said("it is long", "assistant")])
        assert plain(await memory.get_items()) == ["user: read it", "assistant: it is long"]

        with pytest.raises(SessionTooLargeError):  # nothing can be left out of this
            await memory.add_items([said("x" * 300_000)])
        await memory.add_items([said("never mind")])
        assert plain(await memory.get_items())[-1] == "user: never mind"


async def test_other_values_of_the_session_take_their_part_of_the_room() -> None:
    manager = SessionManager(max_session_bytes=20_000)
    async with manager:
        async with manager.turn("ann") as turn:
            turn.session["notes"] = "x" * 10_000
        memory = AgentSession(manager, "ann")
        for n in range(30):
            await memory.add_items([said(f"{n}"), *call(n, 1_000), said("done", "assistant")])
        assert 4 <= len(await memory.get_items()) <= 16
        assert manager.stats().nearly_full == 0


async def test_a_call_that_waits_for_the_user_is_not_cut_from_its_result() -> None:
    bot = Bot(max_items=2)
    async with bot.manager:
        memory = bot.memory("ann")
        (asked, result) = call(1)
        await memory.add_items([said("0"), said("1", "assistant"), said("delete it"), asked, said("yes, do"), result])
        await memory.add_items([said("done", "assistant")])
        assert plain(await memory.get_items())[0] == "user: delete it"


async def test_where_no_user_speaks_whole_steps_are_kept() -> None:
    bot = Bot(max_items=5)
    async with bot.manager:
        memory = bot.memory("ann")
        for n in range(10):
            await memory.add_items([{"type": "reasoning", "id": f"r{n}", "summary": []}, *call(n)])
        items = await memory.get_items()
        assert plain(items) == ["reasoning", "function_call", "function_call_output"]
        assert is_whole(items)


async def test_keeping_it_short_tears_no_call_from_its_result() -> None:
    exchange = ["function_call", "function_call_output"]
    bot = Bot(max_items=3)
    async with bot.manager:
        await bot.say("ann", "0", "tool")
        assert await bot.remembered("ann") == ["user: tool", *exchange, "assistant: 2"]  # longer, but whole
        await bot.say("ann", "1")
        assert await bot.remembered("ann") == ["user: 1", "assistant: 2"]

        await bot.memory("bob").add_items([{"role": "assistant", "content": "Welcome"}])  # a beginning that need not go
        await bot.say("bob", "0")
        assert await bot.remembered("bob") == ["assistant: Welcome", "user: 0", "assistant: 1"]


def test_bad_options_are_refused_when_the_memory_is_made() -> None:
    with pytest.raises(ConfigError, match="max_items"):
        AgentSession(SessionManager(), "ann", max_items=0)
    with pytest.raises(ConfigError, match="session_type"):
        AgentSession(SessionManager(session_type=make_dataclass("Visitor", [])), "ann")


def test_without_the_sdk_the_module_says_what_to_install() -> None:
    script = "import sys; sys.modules['agents'] = None; import actorbot.ext.agents"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert done.stderr.endswith(
        "ImportError: actorbot.ext.agents needs openai-agents: pip install '.[agents]' in a clone of actorbot\n"
    )


async def test_the_example_remembers_and_a_failed_answer_is_forgotten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(agent, "model", CountingModel("remember_nickname", '{"nickname": "Tim"}'))
    for said in (["tool", "break"], ["And now?"]):
        bot = make_bot(str(tmp_path))
        await bot.start()
        for text in said:
            with pytest.raises(RuntimeError) if text == "break" else nullcontext():
                await bot.manager.dispatch("console:1", Event.from_text(text))
        await bot.manager.delivered("console:1")
        session = await bot.manager.peek("console:1")
        assert session is not None
        assert session["nickname"] == "Tim"
        await bot.close()
    assert capsys.readouterr().out.splitlines() == [
        "Bot > 1", "Bot > That went wrong, and I have forgotten it: the model is down", "Bot > 2",
    ]  # fmt: skip
