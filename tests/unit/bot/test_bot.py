"""The console bot as a process: what it prints, how it ends, what is in the store then."""

from __future__ import annotations

import asyncio
import io
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from actorbot import Bot, ConsoleBot, Context, Event, FileSessionStore, MemorySessionStore, SessionManager, errors
from actorbot.testing import FaultyStore, ManualClock
from tests import ROOT

EXAMPLES = ROOT / "examples"


def run(example: str, lines: str, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / example), *args],
        input=lines, cwd=folder, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("example", ["with_memory_session.py", "with_file_session.py"])
def test_the_first_page_s_dialogue_at_the_console(example: str, tmp_path: Path) -> None:
    done = run(example, "Hi\nTim\n", tmp_path)

    assert done.stderr == ""
    assert done.stdout == "You > Hi\nBot > Hi, what's your nickname?\nYou > Tim\nBot > Hello Tim\nYou > \n"
    assert done.returncode == 0


def test_a_second_run_still_knows_the_nickname(tmp_path: Path) -> None:
    run("with_file_session.py", "Hi\nTim\n", tmp_path)
    done = run("with_file_session.py", "It rains\n/session\n/QUIT\nnever read\n", tmp_path)

    assert "Bot > You said 'It rains', Tim" in done.stdout
    assert '"nickname": "Tim"' in done.stdout
    assert "never" not in done.stdout
    assert done.returncode == 0


def test_help_says_what_can_be_said_to_the_console(talk: Talk) -> None:
    printed, complaints = talk(console(), "/help\n /HELP \n")

    assert (printed.count("/session  shows"), printed.count("/quit     leaves"), complaints) == (2, 2, "")
    assert "Bot > " not in printed


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_bot_with_everything_in_the_store(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "with_file_session.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path, env=os.environ | {"PYTHONUNBUFFERED": "1"},
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"Hi\nTim\n")
        process.stdin.flush()
        while process.stdout.readline() != b"Bot > Hello Tim\n":
            pass
        process.send_signal(number)

        assert process.wait(timeout=20) == 0
        process.stdin.close()

    with SessionManager(FileSessionStore(tmp_path / ".sessions")) as manager:
        assert manager.peek_sync("console:1") == {"asking": False, "nickname": "Tim"}


