"""A thread for a store: who goes on when a call does not come back, and where."""

from __future__ import annotations

import threading
from concurrent.futures import Future

import pytest

from actorbot import errors
from actorbot._runtime.deadline_thread import DeadlineThread
from actorbot.testing import ManualClock
from tests.waiting import SOON, until_sync


class Held:
    """A call that hangs until it is let go."""

    def __init__(self) -> None:
        self.entered, self.free = threading.Event(), threading.Event()

    def __call__(self) -> int:
        self.entered.set()
        self.free.wait(SOON)
        return threading.get_ident()


def come_back(thread: DeadlineThread, held: Held, stuck: int) -> None:
    held.free.set()
    until_sync(lambda: thread._stuck == stuck)


def test_calls_go_on_whatever_the_order_in_which_late_ones_come_back() -> None:
    clock = ManualClock()
    thread = DeadlineThread("actorbot-store", "mine", clock, deadline=1.0)
    first = thread.call(threading.get_ident).result(SOON)
    held: list[Held] = []
    late: list[Future[int]] = []

    def hang() -> None:
        held.append(Held())
        late.append(thread.call(held[-1]))
        assert held[-1].entered.wait(SOON)

    hang()  # on the first thread
    clock.advance_sync(1.0)
    hang()  # on the second
    come_back(thread, held[0], 0)
    assert thread.call(threading.get_ident).result(SOON) == first
    clock.advance_sync(1.0)  # late on the second, while the first is the one that is used
    assert thread.call(threading.get_ident).result(SOON) == first
    hang()  # on the first again
    clock.advance_sync(1.0)
    come_back(thread, held[1], 1)  # the second was given up: it is not gone back to
    thread.call(threading.get_ident).result(SOON)
    come_back(thread, held[2], 0)
    assert thread.call(threading.get_ident).result(SOON) == first
    for each in late:
        with pytest.raises(errors.OutcomeUnknownError):
            each.result(SOON)
    thread.close()


def test_whatever_call_is_under_way_is_left_behind_also_beside_a_newer_one() -> None:
    clock = ManualClock()
    thread = DeadlineThread("actorbot-store", "mine", clock, deadline=1.0)
    first, second = Held(), Held()
    thread.call(first)
    assert first.entered.wait(SOON)
    clock.advance_sync(1.0)
    waiting = thread.call(second)
    assert second.entered.wait(SOON)
    come_back(thread, first, 0)
    thread.call(threading.get_ident).result(SOON)
    try:
        thread.leave_behind()
        with pytest.raises(errors.OutcomeUnknownError):
            waiting.result(SOON)
    finally:
        second.free.set()
        thread.close()


@pytest.mark.parametrize("closed", [False, True])
def test_who_waits_for_a_call_that_hangs_is_told_before_anything_else_goes_on_also_at_a_close(closed: bool) -> None:
    clock = ManualClock()
    thread = DeadlineThread("actorbot-store", "mine", clock, deadline=1.0)
    held, done = Held(), threading.Event()
    order: list[str] = []
    thread.submit(lambda: thread.run(lambda error: order.append("told"), held) and None)
    assert held.entered.wait(SOON)
    thread.submit(lambda: order.append("the next"))
    thread.submit(done.set)
    if closed:
        thread.close()
    clock.advance_sync(1.0)
    assert done.wait(SOON), "what stood in line never had its turn"
    assert order == ["told", "the next"]
    come_back(thread, held, 0)
    thread.close()
