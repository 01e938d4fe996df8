"""The event loop as a home: it lets other threads in, and its end troubles nobody."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from actorbot._runtime import loop_home
from actorbot._runtime.loop_home import BREATH, LOOK, LoopHome
from actorbot.testing import ManualClock


class Seconds:
    """The time and the loop's use of the processor, as a test sets them; notes the pauses."""

    def __init__(self) -> None:
        self.now = self.used = 0.0
        self.pauses: list[float] = []
        self.module = SimpleNamespace(
            monotonic=lambda: self.now, thread_time=lambda: self.used, sleep=self.pauses.append
        )

    def go_by(self, seconds: float, *, share: float) -> None:
        self.now += seconds
        self.used += share * seconds


@pytest.mark.parametrize(("share", "pauses"), [(1.0, [BREATH] * 3), (0.3, [])])
async def test_a_loop_pauses_for_other_threads_if_it_never_waits(
    share: float, pauses: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    seconds = Seconds()
    monkeypatch.setattr(loop_home, "time", seconds.module)
    home = LoopHome("1", ManualClock(), 1.0)
    for _ in range(3):
        seconds.go_by(LOOK, share=share)
        home._let_threads_in()
    home.close()

    assert seconds.pauses == pauses


async def test_a_loop_that_waits_again_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    seconds = Seconds()
    monkeypatch.setattr(loop_home, "time", seconds.module)
    home = LoopHome("1", ManualClock(), 1.0)
    for share in (1.0, 0.1, 0.1, 1.0):
        seconds.go_by(LOOK, share=share)
        home._let_threads_in()
    home.close()

    assert len(seconds.pauses) == 2


def test_an_answer_that_comes_when_its_waiter_and_the_loop_have_gone_is_dropped_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answer: Future[Any] = Future()

    async def give_up() -> None:
        home = LoopHome("1", ManualClock(), 1.0)
        waiting = asyncio.create_task(home.wait(answer))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.wait([waiting])
        home.close()

    asyncio.run(give_up())
    answer.set_result("late")

    assert not caplog.records
