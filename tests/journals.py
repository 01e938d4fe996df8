"""Bots with a journal, and what is left of one that was killed."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Awaitable
from pathlib import Path
from typing import Any

from actorbot import Context, FlushPolicy, MemorySessionStore, SessionManager
from actorbot.testing import FaultyStore, ManualClock
from tests import inside
from tests.handlers import count_plainly


class Server(FaultyStore):
    """Stands for a server: what it has confirmed outlives the bot."""

    def __init__(self) -> None:
        super().__init__(MemorySessionStore())
        self.outlives_process = True


async def count_aloud(context: Context) -> int:
    n = count_plainly(context)
    context.send_text(f"{n}")
    return n


def make_manager(store: Any, path: Path, **options: Any) -> SessionManager:
    policy = FlushPolicy.journaled(path, **options.pop("policy", {}))
    options.setdefault("handler", count_aloud)
    options.setdefault("deliver", lambda *_: None)
    return SessionManager(store, flush=policy, **options)


def kill(path: Path) -> Path:
    """Return a copy of the journal as a bot that was killed now would leave it."""
    left = path.with_name(f"{path.name}-of-the-dead")
    for ending in ("", "-wal"):
        if path.with_name(path.name + ending).exists():
            shutil.copy(path.with_name(path.name + ending), left.with_name(left.name + ending))
    return left


async def advancing(clock: ManualClock, call: Awaitable[object]) -> None:
    """Await *call* while the time goes on."""
    task = asyncio.ensure_future(call)
    for _ in range(2_000):
        await clock.advance(0.05)
        await asyncio.sleep(0.005)  # a busy disk needs real time: half a second until its deadline
        if task.done():
            break
    await task


async def idle(manager: SessionManager) -> None:
    """Return when the journal's thread has done what it has to do, and what it gives itself to do
    after that.
    """
    journal = inside.journal(manager)
    for _ in range(5):
        await asyncio.wrap_future(journal.conflicts())
