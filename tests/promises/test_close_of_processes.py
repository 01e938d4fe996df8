"""G12, for whole processes: however a program ends, it ends in bounded time, and what it handled is
in the store.
"""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from collections.abc import Callable
from contextlib import suppress
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from tests.programs import PROGRAM, ended, run, start, stored, wait_for
from tests.tiers import tiers

BOT = """
import asyncio, sys, threading
from actorbot import ConsoleBot, FileSessionStore
bot = ConsoleBot(FileSessionStore("s"), close_timeout=1.0)

async def count(context):
    context.session["n"] = context.session.get("n", 0) + 1
    await context.send_text(f"number {context.session['n']}")

@bot.on_event
async def handle(context):
    await count(context)
    if context.event.message.text == "stay":
        context.send_text("still here", gated=False)
        await asyncio.Event().wait()
    if context.event.message.text == "a moment":
        context.send_text("still here", gated=False)
        await asyncio.wait([asyncio.create_task(asyncio.Event().wait())], timeout=0.2)

bot.run()
print("after run", flush=True)
"""


def say(text: bytes) -> Callable[[int, subprocess.Popen[bytes]], None]:
    return lambda console, _: (os.write(console, text), None)[1]


@pytest.mark.parametrize(
    "leave",
    [
        pytest.param(say(b"\x04"), id="EOF"),
        pytest.param(say(b"\x03"), id="Ctrl-C"),
        pytest.param(say(b"\x03\x03\x03"), id="Ctrl-C again and again"),
        pytest.param(say(b"/quit\n"), id="/quit"),
        pytest.param(say(b"half a line\x03"), id="Ctrl-C in a line"),
        pytest.param(lambda _, process: process.terminate(), id="SIGTERM"),
    ],
)
def test_every_way_to_leave_a_bot_on_a_terminal(leave: Any, tmp_path: Path) -> None:
    console, terminal = pty.openpty()
    try:
        process = start(
            f"import fcntl, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0)\n{BOT}", tmp_path,
            stdin=terminal, stdout=terminal, stderr=terminal, start_new_session=True,
        )  # fmt: skip
        os.close(terminal)
        wait_for(console, b"You > ")
        os.write(console, b"Hi\n")
        wait_for(console, b"number 1\r\nYou > ")
        leave(console, process)
        wait_for(console, b"after run")

        assert ended(process) == 0
    finally:
        os.close(console)
    assert stored(tmp_path) == 1


PLAIN_BOT = """
import threading
from actorbot import ConsoleBot, FileSessionStore
bot = ConsoleBot(FileSessionStore("s"), close_timeout=1.0)

@bot.on_event
def handle(context):
    context.session["n"] = context.session.get("n", 0) + 1
    if context.event.message.text == "stay":
        context.send_text("still here", gated=False)
        threading.Event().wait(60)
    context.send_text(f"number {context.session['n']}")

bot.run()
print("after run", flush=True)
"""


@pytest.mark.parametrize(
    ("code", "number"),
    tiers(
        product([BOT, PLAIN_BOT], [signal.SIGTERM, signal.SIGINT]), (BOT, signal.SIGTERM), (PLAIN_BOT, signal.SIGINT)
    ),
    ids=["async, SIGTERM", "async, SIGINT", "plain, SIGTERM", "plain, SIGINT"],
)
def test_a_signal_while_a_handler_does_not_end_ends_the_bot_within_its_close_time(
    code: str, number: signal.Signals, tmp_path: Path
) -> None:
    process = start(code, tmp_path)
    assert process.stdin is not None
    process.stdin.write(b"Hi\nstay\n")
    process.stdin.flush()
    wait_for(process.stdout, b"still here")
    process.send_signal(number)

    assert ended(process) == 0
    assert stored(tmp_path) == 1


def test_a_signal_while_a_handler_runs_lets_it_finish(tmp_path: Path) -> None:
    process = start(BOT, tmp_path)
    assert process.stdin is not None
    process.stdin.write(b"Hi\na moment\n")
    process.stdin.flush()
    wait_for(process.stdout, b"still here")
    process.terminate()
    wait_for(process.stdout, b"number 2")

    assert ended(process) == 0
    assert stored(tmp_path) == 2


def test_input_that_is_no_utf8_ends_neither_the_bot_nor_the_line(tmp_path: Path) -> None:
    process = start(BOT, tmp_path, env=os.environ | {"PYTHONIOENCODING": "utf-8:strict"})
    assert process.stdin is not None
    process.stdin.write(b"Hi\n\xff\xfe\nHi\n")
    process.stdin.close()
    wait_for(process.stdout, b"number 3")

    assert ended(process) == 0
    assert stored(tmp_path) == 3


def test_a_bot_without_a_standard_input_ends(tmp_path: Path) -> None:
    code = f"import os\nos.close(0)\nimport sys\nsys.stdin = None\n{BOT}"
    process = start(code, tmp_path)

    assert ended(process) == 0


def test_a_reader_that_has_gone_away_does_not_keep_what_was_handled_from_the_store(tmp_path: Path) -> None:
    process = start(BOT, tmp_path)
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(b"Hi\n")
    process.stdin.flush()
    wait_for(process.stdout, b"number 1")
    process.stdout.close()
    with suppress(BrokenPipeError):
        process.stdin.write(b"Hi\nHi\n")
        process.stdin.close()

    ended(process)
    assert stored(tmp_path) >= 1


