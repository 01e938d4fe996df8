"""Replies beyond the gate: ungated ones, apologies, and those that cannot be delivered."""

from __future__ import annotations

import asyncio
import threading
from contextvars import Context as ContextVars
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest

from actorbot import Context, FlushPolicy, SessionManager, errors
from tests import inside
from tests.homes import both_homes
from tests.waiting import HANGS, Call, breathe, soon, until


async def test_an_ungated_reply_that_fails_tells_who_awaits_it() -> None:
    failed: list[BaseException] = []

    async def deliver(_: str, text: str) -> None:
        raise ConnectionError("gone")

    async def handle(context: Context) -> str:
        with pytest.raises(ConnectionError):
            await context.send_text("now", gated=False)
        return "told"

    async def note(_: Context, error: BaseException) -> None:
        failed.append(error)

    async with SessionManager(handler=handle, deliver=deliver, on_error=note) as manager:
        assert await manager.dispatch("ann", "hi") == "told"
    assert [type(error) for error in failed] == [ConnectionError]


async def test_a_reply_without_anywhere_to_go_fails_the_event() -> None:
    async def handle(context: Context) -> None:
        context.session["n"] = 1
        context.send_text("hello")

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(errors.ConfigError, match="deliver"):
            await manager.dispatch("ann", "hi")
        assert await manager.peek("ann") is None


async def test_an_apology_that_cannot_be_delivered_is_not_apologised_for_without_end() -> None:
    delivered: list[str] = []

    async def deliver(_: str, text: str) -> None:
        delivered.append(text)
        if len(delivered) > 100:
            await asyncio.Event().wait()
        raise ConnectionError("gone")

    async def apologise(context: Context, _: BaseException) -> None:
        context.send_text("sorry")

    async def handle(context: Context) -> None:
        raise ValueError("no")

    async with SessionManager(handler=handle, deliver=deliver, on_error=apologise, close_timeout=0.2) as manager:
        with pytest.raises(ValueError):
            await soon(manager.dispatch("ann", "hi"))
        await breathe()
    assert len(delivered) <= 2


async def test_an_apology_comes_after_the_replies_that_were_sent_before() -> None:
    said: list[str] = []

    async def deliver(_: str, text: str) -> None:
        if text == "slow":
            await breathe()
        said.append(text)

    async def apologise(context: Context, _: BaseException) -> None:
        context.send_text("sorry")

    async def handle(context: Context) -> None:
        context.send_text(context.event)
        if context.event == "fail":
            raise ValueError("no")

    async with SessionManager(handler=handle, deliver=deliver, on_error=apologise) as manager:
        await manager.dispatch("ann", "slow")
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "fail")
        await breathe()
    assert said == ["slow", "sorry"]


async def test_a_reply_that_is_relayed_to_the_session_whose_turn_asked_waits_for_that_turn() -> None:
    failed: list[BaseException] = []
    relayed = asyncio.Event()

    async def deliver(session_id: str, _: Any) -> None:
        if session_id == "bob":
            await manager.dispatch("ann", "relayed")
            relayed.set()

    async def handle(context: Context) -> None:
        if context.event == "first":
            await manager.dispatch("bob", "second")
            await breathe()
        elif context.event == "second":
            context.send_text("to ann")

    async def note(_: Context, error: BaseException) -> None:
        failed.append(error)

    async with SessionManager(handler=handle, deliver=deliver, on_error=note) as manager:
        await soon(manager.dispatch("ann", "first"))
        await until(lambda: bool(relayed.is_set() or failed))
    assert failed == []


async def test_a_reply_that_fails_with_nobody_to_tell_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    async def deliver(_: str, __: str) -> None:
        raise ConnectionError("gone")

    async def handle(context: Context) -> None:
        context.send_text("hello")

    async with SessionManager(handler=handle, deliver=deliver) as manager:
        await manager.dispatch("ann", "hi")
    assert ["ann" in record.getMessage() for record in caplog.records] == [True]


@both_homes
@pytest.mark.parametrize("mode", ["write-behind", "write-through", "journaled"])
def test_a_reply_is_delivered_with_the_variables_of_its_own_caller(home: Any, mode: str, tmp_path: Path) -> None:
    request: ContextVar[str] = ContextVar("request", default="none")
    seen: list[tuple[str, str]] = []
    all_there = threading.Event()

    def handle(context: Context) -> None:
        context.send_text(context.event)

    def deliver(_: str, text: str) -> None:
        all_there.wait(HANGS)  # so that the second reply stands in line behind the first
        seen.append((text, request.get()))

    def call(name: str) -> None:
        request.set(name)
        manager.dispatch_sync("ann", name)

    policy = FlushPolicy.journaled(tmp_path / "journal") if mode == "journaled" else FlushPolicy.parse(mode)
    with home(handler=handle, deliver=deliver, flush=policy) as manager:
        for name in ("r1", "r2", "r3"):
            Call(ContextVars().run, call, name).result()
        all_there.set()
    assert seen == [("r1", "r1"), ("r2", "r2"), ("r3", "r3")]


async def test_nobody_waits_for_replies_that_a_closed_manager_has_not_begun_to_deliver() -> None:
    async def handle(context: Context) -> None:
        context.send_text("hello")

    async def deliver(_: str, __: str) -> None:
        await asyncio.Event().wait()

    manager = await SessionManager(handler=handle, deliver=deliver).start()
    await manager.dispatch("ann", "hi")
    left = inside.outbox(manager).emptied("ann")
    inside.end_threads(manager)
    inside.forget(manager)
    await soon(asyncio.wrap_future(left))
