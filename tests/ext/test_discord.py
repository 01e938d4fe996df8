"""discord.py with its handlers in turns: only Discord's own side of the network is made up."""

from __future__ import annotations

import asyncio
import runpy
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from actorbot import FileSessionStore, MemorySessionStore, SessionManager
from actorbot.errors import DeadlockError
from actorbot.ext.discord import in_turn, session_id_of
from actorbot.testing import ManualClock
from tests import ROOT
from tests.ext.discord_api import (
    CHANNELS,
    GUILD,
    DiscordApi,
    app_commands,
    click,
    command,
    commands,
    discord,
    discord_api,
    message,
)
from tests.ext.pages import program

EXAMPLE = ROOT / "examples" / "with_discord.py"
TEN_OF_TEN = dict.fromkeys(CHANNELS, 10)
INTENTS = discord.Intents.default()
INTENTS.message_content = True


def make_client() -> discord.Client:
    return discord.Client(intents=INTENTS)


def make_bot() -> commands.Bot:
    return commands.Bot("!", intents=INTENTS)


async def ended() -> None:
    """Wait until discord.py has no handler running any more."""
    while running := [task for task in asyncio.all_tasks() if _is_handler(task)]:
        await asyncio.wait(running, timeout=10)


def _is_handler(task: asyncio.Task[Any]) -> bool:
    return task.get_name().startswith(("discord.py: ", "CommandTree-", "discord-ui-"))


async def stored(store: Any, channels: list[str] = CHANNELS, user: str = "7") -> dict[str, Any]:
    """Return the counters of a store, read by a manager that has seen none of its sessions."""
    async with SessionManager(store) as manager:
        states = {channel: await manager.peek(f"discord:{GUILD}:{channel}:{user}") for channel in channels}
    return {channel: state["n"] for channel, state in states.items() if state is not None}


# --- the page -----------------------------------------------------------------------------------


async def say_ten_times_in_ten_channels(heading: str) -> DiscordApi:
    names: dict[str, Any] = {"__name__": "bot"}
    exec(compile(program("discord", heading), heading, "exec"), names)
    client = names["client"]
    async with discord_api() as api, client:
        await api.log_in(client)
        async with names.get("manager") or asyncio.timeout(None):
            for _ in range(10):
                for channel in CHANNELS:
                    client._connection.parse_message_create(message("count", channel=channel))
            await ended()
    return api


async def test_the_bot_of_the_page_loses_updates_before_and_counts_ten_of_ten_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    before = await say_ten_times_in_ten_channels("Before")
    stock = {c: max(int(text.split()[-1]) for at, text in before.posted if at == c) for c in CHANNELS}
    after = await say_ten_times_in_ten_channels("After")
    kept = await stored(FileSessionStore(".sessions"))

    print(f"of 10 per channel: stock {sorted(stock.values())}, actorbot {sorted(kept.values())}")
    assert sum(stock.values()) < 100
    assert kept == TEN_OF_TEN
    for channel in CHANNELS:  # each was answered once, and in order
        assert [text for at, text in after.posted if at == channel] == [f"That was number {n}" for n in range(1, 11)]


async def test_the_example_counts_what_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    bot, manager = runpy.run_path(str(EXAMPLE))["make_bot"]()
    async with discord_api() as api, bot, manager:
        await api.log_in(bot)
        for text in ("!count", "!count 5"):
            bot._connection.parse_message_create(message(text))
        await ended()
        await manager.delivered(f"discord:{GUILD}:{CHANNELS[0]}:7")

    assert api.posted == [(CHANNELS[0], "That makes 1"), (CHANNELS[0], "That makes 6")]


def test_a_missing_library_is_named_with_the_command_that_installs_it() -> None:
    code = "import sys; sys.modules['discord'] = None; import actorbot; import actorbot.ext.discord"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)

    assert done.stderr.splitlines()[-1] == (
        "ImportError: actorbot.ext.discord needs discord.py: pip install '.[discord]' in a clone of actorbot"
    )


# --- ordered, atomic, durable -------------------------------------------------------------------