def test_a_process_that_forgets_to_close_ends_by_itself(tmp_path: Path) -> None:
    code = (
        "from actorbot import SessionManager, FileSessionStore\n"
        "def handle(context): context.session['n'] = 1\n"
        "manager = SessionManager(FileSessionStore('s'), handler=handle).start_sync()\n"
        "manager.dispatch_sync('ann', 'hi')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, timeout=30, check=False)

    assert done.returncode == 0


def test_a_with_block_left_by_an_exception_flushes(tmp_path: Path) -> None:
    def handle(context: Context) -> None:
        context.session["n"] = 1

    with pytest.raises(ZeroDivisionError), SessionManager(FileSessionStore(tmp_path / "s"), handler=handle) as manager:
        manager.dispatch_sync("ann", "hi")
        raise ZeroDivisionError
    with SessionManager(FileSessionStore(tmp_path / "s")) as manager:
        assert manager.peek_sync("ann") == {"n": 1}


async def test_a_failing_handler_reaches_on_error_which_may_still_reply() -> None:
    said: list[str] = []
    bot = Bot(deliver=lambda _, text: said.append(text))

    @bot.on_event
    async def handle(context: Context) -> None:
        context.send_text("never")
        raise ValueError("no")

    @bot.on_error
    async def apologise(context: Context, error: Exception) -> None:
        await context.send_text(f"Sorry: {error}")
        with pytest.raises(errors.TurnEndedError):
            context.session["n"] = 1

    await bot.start()
    with pytest.raises(ValueError, match="no"):
        await bot.dispatch("ann", "hi")
    await bot.close()

    assert said == ["Sorry: no"]


async def test_a_bot_without_a_handler_says_what_to_do() -> None:
    with pytest.raises(errors.ConfigError, match=r"@bot\.on_event"):
        await ConsoleBot().start()


# --- the console --------------------------------------------------------------------------------


Talk = Callable[[Bot, str], tuple[str, str]]


@pytest.fixture
def talk(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Talk:
    """Run a console bot on some input; returns what it printed, and what it complained of."""

    def run(bot: Bot, lines: str) -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.StringIO(lines))
        bot.run()
        captured = capsys.readouterr()
        return captured.out, captured.err

    return run


def echo(context: Context) -> None:
    """Count and answer; `fail` fails."""
    context.session["n"] = context.session.get("n", 0) + 1
    context.send_text(context.event.message.text)
    if context.event.message.text == "fail":
        raise KeyError("nickname")


def console(**options: Any) -> ConsoleBot:
    bot = ConsoleBot(**options)
    bot.on_event(echo)
    return bot


@pytest.mark.parametrize(
    ("given", "printed"),
    [
        (b"", b"You > \n"),
        (b"no end of line", b"You > no end of line\nBot > no end of line\nYou > \n"),
        (b"\r\n/QUIT \r\nnever\n", b"You > \nBot > \nYou > /QUIT \n"),
        (b"\xff\xfe\n", b"You > \xef\xbf\xbd\xef\xbf\xbd\nBot > \xef\xbf\xbd\xef\xbf\xbd\nYou > \n"),
        (b"a\0b\x1bc\n", b"You > a\0b\x1bc\nBot > a\0b\x1bc\nYou > \n"),
        (b"x" * 200_000 + b"\n", b"You > " + b"x" * 200_000 + b"\nBot > " + b"x" * 200_000 + b"\nYou > \n"),
    ],
    ids=["nothing", "no end", "quit", "no text", "control", "long"],
)
def test_whatever_is_typed_is_an_event(given: bytes, printed: bytes) -> None:
    assert talk_to_process(given, "utf-8:strict") == printed


def test_what_the_console_cannot_show_is_spelled_out() -> None:
    assert b"Bot > na\\ufffdve\n" in talk_to_process("naïve\n".encode("latin-1"), "ascii")


def talk_to_process(given: bytes, encoding: str) -> bytes:
    done = subprocess.run(
        [sys.executable, "-c", "from tests.unit.bot.test_bot import console; console().run()"], input=given,
        cwd=EXAMPLES.parent, env=os.environ | {"PYTHONIOENCODING": encoding}, capture_output=True, timeout=30, check=True,
    )  # fmt: skip
    assert done.stderr == b""
    return done.stdout


def test_a_bot_without_an_input_ends_like_one_at_its_end(tmp_path: Path) -> None:
    command = ["sh", "-c", 'exec "$0" "$1" <&-', sys.executable, str(EXAMPLES / "with_memory_session.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=True)

    assert (done.stdout, done.stderr) == ("You > \n", "")


def test_a_bot_that_nobody_listens_to_any_more_leaves_with_everything_in_the_store(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "with_file_session.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stdin.write(b"Hi\nTim\n")
        process.stdin.close()
        complaints = process.stderr.read()

        assert process.wait(timeout=20) == 0
    assert complaints == b""


def test_a_signal_lets_the_event_under_way_finish(talk: Talk) -> None:
    bot = ConsoleBot()

    @bot.on_event
    async def handle(context: Context) -> None:
        signal.raise_signal(signal.SIGTERM)
        for _ in range(10):
            await asyncio.sleep(0)
        context.send_text("finished")

    assert talk(bot, "Hi\nnever\n") == ("You > Hi\nBot > finished\n", "")


def test_a_signal_ends_a_bot_whose_handler_does_not_end(talk: Talk, caplog: pytest.LogCaptureFixture) -> None:
    bot = ConsoleBot(close_timeout=0.1)

    @bot.on_event
    async def handle(context: Context) -> None:
        context.send_text("never")
        signal.raise_signal(signal.SIGINT)
        await asyncio.Event().wait()

    printed, complaints = talk(bot, "Hi\n")

    assert "never" not in printed
    assert "ManagerClosedError" in complaints
    assert "1 unfinished" in caplog.text


def test_a_failing_handler_shows_its_author_where_and_the_talk_goes_on(talk: Talk) -> None:
    printed, complaints = talk(console(), "fail\nHi\n/session\n")

    assert printed == 'You > fail\nYou > Hi\nBot > Hi\nYou > /session\n{\n  "n": 1\n}\nYou > \n'
    assert 'raise KeyError("nickname")' in complaints


@pytest.mark.parametrize(
    "failure",
    [
        SystemExit(3),
        KeyboardInterrupt(),
        asyncio.CancelledError(),
        BaseException("own"),
        BaseExceptionGroup("", [SystemExit()]),
    ],
    ids=repr,
)
def test_a_handler_cannot_end_the_bot(failure: BaseException, talk: Talk) -> None:
    bot = ConsoleBot()

    @bot.on_event
    async def handle(context: Context) -> None:
        if context.event.message.text == "Hi":
            raise failure
        context.send_text("still here")

    printed, complaints = talk(bot, "Hi\nHo\n")

    assert printed == "You > Hi\nYou > Ho\nBot > still here\nYou > \n"
    assert type(failure).__name__ in complaints


def test_a_store_that_fails_is_told_of_and_the_talk_goes_on(talk: Talk) -> None:
    store = FaultyStore()
    store.fail_reads(2)

    printed, complaints = talk(console(session_store=store), "/session\nHi\nHo\n")

    assert printed == "You > /session\nYou > Hi\nYou > Ho\nBot > Ho\nYou > \n"
    assert complaints.count("(StoreUnavailableError: ") == 2


# --- a bot's life -------------------------------------------------------------------------------


def test_wrong_options_are_told_of_when_the_bot_is_made() -> None:
    with pytest.raises(errors.ConfigError, match="max_mailbox=0"):
        ConsoleBot(max_mailbox=0)
    with pytest.raises(TypeError, match="max_mailbx"):
        ConsoleBot(max_mailbx=1)
    with pytest.raises(errors.ConfigError, match="init, read, write, destroy"):
        ConsoleBot(session_store="sessions.db")


async def test_a_second_handler_and_a_late_hook_are_refused() -> None:
    bot = console()
    with pytest.raises(errors.ConfigError, match=r"handler=.*one already"):
        bot.on_event(echo)
    await bot.start()
    with pytest.raises(errors.ConfigError, match=r"on_error=.*before the bot is started"):
        bot.on_error(echo)
    await bot.close()


async def test_a_bot_is_started_once_at_a_time_and_again_after_its_close() -> None:
    store = FaultyStore()
    bot = console(session_store=store, deliver=print)
    assert (await bot.close()).clean
    with pytest.raises(errors.ConfigError, match=r"await start\(\)"):
        await bot.dispatch("ann", "hi")

    store.outage()
    with pytest.raises(errors.StoreUnavailableError):
        await bot.start()
    store.restore()
    await bot.start()
    with pytest.raises(errors.ManagerClosedError, match=r"close\(\)"):
        await bot.start()
    await bot.dispatch("ann", "hi")
    assert await bot.close() is await bot.close()

    await bot.start()
    assert await bot.manager.peek("ann") == {"n": 1}
    await bot.close()


async def test_sessions_say_when_they_start_and_when_they_expire() -> None:
    clock = ManualClock()
    said: list[Any] = []
    bot = console(session_store=MemorySessionStore(expires_in=10.0), deliver=print, clock=clock)

    @bot.on_session_start
    def welcome(context: Context) -> None:
        said.append((context.session_id, context.is_new))

    @bot.on_session_expire
    async def remember(session_id: str, state: dict[str, Any]) -> None:
        said.append((session_id, state))

    await bot.start()
    await bot.dispatch("ann", "hi")
    await bot.dispatch("ann", "hi")
    await clock.advance(10.0)
    await bot.dispatch("ann", "hi")
    await bot.close()

    assert sorted(said, key=str) == [("ann", True), ("ann", True), ("ann", {"n": 2})]


# --- a platform of one's own --------------------------------------------------------------------


class ListBot(Bot):
    """A platform on which everything has been written already."""

    def __init__(self, written: list[tuple[str, str]], **options: Any) -> None:
        super().__init__(**options)
        self.written = written
        self.said: list[tuple[str, str]] = []
        self.on_event(echo)

    async def deliver(self, session_id: str, message: str) -> None:
        self.said.append((session_id, message))

    async def receive(self) -> None:
        for user, text in self.written:
            await self.manager.submit(f"list:{user}", Event.from_text(text))


def test_a_platform_s_bot_is_two_methods() -> None:
    bot = ListBot([("ann", "hi"), ("bob", "ho"), ("ann", "hey")])
    bot.run()

    assert sorted(bot.said) == [("list:ann", "hey"), ("list:ann", "hi"), ("list:bob", "ho")]


def test_the_option_deliver_goes_before_the_method() -> None:
    elsewhere: list[str] = []
    bot = ListBot([("ann", "hi")], deliver=lambda _, text: elsewhere.append(text))
    bot.run()

    assert (bot.said, elsewhere) == ([], ["hi"])


def test_what_ends_a_platform_s_receive_is_raised_after_everything_was_flushed() -> None:
    store = FaultyStore()

    class Broken(ListBot):
        async def receive(self) -> None:
            await super().receive()
            raise ConnectionResetError("the platform has gone")

    with pytest.raises(ConnectionResetError):
        Broken([("ann", "hi")], session_store=store).run()

    assert store.write_calls > 0


def test_a_bot_that_cannot_receive_says_which_method_it_lacks() -> None:
    bot = Bot()
    bot.on_event(echo)
    with pytest.raises(errors.ConfigError, match="override it in Bot"):
        bot.run()


async def test_a_bot_that_cannot_deliver_says_so_to_the_handler() -> None:
    bot = Bot()
    bot.on_event(echo)
    await bot.start()
    with pytest.raises(errors.ConfigError, match="deliver"):
        await bot.dispatch("ann", "hi")
    await bot.close()
