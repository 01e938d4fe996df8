"""A session that is busy keeps its values decoded between its turns, and nobody can tell: what a
turn leaves behind cannot be changed.
"""

from __future__ import annotations

import asyncio
import copy
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as some

from actorbot import Context, FlushPolicy, MemorySessionStore, SessionManager
from actorbot._state.codec import encode_plain, is_nobody_elses
from actorbot._turns.session_actor import BUSY
from actorbot.testing import FaultyStore, ManualClock
from tests import inside

POLICY = FlushPolicy.write_behind(max_delay=1.0, max_events=1_000)


def values_kept(manager: SessionManager, session_id: str = "ann") -> dict[str, Any] | None:
    decoded = inside.resident(manager, session_id).decoded
    return None if decoded is None else decoded[1]


async def do(context: Context) -> object:
    """Be told what to do: an event is a function of the session."""
    return context.event(context.session)


async def make_busy(manager: SessionManager, session_id: str = "ann") -> None:
    def prepare(session: dict[str, Any]) -> None:
        session["n"], session["texts"] = session.get("n", 0) + 1, ["a", "b"]

    for _ in range(BUSY + 2):
        await manager.dispatch(session_id, prepare)


def look(session: dict[str, Any]) -> dict[str, Any]:
    return copy.deepcopy(session)


async def test_a_busy_session_keeps_its_values_and_an_idle_one_does_not() -> None:
    clock = ManualClock()
    async with SessionManager(MemorySessionStore(), handler=do, flush=POLICY, clock=clock) as manager:
        await manager.dispatch("ann", lambda session: session.update(n=1))
        assert values_kept(manager) is None
        await make_busy(manager)
        assert values_kept(manager) == {"n": BUSY + 3, "texts": ["a", "b"]}

        await clock.advance(5.0)
        assert values_kept(manager) is None
        assert await manager.dispatch("ann", look) == {"n": BUSY + 3, "texts": ["a", "b"]}


async def test_during_an_outage_nothing_is_kept_that_would_pile_up() -> None:
    clock, store = ManualClock(), FaultyStore(MemorySessionStore())
    async with SessionManager(store, handler=do, flush=POLICY, clock=clock, close_timeout=0.1) as manager:
        await manager.dispatch("ann", look)
        await manager.dispatch("bob", look)
        store.outage()
        await clock.advance(5.0)
        assert manager.health().status == "degraded"

        await make_busy(manager)
        assert values_kept(manager) is None
        store.restore()


LEAKS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "the session": lambda session: session,
    "a list of it": lambda session: session["texts"],
    "a list that was put in": lambda session: session.setdefault("other", ["x"]),
    "an iterator": lambda session: iter(session.items()),
    "a view": lambda session: session.values(),
    "an iterator over a list": lambda session: iter(session["texts"]),
    "a bound method": lambda session: session["texts"].append,
    "a closure": lambda session: lambda: session,
}


@pytest.mark.parametrize("leak", LEAKS)
async def test_what_a_handler_keeps_beyond_its_turn_is_not_the_sessions_any_more(leak: str) -> None:
    async with SessionManager(MemorySessionStore(), handler=do, flush=POLICY) as manager:
        await make_busy(manager)
        assert values_kept(manager) is not None

        kept = await manager.dispatch("ann", LEAKS[leak])
        assert values_kept(manager) is None
        before = await manager.peek("ann")
        if isinstance(kept, dict):
            kept["n"] = "changed"
        elif isinstance(kept, list):
            kept.append("changed")
        elif leak == "a bound method":
            kept("changed")
        assert await manager.dispatch("ann", look) == before


@pytest.mark.parametrize(
    "values",
    [{"box": {"a": 1}}, {"box": ("a",)}, {"box": {"a"}}, {"box": ["a", ["b"]]}, {"box": [1]}, {"box": [["a"]]}],
    ids=str,
)
async def test_what_has_deeper_parts_is_not_kept(values: dict[str, Any]) -> None:
    async with SessionManager(MemorySessionStore(), handler=do, flush=POLICY) as manager:
        await make_busy(manager)
        await manager.dispatch("ann", lambda session: session.update(values))
        assert values_kept(manager) is None
        assert (await manager.dispatch("ann", look))["box"] == values["box"]


async def test_a_list_that_stands_twice_in_a_session_or_in_two_sessions_is_two_lists_afterwards() -> None:
    shared = ["both"]
    async with SessionManager(MemorySessionStore(), handler=do, flush=POLICY) as manager:
        for user in ("ann", "bob"):
            await make_busy(manager, user)
            await manager.dispatch(user, lambda session: session.update(one=shared, two=shared))
        shared.append("changed")
        await manager.dispatch("ann", lambda session: session["one"].append("mine"))

        assert (await manager.dispatch("ann", look))["one"] == ["both", "mine"]
        assert (await manager.dispatch("ann", look))["two"] == ["both"]
        assert (await manager.dispatch("bob", look))["one"] == ["both"]


async def test_a_failing_turn_of_a_busy_session_leaves_no_trace() -> None:
    def spoil(session: dict[str, Any]) -> None:
        session["texts"].append("spoilt")
        session["n"] = "spoilt"
        raise ValueError("spoilt")

    async with SessionManager(MemorySessionStore(), handler=do, flush=POLICY) as manager:
        await make_busy(manager)
        with pytest.raises(ValueError, match="spoilt"):
            await manager.dispatch("ann", spoil)

        assert await manager.dispatch("ann", look) == {"n": BUSY + 2, "texts": ["a", "b"]}


