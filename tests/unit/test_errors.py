"""Errors travel: through copies, pickles and pools of processes, with their facts."""

from __future__ import annotations

import copy
import inspect
import multiprocessing
import pickle
import threading
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from actorbot import DUPLICATE, SessionManager, errors
from tests.waiting import HANGS


class OrderError(errors.ActorbotError):
    """An error of an author's, with arguments of its own."""

    def __init__(self, number: int, *, items: list[str]) -> None:
        super().__init__(f"order {number} is broken")
        self.number = number
        self.items = items


class PickyError(errors.ActorbotError):
    """An error that is made in a way of its own."""

    mood: str

    def __new__(cls, message: str, *, mood: str) -> PickyError:
        made: PickyError = super().__new__(cls, message)
        made.mood = mood
        return made

    def __init__(self, message: str, *, mood: str) -> None:
        super().__init__(message)


class ShyError(Exception):
    """An error of a driver's that no pickle gives back."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__("shy")


def make(kind: type[errors.ActorbotError]) -> errors.ActorbotError:
    """Make an error of that kind, whatever it wants to be told."""
    if not inspect.isfunction(kind.__init__):
        return kind("it failed")  # it has no `__init__` of its own
    told: dict[str, Any] = {
        each.name: {"int": 64, "float": 3.0}.get(each.annotation, f"its {each.name}")
        for each in inspect.signature(kind).parameters.values()
    }
    return kind(**told)


MADE = [
    *(make(getattr(errors, name)) for name in errors.__all__),
    OrderError(7, items=["a"]),
    PickyError("it failed", mood="bad"),
]
WAYS: dict[str, Callable[[Any], Any]] = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{
        f"pickle {protocol}": lambda error, protocol=protocol: pickle.loads(pickle.dumps(error, protocol))
        for protocol in range(pickle.HIGHEST_PROTOCOL + 1)
    },
}
each_way = pytest.mark.parametrize("travel", WAYS.values(), ids=WAYS)


def facts(error: BaseException | None) -> Any:
    """All that somebody can see of an error."""
    if error is None:
        return None
    return type(error), str(error), error.args, vars(error), error.__suppress_context__, facts(error.__cause__)


@each_way
@pytest.mark.parametrize("error", MADE, ids=lambda error: type(error).__name__)
def test_an_error_arrives_as_it_was(error: errors.ActorbotError, travel: Callable[[Any], Any]) -> None:
    arrived = travel(error)

    assert arrived is not error
    assert facts(arrived) == facts(error)


@each_way
def test_the_cause_and_the_notes_of_an_error_arrive_with_it(travel: Callable[[Any], Any]) -> None:
    error = errors.ConflictError("redis", "written by another process", session_id="ann")
    error.add_note("in the shop")
    error.__cause__ = errors.StoreUnavailableError("redis", "it is away")
    error.__cause__.__cause__ = OSError(111, "refused")
    silent = errors.ActorbotError("it failed")
    silent.__suppress_context__ = True

    assert facts(travel(error)) == facts(error)
    assert facts(travel(silent)) == facts(silent)


def test_what_no_pickle_can_hold_or_give_back_arrives_as_text() -> None:
    error = errors.ConfigError("clock", threading.Lock(), "a Clock")
    error.__cause__ = ShyError("one", "two")

    arrived = pickle.loads(pickle.dumps(error))

    assert (arrived.field, arrived.expected, str(arrived)) == ("clock", "a Clock", str(error))
    assert "lock" in arrived.value
    assert str(arrived.__cause__) == "ShyError('shy')"
    assert copy.copy(error).value is copy.deepcopy(error).value is error.value


def test_a_deep_copy_shares_nothing_that_can_be_copied() -> None:
    error = OrderError(7, items=["a"])

    assert copy.copy(error).items is error.items
    assert copy.deepcopy(error).items is not error.items


def test_an_error_that_is_its_own_cause_travels_too() -> None:
    error = errors.ActorbotError("it failed")
    other = errors.ActorbotError("it failed, too")
    error.__cause__, other.__cause__ = other, error

    for travel in WAYS.values():
        assert str(travel(error)) == "it failed"
    assert copy.deepcopy(error).__cause__.__cause__ is not error  # type: ignore[union-attr]


@each_way
def test_there_is_one_duplicate(travel: Callable[[Any], Any]) -> None:
    assert travel(DUPLICATE) is DUPLICATE
    assert travel([DUPLICATE]) == [DUPLICATE]


def in_a_bot() -> Any:
    """Handle an event whose session cannot be kept."""

    def handle(context: Any) -> None:
        context.session["x"] = object()

    with SessionManager(handler=handle) as manager:
        return manager.dispatch_sync("ann", "hi")


def twice() -> Any:
    with SessionManager(handler=lambda _: None) as manager:
        return [manager.dispatch_sync("ann", "hi", event_id="m1") for _ in range(2)][1]


def test_an_error_and_a_duplicate_come_out_of_a_pool_of_processes_which_goes_on() -> None:
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        with pytest.raises(errors.NotEncodableError) as caught:
            pool.submit(in_a_bot).result(HANGS)
        assert (caught.value.session_id, caught.value.path) == ("ann", "session['x']")
        assert pool.submit(twice).result(HANGS) is DUPLICATE
