"""A bot beside another copy of itself: on the console its author sees what is the matter."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from actorbot import SessionManager
from actorbot.stores import store_from_url
from tests.programs import ended, start, wait_for
from tests.servers import redis_servers
from tests.waiting import HANGS

PROGRAM = """
import asyncio
import actorbot._ownership.keeper
from actorbot import Bot
from actorbot.stores import store_from_url

class Platform(Bot):
    async def receive(self):
        count = await self.dispatch("ann", "hi")
        await self.manager.flush()
        print("receiving", count, flush=True)
        await asyncio.Event().wait()

async def handle(context):
    context.session["n"] = context.session.get("n", 0) + 1
    return context.session["n"]

actorbot._ownership.keeper.LEASE = {lease}
bot = Platform(store_from_url("{url}"), takeover_timeout={patience})
bot.on_event(handle)
bot.run()
print("after run", flush=True)
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store of the test's own on a server that has run for some time."""
    return f"{redis_servers.shared().url}?key_prefix={tmp_path.name}:"


@pytest.fixture
def owner(url: str) -> Iterator[SessionManager]:
    """Another program that owns the store."""
    with SessionManager(store_from_url(url)) as manager:
        yield manager


def bot(url: str, folder: Path, *, patience: float = 30.0, lease: float = 10.0) -> subprocess.Popen[bytes]:
    return start(PROGRAM.format(url=url, patience=patience, lease=lease), folder)


def rest(process: subprocess.Popen[bytes], said: bytes = b"") -> list[str]:
    """Return the lines of its stderr, of which *said* has been read already."""
    assert process.stderr is not None
    return (said + process.stderr.read()).decode().splitlines()


def test_a_second_copy_of_a_bot_says_for_whom_it_waits_and_begins_when_that_has_ended(
    url: str, tmp_path: Path, owner: SessionManager
) -> None:
    second = bot(url, tmp_path)
    said = wait_for(second.stderr, b"actorbot: waits for the owner of its store, before it starts: process ")
    owner.close_sync()
    wait_for(second.stdout, b"receiving 1\n")
    second.send_signal(signal.SIGTERM)

    assert ended(second) == 0
    assert len(rest(second, said)) == 1


def test_a_second_copy_of_a_bot_that_has_waited_in_vain_says_so_in_one_line_and_exits_with_2(
    url: str, tmp_path: Path, owner: SessionManager
) -> None:
    second = bot(url, tmp_path, patience=0.2)

    assert ended(second) == 2
    (waits, end) = rest(second)
    assert waits.startswith("actorbot: waits for the owner")
    assert end.startswith("actorbot: could not start: redis: ")
    for each in ("exclusive", "takeover_timeout", "write_through"):
        assert each in end


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_bot_that_is_told_to_end_while_it_waits_ends_and_takes_nothing(
    number: signal.Signals, url: str, tmp_path: Path, owner: SessionManager
) -> None:
    second = bot(url, tmp_path)
    wait_for(second.stderr, b"waits for the owner")
    second.send_signal(number)
    wait_for(second.stdout, b"after run")

    assert ended(second) == 0
    owner.close_sync()
    with SessionManager(store_from_url(url), takeover_timeout=0.0) as third:
        assert third.peek_sync("ann") is None


def test_a_bot_that_is_told_to_end_hands_its_store_over_at_once(url: str, tmp_path: Path) -> None:
    first = bot(url, tmp_path)
    wait_for(first.stdout, b"receiving 1\n")
    second = bot(url, tmp_path)
    wait_for(second.stderr, b"waits for the owner")
    first.send_signal(signal.SIGTERM)
    wait_for(second.stdout, b"receiving 2\n")
    second.send_signal(signal.SIGTERM)

    assert (ended(first), ended(second)) == (0, 0)


@pytest.mark.long
def test_a_bot_that_was_frozen_until_another_had_its_store_says_so_in_one_line_and_exits_with_1(
    url: str, tmp_path: Path
) -> None:
    frozen = bot(url, tmp_path, lease=0.5)
    wait_for(frozen.stdout, b"receiving 1\n")
    frozen.send_signal(signal.SIGSTOP)
    next_one = bot(url, tmp_path)
    wait_for(next_one.stdout, b"receiving")
    frozen.send_signal(signal.SIGCONT)

    assert ended(frozen) == 1
    (line,) = rest(frozen)
    assert "was taken over by process" in line
    next_one.send_signal(signal.SIGTERM)
    assert ended(next_one) == 0


def test_a_console_bot_says_for_whom_it_waits(url: str, tmp_path: Path, owner: SessionManager) -> None:
    chat: subprocess.Popen[Any] = subprocess.Popen(
        [sys.executable, "-m", "actorbot", "chat", "--store", url],
        cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    try:
        wait_for(chat.stderr, b"waits for the owner")
        owner.close_sync()
        out, _ = chat.communicate(b"hi\n/quit\n", timeout=HANGS)
    finally:
        chat.kill()

    assert chat.returncode == 0
    assert b"Bot > Hi, what's your nickname?" in out
