"""What comes into the log comes out of it: each entry once, in order, to the owner of its slot."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from actorbot import errors
from actorbot.cluster import _redis_log, _scripts
from actorbot.cluster._log import Entry, Settlement, Terms
from tests.servers.proxy import Proxy
from tests.servers.redis_servers import Server, shared
from tests.unit.cluster.logs import Made, Member, a_cluster, until_it_does
from tests.waiting import SOON, breathe, soon

pytestmark = pytest.mark.usefixtures("short_waits")

SMALL = Terms(slots=16, max_waiting=3)


async def entries(member: Member, room: int = 1_000) -> list[Entry]:
    return (await member.log.read(member.name, room)).entries


async def owner(made: Made, terms: Terms = SMALL, *, url: str | None = None) -> Member:
    ann = await made.member("ann", terms, url=url)
    await ann.renew()
    return ann


def in_log(made: Made, slot: int) -> list[bytes]:
    return [entry[1][b"e"] for entry in made.ask("XRANGE", f"log:{slot}", "-", "+")]


async def test_events_reach_their_owner_in_order_and_once(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        assert await caller.append([(1, b"a"), (2, b"b"), (1, b"c")]) == [True] * 3
        await caller.append([(1, b"d")])
        found = await entries(ann)
        assert [each.payload for each in found if each.slot == 1] == [b"a", b"c", b"d"]
        assert [each.payload for each in found if each.slot == 2] == [b"b"]
        assert await entries(ann) == []
        await caller.append([(2, b"e")])
        assert await ann.read() == [b"e"]


async def test_events_wait_in_the_log_for_an_owner(server: Server) -> None:
    async with a_cluster(server) as made:
        ann = await made.member("ann", SMALL)
        caller = await made.caller()
        await caller.append([(7, b"early")])
        assert await ann.read() == []
        await ann.renew()
        assert await ann.read() == [b"early"]


async def test_a_full_slot_takes_nothing_more_and_the_others_do(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        assert await caller.append([(1, b"x")] * 4 + [(2, b"y")]) == [True, True, True, False, True]
        found = await entries(ann)
        first = next(each for each in found if each.slot == 1)
        await ann.log.settle("ann", [Settlement(1, 1, [], [first.id])], {})
        assert await caller.append([(1, b"z")] * 2) == [True, False]


async def test_a_batch_whose_answer_was_lost_is_appended_once_and_told_as_the_first_time(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        events = [(1, b"a"), (1, b"b"), (1, b"c"), (1, b"d"), (2, b"e")]
        for _ in range(2):
            assert await caller.append(events, "web", 7) == [True, True, True, False, True]
        assert await caller.append([(2, b"f")], "poller", 7) == [True]  # another caller
        assert await caller.append([(2, b"g")], "web", 8) == [True]
        assert await caller.append([(3, b"h")], "web", 8) == [True]
        assert await caller.append([(3, b"i")], "web", 7) == []  # by a connection that was given up
        assert in_log(made, 1) == [b"a", b"b", b"c"]
        assert in_log(made, 2) == [b"e", b"f", b"g"]
        assert in_log(made, 3) == []
        assert 0 < made.ask("TTL", "batch:web") <= 120
        assert len(await entries(ann)) == 6


async def test_a_reader_gets_as_much_as_it_has_room_for_and_no_slot_waits_for_a_full_one(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made, Terms(16, 1_000)), await made.caller()
        await caller.append([(0, b"%d" % n) for n in range(100)] + [(slot, b"x") for slot in range(1, 8)])
        seen = {each.slot for _ in range(4) for each in await entries(ann, room=16)}
        assert seen >= set(range(1, 8))
        rest = [each async for each in _all(ann)]
        assert rest == sorted(rest, key=int)
        assert in_log(made, 0)[-1] == rest[-1] == b"99"
        assert await ann.read(room=0) == []


async def _all(member: Member) -> object:
    while found := await entries(member, room=16):
        for entry in found:
            if entry.slot == 0:
                yield entry.payload


async def test_an_event_wakes_its_reader(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_redis_log, "WAIT", 2 * SOON)
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        await ann.read(room=0)  # begins anew
        reading = asyncio.create_task(ann.log.read("ann", 10))
        await until_blocked(server, "blpop")
        await caller.append([(3, b"hi")])
        assert [each.payload for each in (await soon(reading)).entries] == [b"hi"]
        answers = asyncio.create_task(caller.answers("web", "0"))
        await until_blocked(server, "xread")
        await ann.log.settle("ann", [], {"web": b"answer"})
        assert (await soon(answers)).payloads == [b"answer"]


async def until_blocked(server: Server, command: str) -> None:
    """Wait until a client waits at the server with *command*."""
    with server.client() as client:
        async with asyncio.timeout(SOON):
            while not any(each["cmd"] == command and "b" in each["flags"] for each in client.client_list()):
                await asyncio.sleep(0.001)


async def test_a_slot_granted_while_its_owner_reads_is_read_at_once(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_redis_log, "WAIT", 2 * SOON)
    async with a_cluster(server) as made:
        ann = await made.member("ann", SMALL)
        caller = await made.caller()
        await caller.append([(3, b"hi")])
        reading = asyncio.create_task(ann.log.read("ann", 10))
        await until_blocked(server, "blpop")
        await ann.renew()
        found = (await soon(reading)).entries or await soon(entries(ann))
        assert [each.payload for each in found] == [b"hi"]


async def test_the_heir_of_a_slot_reads_it_from_its_start(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        await caller.append([(0, b"a"), (0, b"b"), (0, b"c")])
        one, two, _ = await entries(ann)
        await ann.log.settle("ann", [Settlement(0, 1, [two.id], [one.id])], {})
        made.run_out("ann")
        bob = await made.member("bob", SMALL)
        await bob.read()
        granted = (await bob.renew()).granted
        assert (granted[0].acknowledged, granted[1].acknowledged) == ({two.id}, frozenset())
        assert await bob.read() == [b"b", b"c"]
        await caller.append([(0, b"d")])
        assert (await ann.read(), await bob.read()) == ([], [b"d"])


# --- settling -----------------------------------------------------------------------------------


async def test_settled_entries_leave_the_log_and_answers_reach_their_callers(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        await caller.append([(1, b"a"), (1, b"b"), (2, b"c")])
        a, b, c = sorted(await entries(ann), key=lambda each: each.payload)
        done = [Settlement(1, 1, [b.id], [a.id]), Settlement(2, 1, [], [c.id])]
        assert await ann.log.settle("ann", done, {"web": b"1", "poller": b"2"}) == []
        assert (in_log(made, 1), in_log(made, 2)) == ([b"b"], [])
        assert (await caller.answers("web", "0")).payloads == [b"1"]
        assert (await caller.answers("poller", "0")).payloads == [b"2"]
        assert made.ask("SMEMBERS", "acked:1") == {b.id.encode()}
        await ann.log.settle("ann", [Settlement(1, 1, [], [b.id])], {})
        assert made.ask("KEYS", "acked:*".replace("*", "1")) == []


async def test_who_is_not_the_owner_in_that_epoch_settles_nothing_at_all(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        await caller.append([(1, b"a"), (2, b"b")])
        a, b = sorted(await entries(ann), key=lambda each: each.payload)
        bob = await made.member("bob", SMALL)
        await bob.renew()
        await ann.log.release("ann", {2: ann.held.pop(2)})
        await bob.renew()
        assert bob.held == {2: 2}
        both = [Settlement(1, 1, [], [a.id]), Settlement(2, 1, [], [b.id])]
        assert await ann.log.settle("ann", both, {"web": b"late"}) == [2]
        assert await bob.log.settle("bob", [Settlement(2, 1, [], [b.id])], {"web": b"late"}) == [2]
        assert await ann.log.settle("ann", [Settlement(1, 2, [], [a.id])], {"web": b"late"}) == [1]
        assert await bob.log.settle("bob", [Settlement(1, 1, [], [a.id])], {"web": b"late"}) == [1]
        assert (in_log(made, 1), in_log(made, 2)) == ([b"a"], [b"b"])
        assert (await caller.answers("web", "0")).payloads == []
        assert await bob.log.settle("bob", [Settlement(2, 2, [], [b.id])], {"web": b"answer"}) == []
        assert (await caller.answers("web", "0")).payloads == [b"answer"]


async def test_a_lease_that_ran_out_still_settles_if_nobody_took_the_slot(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        await caller.append([(1, b"a")])
        (a,) = await entries(ann)
        made.run_out("ann")
        assert await ann.log.settle("ann", [Settlement(1, 1, [], [a.id])], {"web": b"1"}) == []


async def test_to_settle_twice_does_no_harm(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        await caller.append([(1, b"a"), (1, b"b")])
        a, b = await entries(ann)
        for _ in range(2):
            await ann.log.settle("ann", [Settlement(1, 1, [a.id], [])], {"web": b"1"})
        assert in_log(made, 1) == [b"a", b"b"]
        for _ in range(2):
            await ann.log.settle("ann", [Settlement(1, 1, [], [a.id])], {})
        assert in_log(made, 1) == [b"b"]
        await ann.log.settle("ann", [Settlement(1, 1, [a.id], [])], {})  # one that came late
        await ann.log.settle("ann", [Settlement(1, 1, [], [b.id])], {})
        assert (in_log(made, 1), made.ask("EXISTS", "acked:1")) == ([], 0)


async def test_a_server_that_has_lost_its_leases_settles_nothing_and_takes_no_slot_from_anybody(
    server: Server,
) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        await caller.append([(1, b"a")])
        (a,) = await entries(ann)
        made.ask("DEL", "leases")
        with pytest.raises(errors.StoreUnavailableError, match="put them back"):
            await ann.log.settle("ann", [Settlement(1, 1, [], [a.id])], {"web": b"1"})
        assert in_log(made, 1) == [b"a"]
        assert (await ann.renew()).lost == []
        assert await ann.log.settle("ann", [Settlement(1, 1, [], [a.id])], {"web": b"1"}) == []


async def test_thousands_of_entries_are_settled_at_once(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made, Terms(1, 100_000)), await made.caller()
        number = 20_000  # more than Lua takes as arguments of one call
        for _ in range(10):
            await caller.append([(0, b"x")] * (number // 10))
        ids = [each.id for each in await entries(ann, room=number)]
        assert len(ids) == number
        await ann.log.settle("ann", [Settlement(0, 1, ids, [])], {})
        assert made.ask("SCARD", "acked:0") == number
        await ann.log.settle("ann", [Settlement(0, 1, [], ids)], {})
        assert (made.ask("XLEN", "log:0"), made.ask("EXISTS", "acked:0")) == (0, 0)


# --- answers ------------------------------------------------------------------------------------


async def test_a_caller_reads_its_answers_once_and_in_order(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        for n in range(3):
            await ann.log.settle("ann", [], {"web": b"%d" % n})
        cursor, payloads = await caller.answers("web", "0")
        assert payloads == [b"0", b"1", b"2"]
        assert await caller.answers("web", cursor) == (cursor, [])
        await ann.log.settle("ann", [], {"web": b"3"})
        assert (await caller.answers("web", cursor)).payloads == [b"3"]
        assert made.ask("XLEN", "answers:web") == 2  # what was read is forgotten, but for the last
        assert 0 < made.ask("TTL", "answers:web") <= 120


# --- what was lost on its way -------------------------------------------------------------------


async def test_what_a_lost_connection_had_read_is_read_again_in_order() -> None:
    server = shared()
    with Proxy(server.port) as between:
        async with a_cluster(server) as made:
            ann = await owner(made, url=f"redis://127.0.0.1:{between.port}/0")
            caller = await made.caller()
            await caller.append([(1, b"a"), (2, b"x")])
            assert sorted(await ann.read()) == [b"a", b"x"]
            await caller.append([(1, b"b")])
            between.loses = lambda request: b"EVALSHA" in request
            with pytest.raises(errors.StoreUnavailableError) as caught:
                await ann.read()
            assert not isinstance(caught.value, errors.OutcomeUnknownError)
            between.loses = lambda request: False
            await caller.append([(1, b"c")])
            found = await entries(ann)
            assert [each.payload for each in found if each.slot == 1] == [b"a", b"b", b"c"]
            assert [each.payload for each in found if each.slot == 2] == [b"x"]
            assert await ann.read() == []
            between.reset()  # while nobody asks
            await breathe()  # it notices
            assert sorted(await ann.read()) == [b"a", b"b", b"c", b"x"]


async def test_a_reading_that_comes_late_by_a_connection_that_was_given_up_takes_nothing_away() -> None:
    server = shared()
    with Proxy(server.port) as between:
        async with a_cluster(server) as made:
            ann = await owner(made, url=f"redis://127.0.0.1:{between.port}/0")
            caller = await made.caller()
            await ann.read()
            between.reset()
            await breathe()
            await ann.read()  # by another connection
            await caller.append([(1, b"a")])
            base = made.key("log").removesuffix(":log")
            late: Any = server.ask("EVALSHA", _scripts.READ.sha, 1, base, "ann", 10, 1)
            assert late[2] == []
            assert await ann.read() == [b"a"]


async def test_what_a_cancelled_reader_was_sent_is_read_again(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        await ann.read()
        reading = asyncio.create_task(ann.log.read("ann", 10))
        await asyncio.sleep(0)
        reading.cancel()
        await caller.append([(1, b"a")])
        await asyncio.gather(reading, return_exceptions=True)
        assert await ann.read() == [b"a"]


async def test_answers_lost_on_their_way_are_read_again() -> None:
    server = shared()
    with Proxy(server.port) as between:
        async with a_cluster(server) as made:
            ann = await owner(made)
            caller = await made.caller(url=f"redis://127.0.0.1:{between.port}/0")
            await ann.log.settle("ann", [], {"web": b"1"})
            cursor, _ = await caller.answers("web", "0")
            await ann.log.settle("ann", [], {"web": b"2"})
            between.loses = lambda request: b"XREAD" in request
            with pytest.raises(errors.StoreUnavailableError):
                await caller.answers("web", cursor)
            between.loses = lambda request: False
            assert (await caller.answers("web", cursor)).payloads[-1] == b"2"


async def test_answers_of_a_new_primary_are_read_though_its_clock_is_behind() -> None:
    server = shared()
    with Proxy(server.port) as between:
        async with a_cluster(server) as made:
            ann = await owner(made)
            caller = await made.caller(url=f"redis://127.0.0.1:{between.port}/0")
            await ann.log.settle("ann", [], {"web": b"1"})
            cursor, _ = await caller.answers("web", "0")
            made.ask("DEL", "answers:web")  # as a replica that was not told of them yet
            made.ask("XADD", "answers:web", "5-1", "a", b"2")
            between.reset()
            assert (await until_it_does(lambda: caller.answers("web", cursor))) == ("5-1", [b"2"])


async def test_an_append_whose_answer_is_lost_has_an_open_outcome() -> None:
    server = shared()
    with Proxy(server.port) as between:
        async with a_cluster(server) as made:
            await owner(made)
            caller = await made.caller(url=f"redis://127.0.0.1:{between.port}/0")
            between.loses = lambda request: b"EVALSHA" in request
            with pytest.raises(errors.OutcomeUnknownError) as caught:
                await caller.append([(1, b"a")])
            assert caught.value.store == f"cluster {made.name}"
            between.loses = lambda request: False
            assert in_log(made, 1) == [b"a"]
            assert await caller.append([(1, b"b")]) == [True]


async def test_a_server_that_forgot_the_scripts_is_told_them_again(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, caller = await owner(made), await made.caller()
        await ann.read()
        server.ask("SCRIPT", "FLUSH")
        assert await caller.append([(1, b"a")]) == [True]
        assert await ann.read() == [b"a"]
        server.ask("SCRIPT", "FLUSH")
        await caller.append([(1, b"b")])
        assert (await ann.renew()).lost == []
