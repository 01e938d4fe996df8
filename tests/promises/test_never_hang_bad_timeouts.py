"""G13: a time-out that is none is refused before anything begins, by every verb that takes one."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from actorbot import Context, SessionManager, errors
from tests.handlers import count, count_plainly
from tests.homes import both_homes
from tests.waiting import SOON, Call, until_sync

BAD = [
    -1,
    -0.001,
    math.nan,
    math.inf,
    -math.inf,
    "5",
    b"5",
    True,
    1e300,
    10**400,
    10**5000,
    Decimal(1),
    Fraction(1),
    [],
    1j,
]


def enter(context: Any) -> None:
    with context:
        pass


VERBS: dict[str, Callable[[SessionManager, Any], Any]] = {
    "dispatch": lambda manager, timeout: manager.dispatch_sync("ann", "hi", timeout=timeout),
    "dispatch to a new session": lambda manager, timeout: manager.dispatch_sync("eve", "hi", timeout=timeout),
    "turn": lambda manager, timeout: enter(manager.turn_sync("ann", timeout=timeout)),
    "result": lambda manager, timeout: manager.submit_sync("bob", "hi").result_sync(timeout),
    "durable": lambda manager, timeout: manager.submit_sync("bob", "hi").durable_sync(timeout),
    "close": lambda manager, timeout: manager.close_sync(timeout),
}


def bad_id(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:9]}" if value != 10**5000 else "int 10**5000"


@both_homes
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
@pytest.mark.parametrize("timeout", BAD, ids=bad_id)
def test_a_time_out_that_is_none_is_refused_by_name_and_leaves_nothing_taken(
    home: Any, verb: Callable[[SessionManager, Any], Any], timeout: Any
) -> None:
    with home(handler=count_plainly) as manager:
        manager.dispatch_sync("ann", "hi")
        with pytest.raises(errors.ConfigError, match=r"timeout=.*seconds, at least 0") as caught:
            Call(verb, manager, timeout).result()
        assert (caught.value.field, caught.value.value) == ("timeout", timeout) or timeout != timeout
        assert Call(manager.dispatch_sync, "ann", "hi", timeout=SOON).result() == 2
        assert "eve" not in dict(manager.resident())
        until_sync(lambda: manager.stats().running == 0)  # what was submitted runs all the same


@pytest.mark.parametrize("timeout", BAD, ids=bad_id)
async def test_the_verbs_of_a_loop_refuse_it_too(timeout: Any) -> None:
    async with SessionManager(handler=count) as manager:
        receipt = await manager.submit("ann", "hi")
        for verb in (receipt.result, receipt.durable, manager.close):
            with pytest.raises(errors.ConfigError, match="timeout="):
                await verb(timeout)
        assert await receipt.result() == 1
        assert await manager.dispatch("ann", "hi") == 2


@both_homes
@pytest.mark.parametrize("timeout", [0, 1e9, 10**9])
def test_the_least_and_the_most_are_taken(home: Any, timeout: float) -> None:
    with home(handler=count_plainly) as manager:
        for verb in ("dispatch", "turn", "result", "durable"):
            try:
                VERBS[verb](manager, timeout)
            except errors.TurnTimeoutError:
                assert timeout == 0
        assert Call(manager.dispatch_sync, "cat", "hi").result() == 1


@both_homes
def test_also_while_the_session_is_busy(home: Any) -> None:
    inside, go_on = threading.Event(), threading.Event()

    def hold(context: Context) -> None:
        if context.event == "hold":
            inside.set()
            go_on.wait(SOON)

    with home(handler=hold) as manager:
        holding = Call(manager.dispatch_sync, "ann", "hold")
        assert inside.wait(SOON)
        try:
            for timeout in (math.nan, math.inf, "5", -1):
                for verb in ("dispatch", "turn"):
                    with pytest.raises(errors.ConfigError):
                        Call(VERBS[verb], manager, timeout).result()
            assert dict(manager.resident())["ann"].waiting == 0
        finally:
            go_on.set()
        holding.result()
        Call(manager.dispatch_sync, "ann", "hi").result()
