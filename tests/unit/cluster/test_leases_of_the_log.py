"""Who owns which slots: decided by the server's scripts, whatever members believe."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from actorbot import errors
from tests.servers.proxy import Proxy
from tests.servers.redis_servers import QUICK, Server, shared
from tests.unit.cluster.logs import LEASE, TERMS, Member, a_cluster

pytestmark = pytest.mark.usefixtures("short_waits")


async def settle_down(members: list[Member]) -> int:
    """Renew and give back until nothing changes hands any more; return how many slots moved."""
    moved, quiet = 0, 0
    for _ in range(20):
        quiet += 1
        for member in members:
            standing = await member.renew()
            moved += len(standing.granted)
            more = max(0, len(member.held) - standing.quota)
            await member.give_back(more)
            if more or standing.granted:
                quiet = 0
        if quiet == 2:
            return moved
    raise AssertionError("slots never come to rest")


async def test_the_first_shard_gets_all_slots_at_once(server: Server) -> None:
    async with a_cluster(server) as made:
        ann = await made.member("ann")
        standing = await ann.renew()
        assert (len(standing.granted), standing.quota, standing.lost) == (256, 256, [])
        assert {grant.epoch for grant in standing.granted} == {1}
        assert not any(grant.claims or grant.acknowledged for grant in standing.granted)
        assert (await ann.renew()).granted == []  # what it names as held, it knows


async def test_a_second_shard_gets_its_half_when_the_first_gives_it_back(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, bob = await made.member("ann"), await made.member("bob")
        await ann.renew()
        standing = await bob.renew()
        assert (standing.granted, standing.quota) == ([], 128)
        assert (await ann.renew()).quota == 128
        given = await ann.give_back(128)
        standing = await bob.renew()
        assert [grant.slot for grant in standing.granted] == given
        assert {(grant.epoch, grant.claims) for grant in standing.granted} == {(2, False)}
        assert Counter(owner for _, owner in made.leases().values()) == {"ann": 128, "bob": 128}


async def test_a_shard_takes_no_more_than_its_share(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, bob = await made.member("ann"), await made.member("bob")
        await settle_down([ann, bob])
        await ann.give_back(100)
        assert (await bob.renew()).granted == []
        assert len((await ann.renew()).granted) == 100


async def test_three_shards_have_86_85_and_85_slots_and_no_slot_moves_in_vain(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, bob, cid = [await made.member(name) for name in ("ann", "bob", "cid")]
        assert await settle_down([ann]) == 256
        assert await settle_down([ann, bob]) == 128
        assert await settle_down([ann, bob, cid]) == 85
        assert sorted(len(each.held) for each in (ann, bob, cid)) == [85, 85, 86]
        assert await settle_down([cid, bob, ann]) == 0
        bobs = len(bob.held)
        await bob.leave()
        assert await settle_down([ann, cid]) == bobs
        assert {len(ann.held), len(cid.held)} == {128}


async def test_a_shard_that_leaves_takes_nothing_more_and_is_forgotten(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, bob = await made.member("ann"), await made.member("bob")
        await settle_down([ann, bob])
        ann.leaving = True
        assert (await ann.renew()).quota == 0
        assert (await bob.renew()).quota == 256
        assert [(each.id, each.leaving) for each in await bob.log.members()] == [("ann", True), ("bob", False)]
        await ann.leave()
        assert len((await bob.renew()).granted) == 128
        assert [each.id for each in await bob.log.members()] == ["bob"]


async def test_a_drain_reaches_its_shard_with_the_next_renewal(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, bob = await made.member("ann"), await made.member("bob")
        await settle_down([ann, bob])
        await (await made.caller()).drain(["ann", "nobody"])
        assert (await ann.log.read("ann", 10)).news
        assert ((await ann.renew()).drain, (await bob.renew()).drain) == (True, False)
        assert made.ask("SMEMBERS", "drains") == {b"ann"}


async def test_the_slots_of_a_shard_that_was_killed_go_to_the_others_and_have_to_be_claimed(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, bob = await made.member("ann"), await made.member("bob")
        await settle_down([ann, bob])
        anns = dict(ann.held)
        standing = await bob.renew()
        assert standing.granted == []
        assert LEASE - 10 < standing.look_again <= LEASE
        made.run_out("ann")
        standing = await bob.renew()
        assert {grant.slot: grant.epoch for grant in standing.granted} == {
            slot: epoch + 1 for slot, epoch in anns.items()
        }
        assert all(grant.claims for grant in standing.granted)
        standing = await ann.renew()  # it was frozen, and comes back
        assert sorted(standing.lost) == sorted(anns)
        assert (standing.granted, standing.quota, ann.held) == ([], 128, {})
        await bob.log.release("bob", {slot: bob.held.pop(slot) for slot in anns})
        granted = (await ann.renew()).granted
        assert {grant.slot for grant in granted} == set(anns)
        assert all(grant.claims for grant in granted)  # whoever had it before bob may write still


async def test_a_shard_known_to_have_ended_is_replaced_at_once(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, bob, cid = [await made.member(name) for name in ("ann", "bob", "cid")]
        await settle_down([ann, bob, cid])
        anns = set(ann.held)
        granted = (await bob.renew(gone=["ann"])).granted
        granted += (await cid.renew()).granted  # the word is passed on
        assert {grant.slot for grant in granted} == anns
        assert all(grant.claims for grant in granted)
        assert [each.id for each in await bob.log.members()] == ["bob", "cid"]


async def test_after_the_server_was_away_owners_stay_who_they_are(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, bob = await made.member("ann"), await made.member("bob")
        await settle_down([ann, bob])
        made.freeze_for(2 * LEASE)
        standing = await bob.renew()  # it comes first, and finds that ann's lease has run out
        assert (standing.granted, standing.lost) == ([], [])
        assert standing.look_again <= LEASE
        standing = await ann.renew()
        assert (standing.granted, standing.lost) == ([], [])  # under the same epoch
        assert Counter(made.leases().values()) == {(1, "ann"): 128, (2, "bob"): 128}


async def test_a_shard_that_does_not_come_back_with_the_server_is_replaced_a_lease_later(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, bob = await made.member("ann"), await made.member("bob")
        await settle_down([ann, bob])
        made.freeze_for(2 * LEASE)
        assert (await bob.renew()).granted == []
        made.end_hold()
        granted = (await bob.renew()).granted
        assert {grant.slot for grant in granted} == set(ann.held)
        assert all(grant.claims for grant in granted)


async def test_a_lease_that_ran_out_and_that_nobody_took_goes_on(server: Server) -> None:
    async with a_cluster(server) as made:
        ann = await made.member("ann")
        await ann.renew()
        made.run_out("ann")
        standing = await ann.renew()
        assert (standing.granted, standing.lost) == ([], [])
        assert set(made.leases().values()) == {(1, "ann")}


async def test_slots_whose_grant_was_lost_on_its_way_are_granted_again(tmp_path: Path) -> None:
    server = shared()
    with Proxy(server.port) as between:
        async with a_cluster(server, f"redis://127.0.0.1:{between.port}/0") as made:
            ann = await made.member("ann")
            between.loses = lambda request: b"EVALSHA" in request
            with pytest.raises(errors.OutcomeUnknownError, match="and then"):
                await ann.renew()
            between.loses = lambda request: False
            assert set(made.leases().values()) == {(1, "ann")}
            standing = await ann.renew()
            assert {grant.epoch for grant in standing.granted} == {1}
            assert len(standing.granted) == 256


async def test_an_emptied_server_is_given_its_leases_back_and_nobody_gets_a_living_shards_slots(
    tmp_path: Path,
) -> None:
    with Server(QUICK, tmp_path) as server:
        async with a_cluster(server) as made:
            ann, bob = await made.member("ann"), await made.member("bob")
            await settle_down([ann, bob])
            before = made.leases()
            await bob.read()
            server.ask("FLUSHALL")
            standing = await ann.renew()
            assert (standing.granted, standing.lost) == ([], [])
            await (await made.caller()).append([(slot, b"new") for slot in range(256)])
            standing = await bob.renew()
            assert (standing.granted, standing.lost) == ([], [])
            assert made.leases() == before
            assert len(await bob.read()) == len(bob.held)  # what came before its leases were back, too
            assert await made.log().open() == TERMS
            given = await ann.give_back(1)
            ann.leaving = True
            await ann.renew()
            granted = (await bob.renew()).granted
            assert [(grant.slot, grant.claims) for grant in granted] == [(given[0], True)]  # it cannot know better
            made.run_out("ann")
            assert (await bob.renew()).granted == []
            made.end_hold()
            assert len((await bob.renew()).granted) == 127


async def test_slots_that_nobody_puts_back_are_taken_a_lease_later_and_have_to_be_claimed(tmp_path: Path) -> None:
    with Server(QUICK, tmp_path) as server:
        async with a_cluster(server) as made:
            ann, bob = await made.member("ann"), await made.member("bob")
            await settle_down([ann, bob])
            server.ask("FLUSHALL")
            assert (await bob.renew()).granted == []
            made.end_hold()
            granted = (await bob.renew()).granted
            assert {(grant.epoch, grant.claims) for grant in granted} == {(1, True)}
            assert {grant.slot for grant in granted} == set(ann.held)
            assert sorted((await ann.renew()).lost) == [grant.slot for grant in granted]


async def test_a_server_whose_clock_is_set_back_ends_nobodys_lease_early_or_late(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, bob = await made.member("ann"), await made.member("bob")
        await settle_down([ann, bob])
        hour = 3_600_000  # all that stands there is of an hour later: the clock was set back by one
        made.ask("HINCRBY", "meta", "last", hour)
        for name in ("ann", "bob"):
            made.ask("ZINCRBY", "members", hour, name)
        assert (await bob.renew()).granted == []
        (anns,) = [each for each in await bob.log.members() if each.id == "ann"]
        assert LEASE - 10 < anns.remaining <= LEASE
        made.run_out("ann")
        assert (await bob.renew()).granted == []  # a lease may have run out by the clock alone
        made.end_hold()
        assert len((await bob.renew()).granted) == 128


async def test_the_same_lease_of_a_server_set_forward_has_its_owner_back(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, bob = await made.member("ann"), await made.member("bob")
        await settle_down([ann, bob])
        made.freeze_for(3_600)  # the same, to who looks at the clock
        assert (await bob.renew()).granted == []
        assert (await ann.renew()).lost == []


async def test_who_gives_a_slot_back_that_is_not_his_changes_nothing(server: Server) -> None:
    async with a_cluster(server) as made:
        ann, bob = await made.member("ann"), await made.member("bob")
        await settle_down([ann, bob])
        before = made.leases()
        slot, epoch = next(iter(ann.held.items()))
        await bob.log.release("bob", {slot: epoch})
        await ann.log.release("ann", {slot: epoch + 1})
        assert made.leases() == before


async def test_what_changes_hands_is_announced(server: Server) -> None:
    async with a_cluster(server) as made:
        ann = await made.member("ann")
        await ann.renew()
        await ann.read()
        assert not (await ann.log.read("ann", 10)).news
        bob = await made.member("bob")
        await bob.renew()
        assert (await ann.log.read("ann", 10)).news
        assert not (await ann.log.read("ann", 10)).news
        await bob.read()
        await ann.give_back(1)
        assert (await bob.log.read("bob", 10)).news


async def test_people_see_members_and_slots(server: Server) -> None:
    async with a_cluster(server) as made:
        ann = await made.member("ann")
        caller = await made.caller()
        assert await caller.slots() == [(0, "", 0)] * 256
        await ann.log.lease("ann", LEASE, {}, '{"host": "ä"}', leaving=False)
        await caller.append([(255, b"hi"), (255, b"hi")])
        (told,) = await caller.members()
        assert (told.id, told.info, told.leaving) == ("ann", '{"host": "ä"}', False)
        assert LEASE - 10 < told.remaining <= LEASE
        assert await caller.slots() == [(1, "ann", 0)] * 255 + [(1, "ann", 2)]
