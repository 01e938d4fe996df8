"""What a shard does with the events of its slots."""

from __future__ import annotations

import asyncio
import json
import signal
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from actorbot import (
    DUPLICATE,
    Context,
    FileSessionStore,
    FlushPolicy,
    MemorySessionStore,
    RedisSessionStore,
    SessionManager,
)
from actorbot._runtime.process import this_process
from actorbot.cluster import Shard
from actorbot.cluster._lane import MOST_IN_LOG
from actorbot.cluster._slots import slot_of
from actorbot.errors import (
    ConfigError,
    ConflictError,
    ManagerClosedError,
    NotEncodableError,
    RemoteHandlerError,
    StoreUnavailableError,
    TurnTimeoutError,
)
from actorbot.testing import FaultyStore
from tests import inside
from tests.servers import redis_servers
from tests.unit.cluster.shards import SLOTS, bench, remember
from tests.waiting import breathe, soon, until

USERS = [f"user:{number}" for number in range(40)]


async def write_beside(store: Any, session_id: str, event: str) -> None:
    """Handle an event in another process that has the session, as a zombie does."""
    async with SessionManager(store, handler=remember, deliver=lambda *_: None, ownership="none") as other:
        await other.dispatch(session_id, event)


async def test_two_shards_have_half_of_the_slots_each_and_every_event_is_handled_once_and_in_order() -> None:
    async with bench() as b:
        first, second, cluster = await b.shard(), await b.shard(), await b.cluster()
        await until(lambda: len(first.stats().slots) == len(second.stats().slots) == SLOTS // 2)
        for number in range(5):
            counts = await asyncio.gather(*(cluster.dispatch(user, number) for user in USERS))
            assert counts == [number + 1] * len(USERS)
        for user in USERS:
            assert await cluster.peek(user) == {"seen": [0, 1, 2, 3, 4]}
        assert first.stats().handled + second.stats().handled == 5 * len(USERS)
        assert first.stats().handled > 0 < second.stats().handled
        assert len(b.replies) == 5 * len(USERS)


async def test_a_shard_that_closes_hands_its_sessions_over_with_all_that_they_had() -> None:
    async with bench() as b:
        first, cluster = await b.shard(), await b.cluster()
        await asyncio.gather(*(cluster.dispatch(user, "before") for user in USERS))
        second = await b.shard()
        report = await first.close()
        assert report.clean
        assert await asyncio.gather(*(cluster.dispatch(user, "after") for user in USERS)) == [2] * len(USERS)
        assert len(second.stats().slots) == SLOTS
        assert b.lease_of(USERS[0])[1] == "0"  # nobody has to claim anything


async def test_events_that_come_while_nobody_has_their_slot_wait_for_the_next_owner() -> None:
    async with bench() as b:
        first, cluster = await b.shard(), await b.cluster()
        await first.close()
        receipt = await cluster.submit("ann", "early")
        assert b.entries("ann") == 1
        await b.shard()
        assert await receipt.result() == 1


async def test_an_event_stays_in_the_log_until_its_session_is_flushed() -> None:
    async with bench() as b:
        await b.shard()
        cluster = await b.cluster()
        assert await cluster.dispatch("ann", "hi") == 1
        assert b.entries("ann") == 1
        await cluster.flush("ann")
        await until(lambda: b.entries("ann") == 0)


@pytest.mark.parametrize(
    "options", [{"keep": "acknowledged"}, {"flush": FlushPolicy.write_through()}], ids=["acknowledged", "through"]
)
async def test_an_event_leaves_the_log_with_its_answer_where_nothing_more_is_promised(options: Any) -> None:
    async with bench() as b:
        await b.shard(**options)
        cluster = await b.cluster()
        assert await cluster.dispatch("ann", "hi") == 1
        assert b.entries("ann") == 0


async def test_what_a_conflict_takes_is_run_again_in_order_silently_and_before_newer_events() -> None:
    async with bench() as b:
        shard, cluster = await b.shard(), await b.cluster()
        await cluster.dispatch("ann", "first")
        await cluster.flush("ann")
        for event in ("second", "third"):
            await cluster.dispatch("ann", event)
        await write_beside(b.store, "ann", "zombie's")
        await cluster.flush("ann")
        assert await cluster.dispatch("ann", "fourth") == 5
        await cluster.flush("ann")
        assert await cluster.peek("ann") == {"seen": ["first", "zombie's", "second", "third", "fourth"]}
        assert b.replies == [f"reply to {event}" for event in ("first", "second", "third", "fourth")]
        assert shard.stats().reruns == 2
        await until(lambda: b.entries("ann") == 0)


async def test_acknowledged_events_are_run_again_by_the_next_owner_and_nobody_hears_of_it_twice() -> None:
    async with bench() as b:
        first, cluster = await b.shard(), await b.cluster()
        assert await cluster.dispatch("ann", "one") == 1
        b.let_run_out(first.stats().member)
        b.take_over("ann", "gone")  # first has not flushed, and never will
        b.let_run_out("gone")
        first._manager.abandon("ann")
        assert await cluster.dispatch("ann", "two") == 2
        await cluster.flush("ann")
        assert await cluster.peek("ann") == {"seen": ["one", "two"]}
        assert b.replies == ["reply to one", "reply to two"]


async def test_events_that_are_run_again_leave_room_for_others_before_they_are_flushed() -> None:
    async with bench() as b:
        first, cluster = await b.shard(max_in_hand=1), await b.cluster()
        assert [await cluster.dispatch("ann", event) for event in ("one", "two")] == [1, 2]
        b.let_run_out(first.stats().member)
        b.take_over("ann", "gone")
        b.let_run_out("gone")
        inside.manager_of(first).abandon("ann")
        assert await soon(cluster.dispatch("ann", "three")) == 3


async def test_a_shard_that_was_taken_over_answers_nobody_sends_no_reply_and_writes_nothing() -> None:
    started, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(context: Context) -> int:
        started.set()
        await goes_on.wait()
        return await remember(context)

    async with bench() as b:
        shard, cluster = await b.shard(slow), await b.cluster()
        waiting = asyncio.ensure_future(cluster.dispatch("ann", "hi", timeout=1.0))
        await started.wait()
        b.take_over("ann")
        goes_on.set()
        with pytest.raises(TurnTimeoutError):
            await waiting
        await until(lambda: len(shard.stats().slots) == SLOTS - 1)
        assert shard.stats().fenced == 1
        assert (b.replies, b.entries("ann")) == ([], 1)
        assert list(shard.resident()) == []
        async with SessionManager(b.store, ownership="none") as reader:
            assert await reader.peek("ann") is None


async def test_after_a_takeover_a_sessions_first_event_is_in_the_store_before_it_is_acknowledged() -> None:
    async with bench() as b:
        first, cluster = await b.shard(keep="acknowledged"), await b.cluster()
        b.take_over("ann", "gone")
        b.let_run_out("gone")
        assert await cluster.dispatch("ann", "one") == 1
        assert await cluster.dispatch("ann", "two") == 2
        async with SessionManager(b.store, ownership="none") as reader:
            assert await reader.peek("ann") == {"seen": ["one"]}
        assert first.stats().fenced == 1


async def test_a_claim_that_meets_a_late_write_of_the_old_owner_is_run_again_on_it() -> None:
    class Late(MemorySessionStore):
        """Has the old owner write just before the first write of the new one."""

        late = True

        def write_many(self, writes: Any) -> Any:
            if self.late and any(write.record.session_id == "ann" for write in writes):
                self.late = False
                asyncio.run(write_beside(self, "ann", "late"))
            return super().write_many(writes)

    async with bench() as b:
        b.store = Late()
        await b.shard(keep="acknowledged")
        cluster = await b.cluster()
        b.take_over("ann", "gone")
        b.let_run_out("gone")
        assert await cluster.dispatch("ann", "new") == 2
        assert await cluster.peek("ann") == {"seen": ["late", "new"]}
        assert b.replies == ["reply to new"]


async def test_no_session_has_more_unflushed_events_in_the_log_than_its_record_remembers() -> None:
    async with bench() as b:
        await b.shard()
        cluster = await b.cluster()
        most = 0
        for number in range(3 * MOST_IN_LOG):
            await cluster.dispatch("ann", number)
            most = max(most, b.entries("ann"))
        assert most <= MOST_IN_LOG + 1
        assert await cluster.peek("ann") == {"seen": list(range(3 * MOST_IN_LOG))}


async def test_a_destroyed_session_does_not_come_back_with_events_that_were_not_flushed() -> None:
    async with bench() as b:
        await b.shard()
        cluster = await b.cluster()
        await cluster.dispatch("ann", "hi")
        await cluster.destroy("ann")
        assert b.entries("ann") == 0
        assert await cluster.peek("ann") is None
        assert await cluster.dispatch("ann", "again") == 1


class Away(MemorySessionStore):
    """A store that does not answer while it is away."""

    away = True

    def read_many(self, session_ids: Any) -> Any:
        if self.away:
            raise StoreUnavailableError("memory", "it is away")
        return super().read_many(session_ids)


async def test_a_submitted_event_waits_for_a_store_that_is_away_and_a_dispatched_one_is_told() -> None:
    async with bench() as b:
        b.store = Away()
        await b.shard()
        cluster = await b.cluster()
        with pytest.raises(StoreUnavailableError):
            await cluster.dispatch("ann", "dispatched")
        receipt = await cluster.submit("ann", "submitted")
        await cluster.submit("ann", "after it")
        b.store.away = False
        assert await receipt.result() == 1
        await cluster.flush("ann")
        assert await cluster.peek("ann") == {"seen": ["submitted", "after it"]}


async def test_what_a_handler_raises_reaches_the_caller_and_a_submitted_event_is_a_dead_letter() -> None:
    letters: list[Any] = []

    def fail(context: Context) -> None:
        raise ValueError(f"no {context.event}")

    async with bench() as b:
        await b.shard(fail, on_dead_letter=lambda *told: letters.append(told))
        cluster = await b.cluster()
        with pytest.raises(RemoteHandlerError) as caught:
            await cluster.dispatch("ann", 1)
        assert (caught.value.type_name, caught.value.text) == ("ValueError", "no 1")
        await cluster.submit("ann", 2)
        await until(lambda: letters)
        assert letters == [("ann", 2, "ValueError: no 2")]
        assert b.entries("ann") == 0


async def test_a_duplicate_is_told_also_after_the_session_has_changed_hands() -> None:
    async with bench() as b:
        first, cluster = await b.shard(), await b.cluster()
        assert await cluster.dispatch("ann", "hi", event_id="e1", on_duplicate="result") == 1
        assert await cluster.dispatch("ann", "hi", event_id="e1", on_duplicate="result") == 1
        await b.shard()
        await first.close()
        assert await cluster.dispatch("ann", "hi", event_id="e1") is DUPLICATE


async def test_no_event_is_begun_after_the_lease_has_run_out_until_it_is_renewed() -> None:
    async with bench() as b:
        shard, cluster = await b.shard(), await b.cluster()
        membership: Any = shard._membership
        gate = asyncio.Event()
        renew = membership.renew

        async def held() -> None:
            await gate.wait()
            await renew()

        membership.renew = held
        membership.until = 0.0
        waiting = asyncio.ensure_future(cluster.dispatch("ann", "hi"))
        await until(lambda: shard.stats().in_hand == 1)
        await breathe()
        assert shard.health().status == "failing"
        assert not waiting.done()
        assert shard.stats().handled == 0
        gate.set()
        assert await soon(waiting) == 1


async def test_a_shard_that_gives_a_slot_back_leaves_what_it_has_not_begun_to_the_next_owner() -> None:
    started, goes_on = asyncio.Event(), asyncio.Event()

    async def slow(context: Context) -> int:
        started.set()
        await goes_on.wait()
        return await remember(context)

    async with bench() as b:
        first, cluster = await b.shard(slow), await b.cluster()
        receipts = [await cluster.submit("ann", number) for number in range(3)]
        await started.wait()
        await b.shard()
        closing = asyncio.ensure_future(first.close())
        await until(lambda: first.stats().in_hand == 1)
        goes_on.set()
        assert (await closing).clean
        assert [await receipt.result() for receipt in receipts] == [1, 2, 3]
        assert await cluster.peek("ann") == {"seen": [0, 1, 2]}


async def test_what_a_shard_cannot_finish_in_time_is_with_the_next_owner_at_once() -> None:
    started = asyncio.Event()

    async def hang(context: Context) -> None:
        context.session["seen"] = ["half"]
        started.set()
        await asyncio.Event().wait()

    async with bench() as b:
        first, cluster = await b.shard(hang, lease=60.0, drain_timeout=0.3), await b.cluster()
        receipt = await cluster.submit("ann", "hi")
        await started.wait()
        await b.shard(lease=60.0)
        report = await first.close()
        assert (report.unfinished, report.unflushed) == (1, ())
        assert await soon(receipt.result()) == 1
        assert await cluster.peek("ann") == {"seen": ["hi"]}
        assert b.lease_of("ann")[1] == "0"  # nobody has to claim anything


async def test_a_close_that_is_hurried_does_not_wait_for_a_log_that_is_away(tmp_path: Path) -> None:
    with redis_servers.Server(redis_servers.QUICK, tmp_path) as server:
        url = f"{server.url}?socket_timeout=60"  # the log is patient
        shard = await Shard(url, cluster="mybot", store=MemorySessionStore(), handler=remember).start()
        assert server.process is not None
        server.process.send_signal(signal.SIGSTOP)
        closing = asyncio.create_task(shard.close())
        await breathe()
        shard._hurry(0.1)
        await soon(closing)  # far below its drain_timeout
        assert not shard._is_flushed()
        server.process.send_signal(signal.SIGCONT)


async def test_a_shard_that_cannot_flush_keeps_these_slots_until_its_lease_runs_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with bench() as b:
        b.store = FaultyStore(b.store)
        shard, cluster = await b.shard(drain_timeout=0.3), await b.cluster()
        await cluster.dispatch("ann", "hi")
        b.store.outage()
        report = await shard.close()
        assert report.unflushed == ("ann",)
        assert b.lease_of("ann")[2] == shard._member
        owners = {owner for _, owner, _ in await cluster._log.slots()}
        assert owners == {"", shard._member}
    assert f"{shard._member} keeps slots (1), which others take when its lease has run out" in caplog.text


async def test_a_shard_that_is_asked_to_leave_gives_everything_back_and_stays_open_until_it_is_closed() -> None:
    async with bench() as b:
        first, second = await b.shard(), await b.shard()
        cluster = await b.cluster()
        await cluster.dispatch("ann", "hi")
        first.leave()
        await until(lambda: len(second.stats().slots) == SLOTS)
        await soon(first.receive())
        assert first.stats().slots == {}
        assert await cluster.dispatch("ann", "hi") == 2


async def test_an_entry_that_is_no_request_is_taken_out_and_holds_nobody_up(caplog: pytest.LogCaptureFixture) -> None:
    async with bench() as b:
        await b.shard()
        cluster = await b.cluster()
        redis_servers.shared().ask("XADD", b.key("log", slot_of("ann", SLOTS)), "*", "e", b"\xc1")
        assert await cluster.dispatch("ann", "hi") == 1
        await cluster.flush("ann")
        await until(lambda: b.entries("ann") == 0)
        assert "is taken out of the log" in caplog.text


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"flush": FlushPolicy.journaled("there")}, "journaled"),
        ({"keep": "all"}, "keep"),
        ({"lease": 0.5}, "lease"),
        ({"slots": 0}, "slots"),
        ({"ownership": "exclusive"}, "ownership"),
        ({"max_waiting": 0}, "max_waiting"),
        ({"handler_timeout": -1}, "handler_timeout"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_an_option_that_cannot_be_is_refused_when_the_shard_is_made(options: Any, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        Shard("redis://127.0.0.1:1/0", cluster="bot", store=MemorySessionStore(), **options)


def test_a_folder_of_files_is_refused_since_no_other_shard_can_have_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"store='FileSessionStore': expected one that all shards reach"):
        Shard("redis://127.0.0.1:1/0", cluster="bot", store=FileSessionStore(tmp_path))


async def test_a_shard_whose_sessions_stay_in_its_process_says_so(caplog: pytest.LogCaptureFixture) -> None:
    async with bench() as b:
        await b.shard()
        b.store = RedisSessionStore(b.url, key_prefix=f"{b.name}:")
        await b.shard()

    told = [each for each in caplog.messages if "its sessions are in this process alone" in each]
    assert len(told) == 1


async def test_a_shard_is_started_once() -> None:
    async with bench() as b:
        shard = await b.shard()
        with pytest.raises(ManagerClosedError):
            await shard.start()
        await shard.close()
        with pytest.raises(ManagerClosedError):
            shard.stats()


async def test_the_slots_of_a_shard_whose_process_has_ended_on_this_machine_are_taken_before_its_lease_runs_out() -> (
    None
):
    async with bench() as b:
        first = await b.shard(lease=1.0)
        member = first.stats().member
        info: Any = redis_servers.shared().ask("HGET", b.key("infos"), member)
        told = {**asdict(this_process()), "pid": 2**31 - 1, "started": "1"}  # above each that there is
        redis_servers.shared().ask("ZADD", b.key("members"), 2**52, "ended")
        redis_servers.shared().ask("HSET", b.key("infos"), "ended", json.dumps(json.loads(info) | told))
        b.take_over("ann", "ended")
        cluster = await b.cluster()
        assert await soon(cluster.dispatch("ann", "hi")) == 1
        assert b.lease_of("ann")[2] == member


async def test_a_result_that_cannot_be_sent_is_an_error_that_says_that_the_changes_stay() -> None:
    async def handle(context: Context) -> object:
        await remember(context)
        return object()

    async with bench() as b:
        await b.shard(handle)
        cluster = await b.cluster()
        with pytest.raises(NotEncodableError, match=r"^result: .*; what the handler has changed is kept"):
            await cluster.dispatch("ann", 1)

        assert await cluster.peek("ann") == {"seen": [1]}


async def test_a_receipt_says_durable_only_of_an_event_that_the_store_has() -> None:
    async with bench() as b:
        first, cluster = await b.shard(keep="acknowledged"), await b.cluster()
        kept, lost = await cluster.submit("ann", "kept"), await cluster.submit("bob", "lost")
        assert (await kept.result(), await lost.result()) == (1, 1)
        await kept.durable()
        first._manager.abandon("bob")
        with pytest.raises(ConflictError, match="before it was flushed"):
            await lost.durable()
        assert await cluster.dispatch("bob", "lost") == 1
        await cluster.destroy("ann")
        await kept.durable()  # and destroyed since
