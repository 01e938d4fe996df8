"""What a bot's web worker, or its poller, is promised by a `Cluster`: the shard is played here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actorbot import DUPLICATE, Event
from actorbot.cluster import Cluster
from actorbot.cluster._packing import Request, unpack_value
from actorbot.cluster._slots import slot_of
from actorbot.errors import (
    ConfigError,
    ConflictError,
    InvalidSessionIdError,
    NotEncodableError,
    RemoteHandlerError,
    SessionTooLargeError,
)
from tests.memory_log import MemoryLog
from tests.waiting import soon


def echo(request: Request) -> Any:
    return unpack_value(request.event)


async def test_a_dispatch_returns_what_the_handler_returned() -> None:
    log = MemoryLog()
    log.handle = echo
    async with Cluster(log) as cluster:
        answer = await soon(cluster.dispatch("telegram:42", {"cart": [1, b"x"]}))

    assert answer == {"cart": [1, b"x"]}


async def test_what_is_sent_says_all_that_the_caller_asked() -> None:
    log = MemoryLog()
    log.handle = lambda _: None
    async with Cluster(log) as cluster:
        await soon(cluster.dispatch("ann", Event.from_text("hi"), event_id="7", durable=True, on_duplicate="result"))
        await soon(cluster.dispatch("ann", Event.from_text("hi"), event_id=7))  # type: ignore[arg-type]

    first, second = log.requests
    assert (first.kind, first.session_id, first.event_id) == ("dispatch", "ann", "7")
    assert (first.durable, first.result_again) == (True, True)
    assert (second.event_id, second.durable, second.result_again) == ("7", False, False)
    assert unpack_value(first.event) == Event.from_text("hi")
    assert log.slots_of == [slot_of("ann", 16)] * 2


async def test_a_duplicate_is_told_as_by_a_manager() -> None:
    log = MemoryLog()
    log.handle = lambda _: DUPLICATE
    async with Cluster(log) as cluster:
        assert await soon(cluster.dispatch("ann", "hi", event_id="7")) is DUPLICATE


async def test_what_a_handler_raised_is_told_with_its_type_and_text() -> None:
    log = MemoryLog()

    def fail(_: Request) -> Any:
        raise LookupError("no such cart")

    log.handle = fail
    async with Cluster(log) as cluster:
        with pytest.raises(RemoteHandlerError) as caught:
            await soon(cluster.dispatch("ann", "hi"))

    assert (caught.value.type_name, caught.value.text) == ("LookupError", "no such cart")
    assert caught.value.session_id == "ann"


async def test_an_error_of_actorbots_arrives_as_itself() -> None:
    log = MemoryLog()

    def fail(_: Request) -> Any:
        raise ConflictError("redis", "another process has written it", session_id="ann")

    log.handle = fail
    async with Cluster(log) as cluster:
        with pytest.raises(ConflictError) as caught:
            await soon(cluster.dispatch("ann", "hi"))

    assert (caught.value.store, caught.value.session_id) == ("redis", "ann")


@pytest.mark.parametrize("verb", ["dispatch", "submit", "peek", "destroy", "flush"])
async def test_a_wrong_session_id_is_refused_before_anything_is_sent(verb: str) -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        with pytest.raises(InvalidSessionIdError):
            await soon(getattr(cluster, verb)("", *(["hi"] if verb in ("dispatch", "submit") else [])))

    assert log.requests == []


@pytest.mark.parametrize("verb", ["dispatch", "submit"])
async def test_an_event_that_cannot_be_encoded_is_refused_before_anything_is_sent(verb: str) -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        with pytest.raises(NotEncodableError) as caught:
            await soon(getattr(cluster, verb)("ann", {"who": object()}))
        with pytest.raises(SessionTooLargeError, match=r"nothing was sent$"):
            await soon(getattr(cluster, verb)("ann", "x" * 5_000_000))

    assert "nothing was sent" in str(caught.value)
    assert (caught.value.path, caught.value.session_id) == ("event['who']", "ann")
    assert log.requests == []


@pytest.mark.parametrize(
    "options", [{"on_duplicate": "again"}, {"timeout": -1.0}, {"timeout": float("inf")}, {"timeout": "1"}], ids=str
)
async def test_an_option_that_cannot_be_is_refused_before_anything_is_sent(options: dict[str, Any]) -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        with pytest.raises(ConfigError):
            await soon(cluster.dispatch("ann", "hi", **options))
        with pytest.raises(ConfigError):
            await soon(asyncio.to_thread(cluster.dispatch_sync, "ann", "hi", **options))

    assert log.requests == []


async def test_peek_destroy_and_flush_ask_the_owner_of_the_session() -> None:
    log = MemoryLog()
    log.handle = lambda request: {"n": 1} if request.kind == "peek" else None
    async with Cluster(log) as cluster:
        assert await soon(cluster.peek("ann")) == {"n": 1}
        assert await soon(cluster.destroy("ann")) is None
        assert await soon(cluster.flush("ann")) is None

    assert [(each.kind, each.session_id) for each in log.requests] == [
        ("peek", "ann"),
        ("destroy", "ann"),
        ("flush", "ann"),
    ]


async def test_a_flush_of_all_asks_each_slot() -> None:
    log = MemoryLog(slots=5)
    log.handle = lambda _: None
    async with Cluster(log) as cluster:
        await soon(cluster.flush())

    assert sorted(log.slots_of) == [0, 1, 2, 3, 4]
    assert {each.kind for each in log.requests} == {"flush all"}


async def test_a_flush_of_all_raises_what_one_slot_answers_when_all_have_answered() -> None:
    log = MemoryLog(slots=5)
    refused = []

    def fail_once(request: Request) -> None:
        if not refused:
            refused.append(request)
            raise ConflictError("redis", "another process has written it", session_id="ann")

    log.handle = fail_once
    async with Cluster(log) as cluster:
        with pytest.raises(ConflictError):
            await soon(cluster.flush())
        assert cluster.stats().waiting == 0


@pytest.mark.parametrize("timeout", [0, -1, "1", float("inf"), float("nan")])
def test_a_wrong_timeout_is_refused_at_once(timeout: Any) -> None:
    with pytest.raises(ConfigError):
        Cluster(MemoryLog(), timeout=timeout)


async def test_requests_of_one_tick_go_in_one_append_and_in_their_order() -> None:
    log = MemoryLog()
    log.handle = echo
    async with Cluster(log) as cluster:
        answers = await soon(asyncio.gather(*(cluster.dispatch("ann", number) for number in range(20))))

    assert answers == list(range(20))
    assert [unpack_value(each.event) for each in log.appended[0]] == list(range(20))
