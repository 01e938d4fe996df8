"""`SessionManager`: its options and its life, ids and values, receipts, both homes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

import pytest

from actorbot import (
    Context,
    Event,
    FileSessionStore,
    FlushPolicy,
    MemorySessionStore,
    SessionManager,
    errors,
)
from actorbot.testing import FaultyStore, RecordingStore
from tests import inside
from tests.backends import each_store
from tests.handlers import count, count_plainly
from tests.waiting import soon


async def greet(context: Context) -> None:
    if context.session.get("asking"):
        context.session["nickname"] = context.event.message.text
        context.session["asking"] = False
        await context.send_text(f"Hello {context.session['nickname']}")
    else:
        context.session["asking"] = True
        await asyncio.sleep(0)
        await context.send_text("Hi, what's your nickname?")


DIALOGUE = ["Hi, what's your nickname?", "Hello Tim"]


@each_store
async def test_the_dialogue_of_the_first_page(make_store: Callable[[Path], Any], tmp_path: Path) -> None:
    said: list[str] = []
    store = make_store(tmp_path)
    async with SessionManager(store, handler=greet, deliver=lambda _, text: said.append(text)) as manager:
        await manager.dispatch("console:1", Event.from_text("Hi"))
        await manager.dispatch("console:1", Event.from_text("Tim"))

    assert said == DIALOGUE


@each_store
async def test_the_dialogue_holds_when_both_lines_come_at_once(
    make_store: Callable[[Path], Any], tmp_path: Path
) -> None:
    said: list[str] = []
    store = make_store(tmp_path)
    async with SessionManager(store, handler=greet, deliver=lambda _, text: said.append(text)) as manager:
        both = [manager.dispatch("console:1", Event.from_text(text)) for text in ("Hi", "Tim")]
        await asyncio.gather(*both)

    assert said == DIALOGUE


@each_store
async def test_a_session_is_there_again_after_a_restart(make_store: Callable[[Path], Any], tmp_path: Path) -> None:
    store = make_store(tmp_path)
    for expected in (1, 2):
        async with SessionManager(store, handler=count) as manager:
            assert await manager.dispatch("ann", "hi") == expected


@pytest.mark.parametrize("handler", [count, count_plainly])
def test_a_threaded_manager_runs_both_kinds_of_handler(handler: Any) -> None:
    with SessionManager(handler=handler) as manager:
        assert [manager.dispatch_sync("ann", "hi") for _ in range(3)] == [1, 2, 3]
        assert manager.submit_sync("ann", "hi").result_sync(timeout=10) == 4


@pytest.mark.parametrize(
    ("option", "value"),
    [("idle_timeout", -1), ("handler_timeout", 0), ("close_timeout", float("nan")), ("max_resident", 0),
     ("max_mailbox", "many"), ("max_replies", 0), ("flush", "fast"), ("handler", 7), ("session_type", int), ("store", object()),
     ("clock", 7), ("idle_timeout", float("inf")), pytest.param("idle_timeout", 10**400, id="more than a float")],
)  # fmt: skip
def test_a_bad_option_is_named(option: str, value: Any) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        SessionManager(**{option: value})

    assert caught.value.field == option


async def test_sync_verbs_work_from_other_threads_and_not_on_the_loop() -> None:
    async with SessionManager(handler=count) as manager:
        assert await asyncio.to_thread(manager.dispatch_sync, "ann", "hi") == 1
        with pytest.raises(errors.WrongLoopError):
            manager.dispatch_sync("ann", "hi")

        def elsewhere() -> None:
            async def wrong() -> None:
                await manager.dispatch("ann", "hi")

            with pytest.raises(errors.WrongLoopError):
                asyncio.run(wrong())

        await asyncio.to_thread(elsewhere)


async def test_sessions_may_be_dataclasses() -> None:
    @dataclass
    class Cart:
        owner: str | None = None
        items: list[str] = field(default_factory=list)

    async def handle(context: Context) -> int:
        context.session.items.append(context.event)
        return len(context.session.items)

    async with SessionManager(handler=handle, session_type=Cart) as manager:
        assert [await manager.dispatch("ann", each) for each in "ab"] == [1, 2]
        assert await manager.peek("ann") == {"owner": None, "items": ["a", "b"]}


async def test_a_session_id_of_a_type_derived_from_str_is_that_string() -> None:
    class User(StrEnum):
        ANN = "ann"

    store = MemorySessionStore()
    async with SessionManager(store, handler=count) as manager:
        assert await manager.dispatch(User.ANN, "hi") == 1
        assert await manager.dispatch("ann", "hi") == 2
        await manager.flush()
        assert [type(session_id) for session_id, _ in manager.resident()] == [str]
    assert (store.read("ann") or {})["n"] == 2


async def test_a_dispatch_while_the_manager_starts_is_told_so() -> None:
    store = FaultyStore()
    store.hold()

    class Slow(MemorySessionStore):
        def init(self) -> Any:
            store._open.wait(20)
            return super().init()

    manager = SessionManager(Slow(), handler=count, flush=FlushPolicy.write_behind())
    starting = asyncio.create_task(manager.start())
    await asyncio.sleep(0)
    with pytest.raises(errors.ManagerClosedError):
        await manager.dispatch("ann", "hi")
    store.release()
    await starting
    await manager.close()


async def test_a_manager_lives_once() -> None:
    manager = SessionManager(handler=count)
    async with manager:
        with pytest.raises(errors.ManagerClosedError):
            await manager.start()
        with pytest.raises(errors.ManagerClosedError):
            manager.start_sync()
        assert await manager.dispatch("ann", "hi") == 1
    assert await manager.close() == await manager.close()
    with pytest.raises(errors.ManagerClosedError):
        async with manager:
            pass
    receipts: list[Any] = [manager.dispatch("ann", 1), manager.submit("ann", 1), manager.peek("ann"), manager.flush(),
                           manager.destroy("ann"), manager.turn("ann").__aenter__()]  # fmt: skip
    for call in receipts:
        with pytest.raises(errors.ManagerClosedError):
            await call


async def test_a_receipt_belongs_to_its_managers_loop() -> None:
    async with SessionManager(handler=count) as manager:
        receipt = await manager.submit("ann", "hi")

        def elsewhere() -> None:
            with pytest.raises(errors.WrongLoopError):
                asyncio.run(receipt.result())
            assert receipt.result_sync(timeout=5.0) == 1

        await asyncio.to_thread(elsewhere)
        with pytest.raises(errors.WrongLoopError):
            receipt.result_sync()
        with pytest.raises(errors.WrongLoopError), manager.turn_sync("ann"):
            pass
        for verb in (manager.flush_sync, lambda: manager.peek_sync("ann"), lambda: manager.destroy_sync("ann"),
                     lambda: manager.submit_sync("ann", 1), manager.close_sync):  # fmt: skip
            with pytest.raises(errors.WrongLoopError):
                verb()


CYCLE: list[Any] = []
CYCLE.append(CYCLE)


@pytest.mark.parametrize(
    ("value", "path"),
    [
        ({1: 2}, "session['v']"), ([0, object()], "session['v'][1]"), (CYCLE, "session['v']"), (2**63, "session['v']"),
        (-(2**63) - 1, "session['v']"), (float("nan"), "session['v']"), ([float("inf")], "session['v'][0]"),
        ("\ud800", "session['v']"), ({"a": {"b": (1, {2, object})}}, "session['v']['a']['b'][1]"),
        ({"\udfff": 1}, "session['v']"),
    ],
)  # fmt: skip
async def test_what_cannot_be_kept_is_named_by_its_path(value: Any, path: str) -> None:
    async def handle(context: Context) -> None:
        context.session["v"] = context.event

    async with SessionManager(handler=handle) as manager:
        await manager.dispatch("ann", 1)
        with pytest.raises((errors.NotEncodableError, errors.SessionTooLargeError)) as caught:
            await soon(manager.dispatch("ann", value))
        assert await manager.peek("ann") == {"v": 1}
    assert type(caught.value) is errors.NotEncodableError
    assert caught.value.path.startswith(path)


@pytest.mark.parametrize(
    "bad", [None, 7, b"x", {"$gt": ""}, ["x"], "", "x" * 513, "é" * 257, "a\x00b", "a\nb", "a\x7f", "a\x85b", "\ud800"]
)
async def test_a_bad_id_is_refused_by_every_verb(bad: Any) -> None:
    store = RecordingStore()
    async with SessionManager(store, handler=count) as manager:
        for call in (lambda: manager.dispatch(bad, 1), lambda: manager.submit(bad, 1), lambda: manager.peek(bad),
                     lambda: manager.destroy(bad), lambda: manager.turn(bad).__aenter__()):  # fmt: skip
            with pytest.raises(errors.InvalidSessionIdError):
                await call()
        for call in (lambda: manager.flush(bad), lambda: manager.release(bad)):
            if bad in (None, ["x"]):
                continue  # which mean all, and one of several
            with pytest.raises(errors.InvalidSessionIdError):
                await call()
        assert list(manager.resident()) == []
    assert store.reads == []
    assert store.writes == []


async def test_odd_ids_are_distinct_sessions(tmp_path: Path) -> None:
    ids = ["../../etc/passwd", "CON", "a/b", "a", "A", "\u00e9", "e\u0301", "{}", "*", ":", " ", ".", "x" * 512]
    store = FileSessionStore(tmp_path / "s")
    async with SessionManager(store, handler=count) as manager:
        for session_id in ids:
            assert await manager.dispatch(session_id, "hi") == 1
    async with SessionManager(store, handler=count) as manager:
        for session_id in ids:
            assert await manager.dispatch(session_id, "hi") == 2


async def test_only_the_first_argument_of_a_memory_store_is_positional() -> None:
    with pytest.raises(TypeError):
        MemorySessionStore(10, 5.0)  # type: ignore[misc]


async def test_a_closed_manager_looks_no_longer_at_how_busy_the_loop_is() -> None:
    manager = await SessionManager(handler=count).start()
    look = inside.next_look(manager)
    assert look is not None
    assert not look.cancelled()

    await manager.close()
    assert inside.next_look(manager) is look  # no other was begun meanwhile
    assert look.cancelled()
