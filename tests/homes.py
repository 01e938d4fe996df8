"""Managers in both homes, as threads see them."""

from __future__ import annotations

import asyncio
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from actorbot import SessionManager
from tests.waiting import HANGS


@contextmanager
def tiny_switch_interval() -> Iterator[None]:
    """Let threads take the interpreter from each other as often as can be."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        yield
    finally:
        sys.setswitchinterval(before)


@contextmanager
def on_a_loop(**options: Any) -> Iterator[SessionManager]:
    """A manager at home on a loop that another thread runs."""
    ready, leave, made = threading.Event(), threading.Event(), []

    async def live() -> None:
        async with SessionManager(**options) as manager:
            made.append(manager)
            ready.set()
            await asyncio.to_thread(leave.wait, 50)

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    ready.wait(HANGS)
    try:
        yield made[0]
    finally:
        leave.set()
        thread.join(HANGS)


@contextmanager
def on_threads(**options: Any) -> Iterator[SessionManager]:
    """A manager at home on threads."""
    with SessionManager(**options) as manager:
        yield manager


both_homes = pytest.mark.parametrize("home", [on_threads, on_a_loop])
