"""Adapters that are given a `Cluster`: those that can take one, and what the others say."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Callable
from typing import Any

import pytest
from linebot.v3.webhooks import Event as LineEvent

from actorbot import DUPLICATE, errors
from actorbot.cluster import Cluster, _cluster
from actorbot.cluster._packing import Request, unpack_value
from actorbot.cluster._slots import slot_of
from actorbot.ext.agents import AgentSession
from actorbot.ext.aiogram import AiogramSessions
from actorbot.ext.asgi import webhook_app
from actorbot.ext.discord import in_turn as discord_in_turn
from actorbot.ext.line import dispatch_all, dispatch_all_sync, listener
from actorbot.ext.ptb import PTBSessions
from actorbot.ext.slack import in_turn as slack_in_turn
from actorbot.ext.webhooks import WebhookEvent
from tests.ext.deliveries import NOW, PLATFORMS, SESSION, deliver, line_event, message, serving
from tests.ext.test_line import parsed
from tests.memory_log import MemoryLog
from tests.waiting import breathe, soon, until


class Counting:
    """A shard that counts each event once."""

    def __init__(self) -> None:
        self.texts: dict[str, list[str]] = {}
        self.events: list[Any] = []
        self._seen: set[tuple[str, str]] = set()

    def __call__(self, request: Request) -> Any:
        if (request.session_id, request.event_id) in self._seen:
            return DUPLICATE
        self._seen.add((request.session_id, request.event_id))
        event = unpack_value(request.event)
        self.events.append(event)
        self.texts.setdefault(request.session_id, []).append(event.message.text)
        return None


def raising(error: Exception) -> Callable[[Request], Any]:
    def handle(_: Request) -> Any:
        raise error

    return handle


@pytest.fixture(autouse=True)
def now(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time at which the deliveries were signed."""
    monkeypatch.setattr("actorbot.ext.asgi.wall", lambda _: float(NOW))


def app_of(cluster: Cluster, **options: Any) -> Any:
    return webhook_app(cluster, {f"/{name}": make(**options) for name, make in PLATFORMS.items()})


async def probes(client: Any) -> tuple[int, int]:
    return (await client.get("/healthz")).status_code, (await client.get("/readyz")).status_code


# --- webhooks -------------------------------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_a_delivery_reaches_the_shard_as_the_same_event_and_counts_once(platform: str) -> None:
    log, shard = MemoryLog(), Counting()
    log.handle = shard
    async with serving(app_of(Cluster(log))) as client:
        for number in (1, 2, 1):
            assert (await deliver(client, platform, message(platform, 7, number, f"{number}"))).status_code == 200

    assert shard.texts == {SESSION[platform]: ["1", "2"]}
    assert isinstance(shard.events[0], WebhookEvent)
    assert shard.events[0].raw != {}
    assert log.closed == 1


