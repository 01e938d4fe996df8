"""SIGINT and SIGTERM, sent to bots that do not end by themselves."""

from __future__ import annotations

import select
import signal
import subprocess
from itertools import product
from pathlib import Path

import pytest

from tests.programs import ended, start, stored, wait_for
from tests.tiers import tiers

PROGRAM = """
import asyncio, threading, time
from actorbot import Bot, FileSessionStore, FlushPolicy, MemorySessionStore

async def for_ever():
    await asyncio.Event().wait()

class Driver:
    async def init(self): await opening()
    async def read(self, session_id): return None
    async def write(self, session_id, state): await writing()
    async def destroy(self, session_id): pass

async def opening(): pass
async def writing(): pass

class Platform(Bot):
    async def receive(self):
        await self.manager.dispatch("ann", "hi")
        print("receiving", flush=True)
        await receiving(self)

async def handle(context):
    context.session["n"] = context.session.get("n", 0) + 1
    if context.event == "hang":
        await for_ever()
    if context.event == "block":
        print("blocked", flush=True)
        time.sleep(60)  # here

def run(**options):
    options = {"session_store": FileSessionStore("s"), "flush": FlushPolicy.write_behind(max_delay=600.0)} | options
    bot = Platform(**options)
    bot.on_event(handle)
    bot.run()
    print("after run", flush=True)
"""
both_signals = pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])


def tell_until(process: subprocess.Popen[bytes], text: bytes) -> bytes:
    """Send SIGTERM again and again, until the process says *text* on its stderr, or has ended."""
    said = b""
    assert process.stderr is not None
    while text not in said and process.poll() is None:
        process.terminate()
        if select.select([process.stderr], [], [], 0.3)[0]:
            said += process.stderr.read1(4096)  # type: ignore[attr-defined]
    return said


def rest(process: subprocess.Popen[bytes]) -> bytes:
    assert process.stderr is not None
    return process.stderr.read()


@both_signals
@pytest.mark.parametrize("init", ["await for_ever()", "threading.Event().wait()", "raise ConnectionError"])
def test_a_signal_while_a_bot_starts_ends_it(init: str, number: signal.Signals, tmp_path: Path) -> None:
    code = f"""{PROGRAM}
class Opening(Driver):
    {"async " if "await" in init else ""}def init(self):
        print("opening", flush=True)
        {init}
class Retrying(Platform):
    async def start(self):
        while True:
            try:
                return await super().start()
            except Exception:
                await asyncio.sleep(0.01)
bot = Retrying(Opening(), close_timeout=3600.0)
bot.on_event(handle)
bot.run()
print("after run", flush=True)
"""
    process = start(code, tmp_path)
    wait_for(process.stdout, b"opening")
    process.send_signal(number)
    wait_for(process.stdout, b"after run")

    assert (ended(process), rest(process)) == (0, b"")


RECEIVES = {
    "cleans up for ever": "try: await for_ever()\n    finally: await for_ever()",
    "swallows": "while True:\n        try: await for_ever()\n        except asyncio.CancelledError: pass",
}


@pytest.mark.parametrize(
    ("how", "number"),
    tiers(
        product(RECEIVES, [signal.SIGTERM, signal.SIGINT]),
        ("cleans up for ever", signal.SIGTERM),
        ("swallows", signal.SIGINT),
    ),
)
def test_a_receive_that_does_not_end_does_not_keep_the_bot(how: str, number: signal.Signals, tmp_path: Path) -> None:
    process = start(f"{PROGRAM}\nasync def receiving(bot):\n    {RECEIVES[how]}\nrun(close_timeout=0.5)", tmp_path)
    wait_for(process.stdout, b"receiving")
    process.send_signal(number)
    wait_for(process.stdout, b"after run")

    assert ended(process) == 0
    assert b"receive() was cancelled and does not end" in rest(process)
    assert stored(tmp_path, "ann") == 1


def test_a_receive_has_the_time_to_clean_up(tmp_path: Path) -> None:
    code = f"""{PROGRAM}
async def receiving(bot):
    try: await for_ever()
    finally:
        for _ in range(20): await asyncio.sleep(0)
        await bot.manager.dispatch("ann", "bye")
run()"""
    process = start(code, tmp_path)
    wait_for(process.stdout, b"receiving")
    process.terminate()

    assert ended(process) == 0
    assert stored(tmp_path, "ann") == 2


def test_a_receive_that_waits_in_a_thread_does_not_keep_the_program(tmp_path: Path) -> None:
    code = f"{PROGRAM}\nasync def receiving(bot): await asyncio.to_thread(threading.Event().wait)\nrun()"
    process = start(code, tmp_path)
    wait_for(process.stdout, b"receiving")
    process.terminate()
    wait_for(process.stdout, b"after run")

    assert ended(process) == 0


def test_a_driver_that_swallows_its_cancellation_does_not_keep_the_program(tmp_path: Path) -> None:
    code = f"""{PROGRAM}
async def writing():
    while True:
        try: await for_ever()
        except asyncio.CancelledError: pass
receiving = lambda bot: for_ever()
run(session_store=Driver(), close_timeout=0.5)"""
    process = start(code, tmp_path)
    wait_for(process.stdout, b"receiving")
    process.terminate()

    assert ended(process) == 1
    assert b"'ann'" in rest(process)


def test_a_second_signal_hurries_a_bot_that_would_wait_for_its_handlers(tmp_path: Path) -> None:
    code = f"""{PROGRAM}
async def receiving(bot):
    await bot.manager.submit("bob", "hang")
    await for_ever()
run(close_timeout=3600.0)"""
    process = start(code, tmp_path)
    wait_for(process.stdout, b"receiving")
    said = tell_until(process, b"second time")
    wait_for(process.stdout, b"after run")

    assert ended(process) == 0
    assert b"1 unfinished" in said + rest(process)
    assert stored(tmp_path, "ann") == 1


def test_a_third_signal_ends_a_bot_whose_loop_is_blocked_and_says_what_is_left(tmp_path: Path) -> None:
    code = f"""{PROGRAM}
async def receiving(bot):
    await bot.manager.submit("bob", "block")
    await for_ever()
run(close_timeout=3600.0)"""
    process = start(code, tmp_path)
    wait_for(process.stdout, b"blocked")
    said = tell_until(process, b"third time")

    assert ended(process) == 1
    assert b"1 unfinished" in said + rest(process)
    assert stored(tmp_path, "ann") == 1


@pytest.mark.long
def test_a_handler_that_blocks_the_loop_is_shown_and_does_not_keep_the_bot(tmp_path: Path) -> None:
    code = f"""{PROGRAM}
async def receiving(bot):
    await bot.manager.submit("bob", "block")
    await for_ever()
run(close_timeout=0.2)"""
    (tmp_path / "bot.py").write_text(code, "utf-8")  # a stack has the lines of a file only
    process = start("import runpy; runpy.run_path('bot.py')", tmp_path)
    wait_for(process.stdout, b"blocked")
    process.terminate()

    assert ended(process) == 1
    assert b"time.sleep(60)  # here" in rest(process)
    assert stored(tmp_path, "ann") == 1


def test_a_signal_that_comes_twice_at_once_is_one(tmp_path: Path) -> None:
    code = f"""{PROGRAM}
import signal
async def receiving(bot):
    for _ in range(3):
        signal.raise_signal(signal.SIGINT)
    await for_ever()
run()"""
    process = start(code, tmp_path)
    wait_for(process.stdout, b"after run")

    assert ended(process) == 0
    assert b"second time" not in rest(process)
