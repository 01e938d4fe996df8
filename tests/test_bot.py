"""The console bot as a process: what it prints, how it ends, and what is in the store afterwards."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from actorbot import Bot, ConsoleBot, Context, FileSessionStore, SessionManager, errors

EXAMPLES = Path(__file__).parent.parent / "examples"


def run(example: str, lines: str, folder: Path, *args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / example), *args],
        input=lines, cwd=folder, capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


@pytest.mark.parametrize("example", ["with_memory_session.py", "with_file_session.py"])
def test_the_first_page_s_dialogue_at_the_console(example: str, tmp_path: Path) -> None:
    done = run(example, "Hi\nTim\n", tmp_path)

    assert done.stderr == ""
    assert done.stdout == "You > Bot > Hi, what's your nickname?\nYou > Bot > Hello Tim\nYou > \n"
    assert done.returncode == 0


def test_a_second_run_still_knows_the_nickname(tmp_path: Path) -> None:
    run("with_file_session.py", "Hi\nTim\n", tmp_path)
    done = run("with_file_session.py", "It rains\n/session\n/QUIT\nnever read\n", tmp_path)

    assert "Bot > You said 'It rains', Tim" in done.stdout
    assert '"nickname": "Tim"' in done.stdout
    assert "never" not in done.stdout
    assert done.returncode == 0


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
        process.stdout.readline()
        process.stdout.readline()
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


@pytest.mark.parametrize(
    ("example", "lines", "says"),
    [
        ("custom_store.py", "a\nb\n", "That was number 2"),
        ("embed_asyncio.py", "ann hi\nbob ho\nann hey\n", "demo:ann: 'hey' is your event number 2"),
        ("embed_threads.py", "", "1000 events from 8 threads, counted 1000"),
        ("flush_policies.py", "", "write-through: 100 events, 100 writes"),
    ],
)
def test_every_example_runs(example: str, lines: str, says: str, tmp_path: Path) -> None:
    done = run(example, lines, tmp_path)

    assert done.stderr == ""
    assert says in done.stdout
    assert done.returncode == 0


def test_the_long_running_example_ends_well_on_sigterm(tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "embed_asyncio.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=tmp_path,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"ann hi\n")
        process.stdin.flush()
        process.stdout.readline()
        process.terminate()
        out = process.stdout.read().decode()
        process.stdin.close()

    assert process.returncode == 0
    assert "everything is in the store" in out


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
