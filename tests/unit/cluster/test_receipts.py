"""What who has submitted an event may ask of its receipt."""

from __future__ import annotations

import asyncio
import gc
from typing import Any

import pytest

from actorbot.cluster import Cluster
from actorbot.cluster._packing import Request
from actorbot.errors import ConfigError, ManagerClosedError, RemoteHandlerError, TurnTimeoutError, WrongLoopError
from tests import inside
from tests.memory_log import MemoryLog
from tests.waiting import breathe, soon, until


async def test_a_submit_returns_when_the_log_has_the_event_and_not_before() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        log.held.clear()
        submitting = asyncio.create_task(cluster.submit("ann", "hi", event_id="7"))
        await breathe()
        assert not submitting.done()
        log.held.set()
        receipt = await soon(submitting)

    assert receipt.session_id == "ann"
    assert [(each.kind, each.event_id) for each in log.requests] == [("submit", "7")]


async def test_the_result_can_be_asked_again_after_a_timeout_and_by_several() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        receipt = await soon(cluster.submit("ann", "hi"))
        with pytest.raises(TurnTimeoutError, match=r"'ann'.* goes on"):
            await soon(receipt.result(0.01))
        asking = [asyncio.create_task(receipt.result()) for _ in range(3)]
        asking[0].cancel()
        await breathe()
        log.answer(log.requests[0], 7)
        assert await soon(asking[1]) == await soon(asking[2]) == await soon(receipt.result()) == 7


async def test_the_result_raises_what_the_handler_raised_each_time() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        receipt = await soon(cluster.submit("ann", "hi"))
        log.answer(log.requests[0], error=LookupError("no"))
        for _ in range(2):
            with pytest.raises(RemoteHandlerError, match="LookupError: no"):
                await soon(receipt.result())


async def test_durable_waits_for_the_result_and_then_for_a_flush_of_the_session() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        receipt = await soon(cluster.submit("ann", "hi"))
        waiting = asyncio.create_task(receipt.durable())
        await breathe()
        assert len(log.requests) == 1
        log.answer(log.requests[0], 7)
        await until(lambda: len(log.requests) == 2)
        assert not waiting.done()
        assert (log.requests[1].kind, log.requests[1].session_id) == ("flush", "ann")
        log.answer(log.requests[1])
        assert await soon(waiting) is None


async def test_what_failed_is_never_durable() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        receipt = await soon(cluster.submit("ann", "hi"))
        log.answer(log.requests[0], error=LookupError("no"))
        with pytest.raises(RemoteHandlerError):
            await soon(receipt.durable())

    assert len(log.requests) == 1


async def test_after_a_close_the_answer_is_there_if_it_came_before() -> None:
    log = MemoryLog()
    cluster = await Cluster(log).start()
    answered, open_ = await soon(cluster.submit("ann", 1)), await soon(cluster.submit("ann", 2))
    log.answer(log.requests[0], 7)
    await soon(answered.result())
    await cluster.close()

    assert await answered.result() == 7
    with pytest.raises(ManagerClosedError):
        await open_.result()
    with pytest.raises(ManagerClosedError):
        await answered.durable()


async def test_who_drops_a_receipt_leaves_nothing_behind() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        receipt = await soon(cluster.submit("ann", "hi"))
        assert inside.receipts_of(cluster) == 1
        del receipt
        gc.collect()
        await breathe()
        assert inside.receipts_of(cluster) == 0
        log.answer(log.requests[0], 7)
        await breathe()
        assert cluster.stats().answered == 0


@pytest.mark.parametrize("timeout", [-1, "1", float("inf")])
async def test_a_wrong_timeout_is_refused_before_anything_is_waited_for(timeout: Any) -> None:
    async with Cluster(MemoryLog()) as cluster:
        receipt = await soon(cluster.submit("ann", "hi"))
        for verb in (receipt.result, receipt.durable):
            with pytest.raises(ConfigError):
                await verb(timeout)
        for sync_verb in (receipt.result_sync, receipt.durable_sync):
            with pytest.raises(ConfigError):
                sync_verb(timeout)


async def test_a_receipt_belongs_to_the_loop_of_its_cluster() -> None:
    def handle(request: Request) -> Any:
        return 7 if request.kind == "submit" else None

    log = MemoryLog()
    log.handle = handle
    async with Cluster(log) as cluster:
        receipt = await soon(cluster.submit("ann", "hi"))
        for verb in (receipt.result_sync, receipt.durable_sync):
            with pytest.raises(WrongLoopError):
                verb()
        assert await soon(asyncio.to_thread(receipt.result_sync)) == 7
        assert await soon(asyncio.to_thread(receipt.durable_sync)) is None