async def test_no_update_is_lost_chats_are_parallel_and_each_stays_in_order(tmp_path: Path) -> None:
    client = make_client()
    inside, most = Counter[str](), Counter[str]()
    seen: dict[str, list[str]] = {}
    everybody = asyncio.Barrier(10)

    async with discord_api() as api, client, SessionManager(FileSessionStore(tmp_path)) as manager:
        await api.log_in(client)

        @client.event
        @in_turn(manager)
        async def on_message(message: discord.Message, session: Any) -> None:
            channel = str(message.channel.id)
            inside[channel] += 1
            most[channel] = max(most[channel], inside[channel])
            n = session.get("n", 0)
            if message.content == "0":
                await asyncio.wait_for(everybody.wait(), 10)  # all ten chats are inside at once, or this fails
            for _ in range(3):
                await asyncio.sleep(0)
            session["n"] = n + 1
            seen.setdefault(channel, []).append(message.content)
            inside[channel] -= 1

        for n in range(10):
            for channel in CHANNELS:
                client._connection.parse_message_create(message(str(n), channel=channel))
        await ended()

    assert await stored(FileSessionStore(tmp_path)) == TEN_OF_TEN
    assert set(most.values()) == {1}
    assert seen == {channel: [str(n) for n in range(10)] for channel in CHANNELS}


async def test_a_handler_that_raises_leaves_no_trace_and_on_error_is_told(caplog: pytest.LogCaptureFixture) -> None:
    client = make_client()
    told: list[tuple[str, str]] = []
    sent: list[str] = []

    async def deliver(session_id: str, text: str) -> None:
        sent.append(text)

    async with discord_api() as api, client, SessionManager(MemorySessionStore(), deliver=deliver) as manager:
        await api.log_in(client)

        @client.event
        @in_turn(manager)
        async def on_message(message: discord.Message, session: Any, turn: Any) -> None:
            session["n"] = session.get("n", 0) + 1
            turn.send_text(f"{message.content} counted")
            if message.content == "bad":
                await message.channel.send("at once")
                raise LookupError("no such thing")

        @client.event
        async def on_error(event: str, *_: Any) -> None:
            told.append((event, str(sys.exc_info()[1])))

        for text in ("good", "bad", "good"):
            client._connection.parse_message_create(message(text))
        await ended()
        state = await manager.peek(f"discord:{GUILD}:{CHANNELS[0]}:7")

    assert told == [("on_message", "no such thing")]
    assert state == {"n": 2}
    assert sent == ["good counted", "good counted"]
    assert api.posted == [(CHANNELS[0], "at once")]


async def test_a_command_that_raises_leaves_no_trace_and_on_command_error_is_told() -> None:
    bot = make_bot()
    told: list[tuple[str, str]] = []

    async with discord_api() as api, bot, SessionManager(MemorySessionStore()) as manager:
        await api.log_in(bot)

        @bot.command()
        @in_turn(manager)
        async def buy(ctx: commands.Context[Any], session: Any, amount: int) -> None:
            session["n"] = session.get("n", 0) + amount
            if amount < 0:
                raise LookupError("no such amount")

        @bot.event
        async def on_command_error(ctx: commands.Context[Any], error: commands.CommandError) -> None:
            told.append((str(ctx.command), str(error.__cause__)))

        for text in ("!buy 3", "!buy -1", "!buy many", "!buy 4"):
            bot._connection.parse_message_create(message(text))
        await ended()

        assert sorted(told) == [("buy", "invalid literal for int() with base 10: 'many'"), ("buy", "no such amount")]
        assert await manager.peek(f"discord:{GUILD}:{CHANNELS[0]}:7") == {"n": 7}


# --- deliveries that are repeated ---------------------------------------------------------------


async def test_a_message_that_is_delivered_again_counts_once_for_each_of_its_handlers() -> None:
    bot = make_bot()
    failures = [LookupError("not today")]

    async with discord_api() as api, bot, SessionManager(MemorySessionStore()) as manager:
        await api.log_in(bot)

        @bot.listen("on_message")
        @in_turn(manager)
        async def first(message: discord.Message, session: Any) -> None:
            session["first"] = session.get("first", 0) + 1

        @bot.listen("on_message")
        @in_turn(manager)
        async def second(message: discord.Message, session: Any) -> None:
            session["second"] = session.get("second", 0) + 1

        @bot.command()
        @in_turn(manager)
        async def count(ctx: commands.Context[Any], session: Any) -> None:
            session["command"] = session.get("command", 0) + 1
            if failures:
                raise failures.pop()

        @bot.event
        async def on_command_error(*_: Any) -> None:
            pass

        data = message("!count")
        for _ in range(3):  # the gateway's connection was resumed twice
            bot._connection.parse_message_create(data.copy())
            await ended()

        assert await manager.peek(f"discord:{GUILD}:{CHANNELS[0]}:7") == {"first": 1, "second": 1, "command": 1}
        assert manager.stats().duplicates == 5


