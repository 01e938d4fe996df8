"""G10: a gated reply is delivered after the acknowledgement, in order, at most once."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from actorbot import (
    Context,
    SessionManager,
    errors,
)
from actorbot._journal.file import JournalFile
from actorbot.testing import ManualClock
from tests.handlers import OddError
from tests.journals import Server, make_manager
from tests.waiting import SOON, breathe, soon, until


async def test_replies_go_to_deliver_in_order_and_a_dispatch_does_not_wait_for_them() -> None:
    hold = asyncio.Event()
    said: list[Any] = []
    failed: list[Any] = []

    async def deliver(_: str, message: Any) -> None:
        await hold.wait()
        if message == "1a":
            raise ConnectionError("gone")
        said.append(message)

    async def handle(context: Context) -> None:
        context.send_text(f"{context.event}a")
        context.send({"b": context.event})

    async def note(context: Context, error: BaseException) -> None:
        failed.append((context.session_id, type(error)))

    async with SessionManager(handler=handle, deliver=deliver, on_error=note) as manager:
        for number in range(3):
            await soon(manager.dispatch("ann", number))
        assert manager.stats().replies_waiting == 6
        assert said == []
        hold.set()
    assert said == ["0a", {"b": 0}, {"b": 1}, "2a", {"b": 2}]
    assert failed == [("ann", ConnectionError)]


async def test_a_failed_ungated_reply_does_not_open_the_gate_for_the_gated_ones_of_its_turn() -> None:
    said: list[str] = []
    reported = asyncio.Event()

    async def deliver(_: str, text: str) -> None:
        if text == "now":
            raise ConnectionError("gone")
        said.append(text)

    async def note(_: Context, __: BaseException) -> None:
        reported.set()

    async def handle(context: Context) -> None:
        context.send_text("now", gated=False)
        await reported.wait()
        context.send_text("gated")
        await asyncio.sleep(0)
        raise ValueError("no")

    async with SessionManager(handler=handle, deliver=deliver, on_error=note) as manager:
        with pytest.raises(ValueError):
            await soon(manager.dispatch("ann", "hi"))
    assert said == []


@pytest.mark.parametrize("how", ["time-out", "cancel"])
async def test_a_plain_handler_that_lost_its_turn_cannot_send_any_more(how: str) -> None:
    clock = ManualClock()
    entered, release, over = threading.Event(), threading.Event(), threading.Event()
    said: list[str] = []
    raised: list[BaseException] = []

    def handle(context: Context) -> None:
        entered.set()
        release.wait(SOON)
        for gated in (True, False):
            try:
                context.send_text(f"gated={gated}", gated=gated)
            except errors.TurnEndedError as error:
                raised.append(error)
        over.set()

    async with SessionManager(
        handler=handle, deliver=lambda _, text: said.append(text), on_error=lambda *_: None, clock=clock,
        handler_timeout=5.0,
    ) as manager:  # fmt: skip
        staying = asyncio.create_task(manager.dispatch("ann", "hi"))
        await until(entered.is_set)
        if how == "cancel":
            staying.cancel()
        else:
            await clock.advance(5.1)
        with pytest.raises((errors.HandlerTimeoutError, asyncio.CancelledError)):
            await soon(staying)
        release.set()
        await until(over.is_set)
    assert said == []
    assert len(raised) == 2


async def test_a_turn_that_is_over_sends_nothing_through_a_kept_context() -> None:
    kept: list[Context] = []
    said: list[str] = []

    async def handle(context: Context) -> None:
        kept.append(context)

    async with SessionManager(handler=handle, deliver=lambda _, text: said.append(text)) as manager:
        await manager.dispatch("ann", "hi")
        with pytest.raises(errors.TurnEndedError):
            kept[0].send_text("late")
        with pytest.raises(errors.TurnEndedError):
            kept[0].send_text("late", gated=False)
    assert said == []


async def test_an_odd_error_of_deliver_stops_no_later_reply() -> None:
    said: list[str] = []

    async def deliver(_: str, text: str) -> None:
        if text == "0":
            raise OddError
        said.append(text)

    async def handle(context: Context) -> None:
        context.send_text(str(context.event))

    async with SessionManager(handler=handle, deliver=deliver, close_timeout=0.3) as manager:
        for number in range(3):
            await manager.dispatch("ann", number)
            await breathe()
    assert said == ["1", "2"]


async def test_a_reply_leaves_after_its_event_is_in_the_journal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    delivered: list[str] = []
    begun, go_on, commit = threading.Event(), threading.Event(), JournalFile.commit

    def commit_when_told(file: JournalFile, *rows: Any) -> None:
        begun.set()
        assert go_on.wait(5.0)
        commit(file, *rows)

    monkeypatch.setattr(JournalFile, "commit", commit_when_told)
    async with make_manager(Server(), tmp_path / "journal", deliver=lambda _, text: delivered.append(text)) as manager:
        talking = asyncio.create_task(manager.dispatch("ann", "hi"))
        await asyncio.to_thread(begun.wait, 5.0)
        for _ in range(20):
            await asyncio.sleep(0.001)  # whatever can go on does
        assert delivered == []
        assert not talking.done()
        go_on.set()
        await talking
        await manager.delivered("ann")

    assert delivered == ["1"]