def test_a_bot_at_home_in_a_running_loop_is_closed_by_whoever_started_it(tmp_path: Path) -> None:
    code = f"""{PROGRAM}
from actorbot import Bot
async def main():
    bot = Bot(FileSessionStore("s"), flush=behind)
    bot.on_event(handle)
    await bot.start()
    try:
        print(await bot.dispatch("ann", "Hi"))
        raise ZeroDivisionError
    finally:
        await bot.close()
asyncio.run(main())
"""
    status, out, err = run(code, tmp_path)

    assert (status, out) == (1, "1\n")
    assert "ZeroDivisionError" in err
    assert stored(tmp_path, "ann") == 1


ENDS = {
    "its end": ("pass", 0),
    "an exception": ("raise ZeroDivisionError", 1),
    "sys.exit": ("sys.exit(3)", 3),
    "Ctrl-C": ("signal.raise_signal(signal.SIGINT)", -signal.SIGINT),
}


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("home", ["with", "async with"])
def test_a_block_left_by_anything_flushes(home: str, end: str, tmp_path: Path) -> None:
    statement, expected = ENDS[end]
    if home == "with":
        code = f"""{PROGRAM}
with manager() as manager:
    manager.dispatch_sync("ann", "hi")
    manager.submit_sync("ann", "hi")
    {statement}
"""
    else:
        code = f"""{PROGRAM}
async def main():
    async with manager() as open:
        await open.dispatch("ann", "hi")
        await open.submit("ann", "hi")
        {statement}
        await asyncio.sleep(0)
asyncio.run(main())
"""
    status, _, _ = run(code, tmp_path)

    assert status == expected
    assert stored(tmp_path, "ann") == 2


def test_sigterm_in_a_program_that_turns_it_into_an_exit_flushes(tmp_path: Path) -> None:
    code = f"""{PROGRAM}
signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
with manager() as manager:
    manager.dispatch_sync("ann", "hi")
    print("ready", flush=True)
    threading.Event().wait(60)
"""
    process = start(code, tmp_path)
    wait_for(process.stdout, b"ready")
    process.terminate()

    assert ended(process) == 0
    assert stored(tmp_path, "ann") == 1


FORGETFUL = {
    "threads": 'm = manager().start_sync(); m.dispatch_sync("ann", "hi")',
    "a told event": 'm = manager().start_sync(); m.submit_sync("ann", "hi")',
    "an exception": 'm = manager().start_sync(); m.dispatch_sync("ann", "hi"); raise ZeroDivisionError',
    "sys.exit": 'm = manager().start_sync(); m.dispatch_sync("ann", "hi"); sys.exit(3)',
    "a thread of its own": """
m = manager().start_sync()
def later():
    threading.Event().wait(0.2)  # the main thread has ended by then
    m.dispatch_sync("ann", "hi")
threading.Thread(target=later).start()""",
    "a loop": """
async def main():
    m = await manager().start()
    await m.dispatch("ann", "hi")
asyncio.run(main())""",
    "a loop in a daemon thread": """
ready = threading.Event()
async def main():
    m = await manager().start()
    await m.dispatch("ann", "hi")
    ready.set()
    await asyncio.Event().wait()
threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
ready.wait(10)""",
}


@pytest.mark.parametrize("how", FORGETFUL)
def test_a_program_that_forgets_to_close_ends_with_everything_in_the_store(how: str, tmp_path: Path) -> None:
    status, _, _ = run(PROGRAM + FORGETFUL[how], tmp_path)

    assert status == {"an exception": 1, "sys.exit": 3}.get(how, 0)
    assert stored(tmp_path, "ann") == 1


@pytest.mark.parametrize(
    "what",
    [
        "m = manager().start_sync(); t = m.turn_sync('ann'); t.__enter__()",
        "m = SessionManager(handler=lambda _: threading.Event().wait(60), close_timeout=1.0).start_sync(); m.submit_sync('ann', 1)",
        """
class Hung:
    def init(self): pass
    def read(self, _): return None
    def write(self, *_): threading.Event().wait(60)
    def destroy(self, _): pass
m = SessionManager(Hung(), handler=handle, close_timeout=1.0).start_sync(); m.dispatch_sync('ann', 1)""",
    ],
    ids=["a turn that is never given back", "a handler that does not end", "a store that does not answer"],
)
def test_nothing_keeps_a_program_that_has_ended(what: str, tmp_path: Path) -> None:
    status, _, _ = run(PROGRAM + what, tmp_path)  # each of these waits for a minute if nothing ends it

    assert status == 0


def test_a_program_killed_right_after_a_write_through_acknowledgement_has_lost_nothing(tmp_path: Path) -> None:
    code = f"""{PROGRAM}
manager = SessionManager(FileSessionStore("s"), handler=handle, flush=FlushPolicy.write_through()).start_sync()
def work(session_id):
    for _ in range(25):
        acknowledged[session_id] = manager.dispatch_sync(session_id, "hi")
acknowledged = {{}}
threads = [threading.Thread(target=work, args=(f"user:{{n}}",)) for n in range(4)]
for each in threads: each.start()
for each in threads: each.join()
os.kill(os.getpid(), signal.SIGKILL)
"""
    status, _, _ = run(code, tmp_path)

    assert status == -signal.SIGKILL
    assert [stored(tmp_path, f"user:{number}") for number in range(4)] == [25] * 4
