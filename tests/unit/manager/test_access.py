"""From where a verb may be called, and what a call from elsewhere is told."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from actorbot import ConsoleBot, Receipt, SessionManager, errors
from tests import inside
from tests.handlers import count, count_plainly
from tests.waiting import Call, until_sync


def without_asyncio(coroutine: Coroutine[Any, Any, Any]) -> Any:
    """Run a coroutine as another library's loop, trio's for example, would begin it."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return stop.value
    coroutine.close()
    raise AssertionError("it waits")


def console_bot() -> Coroutine[Any, Any, Any]:
    bot = ConsoleBot()
    bot.on_event(count)
    return bot.start()


@pytest.mark.parametrize(
    "start",
    [
        lambda: SessionManager(handler=count).start(),
        lambda: SessionManager(handler=count).__aenter__(),
        console_bot,
    ],
)
def test_a_start_without_asyncio_says_that_it_is_needed_and_how_to_go_on(start: Callable[[], Any]) -> None:
    with pytest.raises(errors.WrongLoopError, match=r"need asyncio.*trio.*to_thread.run_sync\(manager.dispatch_sync"):
        without_asyncio(start())


def test_after_that_the_manager_can_be_started_on_threads_where_async_verbs_say_the_same() -> None:
    manager = SessionManager(handler=count)
    with pytest.raises(errors.WrongLoopError):
        without_asyncio(manager.start())
    with manager:
        assert manager.dispatch_sync("ann", "hi") == 1
        with pytest.raises(errors.WrongLoopError, match="use the _sync verbs"):
            without_asyncio(manager.dispatch("ann", "hi"))


def test_async_verbs_of_a_manager_on_a_loop_say_it_too() -> None:
    async def live() -> None:
        async with SessionManager(handler=count) as manager:
            verbs = [
                manager.dispatch("ann", "hi"), manager.submit("ann", "hi"), manager.flush(), manager.peek("ann"),
                manager.destroy("ann"), manager.turn("ann").__aenter__(), manager.delivered("ann"), manager.close(),
            ]  # fmt: skip
            for verb in verbs:
                with pytest.raises(errors.WrongLoopError, match="need asyncio"):
                    await asyncio.to_thread(without_asyncio, verb)
            assert await manager.dispatch("ann", "hi") == 1

    asyncio.run(live())


def enter(manager: SessionManager) -> None:
    with manager.turn_sync("ann"):
        pass


VERBS: dict[str, Callable[[SessionManager, Receipt], Any]] = {
    "dispatch": lambda manager, _: manager.dispatch_sync("ann", "hi"),
    "dispatch with a time-out": lambda manager, _: manager.dispatch_sync("ann", "hi", timeout=5.0),
    "submit": lambda manager, _: manager.submit_sync("ann", "hi"),
    "submit to a new session": lambda manager, _: manager.submit_sync("eve", "hi"),
    "turn": lambda manager, _: enter(manager),
    "flush": lambda manager, _: manager.flush_sync(),
    "peek": lambda manager, _: manager.peek_sync("ann"),
    "destroy": lambda manager, _: manager.destroy_sync("ann"),
    "durable": lambda _, receipt: receipt.durable_sync(),
}


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
@pytest.mark.parametrize("where", ["in the loop's own thread", "in another"])
def test_when_the_loop_has_ended_a_verb_says_so_and_does_not_hang(
    where: str, verb: Callable[[SessionManager, Receipt], Any]
) -> None:
    manager = SessionManager(handler=count)

    async def live() -> Receipt:
        await manager.start()
        receipt = await manager.submit("ann", "hi")
        await receipt.result()
        return receipt

    with ThreadPoolExecutor(1) as own:
        receipt = own.submit(asyncio.run, live()).result()
        try:
            with pytest.raises(errors.ManagerClosedError, match=r"loop .* has been closed.*close_sync"):
                if where == "in another":
                    Call(verb, manager, receipt).result()
                else:
                    own.submit(verb, manager, receipt).result()
            assert own.submit(receipt.result_sync).result() == receipt.result_sync() == 1
            assert "eve" not in inside.table(manager).actors
        finally:
            report = own.submit(manager.close_sync).result()
    assert report.clean


def test_while_the_loop_runs_a_sync_verb_in_its_thread_is_told_to_be_awaited() -> None:
    async def live() -> None:
        async with SessionManager(handler=count_plainly) as manager:
            receipt = await manager.submit("ann", "hi")
            await receipt.result()
            for verb in VERBS.values():
                with pytest.raises(errors.WrongLoopError, match="await the async verb"):
                    verb(manager, receipt)

    asyncio.run(live())
    until_sync(lambda: not [thread for thread in threading.enumerate() if thread.name.startswith("actorbot")])
