"""A caller between its requests and a log that answers late, in part, or not at all."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterator
from typing import Any

import pytest

from actorbot._state.codec import pack_fields
from actorbot.cluster import Cluster, _caller
from actorbot.cluster._log import Terms
from actorbot.cluster._packing import Request, pack_answers, unpack_value
from actorbot.cluster._slots import slot_of
from actorbot.errors import (
    ConfigError,
    ManagerClosedError,
    OutcomeUnknownError,
    OverloadedError,
    StoreError,
    StoreUnavailableError,
    TurnTimeoutError,
)
from tests.memory_log import MemoryLog
from tests.waiting import breathe, soon, until

AWAY = StoreUnavailableError("cluster mybot", "no connection")
OPEN = OutcomeUnknownError("cluster mybot", "no answer")


def echo(request: Request) -> Any:
    return unpack_value(request.event)


@pytest.fixture(autouse=True)
def no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_caller, "PAUSE", 0.0)


@pytest.fixture
def no_patience(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(_caller, "PATIENCE", 0.0)
    return


# --- while the log cannot be reached --------------------------------------------------------------


async def test_an_outage_of_a_moment_is_not_noticed() -> None:
    log = MemoryLog()
    log.handle = echo
    async with Cluster(log) as cluster:
        log.failures += [AWAY, AWAY]
        assert await soon(cluster.dispatch("ann", "hi")) == "hi"
        assert cluster.stats().repeated == 2


async def test_an_append_whose_answer_was_lost_is_repeated_and_appended_once() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        log.failures += [OPEN, AWAY, OPEN]
        receipts = await soon(asyncio.gather(*(cluster.submit("ann", number) for number in range(3))))
        for request in log.requests:
            log.answer(request, echo(request))
        assert [await soon(receipt.result()) for receipt in receipts] == [0, 1, 2]
        log.handle = echo
        assert await soon(cluster.dispatch("ann", 3)) == 3
        assert (cluster.stats().repeated, cluster.stats().sent) == (3, 4)

    assert [unpack_value(each.event) for each in log.requests] == [0, 1, 2, 3]


async def test_one_that_is_repeated_stays_as_it_was_though_some_of_its_callers_have_gone() -> None:
    log = MemoryLog()
    log.full = {slot_of("full", 16)}
    async with Cluster(log) as cluster:
        log.failures += [OPEN, *[AWAY] * 1_000]
        users = ("ann", "full", "bob")
        first, full, last = [asyncio.create_task(cluster.dispatch(user, user)) for user in users]
        await until(lambda: len(log.failures) < 990)
        first.cancel()
        log.failures.clear()
        with pytest.raises(OverloadedError):
            await soon(full)
        log.answer(log.requests[1], 7)
        assert await soon(last) == 7

    assert [each.session_id for each in log.requests] == ["ann", "bob"]


async def test_an_event_that_was_answered_is_not_appended_again() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        log.failures += [OPEN]
        asking = asyncio.create_task(cluster.dispatch("ann", "hi"))
        await until(lambda: log.requests)
        log.held.clear()
        log.answer(log.requests[0], 1)
        assert await soon(asking) == 1
        log.held.set()
        await breathe()
        assert cluster.stats().sent == 1

    assert len(log.requests) == 1


@pytest.mark.usefixtures("no_patience")
async def test_if_the_log_stays_away_the_error_says_that_nothing_was_done() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        log.failures += [AWAY, AWAY]
        for verb in (cluster.dispatch, cluster.submit):
            with pytest.raises(StoreUnavailableError, match=r"cluster mybot: .*nothing was done") as caught:
                await soon(verb("ann", "hi"))
            assert type(caught.value) is StoreUnavailableError
        assert cluster.stats().waiting == 0


@pytest.mark.usefixtures("no_patience")
async def test_if_it_may_have_been_done_the_error_says_so() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        log.failures += [OPEN, OPEN]
        for verb in (cluster.dispatch, cluster.submit):
            with pytest.raises(OutcomeUnknownError, match="same event id"):
                await soon(verb("ann", "hi"))


async def test_an_outcome_that_was_open_once_stays_open(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        log.failures += [OPEN, *[AWAY] * 1_000]
        asking = asyncio.create_task(cluster.dispatch("ann", "hi"))
        await until(lambda: len(log.failures) < 990)
        monkeypatch.setattr(_caller, "PATIENCE", 0.0)
        with pytest.raises(OutcomeUnknownError):
            await soon(asking)


async def test_who_waits_behind_a_batch_that_cannot_be_sent_is_told_too(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        log.held.clear()
        first = asyncio.create_task(cluster.dispatch("ann", 1))
        await until(lambda: cluster.stats().appends)
        second = asyncio.create_task(cluster.dispatch("bob", 2))
        await until(lambda: cluster.stats().unsent)
        monkeypatch.setattr(_caller, "PATIENCE", 0.0)
        log.failures += [AWAY]
        log.held.set()
        for asking in (first, second):
            with pytest.raises(StoreUnavailableError):
                await soon(asking)

    assert log.requests == []


async def test_what_waits_for_the_log_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_caller, "UNSENT_BYTES", 10_000)
    log = MemoryLog()
    async with Cluster(log) as cluster:
        log.held.clear()
        asking = [asyncio.create_task(cluster.dispatch("ann", "x" * 1_000)) for _ in range(100)]
        await until(lambda: any(each.done() for each in asking))
        refused = [each for each in asking if each.done()]
        assert 80 < len(refused) < 100
        assert all(isinstance(each.exception(), OverloadedError) for each in refused)
        log.handle = echo
        log.held.set()
        assert await soon(asking[0]) == "x" * 1_000


async def test_an_outage_is_logged_once_and_so_is_its_end(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "actorbot")
    log = MemoryLog()
    log.handle = echo
    async with Cluster(log) as cluster:
        log.failures += [AWAY] * 5
        await soon(cluster.dispatch("ann", "hi"))
        await soon(cluster.dispatch("ann", "hi"))

    assert caplog.messages == [
        "cluster mybot does not answer, or refuses: trying again: cluster mybot: no connection",
        "cluster mybot answers again",
    ]


async def test_a_log_that_answers_and_takes_nothing_is_an_outage_until_it_takes_something(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "actorbot")
    log = MemoryLog()
    async with Cluster(log) as cluster:
        receipt = await soon(cluster.submit("ann", "hi"))
        log.failures += [AWAY] * 1_000
        asking = asyncio.create_task(cluster.dispatch("ann", "hi"))
        await until(lambda: len(log.failures) < 990)
        log.answer(log.requests[0], 7)
        assert await soon(receipt.result()) == 7  # it can be read
        assert cluster.health().status == "degraded"
        assert len(caplog.records) == 1
        log.failures.clear()
        log.handle = echo
        assert await soon(asking) == "hi"
        assert cluster.health().status == "ready"

    assert caplog.messages[1:] == ["cluster mybot answers again"]


# --- bounds ---------------------------------------------------------------------------------------


async def test_a_full_slot_refuses_at_once_and_the_others_go_on() -> None:
    log = MemoryLog()
    log.handle = echo
    log.full = {slot_of("ann", 16)}
    async with Cluster(log) as cluster:
        refused, taken = await soon(
            asyncio.gather(cluster.dispatch("ann", 1), cluster.dispatch("bob", 2), return_exceptions=True)
        )
        with pytest.raises(OverloadedError, match="is full"):
            await soon(cluster.submit("ann", 1))
        stats = cluster.stats()

    assert isinstance(refused, OverloadedError)
    assert refused.retry_after > 0
    assert taken == 2
    assert (stats.sent, stats.refused, stats.waiting) == (1, 2, 0)


async def test_a_slot_that_is_full_when_it_is_tried_again_has_the_event_of_the_first_time() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        log.failures += [OPEN]
        asking = asyncio.create_task(cluster.dispatch("ann", 1))
        await until(lambda: log.requests)
        log.full = {slot_of("ann", 16)}
        await breathe()
        assert not asking.done()
        log.answer(log.requests[0], 7)
        assert await soon(asking) == 7


async def test_a_batch_is_bounded_in_number_and_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_caller, "BATCH_BYTES", 100_000)
    log = MemoryLog()
    log.handle = lambda _: None
    async with Cluster(log) as cluster:
        await soon(asyncio.gather(*(cluster.dispatch("ann", number) for number in range(600))))
        await soon(asyncio.gather(*(cluster.dispatch("ann", "x" * 40_000) for _ in range(5))))
        await soon(cluster.dispatch("ann", "x" * 400_000))

    assert [len(batch) for batch in log.appended] == [256, 256, 88, 2, 2, 1, 1]


async def test_what_comes_while_an_append_is_under_way_goes_with_the_next() -> None:
    log = MemoryLog()
    log.handle = echo
    async with Cluster(log) as cluster:
        log.held.clear()
        first = asyncio.create_task(cluster.dispatch("ann", 0))
        await until(lambda: cluster.stats().appends)
        others = [asyncio.create_task(cluster.dispatch("ann", number)) for number in (1, 2, 3)]
        await until(lambda: cluster.stats().unsent == 3)
        log.held.set()
        assert await soon(asyncio.gather(first, *others)) == [0, 1, 2, 3]

    assert [len(batch) for batch in log.appended] == [1, 3]


# --- time-outs ------------------------------------------------------------------------------------


async def test_without_an_answer_a_dispatch_says_after_its_timeout_that_the_outcome_is_open() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        for options in ({"timeout": 0.02}, {"timeout": 0}):
            with pytest.raises(TurnTimeoutError, match=r"'ann'.*outcome is open"):
                await soon(cluster.dispatch("ann", "hi", **options))
        assert (cluster.stats().timed_out, cluster.stats().waiting) == (2, 0)


async def test_the_timeout_of_the_cluster_holds_for_all_verbs() -> None:
    log = MemoryLog(slots=2)
    async with Cluster(log, timeout=0.02) as cluster:
        for asking in (
            cluster.dispatch("ann", "hi"),
            cluster.peek("ann"),
            cluster.destroy("ann"),
            cluster.flush("ann"),
        ):
            with pytest.raises(TurnTimeoutError, match=r"within 0\.02 s"):
                await soon(asking)
        with pytest.raises(StoreUnavailableError, match=r"slot 0: no answer within 0\.02 s.*own"):
            await soon(cluster.flush())
        receipt = await soon(cluster.submit("ann", "hi"))
        with pytest.raises(TurnTimeoutError):
            await soon(receipt.result())


async def test_a_submit_that_is_not_accepted_in_time_says_whether_it_may_be() -> None:
    log = MemoryLog()
    log.handle = echo
    async with Cluster(log, timeout=0.05) as cluster:
        log.held.clear()
        sent = asyncio.create_task(cluster.submit("ann", 1))
        await until(lambda: cluster.stats().appends)
        unsent = asyncio.create_task(cluster.submit("bob", 2))
        with pytest.raises(OutcomeUnknownError, match=r"'ann': not accepted within 0\.05 s.*open"):
            await soon(sent)
        with pytest.raises(StoreUnavailableError, match=r"'bob': not accepted within 0\.05 s.*nothing was done"):
            await soon(unsent)
        log.held.set()
        receipt = await soon(cluster.submit("carl", 3))
        assert await soon(receipt.result()) == 3

    assert "bob" not in {each.session_id for each in log.requests}


async def test_each_request_has_its_own_timeout() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        long = asyncio.create_task(cluster.dispatch("ann", "hi"))
        short = [asyncio.create_task(cluster.dispatch("ann", "hi", timeout=0.01 * n)) for n in (9, 3, 6)]
        await until(lambda: all(each.done() for each in short))
        assert not long.done()
        await until(lambda: log.requests)
        log.answer(log.requests[0], 1)
        assert await soon(long) == 1


async def test_a_request_that_was_not_sent_in_time_is_never_sent() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        log.held.clear()
        first = asyncio.create_task(cluster.dispatch("ann", 1))
        await until(lambda: cluster.stats().appends)
        with pytest.raises(TurnTimeoutError, match="was not sent: nothing was done"):
            await soon(cluster.dispatch("bob", 2, timeout=0.02))
        log.handle = echo
        log.held.set()
        assert await soon(first) == 1
        await soon(cluster.dispatch("carl", 3))

    assert [each.session_id for each in log.requests] == ["ann", "carl"]


async def test_a_late_answer_does_no_harm() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        with pytest.raises(TurnTimeoutError):
            await soon(cluster.dispatch("ann", "hi", timeout=0.02))
        log.answer(log.requests[0], "late")
        log.handle = echo
        assert await soon(cluster.dispatch("ann", "in time")) == "in time"


# --- who leaves -----------------------------------------------------------------------------------


async def test_a_dispatch_that_is_cancelled_leaves_its_event_accepted() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        asking = asyncio.create_task(cluster.dispatch("ann", "hi"))
        await until(lambda: log.requests)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(asking)
        log.answer(log.requests[0], 1)
        await until(lambda: cluster.stats().waiting == 0)


@pytest.mark.parametrize("verb", ["dispatch", "submit"])
async def test_one_that_is_cancelled_before_it_was_sent_is_never_sent(verb: str) -> None:
    log = MemoryLog()
    log.handle = echo
    async with Cluster(log) as cluster:
        log.held.clear()
        first = asyncio.create_task(cluster.dispatch("ann", 1))
        await until(lambda: cluster.stats().appends)
        second = asyncio.create_task(getattr(cluster, verb)("bob", 2))
        await until(lambda: cluster.stats().unsent)
        second.cancel()
        log.held.set()
        assert await soon(first) == 1
        await soon(cluster.dispatch("ann", 3))
        assert cluster.stats().waiting == 0

    assert [each.session_id for each in log.requests] == ["ann", "ann"]


async def test_a_close_tells_all_who_wait_that_the_outcome_is_open() -> None:
    log = MemoryLog()
    cluster = await Cluster(log).start()
    receipt = await soon(cluster.submit("ann", "hi"))
    accepted = asyncio.create_task(cluster.dispatch("ann", "hi"))
    result = asyncio.create_task(receipt.result())
    await until(lambda: len(log.requests) == 2)
    log.held.clear()
    sent = asyncio.create_task(cluster.dispatch("ann", "hi"))
    await until(lambda: cluster.stats().appends == 3)
    unsent = asyncio.create_task(cluster.dispatch("ann", "hi"))
    await until(lambda: cluster.stats().unsent)
    await soon(cluster.close())

    for asking, text in (
        (accepted, "accepted, and goes on: its outcome is open"),
        (result, "accepted, and goes on: its outcome is open"),
        (sent, "has not confirmed it: its outcome is open"),
        (unsent, "not sent: nothing was done"),
    ):
        with pytest.raises(ManagerClosedError, match=text):
            await soon(asking)
    assert log.closed == 1


# --- answers --------------------------------------------------------------------------------------


async def test_answers_are_read_again_from_the_start_after_the_log_was_away() -> None:
    """A server that comes back with its clock set back gives answers smaller ids than before."""
    log = MemoryLog()
    log.handle = echo
    async with Cluster(log) as cluster:
        assert await soon(cluster.dispatch("ann", 1)) == 1
        log.deafen(AWAY)
        asking = asyncio.create_task(cluster.dispatch("ann", 2))
        await until(lambda: len(log.requests) == 2)
        log.forget_answers()
        log.answer(log.requests[1], "after all")
        log.deafen(None)
        assert await soon(asking) == "after all"


async def test_an_answer_that_nobody_can_read_is_an_error_of_its_request_alone() -> None:
    log = MemoryLog()
    async with Cluster(log) as cluster:
        asking = asyncio.create_task(cluster.dispatch("ann", "hi"))
        await until(lambda: log.requests)
        request = log.requests[0]
        log.send(request.caller, b"\xc1")
        log.send(request.caller, pack_answers([(request.number, pack_fields([0, b"\xc1"]))]))
        with pytest.raises(StoreError, match=r"cluster mybot: session 'ann': the answer cannot be read.*release"):
            await soon(asking)
        log.handle = echo
        assert await soon(cluster.dispatch("ann", "hi")) == "hi"


# --- a cluster that was made anew -----------------------------------------------------------------


async def test_a_cluster_that_was_made_anew_with_other_slots_is_asked_again() -> None:
    log = MemoryLog(slots=16)
    log.handle = echo
    async with Cluster(log) as cluster:
        log.terms = Terms(64, 1_000)
        log.failures += [ConfigError("slots", 16, "64, as the cluster was made with")]
        assert await soon(cluster.dispatch("ann", "hi")) == "hi"
        assert cluster.stats().slots == 64

    assert log.slots_of == [slot_of("ann", 64)]


# --- event ids ------------------------------------------------------------------------------------


async def test_each_event_has_an_id_of_its_own_if_its_sender_gives_none() -> None:
    log = MemoryLog()
    log.handle = echo
    async with Cluster(log) as ours, Cluster(log) as theirs:
        for cluster in (ours, theirs):
            await soon(cluster.dispatch("ann", 1))
            await soon(cluster.dispatch("ann", 1, on_duplicate="result"))

    assert len({each.event_id for each in log.requests}) == 4
    assert not any(each.result_again for each in log.requests)


@pytest.mark.parametrize("given", ["x" * 100_000, "\ud800", "é" * 300])
async def test_an_event_id_that_cannot_be_sent_as_it_is_stays_the_same_each_time(given: str) -> None:
    log = MemoryLog()
    log.handle = echo
    async with Cluster(log) as cluster:
        for each in (given, given, given + "!"):
            await soon(cluster.dispatch("ann", 1, event_id=each))

    first, again, other = (each.event_id for each in log.requests)
    assert first == again != other
