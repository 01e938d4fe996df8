"""From where the verbs of a cluster may be called, when, and what a call from elsewhere is told."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from actorbot.cluster import Cluster, _cluster
from actorbot.cluster._packing import Request, unpack_value
from actorbot.errors import (
    ConfigError,
    ForkedError,
    ManagerClosedError,
    StoreUnavailableError,
    TurnTimeoutError,
    WrongLoopError,
)
from tests import inside
from tests.memory_log import MemoryLog
from tests.waiting import HANGS, Call, soon, until, until_sync

VERBS: tuple[tuple[str, tuple[Any, ...]], ...] = (
    ("dispatch", ("ann", "hi")),
    ("submit", ("ann", "hi")),
    ("peek", ("ann",)),
    ("destroy", ("ann",)),
    ("flush", ("ann",)),
    ("flush", ()),
    ("members", ()),
)
each_verb = pytest.mark.parametrize(("verb", "args"), VERBS)


def answer(request: Request) -> Any:
    return unpack_value(request.event) if request.event else None


def answering() -> MemoryLog:
    log = MemoryLog()
    log.handle = answer
    return log


@contextmanager
def on_a_loop(log: MemoryLog, **options: Any) -> Iterator[Cluster]:
    """A cluster at home on a loop that another thread runs."""
    ready, leave, made = threading.Event(), threading.Event(), []

    async def live() -> None:
        async with Cluster(log, **options) as cluster:
            made.append(cluster)
            ready.set()
            await asyncio.to_thread(leave.wait, 50)

    thread = threading.Thread(target=asyncio.run, args=(live(),))
    thread.start()
    ready.wait(HANGS)
    try:
        yield made[0]
    finally:
        leave.set()
        thread.join(HANGS)


@contextmanager
def on_threads(log: MemoryLog) -> Iterator[Cluster]:
    """A cluster with a loop of its own."""
    with Cluster(log) as cluster:
        yield cluster


both_homes = pytest.mark.parametrize("home", [on_a_loop, on_threads])


# --- threads --------------------------------------------------------------------------------------


@both_homes
def test_threads_have_all_verbs(home: Callable[[MemoryLog], Any]) -> None:
    log = answering()
    with home(log) as cluster:
        assert cluster.dispatch_sync("ann", {"n": 1}, event_id="1", durable=True, on_duplicate="result") == {"n": 1}
        receipt = cluster.submit_sync("ann", "two", event_id="2")
        assert receipt.result_sync() == "two"
        assert receipt.durable_sync() is None
        assert cluster.peek_sync("ann") is None
        assert cluster.destroy_sync("ann") is None
        assert cluster.flush_sync("ann") is None
        assert cluster.flush_sync() is None
        assert cluster.members_sync() == []
        assert cluster.stats().waiting == 0
        assert cluster.health().status == "ready"

    first = log.requests[0]
    assert (first.event_id, first.durable, first.result_again) == ("1", True, True)


@both_homes
def test_many_threads_at_once_have_each_their_own_answer(home: Callable[[MemoryLog], Any]) -> None:
    with home(answering()) as cluster:

        def ask(whose: int) -> list[Any]:
            return [cluster.dispatch_sync(f"s{whose}", [whose, n]) for n in range(50)]

        calls = [Call(ask, whose) for whose in range(8)]
        for whose, call in enumerate(calls):
            assert call.result() == [[whose, n] for n in range(50)]


@both_homes
def test_a_thread_that_has_no_answer_in_time_is_told(home: Callable[[MemoryLog], Any]) -> None:
    with home(MemoryLog()) as cluster, pytest.raises(TurnTimeoutError, match="outcome is open"):
        cluster.dispatch_sync("ann", "hi", timeout=0.02)


@both_homes
def test_a_thread_that_waits_is_told_of_the_close(home: Callable[[MemoryLog], Any]) -> None:
    log = MemoryLog()
    with home(log) as cluster:
        waiting = Call(cluster.dispatch_sync, "ann", "hi")
        submitted = cluster.submit_sync("ann", "hi")
        result = Call(submitted.result_sync)
        until_sync(lambda: len(log.requests) == 2)
        cluster.close_sync()
        assert isinstance(waiting.error(), ManagerClosedError)
        assert isinstance(result.error(), ManagerClosedError)


def test_a_thread_is_told_when_the_loop_has_ended_without_a_close() -> None:
    log = MemoryLog()
    made: list[Cluster] = []
    calls: list[Call] = []

    async def live() -> None:
        made.append(await Cluster(log).start())
        calls.append(Call(made[0].dispatch_sync, "ann", "hi"))
        await until(lambda: log.requests)

    asyncio.run(live())
    assert isinstance(calls[0].error(), ManagerClosedError)
    with pytest.raises(ManagerClosedError, match=r"loop .* has ended"):
        made[0].dispatch_sync("ann", "hi")
    assert made[0].health().status == "failing"
    made[0].close_sync()
    assert made[0].health().reason == "the cluster is closed"


def test_a_thread_is_told_when_the_loop_stands_still(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actorbot.cluster._asking.HANGS", 0.0)
    monkeypatch.setattr("actorbot.cluster._access.HANGS", 0.0)
    go_on = threading.Event()
    with on_a_loop(MemoryLog(), timeout=0.02) as cluster:
        inside.loop_of(cluster).call_soon_threadsafe(go_on.wait, HANGS)
        try:
            with pytest.raises(TurnTimeoutError, match="stands still"):
                cluster.dispatch_sync("ann", "hi")
            for verb in (cluster.members_sync, cluster.flush_sync, cluster.close_sync):
                with pytest.raises(ManagerClosedError, match="stands still"):
                    verb()
        finally:
            go_on.set()


# --- the wrong place ------------------------------------------------------------------------------


@each_verb
async def test_a_sync_verb_on_the_loop_is_refused(verb: str, args: tuple[Any, ...]) -> None:
    async with Cluster(answering()) as cluster:
        with pytest.raises(WrongLoopError, match="await the async verb"):
            getattr(cluster, f"{verb}_sync")(*args)
        with pytest.raises(WrongLoopError):
            cluster.close_sync()


@each_verb
def test_an_async_verb_on_another_loop_is_refused(verb: str, args: tuple[Any, ...]) -> None:
    async def ask(cluster: Cluster) -> None:
        with pytest.raises(WrongLoopError, match="sync"):
            await getattr(cluster, verb)(*args)

    for home in (on_a_loop, on_threads):
        with home(answering()) as cluster:
            asyncio.run(ask(cluster))


def test_a_start_without_asyncio_says_that_it_is_needed() -> None:
    cluster = Cluster(answering())
    starting = cluster.start()
    with pytest.raises(WrongLoopError, match="need asyncio"):
        starting.send(None)
    with cluster:
        assert cluster.dispatch_sync("ann", 1) == 1


# --- life -----------------------------------------------------------------------------------------


@each_verb
async def test_before_the_start_and_after_the_close_each_verb_is_refused(verb: str, args: tuple[Any, ...]) -> None:
    cluster = Cluster(answering())
    for text in ("was not started", "is closed; make a new one"):
        with pytest.raises(ManagerClosedError, match=text):
            await getattr(cluster, verb)(*args)
        with pytest.raises(ManagerClosedError, match=text):
            getattr(cluster, f"{verb}_sync")(*args)
        with pytest.raises(ManagerClosedError, match=text):
            cluster.stats()
        assert cluster.health().status == "failing"
        if text == "was not started":
            await cluster.start()
            await cluster.close()


async def test_a_cluster_is_started_once_and_closed_as_often_as_one_likes() -> None:
    log = answering()
    cluster = await Cluster(log).start()
    with pytest.raises(ManagerClosedError, match="open: it can be started once"):
        await cluster.start()
    assert await cluster.dispatch("ann", 1) == 1
    await asyncio.gather(cluster.close(), cluster.close())
    await cluster.close()
    with pytest.raises(ManagerClosedError, match="closed: it can be started once"):
        await cluster.start()

    assert log.closed == 1


async def test_a_close_goes_on_if_its_caller_is_cancelled() -> None:
    log = answering()
    cluster = await Cluster(log).start()
    closing = asyncio.create_task(cluster.close())
    await asyncio.sleep(0)
    closing.cancel()
    with pytest.raises(asyncio.CancelledError):
        await closing
    await soon(cluster.close())

    assert log.closed == 1


async def test_a_cluster_that_was_never_started_can_be_closed() -> None:
    cluster = Cluster(answering())
    await cluster.close()
    with pytest.raises(ManagerClosedError):
        await cluster.start()


async def test_a_server_that_cannot_be_reached_is_an_error_of_the_start() -> None:
    log = answering()
    log.failures += [StoreUnavailableError("cluster mybot", "no connection")]
    cluster = Cluster(log)
    with pytest.raises(StoreUnavailableError):
        await cluster.start()

    assert cluster.health().status == "failing"
    assert log.closed == 1


def test_it_is_one_of_a_start_on_threads_too_and_leaves_no_thread() -> None:
    log = answering()
    log.failures += [StoreUnavailableError("cluster mybot", "no connection")]
    before = threading.active_count()
    with pytest.raises(StoreUnavailableError):
        Cluster(log).start_sync()

    assert threading.active_count() == before


async def test_a_start_waits_for_the_first_shard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_cluster, "LOOK", 0.0)
    log = answering()
    terms, log.terms = log.terms, None
    told: list[str] = []
    cluster = Cluster(log)
    cluster._on_wait.append(told.append)
    starting = asyncio.create_task(cluster.start())
    await until(lambda: log.opened > 3)
    assert cluster.health().status == "failing"
    assert "waits for a first shard" in cluster.health().reason
    log.terms = terms
    await soon(starting)

    assert await soon(cluster.dispatch("ann", 1)) == 1
    assert told == ["a first shard of cluster 'mybot': actorbot cluster run"]
    await cluster.close()


async def test_without_a_shard_the_start_says_how_to_start_one() -> None:
    log = MemoryLog()
    log.terms = None
    with pytest.raises(ConfigError, match="actorbot cluster run"):
        await soon(Cluster(log, timeout=0.01).start())

    assert log.closed == 1


async def test_several_clusters_live_in_one_process() -> None:
    first, second = MemoryLog(slots=4), answering()
    first.handle = lambda _: "first"
    async with Cluster(first, cluster="one") as one, Cluster(second, cluster="two") as two:
        assert await one.dispatch("ann", 1) == "first"
        assert await two.dispatch("ann", 1) == 1
        assert (one.stats().cluster, two.stats().cluster) == ("one", "two")


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork")
@both_homes
@each_verb
def test_a_forked_child_is_told_to_start_its_own(home: Callable[[MemoryLog], Any], verb: str, args: Any) -> None:
    with home(answering()) as cluster:
        receipt = cluster.submit_sync("ann", 1)
        assert receipt.result_sync() == 1
        pid = os.fork()
        if pid == 0:
            status = 1
            try:
                for call in (lambda: getattr(cluster, f"{verb}_sync")(*args), receipt.result_sync, cluster.close_sync):
                    with pytest.raises(ForkedError, match="start a new Cluster after the fork"):
                        call()
                cluster.__exit__()
                status = 0
            finally:
                os._exit(status)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert cluster.dispatch_sync("ann", 2) == 2