async def test_every_edit_of_a_message_counts_though_its_id_stays_the_same() -> None:
    bot = make_bot()
    async with discord_api() as api, bot, SessionManager(MemorySessionStore()) as manager:
        await api.log_in(bot)

        @bot.event
        @in_turn(manager)
        async def on_message_edit(before: discord.Message, after: discord.Message, session: Any) -> None:
            session["edits"] = session.get("edits", 0) + 1

        @bot.listen("on_message_edit")
        async def take_up_again(before: discord.Message, after: discord.Message) -> None:
            await bot.process_commands(after)

        @bot.command()
        @in_turn(manager)
        async def count(ctx: commands.Context[Any], session: Any) -> None:
            session["n"] = session.get("n", 0) + 1

        data = message("!count")
        bot._connection.parse_message_create(data)
        await ended()
        for second in (0, 1, 1, 1):  # its user changes it twice, and then Discord adds previews
            stamp = f"2026-01-01T00:00:0{second}+00:00"
            bot._connection.parse_message_update(data | {"edited_timestamp": stamp})
            await ended()

        assert await manager.peek(f"discord:{GUILD}:{CHANNELS[0]}:7") == {"edits": 4, "n": 3}


# --- commands of every kind ---------------------------------------------------------------------


async def test_commands_parse_their_arguments_as_before_and_share_the_session_of_their_user() -> None:
    bot = make_bot()
    got: list[Any] = []

    async with discord_api() as api, bot, SessionManager(MemorySessionStore()) as manager:
        await api.log_in(bot)

        class Shop(commands.Cog):
            @commands.command()
            @in_turn(manager)
            async def note(self, ctx: commands.Context[Any], turn: Any, count: int = 1, *words: str) -> None:
                turn.session.setdefault("log", []).append("prefix")
                got.append((count, words))

            @commands.hybrid_command()
            @in_turn(manager)
            async def both(self, ctx: commands.Context[Any], session: Any, amount: int) -> None:
                """Takes an amount."""
                session.setdefault("log", []).append("hybrid" if ctx.interaction else "prefixed hybrid")
                got.append(amount)

            @app_commands.command()
            @app_commands.describe(amount="how many")
            @in_turn(manager)
            async def slash(
                self, interaction: discord.Interaction[Any], amount: app_commands.Range[int, 1, 9], session: Any
            ) -> None:
                session.setdefault("log", []).append("slash")
                await interaction.response.send_message(f"{amount} noted")

            @commands.Cog.listener()
            @in_turn(manager)
            async def on_message(self, message: discord.Message, session: Any) -> None:
                session["heard"] = session.get("heard", 0) + 1

        await bot.add_cog(Shop())
        note, both, slash = bot.get_command("note"), bot.get_command("both"), bot.tree.get_command("slash")
        assert list(note.clean_params) == ["count", "words"]
        assert list(both.clean_params) == ["amount"]
        assert [(option.name, option.description, option.max_value) for option in slash.parameters] == [
            ("amount", "how many", 9)
        ]
        assert [option.name for option in bot.tree.get_command("both").parameters] == ["amount"]

        for text in ("!note 3 a b", "!note", "!both 4"):
            bot._connection.parse_message_create(message(text))
            await ended()
        for interaction in (command("both", amount=5), command("slash", amount=6)):
            bot._connection.parse_interaction_create(interaction)
            bot._connection.parse_interaction_create(interaction)
            await ended()
        state = await manager.peek(f"discord:{GUILD}:{CHANNELS[0]}:7")

    assert got == [(3, ("a", "b")), (1, ()), 4, 5]
    assert api.posted == [("interaction", "6 noted")]
    assert state == {"log": ["prefix", "prefix", "prefixed hybrid", "hybrid", "slash"], "heard": 3}


