"""What runs on threads, and on the private loop of a manager on threads."""

from __future__ import annotations

import asyncio
import threading
from contextvars import ContextVar
from typing import Any

import pytest

from actorbot import Context, SessionManager, errors
from tests import inside
from tests.homes import both_homes
from tests.waiting import HANGS, Call


def test_a_lambda_may_pass_on_a_coroutine_in_threads_too() -> None:
    said = threading.Event()

    async def send(text: str) -> None:
        said.set()

    async def handle(context: Context, answer: str) -> str:
        context.send_text("hello")
        return answer

    with SessionManager(handler=lambda context: handle(context, "done"), deliver=lambda _, text: send(text)) as manager:
        assert manager.dispatch_sync("ann", "hi") == "done"
        assert said.wait(20)


@both_homes
def test_a_plain_handler_that_calls_an_async_one_has_it_run(home: Any) -> None:
    async def order(context: Context) -> str:
        await asyncio.sleep(0)
        context.session["ordered"] = True
        return "thank you"

    def route(context: Context) -> Any:
        return order(context) if context.event == "order" else "what?"

    with home(handler=route) as manager:
        assert manager.dispatch_sync("ann", "hi") == "what?"
        assert manager.dispatch_sync("ann", "order") == "thank you"
        assert manager.peek_sync("ann") == {"ordered": True}


def test_an_async_handler_that_a_plain_one_calls_is_stopped_when_its_time_is_up() -> None:
    ended = threading.Event()

    async def hang() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            ended.set()

    def route(context: Context) -> Any:
        context.session["n"] = 1
        return hang()

    with SessionManager(handler=route, handler_timeout=0.05) as manager:
        with pytest.raises(errors.HandlerTimeoutError):
            manager.dispatch_sync("ann", "hi")
        assert ended.wait(HANGS)
        assert manager.peek_sync("ann") is None


def test_a_reply_that_a_lambda_passes_on_needs_no_loop() -> None:
    said: list[str] = []
    told = threading.Event()

    def deliver(_: str, text: str) -> None:
        said.append(text)
        told.set()

    with SessionManager(handler=lambda context: context.send_text("hello"), deliver=deliver) as manager:
        manager.dispatch_sync("ann", "hi")
        assert told.wait(20)
        assert inside.private_loop(manager) is None
    assert said == ["hello"]


def test_a_sync_verb_on_the_private_loop_is_refused_as_on_any_home_loop() -> None:
    async def handle(context: Context) -> Any:
        if context.session_id == "ann":
            with pytest.raises(errors.WrongLoopError):
                manager.dispatch_sync("bob", "hi", timeout=1.0)
            with pytest.raises(errors.WrongLoopError):
                manager.peek_sync("bob")
            return await asyncio.to_thread(manager.dispatch_sync, "bob", "hi")
        return "served"

    manager = SessionManager(handler=handle, close_timeout=0.5).start_sync()
    try:
        assert Call(manager.dispatch_sync, "ann", "hi").result(5.0) == "served"
    finally:
        manager.close_sync()


request: ContextVar[str] = ContextVar("request", default="unset")


async def see(_: Context) -> str:
    return request.get()


def see_plainly(_: Context) -> str:
    return request.get()


@both_homes
@pytest.mark.parametrize("handler", [see, see_plainly])
def test_the_calling_threads_context_variables_reach_the_handler(home: Any, handler: Any) -> None:
    with home(handler=handler) as manager:
        token = request.set("r1")
        try:
            assert manager.dispatch_sync("ann", "hi") == "r1"
            receipt = manager.submit_sync("ann", "hi")
        finally:
            request.reset(token)
        assert receipt.result_sync(HANGS) == "r1"
        assert manager.dispatch_sync("ann", "hi") == "unset"
