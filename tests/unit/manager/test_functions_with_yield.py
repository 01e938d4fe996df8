"""A function with a `yield` where a function is asked for: its body would never run, so it is
refused when it is given, and not when the first user writes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from actorbot import Bot, ConsoleBot, FileSessionStore, MemorySessionStore, SessionManager, stores
from actorbot.errors import ConfigError
from tests.generators import WITH_YIELD, Retried, later, logged, refuses


def sent_in_parts(function: Callable[..., Any]) -> Callable[..., Any]:
    """A decorator that runs through a generator, so that its body does run."""

    @functools.wraps(function)
    async def wrapper(context: Any) -> None:
        async for part in function(context):
            context.session["parts"] = [*context.session.get("parts", []), part]

    return wrapper


HOOKS = ["handler", "deliver", "on_error", "on_session_start", "on_session_expire", "on_dead_letter", "on_conflict"]


@pytest.mark.parametrize("function", WITH_YIELD.values(), ids=WITH_YIELD)
def test_a_manager_refuses_it_as_handler_and_as_any_hook(function: Callable[..., Any]) -> None:
    for field in HOOKS:
        with refuses(field):
            SessionManager(**{field: function})


@pytest.mark.parametrize("function", WITH_YIELD.values(), ids=WITH_YIELD)
def test_a_bot_refuses_it_where_it_is_decorated(function: Callable[..., Any]) -> None:
    for decorator, field in {
        "on_event": "handler",
        "on_error": "on_error",
        "on_session_start": "on_session_start",
        "on_session_expire": "on_session_expire",
    }.items():
        bot = ConsoleBot()
        with refuses(field):
            getattr(bot, decorator)(function)
        assert getattr(bot, decorator)(len) is len  # nothing was set
    with refuses("on_dead_letter"):
        Bot(on_dead_letter=function)


@pytest.mark.parametrize("function", WITH_YIELD.values(), ids=WITH_YIELD)
@pytest.mark.parametrize("name", ["deliver", "receive"])
def test_a_bot_whose_own_method_it_is_cannot_be_made(name: str, function: Callable[..., Any]) -> None:
    kind = type("MyBot", (Bot,), {name: staticmethod(function)})

    with refuses(name):
        kind()


def test_deliver_and_receive_with_yield_are_refused_as_written_in_a_class() -> None:
    class Streaming(Bot):
        async def deliver(self, session_id: str, message: Any) -> Any:
            yield message

    class Polling(Bot):
        async def receive(self) -> Any:
            yield "an update"

    for kind, field in ((Streaming, "deliver"), (Polling, "receive")):
        with refuses(field):
            kind()


@pytest.mark.parametrize("function", WITH_YIELD.values(), ids=WITH_YIELD)
def test_stores_and_a_copy_refuse_it(function: Callable[..., Any]) -> None:
    with refuses("on_evict"):
        MemorySessionStore(on_evict=function)
    with refuses("progress"):
        stores.copy(MemorySessionStore(), MemorySessionStore(), progress=function)


@pytest.mark.parametrize("function", WITH_YIELD.values(), ids=WITH_YIELD)
@pytest.mark.parametrize(
    "verb", ["init", "read", "write", "destroy", "read_many", "write_many", "compare_and_write", "close"]
)
def test_a_drivers_method_with_yield_is_named(verb: str, function: Callable[..., Any]) -> None:
    methods = dict.fromkeys(["init", "read", "write", "destroy", verb], staticmethod(lambda *_: None))
    driver = type("MyStore", (), methods | {verb: staticmethod(function)})()

    with refuses(f"MyStore.{verb}"):
        SessionManager(driver, handler=len)


def test_a_driver_may_list_its_ids_with_yield_and_is_not_shown_in_the_error() -> None:
    class MyStore:
        def init(self) -> None: ...
        def read(self, session_id: str) -> None: ...
        def write(self, session_id: str, data: Any) -> None: ...
        async def destroy(self, session_id: str) -> None: ...
        def ids(self) -> Any:
            yield "ann"

        def __repr__(self) -> str:
            return "MyStore('redis://:s3cret@host')"

    class Worse(MyStore):
        async def write(self, session_id: str, data: Any) -> Any:
            yield 1

    SessionManager(MyStore(), handler=len)
    with refuses("Worse.write") as raised:
        SessionManager(Worse(), handler=len)
    assert "s3cret" not in str(raised.value)


def test_a_store_of_records_whose_methods_cannot_block_is_refused() -> None:
    class Never(MemorySessionStore):
        def write_many(self, writes: Any) -> Any:
            yield from writes

    class Later(MemorySessionStore):
        async def close(self) -> None: ...  # type: ignore[override]

    with refuses(r"Never\.write_many"):
        SessionManager(Never(), handler=len)
    with pytest.raises(ConfigError, match=r"^Later\.close=.*a plain `def`"):
        SessionManager(Later(), handler=len)


def test_what_nobody_awaits_is_refused_as_an_async_def() -> None:
    with pytest.raises(ConfigError, match=r"^on_evict=.*a plain `def`"):
        MemorySessionStore(on_evict=later)
    with pytest.raises(ConfigError, match=r"^progress=.*a plain `def`"):
        stores.copy(MemorySessionStore(), MemorySessionStore(), progress=functools.partial(later, 1))


async def test_a_decorator_that_runs_through_the_generator_makes_a_handler() -> None:
    async def parts(context: Any) -> Any:
        yield "one"
        yield "two"

    async with SessionManager(handler=sent_in_parts(parts)) as manager:
        await manager.dispatch("ann", "hi")
        assert await manager.peek("ann") == {"parts": ["one", "two"]}


@pytest.mark.parametrize(
    "handler",
    [
        len,
        later,
        lambda context: None,
        functools.partial(later, 1),
        Retried(later),
        logged(later),
        type("Callable", (), {"__call__": lambda self, context: None})(),
        type("AsyncCallable", (), {"__call__": later})(),
        type("Made", (), {"__init__": lambda self, context: None}),
        functools.lru_cache(len),
    ],
)
def test_every_other_function_is_taken(handler: Callable[..., Any]) -> None:
    SessionManager(handler=handler, on_error=handler, deliver=handler)


def test_an_object_that_names_itself_as_what_it_wraps_ends_no_program() -> None:
    class Endless:
        def __call__(self, context: Any) -> None: ...

        @property
        def __wrapped__(self) -> Any:
            return self

    SessionManager(FileSessionStore(".sessions"), handler=Endless())
