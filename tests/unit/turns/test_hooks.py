"""The hooks: what they may be, and that their failures harm nobody."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from actorbot import Context, MemorySessionStore, SessionManager
from actorbot.testing import ManualClock
from tests.handlers import OddError, count
from tests.homes import both_homes
from tests.waiting import until_sync


async def test_hooks_that_exit_end_nothing() -> None:
    async def refuse(*_: Any) -> None:
        raise SystemExit(3)

    async def handle(context: Context) -> None:
        raise ValueError

    async with SessionManager(handler=handle, on_error=refuse, on_dead_letter=refuse) as manager:
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "hi")
        await manager.submit("ann", "hi")


async def test_an_odd_error_of_an_error_hook_is_not_its_callers() -> None:
    async def handle(context: Context) -> None:
        raise ValueError("no")

    async def refuse(*_: Any) -> None:
        raise OddError

    async with SessionManager(handler=handle, on_error=refuse) as manager:
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "hi")


async def test_a_plain_deliver_and_plain_hooks_serve_as_well() -> None:
    said: list[str] = []
    told: list[Any] = []

    def handle(context: Context) -> str:
        context.send_text("hello")
        if context.event == "fail":
            raise ValueError("no")
        return "done"

    async with SessionManager(
        handler=handle, deliver=lambda _, text: said.append(text),
        on_error=lambda context, error: told.append((context.event, str(error))),
        on_session_start=lambda context: told.append(("start", context.session_id)),
    ) as manager:  # fmt: skip
        assert await manager.dispatch("ann", "hi") == "done"
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "fail")
    assert said == ["hello"]
    assert told == [("start", "ann"), ("fail", "no")]


async def test_a_hook_that_fails_at_the_start_fails_the_event_and_comes_again() -> None:
    started: list[bool] = []

    async def start(context: Context) -> None:
        started.append(context.is_new)
        context.session["welcome"] = True
        if len(started) == 1:
            raise ValueError("no")

    async with SessionManager(handler=count, on_session_start=start) as manager:
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "hi", event_id="1")
        assert await manager.peek("ann") is None
        assert await manager.dispatch("ann", "hi", event_id="1") == 1
        assert await manager.peek("ann") == {"welcome": True, "n": 1}
    assert started == [True, True]


async def test_failing_hooks_harm_nobody() -> None:
    clock = ManualClock()

    def fail(*_: Any) -> None:
        raise RuntimeError("hook")

    async def handle(context: Context) -> int:
        if context.event == "fail":
            raise ValueError("no")
        return await count(context)

    async with SessionManager(
        MemorySessionStore(expires_in=10.0), handler=handle, clock=clock, on_error=fail, on_dead_letter=fail,
        on_session_expire=fail, on_conflict=fail,
    ) as manager:  # fmt: skip
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "fail")
        await manager.submit("ann", "fail")
        await manager.dispatch("ann", "hi")
        clock.jump_wall(11.0)
        assert await manager.dispatch("ann", "hi") == 1
        assert manager.health().status == "ready"


@both_homes
@pytest.mark.parametrize("what", ["handler", "deliver", "ungated", "apology"])
def test_what_nobody_waits_for_and_fails_is_logged_with_its_session_and_its_place(
    what: str, home: Any, caplog: pytest.LogCaptureFixture
) -> None:
    def handle(context: Context) -> None:
        if what in ("handler", "apology"):
            raise LookupError("here")
        context.send_text("hello", gated=what != "ungated")

    def deliver(_: str, __: str) -> None:
        raise LookupError("here")

    def apologise(context: Context, _: BaseException) -> None:
        context.send_text("sorry")

    hooks = {"on_error": apologise} if what == "apology" else {}
    with home(handler=handle, deliver=deliver, **hooks) as manager:
        manager.submit_sync("ann", "hi")
        until_sync(lambda: len(caplog.records) == (2 if what == "apology" else 1))

    for record in caplog.records:
        assert record.session_id == "ann"  # type: ignore[attr-defined]
        assert record.levelname == "ERROR"
        assert 'raise LookupError("here")' in logging.Formatter().format(record)