async def test_context_menus_register_and_a_button_belongs_to_the_session_of_who_clicks_it() -> None:
    bot = make_bot()
    async with discord_api() as api, bot, SessionManager(MemorySessionStore()) as manager:
        await api.log_in(bot)

        @bot.tree.context_menu(name="Count this")
        @in_turn(manager)
        async def count_this(interaction: discord.Interaction[Any], message: discord.Message, session: Any) -> None:
            raise NotImplementedError

        assert bot.tree.get_command("Count this", type=discord.AppCommandType.message) is count_this

        class Counter(discord.ui.View):
            @discord.ui.button(label="+1", custom_id="more")
            @in_turn(manager)
            async def more(self, interaction: discord.Interaction[Any], button: Any, session: Any) -> None:
                session["n"] = session.get("n", 0) + 1
                await interaction.response.send_message(f"{button.label}: {session['n']}")

        bot.add_view(Counter(timeout=None))
        for _ in range(2):
            bot._connection.parse_interaction_create(click("more"))
        await ended()

    assert api.posted == [("interaction", "+1: 1"), ("interaction", "+1: 2")]


async def test_a_slash_command_can_answer_that_it_thinks_before_it_waits_for_its_turn() -> None:
    bot = make_bot()
    session_id, free = f"discord:{GUILD}:{CHANNELS[0]}:7", asyncio.Event()
    async with discord_api() as api, bot, SessionManager(MemorySessionStore()) as manager:
        await api.log_in(bot)

        @bot.tree.command()
        async def count(interaction: discord.Interaction[Any]) -> None:
            """Counts."""
            await interaction.response.defer()
            deferred.set()
            await counted(interaction)

        @in_turn(manager)
        async def counted(interaction: discord.Interaction[Any], session: Any) -> None:
            session["n"] = session.get("n", 0) + 1
            await interaction.followup.send(f"That was number {session['n']}")

        async def hold() -> None:
            async with manager.turn(session_id):
                await free.wait()

        deferred = asyncio.Event()
        holder = asyncio.create_task(hold())
        await asyncio.sleep(0)
        bot._connection.parse_interaction_create(command("count"))
        await asyncio.wait_for(deferred.wait(), 10)
        assert (len(api.deferred), api.posted) == (1, [])
        free.set()
        await holder
        await ended()

    assert api.posted == [("followup", "That was number 1")]


async def test_a_command_inside_a_handler_of_its_session_is_refused_instead_of_half_undone() -> None:
    bot = make_bot()
    told: list[BaseException | None] = []
    async with discord_api() as api, bot, SessionManager(MemorySessionStore()) as manager:
        await api.log_in(bot)

        @bot.event
        @in_turn(manager)
        async def on_message(message: discord.Message) -> None:
            await bot.process_commands(message)

        @bot.command()
        @in_turn(manager)
        async def count(ctx: commands.Context[Any], session: Any) -> None:
            session["n"] = 1

        @bot.event
        async def on_command_error(ctx: commands.Context[Any], error: commands.CommandError) -> None:
            told.append(error.__cause__)

        bot._connection.parse_message_create(message("!count"))
        await ended()

    assert [type(each) for each in told] == [DeadlockError]


def test_what_cannot_run_in_a_turn_says_so() -> None:
    manager = SessionManager(MemorySessionStore())

    @in_turn(manager)
    async def on_ready(*, session: OnlyATypeChecker) -> None:  # type: ignore[name-defined]  # noqa: F821
        pass

    with pytest.raises(TypeError, match="no message, interaction or context"):
        asyncio.run(on_ready())
    with pytest.raises(TypeError, match="below the decorators"):
        in_turn(manager)(commands.command()(on_ready_of))  # type: ignore[arg-type]


async def on_ready_of(ctx: commands.Context[Any]) -> None:
    pass


# --- time, cancellation, restarts ---------------------------------------------------------------


async def test_a_handler_that_takes_thirty_seconds_delays_nobody_else() -> None:
    client, clock = make_client(), ManualClock()
    slow, begun, heard = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with discord_api() as api, client, SessionManager(MemorySessionStore(), clock=clock) as manager:
        await api.log_in(client)

        @client.event
        @in_turn(manager)
        async def on_message(message: discord.Message, session: Any) -> None:
            session["n"] = session.get("n", 0) + 1
            if message.content == "slow":
                begun.set()
                await slow.wait()
            elif message.content == "else":
                heard.set()

        client._connection.parse_message_create(message("slow"))
        await begun.wait()
        client._connection.parse_message_create(message("behind it"))
        await clock.advance(15.0)
        client._connection.parse_message_create(message("else", channel=CHANNELS[1]))
        await asyncio.wait_for(heard.wait(), 10)
        await clock.advance(15.0)
        slow.set()
        await ended()

        assert await manager.peek(f"discord:{GUILD}:{CHANNELS[0]}:7") == {"n": 2}
        assert await manager.peek(f"discord:{GUILD}:{CHANNELS[1]}:7") == {"n": 1}