async def test_a_cancelled_turn_of_a_busy_session_leaves_no_trace() -> None:
    reached = asyncio.Event()

    async def handle(context: Context) -> Any:
        if context.event == "hang":
            context.session["texts"].append("spoilt")
            reached.set()
            await asyncio.Event().wait()
        return context.event(context.session)

    async with SessionManager(MemorySessionStore(), handler=handle, flush=POLICY) as manager:
        await make_busy(manager)
        hanging = asyncio.create_task(manager.dispatch("ann", "hang"))
        await reached.wait()
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging

        assert await manager.dispatch("ann", look) == {"n": BUSY + 2, "texts": ["a", "b"]}


async def test_a_busy_session_that_was_destroyed_or_has_expired_begins_anew() -> None:
    clock = ManualClock()
    store = MemorySessionStore(expires_in=60.0)
    policy = FlushPolicy.write_behind(max_delay=3_600.0, max_events=1_000)
    async with SessionManager(store, handler=do, flush=policy, clock=clock, idle_timeout=7_200.0) as manager:
        await make_busy(manager)
        await manager.destroy("ann")
        assert await manager.dispatch("ann", look) == {}

        await make_busy(manager, "bob")
        assert values_kept(manager, "bob") is not None
        await clock.advance(61.0)
        assert await manager.dispatch("bob", look) == {}


def test_a_busy_session_of_threads_keeps_its_values_too() -> None:
    def do_plainly(context: Context) -> object:
        return context.event(context.session)

    with SessionManager(MemorySessionStore(), handler=do_plainly, flush=POLICY) as manager:
        for n in range(BUSY + 2):
            manager.dispatch_sync("ann", lambda session, n=n: session.update(n=n, texts=["a"]))
        assert values_kept(manager) == {"n": BUSY + 1, "texts": ["a"]}
        kept = manager.dispatch_sync("ann", lambda session: session["texts"])
        kept.append("changed")
        assert manager.dispatch_sync("ann", look) == {"n": BUSY + 1, "texts": ["a"]}


plain = some.none() | some.booleans() | some.integers(-(2**63), 2**63 - 1) | some.text(max_size=5)
keys = some.sampled_from("abc")
steps = some.lists(
    some.tuples(some.just("set"), keys, plain | some.lists(some.text(max_size=3), max_size=3))
    | some.tuples(some.just("append"), keys, some.text(max_size=3))
    | some.tuples(some.just("keep"), keys, some.none())
    | some.tuples(some.just("change what was kept"), keys, some.text(max_size=3))
    | some.tuples(some.just("put in what was kept"), keys, some.none())
    | some.tuples(some.just("fail"), keys, some.text(max_size=3)),
    max_size=30,
)


@given(steps)
def test_whatever_handlers_do_and_keep_a_session_is_what_its_committed_turns_have_made_it(
    script: list[tuple[str, str, Any]],
) -> None:
    kept: list[list[str]] = []

    def step(session: dict[str, Any], verb: str, key: str, value: Any) -> None:
        found = session.get(key)
        if verb == "set":
            session[key] = list(value) if isinstance(value, list) else value
        elif verb == "append" and isinstance(found, list):
            found.append(value)
        elif verb == "keep" and isinstance(found, list):
            kept.append(found)
        elif verb == "put in what was kept" and kept:
            session[key] = kept[-1]
        elif verb == "fail":
            session[key] = value
            if isinstance(session.get("a"), list):
                session["a"].append(value)
            raise ValueError("told to fail")

    def model_of(script: list[tuple[str, str, Any]]) -> Iterator[dict[str, Any]]:
        state: dict[str, Any] = {}
        for verb, key, value in script:
            if verb == "change what was kept":
                for one in kept:
                    one.append(value)
            else:
                turn = copy.deepcopy(state)
                try:
                    step(turn, verb, key, value)
                except ValueError:
                    pass
                else:
                    state = copy.deepcopy(turn)
            yield state

    expected = list(model_of(script))
    kept.clear()

    def handle(context: Context) -> None:
        step(context.session, *context.event)

    with SessionManager(MemorySessionStore(), handler=handle, flush=POLICY) as manager:
        for _ in range(BUSY + 1):
            manager.dispatch_sync("ann", ("set", "n", 1))
        for (verb, key, value), state in zip(script, expected, strict=True):
            if verb == "change what was kept":
                for one in kept:
                    one.append(value)
            else:
                try:
                    manager.dispatch_sync("ann", (verb, key, value))
                except ValueError:
                    pass
            assert manager.peek_sync("ann") == {"n": 1, **state}


def test_nobody_elses_is_what_only_one_variable_refers_to() -> None:
    state: dict[str, Any] = {"n": 1, "texts": ["a"], "none": []}
    assert encode_plain(state, 1_000) is not None
    assert is_nobody_elses(state)

    other = state
    assert not is_nobody_elses(state)
    del other
    part = state["none"]
    assert not is_nobody_elses(state)
    del part
    assert is_nobody_elses(state)
