"""A bot that runs as a program of its own: what it shows, and with which status it ends."""

from __future__ import annotations

import asyncio
import io
import logging
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import redirect_stderr
from pathlib import Path
from typing import Any

import pytest

from actorbot import Bot, Event, FileSessionStore, FlushPolicy, MemorySessionStore, RedisSessionStore, errors
from actorbot.testing import FaultyStore
from tests.handlers import count
from tests.waiting import HANGS, Call, breathe, soon, until


class ListBot(Bot):
    """A platform on which everything has been written already; *then* comes after it."""

    def __init__(self, *then: Any, **options: Any) -> None:
        super().__init__(**options)
        self.then = then
        self.on_event(count)

    async def receive(self) -> None:
        await self.manager.submit("list:ann", Event.from_text("hi"))
        for each in self.then:
            await each()


# --- the exit status ----------------------------------------------------------------------------


def test_a_bot_whose_sessions_are_all_in_the_store_returns() -> None:
    store = MemorySessionStore()
    ListBot(session_store=store).run()

    assert (store.read("list:ann") or {}).get("n") == 1


def test_a_bot_that_leaves_sessions_behind_exits_with_1_and_names_them(caplog: pytest.LogCaptureFixture) -> None:
    store = FaultyStore()

    async def lose_the_store() -> None:
        await until(lambda: bot.manager.stats().handled)
        store.outage()

    behind = FlushPolicy.write_behind(max_delay=600.0)
    bot = ListBot(lose_the_store, session_store=store, flush=behind, close_timeout=0.2)
    with pytest.raises(SystemExit) as exit_:
        bot.run()

    assert exit_.value.code == 1
    assert "'list:ann'" in caplog.text


class Locked:
    """A store that another process has open."""

    def __init__(self, folder: Path) -> None:
        self.other = FileSessionStore(folder / "sessions").init()
        self.store = FileSessionStore(folder / "sessions")