async def test_a_session_leaves_memory_when_its_user_is_idle_and_comes_back_with_its_values() -> None:
    client, clock = make_client(), ManualClock()
    async with discord_api() as api, client, SessionManager(clock=clock, idle_timeout=60.0) as manager:
        await api.log_in(client)

        @client.event
        @in_turn(manager)
        async def on_message(message: discord.Message, session: Any) -> None:
            session["n"] = session.get("n", 0) + 1

        for resident in (1, 1):
            client._connection.parse_message_create(message("hi"))
            await ended()
            assert len(list(manager.resident())) == resident
            await clock.advance(130.0)
            assert not list(manager.resident())

        assert await manager.peek(f"discord:{GUILD}:{CHANNELS[0]}:7") == {"n": 2}


async def test_a_handler_that_is_cancelled_is_rolled_back_and_holds_no_session() -> None:
    client, begun = make_client(), asyncio.Event()
    async with discord_api() as api, client, SessionManager(MemorySessionStore()) as manager:
        await api.log_in(client)

        @client.event
        @in_turn(manager)
        async def on_message(message: discord.Message, session: Any) -> None:
            session["n"] = session.get("n", 0) + 1
            if message.content == "slow":
                begun.set()
                await asyncio.Event().wait()

        client._connection.parse_message_create(message("slow"))
        client._connection.parse_message_create(message("waits"))
        await begun.wait()
        for task in asyncio.all_tasks():
            if _is_handler(task):
                task.cancel()
        await ended()
        client._connection.parse_message_create(message("hi"))
        await asyncio.wait_for(ended(), 10)

        assert await manager.peek(f"discord:{GUILD}:{CHANNELS[0]}:7") == {"n": 1}


async def test_sessions_and_repeated_deliveries_are_remembered_over_a_restart(tmp_path: Path) -> None:
    data = message("hi")
    for _ in range(2):
        client = make_client()
        async with discord_api() as api, client, SessionManager(FileSessionStore(tmp_path)) as manager:
            await api.log_in(client)

            @client.event
            @in_turn(manager)
            async def on_message(message: discord.Message, session: Any) -> None:
                session["n"] = session.get("n", 0) + 1

            client._connection.parse_message_create(data.copy())
            client._connection.parse_message_create(message("hi"))
            await ended()

    assert await stored(FileSessionStore(tmp_path), CHANNELS[:1]) == {CHANNELS[0]: 3}


async def test_a_client_that_starts_and_closes_its_manager_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    begun, sent = asyncio.Event(), []
    manager = SessionManager(FileSessionStore(tmp_path), deliver=lambda session_id, text: sent.append(text))

    class Counting(discord.Client):
        async def setup_hook(self) -> None:
            await manager.start()

        async def close(self) -> None:
            await manager.close()
            await super().close()

        @in_turn(manager)
        async def on_message(self, message: discord.Message, session: Any, turn: Any) -> None:
            begun.set()
            await message.add_reaction("👀")
            session["n"] = session.get("n", 0) + 1
            turn.send_text("counted")

    async with discord_api() as api, Counting(intents=INTENTS) as client:
        await api.log_in(client)
        client._connection.parse_message_create(message("hi"))
        await begun.wait()

    assert sent == ["counted"]
    assert await stored(FileSessionStore(tmp_path), CHANNELS[:1]) == {CHANNELS[0]: 1}


async def test_session_ids_hold_guild_channel_and_author() -> None:
    bot = make_bot()
    ids: list[str] = []
    async with discord_api() as api, bot:
        await api.log_in(bot)

        @bot.event
        async def on_message(message: discord.Message) -> None:
            ids.append(session_id_of(message))
            ids.append(session_id_of(await bot.get_context(message)))

        @bot.event
        async def on_interaction(interaction: discord.Interaction[Any]) -> None:
            ids.append(session_id_of(interaction))

        bot._connection.parse_message_create(message("hi"))
        bot._connection.parse_message_create(message("hi", channel="77", guild=None))
        bot._connection.parse_interaction_create(click("nothing"))
        await ended()

    assert ids == ["discord:10:20:7"] * 2 + ["discord:77:7"] * 2 + ["discord:10:20:7"]