async def test_two_workers_of_a_server_answer_for_the_same_bot() -> None:
    log, shard = MemoryLog(), Counting()
    log.handle = shard
    async with serving(app_of(Cluster(log))) as one, serving(app_of(Cluster(log))) as two:
        posts = [
            deliver(client, "telegram", message("telegram", 7, number))
            for number in range(20)
            for client in (one, two)
        ]  # fmt: skip
        assert {answer.status_code for answer in await asyncio.gather(*posts)} == {200}

    assert len(shard.texts["telegram:7"]) == 20


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (LookupError("a bug"), 500),
        (errors.HandlerTimeoutError("telegram:7", "too long"), 500),
        (errors.OverloadedError("full", retry_after=7.0), 429),
        (errors.StoreUnavailableError("mongo", "away"), 503),
        (errors.ConflictError("mongo", "another process has written it"), 503),
    ],
)
async def test_what_fails_in_the_shard_is_answered_as_if_it_had_failed_here(
    error: Exception, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    log = MemoryLog()
    log.handle = raising(error)
    async with serving(app_of(Cluster(log))) as client:
        answer = await deliver(client, "telegram", message("telegram", 7, 1))

    assert answer.status_code == status
    assert answer.headers.get("Retry-After") == {429: "7", 503: "5"}.get(status)
    (line,) = [each for each in caplog.records if each.levelno == logging.ERROR]
    assert "session 'telegram:7'" in line.getMessage()
    assert (line.exc_info is not None) == isinstance(error, errors.HandlerTimeoutError)


async def test_a_full_slot_is_429() -> None:
    log = MemoryLog()
    log.full = {slot_of("telegram:7", 16)}
    async with serving(app_of(Cluster(log))) as client:
        answer = await deliver(client, "telegram", message("telegram", 7, 1))

    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")


@pytest.mark.parametrize("answer", ["acknowledged", "handled"])
async def test_a_delivery_whose_answer_does_not_come_in_time_is_503_and_counts_once_when_it_comes_again(
    answer: str,
) -> None:
    log, shard = MemoryLog(), Counting()
    async with serving(app_of(Cluster(log, timeout=0.05), answer=answer)) as client:
        assert (await deliver(client, "telegram", message("telegram", 7, 1))).status_code == 503
        shard(log.requests[0])  # late
        log.handle = shard
        assert (await deliver(client, "telegram", message("telegram", 7, 1))).status_code == 200

    assert shard.texts == {"telegram:7": ["hi"]}


async def test_a_failed_handler_is_not_asked_again_where_the_platform_wants_that() -> None:
    log = MemoryLog()
    log.handle = raising(LookupError("a bug"))
    async with serving(app_of(Cluster(log), answer="handled")) as client:
        assert (await deliver(client, "telegram", message("telegram", 7, 1))).status_code == 200


async def test_accepted_means_that_the_log_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actorbot.cluster._caller.PATIENCE", 0.0)
    log = MemoryLog()
    async with serving(app_of(Cluster(log), answer="accepted")) as client:
        log.failures = [errors.StoreUnavailableError("cluster mybot", "away")]
        assert (await deliver(client, "telegram", message("telegram", 7, 1))).status_code == 503
        assert log.requests == []
        log.held.clear()
        posting = asyncio.create_task(deliver(client, "telegram", message("telegram", 7, 1)))
        await breathe()
        assert not posting.done()
        log.held.set()
        assert (await soon(posting)).status_code == 200  # and nobody has handled it

    assert [(each.kind, each.event_id) for each in log.requests] == [("submit", "1")]


async def test_a_server_is_not_ready_while_its_log_does_not_answer(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog()
    cluster = Cluster(log)
    async with serving(app_of(cluster)) as client:
        assert await probes(client) == (200, 200)
        monkeypatch.setattr(_cluster, "SILENT", 0.0)
        await until(lambda: cluster.stats().silent > 0.0)
        assert await probes(client) == (200, 503)
        monkeypatch.undo()
        await cluster.close()
        assert await probes(client) == (200, 503)
        assert (await deliver(client, "line", message("line", 7, 1))).status_code == 503


async def test_a_server_serves_while_no_shard_was_ever_started_and_begins_with_the_first(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(_cluster, "LOOK", 0.0)
    log, shard = MemoryLog(), Counting()
    terms, log.terms, log.handle = log.terms, None, shard
    cluster = Cluster(log)
    async with serving(app_of(cluster)) as client:
        assert await probes(client) == (200, 503)
        answer = await deliver(client, "telegram", message("telegram", 7, 1))
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        log.terms = terms
        await until(lambda: cluster.health().status == "ready")
        assert await probes(client) == (200, 200)
        assert (await deliver(client, "telegram", message("telegram", 7, 1))).status_code == 200

    (line,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert line == "not ready yet: this process waits for a first shard of cluster 'mybot': actorbot cluster run"


async def test_a_server_to_which_no_shard_comes_tells_its_process_to_end(told: list[int]) -> None:
    log = MemoryLog()
    log.terms = None
    async with serving(app_of(Cluster(log, timeout=0.05))) as client:
        await until(lambda: told)
        assert await probes(client) == (200, 503)

    assert told == [signal.SIGTERM]
    assert log.closed == 1


async def test_a_log_that_cannot_be_reached_keeps_the_server_from_starting() -> None:
    log = MemoryLog()
    log.failures = [errors.StoreUnavailableError("cluster mybot", "away")]
    with pytest.raises(errors.StoreUnavailableError):
        async with serving(app_of(Cluster(log))):
            raise AssertionError("it has started")


async def test_a_server_that_is_told_to_end_answers_what_it_has_taken(told: list[int]) -> None:
    log = MemoryLog()
    async with serving(app_of(Cluster(log))) as client:
        posting = asyncio.create_task(deliver(client, "telegram", message("telegram", 7, 1)))
        await until(lambda: log.requests)
        signal.raise_signal(signal.SIGTERM)
        await breathe()
        log.answer(log.requests[0], None)
        assert (await soon(posting)).status_code == 200

    assert told == [signal.SIGTERM]


# --- LINE's own SDK -------------------------------------------------------------------------------


async def test_events_of_lines_sdk_reach_the_shard_as_plain_values() -> None:
    log, shard = MemoryLog(), Counting()
    log.handle = shard
    sent = [line_event("U7", 1, "one"), line_event("U8", 2, "two"), line_event("U7", 1, "one")]
    async with Cluster(log) as cluster:
        assert await soon(dispatch_all(cluster, parsed(*sent))) == [None, None, DUPLICATE]

    assert shard.texts == {"line:U7": ["one"], "line:U8": ["two"]}
    assert shard.events[0] == WebhookEvent.from_text("one", sent[0])
    assert LineEvent.from_dict(shard.events[0].raw) == parsed(sent[0])[0]


def test_and_so_they_do_from_threads() -> None:
    log, shard = MemoryLog(), Counting()
    log.handle = shard
    with Cluster(log) as cluster:
        assert dispatch_all_sync(cluster, parsed(line_event("U7", 1, "one"))) == [None]

    assert shard.events == [WebhookEvent.from_text("one", line_event("U7", 1, "one"))]


# --- those that lend turns ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("adapter", "instead"),
    [
        (AiogramSessions, "webhook_app"),
        (PTBSessions, "webhook_app"),
        (discord_in_turn, "cluster.submit"),
        (slack_in_turn, "webhook_app"),
        (listener, "dispatch_all"),
        (lambda cluster: AgentSession(cluster, "ann"), "in the shard's handler"),
    ],
)
def test_an_adapter_that_lends_turns_says_that_they_cannot_leave_their_process(
    adapter: Callable[[Any], Any], instead: str
) -> None:
    with pytest.raises(errors.ConfigError, match="turn cannot leave its process") as caught:
        adapter(Cluster("redis://:hunter2@localhost/0", cluster="shop"))

    assert instead in str(caught.value)
    assert "Cluster(cluster='shop')" in str(caught.value)
    assert "hunter2" not in str(caught.value)