def cannot_start(what: str, folder: Path) -> tuple[dict[str, Any], str]:
    """Return the options of a bot that cannot start, and what it should say of the reason."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    if what == "locked":
        (folder / "sessions").mkdir(mode=0o700)
        return {"session_store": Locked(folder).store}, str(folder / "sessions")
    if what == "absent":
        return {"session_store": RedisSessionStore(f"redis://:secret@localhost:{port}/0")}, f"localhost:{port}"
    if what == "refuses":
        (folder / "sessions").mkdir()
        (folder / "sessions").chmod(0o777)
        return {"session_store": FileSessionStore(folder / "sessions")}, str(folder / "sessions")
    if what == "journal":
        (folder / "journal").mkdir()
        return {"flush": FlushPolicy.journaled(folder / "journal")}, str(folder / "journal")

    class Driver(FaultyStore):
        def init(self) -> None:
            raise LookupError("two\nlines")

    return {"session_store": Driver()}, "two lines"


@pytest.mark.parametrize("what", ["locked", "absent", "refuses", "journal", "driver"])
def test_a_bot_that_cannot_start_says_why_in_one_line_and_exits_with_2(
    what: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    options, reason = cannot_start(what, tmp_path)
    with caplog.at_level(logging.DEBUG, "actorbot"), pytest.raises(SystemExit) as exit_:
        ListBot(**options).run()

    (line,) = capsys.readouterr().err.splitlines()
    assert exit_.value.code == 2
    assert reason in line
    assert "secret" not in line
    assert any(record.exc_info for record in caplog.records if record.getMessage() == "the bot could not start")


def test_the_line_is_written_in_one_piece_so_that_nobody_else_s_comes_between(tmp_path: Path) -> None:
    pieces: list[str] = []

    class Unbuffered(io.StringIO):
        def write(self, text: str) -> int:
            pieces.extend(filter(None, [text]))
            return len(text)

    options, _ = cannot_start("driver", tmp_path)
    with redirect_stderr(Unbuffered()), pytest.raises(SystemExit):
        ListBot(**options).run()

    (line,) = pieces
    assert line.endswith("two lines (a log at DEBUG has the traceback)\n")


def test_a_console_bot_that_cannot_start_exits_the_same_way(tmp_path: Path) -> None:
    locked = Locked(tmp_path)
    done = subprocess.run(
        [sys.executable, "-m", "actorbot", "chat", "--store", f"file://{tmp_path}/sessions"],
        capture_output=True, text=True, timeout=HANGS, check=False,
    )  # fmt: skip
    locked.other.close()

    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    assert str(tmp_path) in done.stderr


def test_an_author_s_own_exit_status_is_his_and_what_was_handled_is_flushed() -> None:
    store = MemorySessionStore()

    async def leave() -> None:
        sys.exit(5)

    with pytest.raises(SystemExit) as exit_:
        ListBot(leave, session_store=store).run()

    assert exit_.value.code == 5
    assert store.read("list:ann") is not None


def test_an_exit_in_a_task_of_the_author_s_ends_the_bot_in_order() -> None:
    store, exiting = MemorySessionStore(), []

    async def leave() -> None:
        sys.exit(7)

    async def leave_in_a_task() -> None:
        exiting.append(asyncio.create_task(leave()))
        await asyncio.Event().wait()

    with pytest.raises(SystemExit) as exit_:
        ListBot(leave_in_a_task, session_store=store, flush=FlushPolicy.write_behind(max_delay=600.0)).run()

    assert exit_.value.code == 7
    assert isinstance(exiting[0].exception(), SystemExit)
    assert store.read("list:ann") is not None


# --- a bot's life -------------------------------------------------------------------------------


def test_a_close_from_a_handler_ends_the_run() -> None:
    async def wait_for_ever() -> None:
        await asyncio.Event().wait()

    bot = Bot(close_timeout=3600.0)
    reports: list[Any] = []

    @bot.on_event
    async def handle(_: Any) -> None:
        reports.append(await bot.close())

    async def receive() -> None:
        await bot.manager.submit("ann", "/shutdown")
        await wait_for_ever()

    bot.receive = receive  # type: ignore[method-assign]
    bot.run()

    assert reports[0].unfinished == 1


def test_a_start_of_the_author_s_that_fails_closes_what_it_has_opened(tmp_path: Path) -> None:
    class Platform(ListBot):
        async def start(self) -> Any:
            await super().start()
            raise ConnectionResetError("the platform has gone")

    for _ in range(2):  # it has left the folder to the next
        with pytest.raises(ConnectionResetError):
            Platform(session_store=FileSessionStore(tmp_path / "s")).run()


def test_a_close_of_the_author_s_that_hangs_keeps_no_session_from_the_store() -> None:
    class Platform(ListBot):
        async def close(self, timeout: float | None = None) -> Any:
            await asyncio.Event().wait()

    store = MemorySessionStore()

    async def told_to_end() -> None:
        signal.raise_signal(signal.SIGTERM)
        await asyncio.Event().wait()

    Platform(told_to_end, session_store=store, close_timeout=1.0).run()

    assert store.read("list:ann") is not None


def test_a_run_in_another_thread_ends_with_everything_in_the_store() -> None:
    store = MemorySessionStore()
    Call(ListBot(session_store=store).run).result()

    assert store.read("list:ann") is not None


def test_a_close_ends_a_run_in_another_thread() -> None:
    store, receiving = MemorySessionStore(), threading.Event()
    loops: list[asyncio.AbstractEventLoop] = []

    async def wait_for_ever() -> None:
        loops.append(asyncio.get_running_loop())
        receiving.set()
        await asyncio.Event().wait()

    bot = ListBot(wait_for_ever, session_store=store)
    running = Call(bot.run)
    assert receiving.wait(HANGS)
    closed = asyncio.run_coroutine_threadsafe(bot.close(), loops[0])

    running.result()
    assert closed.result(HANGS).clean
    assert store.read("list:ann") is not None


async def test_a_run_on_a_running_loop_says_what_to_do() -> None:
    with pytest.raises(errors.WrongLoopError, match=r"await start\(\)"):
        ListBot().run()


def test_a_receive_that_is_no_coroutine_is_told_of() -> None:
    bot = ListBot()
    bot.receive = lambda: None  # type: ignore[method-assign, assignment, return-value]
    with pytest.raises(errors.ConfigError, match="async def"):
        bot.run()


async def test_a_start_that_was_cancelled_can_be_made_again() -> None:
    go_on = threading.Event()

    class Slow(MemorySessionStore):
        def init(self) -> Any:
            go_on.wait(HANGS)
            return super().init()

    bot = ListBot(session_store=Slow())
    starting = asyncio.create_task(bot.start())
    await breathe()
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    go_on.set()
    await soon(bot.start())
    await bot.dispatch("ann", "hi")
    assert (await bot.close()).clean


async def test_a_close_of_a_bot_that_was_cancelled_goes_on() -> None:
    store = FaultyStore()
    bot = ListBot(session_store=store)
    await bot.start()
    await bot.dispatch("ann", "hi")
    store.hold()
    closing = asyncio.create_task(bot.close())
    await until(lambda: store.write_calls)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    store.release()

    assert (await soon(bot.close())).clean
    assert (store.read("ann") or {}).get("n") == 1


# --- the signals' former owners -----------------------------------------------------------------


@pytest.fixture(params=["a function", "SIG_IGN", "SIG_DFL", "default_int_handler"])
def before(request: pytest.FixtureRequest) -> Iterator[Any]:
    """Who hears of signals before the run."""
    owners = {"a function": lambda *_: None, "default_int_handler": signal.default_int_handler}
    owner = owners.get(request.param) or getattr(signal, request.param)
    mine = {number: signal.signal(number, owner) for number in (signal.SIGINT, signal.SIGTERM)}
    yield owner
    for number, each in mine.items():
        signal.signal(number, each)


@pytest.mark.parametrize("end", ["returns", "fails", "cannot start"])
def test_who_heard_of_signals_before_a_run_hears_of_them_after_it(end: str, before: Any) -> None:
    store = FaultyStore()
    if end == "cannot start":
        store.outage()

    async def fail() -> None:
        if end == "fails":
            raise ZeroDivisionError

    outcome = {"fails": ZeroDivisionError, "cannot start": SystemExit}.get(end)
    if outcome is None:
        ListBot(fail, session_store=store).run()
    else:
        with pytest.raises(outcome):
            ListBot(fail, session_store=store).run()

    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == [before, before]
