"""A chain of turns inside each other that is too deep is its handler's error, and nobody else's."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime, timedelta, timezone
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

from actorbot import Context, FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot._state.codec import encode_state
from tests import inside
from tests.handlers import count
from tests.tiers import tiers
from tests.waiting import HANGS, soon

FEW, MANY = 100, 400  # turns inside each other: the stack has room for the first, not for the second
MODES = ["write-behind", "write-through", "journaled"]


def policy(mode: str, folder: Path) -> FlushPolicy:
    return FlushPolicy.journaled(folder / "journal") if mode == "journaled" else FlushPolicy.parse(mode)


def check_all_is_well(manager: SessionManager) -> None:
    assert manager.health().status == "ready"
    assert (manager.stats().backed_off, manager.stats().running) == (0, 0)


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("verb", ["dispatch", "turn"])
@pytest.mark.parametrize("mode", tiers(MODES))
async def test_a_chain_of_events_that_is_too_deep_is_its_handlers_error(
    mode: str, verb: str, warm: bool, tmp_path: Path
) -> None:
    told: list[BaseException] = []

    async def go_on(context: Context, left: int) -> int:
        context.session["n"] = context.session.get("n", 0) + 1
        context.send_text("hello")
        return 1 + await go(left - 1) if left else 0

    async def go(left: int) -> int:
        if verb == "dispatch":
            return int(await manager.dispatch(f"user:{left}", left))
        async with manager.turn(f"user:{left}") as turn:
            return await _call(10, go_on, turn, left)

    async def handle(context: Context) -> int:
        return await go_on(context, context.event)

    async def apologize(context: Context, error: BaseException) -> None:
        told.append(error)
        context.send_text("sorry")

    def deliver(*_: Any) -> None: ...

    async with SessionManager(
        handler=handle, deliver=deliver, on_error=apologize, flush=policy(mode, tmp_path)
    ) as manager:
        for left in range(MANY + 1) if warm else ():
            await manager.dispatch(f"user:{left}", 0)

        with pytest.raises(RecursionError, match="turns run inside each other"):
            await go(MANY)
        check_all_is_well(manager)
        assert len(set(map(id, told))) == 1  # it arrives unchanged

        for left in range(MANY + 1):
            await soon(manager.dispatch(f"user:{left}", 0))
            assert await manager.peek(f"user:{left}") == {"n": 1 + warm}
        assert await go(FEW if verb == "dispatch" else FEW // 3) > 0


async def _call(calls: int, function: Any, *args: Any) -> int:
    """Call *function* inside so many other calls, as some code does."""
    return int(await (_call(calls - 1, function, *args) if calls else function(*args)))


@pytest.mark.parametrize("warm", [False, True])
@pytest.mark.parametrize("verb", ["dispatch", "turn"])
@pytest.mark.parametrize("mode", tiers(MODES))
def test_a_chain_of_events_that_is_too_deep_is_its_handlers_error_on_threads_too(
    mode: str, verb: str, warm: bool, tmp_path: Path
) -> None:
    def go_on(context: Context, left: int) -> int:
        context.session["n"] = context.session.get("n", 0) + 1
        return 1 + go(left - 1) if left else 0

    def go(left: int) -> int:
        if verb == "dispatch":
            return int(manager.dispatch_sync(f"user:{left}", left))
        with manager.turn_sync(f"user:{left}") as turn:
            return _call_plainly(10, go_on, turn, left)

    def handle(context: Context) -> int:
        return go_on(context, context.event)

    with SessionManager(handler=handle, flush=policy(mode, tmp_path)) as manager:
        for left in range(MANY + 1) if warm else ():
            manager.dispatch_sync(f"user:{left}", 0)

        with pytest.raises(RecursionError, match="turns run inside each other"):
            go(MANY)
        check_all_is_well(manager)

        for left in range(MANY + 1):
            manager.dispatch_sync(f"user:{left}", 0, timeout=HANGS)
            assert manager.peek_sync(f"user:{left}") == {"n": 1 + warm}
        assert go(FEW if verb == "dispatch" else FEW // 3) > 0


def _call_plainly(calls: int, function: Any, *args: Any) -> int:
    return int(_call_plainly(calls - 1, function, *args) if calls else function(*args))


async def test_a_stack_that_is_full_where_a_record_is_read_is_not_taken_for_an_outage() -> None:
    class Full(MemorySessionStore):
        """Is called where the stack has no room for what it calls."""

        full = True
        may_block = False

        def read_many(self, session_ids: Sequence[str]) -> list[Any]:
            if self.full:
                raise RecursionError
            return super().read_many(session_ids)

    store = Full()
    async with SessionManager(store, handler=count) as manager:
        with pytest.raises(RecursionError):
            await manager.dispatch("ann", "hi")
        check_all_is_well(manager)
        store.full = False
        assert await soon(manager.dispatch("ann", "hi")) == 1
        assert inside.resident(manager, "ann")


@pytest.mark.parametrize("value", [timedelta(1), Decimal(1), datetime(2026, 1, 1, tzinfo=timezone(timedelta(hours=3)))])
def test_a_stack_that_is_full_is_not_blamed_on_the_state(value: Any) -> None:
    raised: list[type[BaseException]] = []

    def dive() -> None:
        try:
            encode_state({"value": value}, 1_000)
        except (errors.ActorbotError, RecursionError) as error:
            raised.append(type(error))
            raise
        dive()

    with pytest.raises(RecursionError):
        dive()
    assert set(raised) == {RecursionError}
