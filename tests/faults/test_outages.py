"""The store goes away while the bot works, and the bot is killed meanwhile: with the journal
nothing is lost.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic
from typing import NamedTuple

import pytest

from actorbot import errors
from actorbot.stores.base import Write
from actorbot.testing import ManualClock
from tests import inside
from tests.faults._kills import Campaign, ForkServer
from tests.faults._scale import scaled
from tests.faults._victims import journaled, orders_for
from tests.journals import Server, kill, make_manager
from tests.servers import mongo_servers, redis_servers
from tests.tiers import tiers

patient = pytest.mark.timeout(scaled(180, 600))


class Store(NamedTuple):
    """A server of the test's own."""

    url: str
    goes: Callable[[], None]
    """Makes it stop answering."""
    comes: Callable[[], object]


@contextmanager
def store(kind: str, folder: Path) -> Iterator[Store]:
    name, what = kind.split()
    if name == "redis":
        with redis_servers.Server(redis_servers.QUICK, folder) as redis:
            frozen = what == "frozen"
            yield Store(redis.url, redis.freeze if frozen else redis.kill, redis.thaw if frozen else redis.start)
    else:
        with mongo_servers.server() as mongo:
            frozen = what == "frozen"
            yield Store(mongo.url, mongo.freeze if frozen else mongo.kill, mongo.thaw if frozen else mongo.start)


@patient
@pytest.mark.parametrize(
    ("kind", "idle_timeout"),
    tiers(
        [
            ("redis killed", 0.005),  # idle sessions leave memory, and come back from the journal
            ("redis killed", 900.0),  # all stay
            ("redis frozen", 900.0),
            ("mongo killed", 900.0),
            ("mongo frozen", 0.005),
        ],
    ),
)
def test_an_outage_costs_nothing_though_the_bot_is_killed_in_it(
    kind: str, idle_timeout: float, server: ForkServer, tmp_path: Path
) -> None:
    outage = scaled(3, 60)
    with store(kind, tmp_path) as one:
        policy = journaled(tmp_path, store_deadline=0.5)
        campaign = Campaign(server, orders_for(one.url, policy, idle_timeout=idle_timeout, destroys=True))
        life = campaign.live()
        assert campaign.follow(life, "done", count=300)

        one.goes()
        until = monotonic() + outage
        before = campaign.tally.acknowledged
        if idle_timeout > outage:  # those in memory are answered
            assert campaign.follow(life, "done", count=300)
        else:
            campaign.follow(life, "", outage / 3)
        during = campaign.tally.acknowledged - before
        campaign.kill(life)
        assert campaign.follow(campaign.live(), "refused")  # as section 6 of the design says; it is started again
        life = campaign.live()
        campaign.follow(life, "begin")
        campaign.kill(life)
        Event().wait(max(0.0, until - monotonic()))

        one.comes()
        life = campaign.live()
        assert campaign.follow(life, "done")
        campaign.kill(life)
        campaign.finish()

    print(f"acknowledged during the outage: {during}; {campaign.tally}")
    assert campaign.tally.faults == []
    assert campaign.tally.lost == 0
    assert campaign.tally.kills >= 2  # and a third, unless the start was refused first


@patient
@pytest.mark.parametrize(
    ("kind", "outages"),
    tiers([("redis frozen", 8), ("redis frozen", scaled(20, 300)), ("mongo frozen", scaled(20, 300))]),
)
def test_a_write_of_a_killed_bot_that_comes_late_costs_nothing(
    kind: str, outages: int, server: ForkServer, tmp_path: Path
) -> None:
    with store(kind, tmp_path) as one:
        campaign = Campaign(server, orders_for(one.url, journaled(tmp_path), destroys=True))
        life = campaign.live()
        for _ in range(outages):
            assert campaign.follow(life, "done", count=campaign.chance.randrange(1, 60))
            one.goes()
            campaign.follow(life, "", campaign.chance.uniform(0.0, 0.05))
            campaign.kill(life)  # with a write on its way, which the store has received and not read
            life = campaign.live()
            campaign.follow(life, "", campaign.chance.uniform(0.0, 0.05))
            one.comes()
        campaign.kill(life)
        campaign.finish()

    print(campaign.tally)
    assert campaign.tally.faults == []
    assert campaign.tally.lost == 0


class Slow(Server):
    """Keeps writes back when told to, and carries them out before the next one."""

    def __init__(self) -> None:
        super().__init__()
        self.keeps = False
        self._kept: list[Write] = []

    def write_many(self, writes: Sequence[Write]) -> Sequence[errors.ActorbotError | None]:
        if self.keeps:
            self._kept += writes
            raise errors.OutcomeUnknownError("slow", "no answer")
        late, self._kept = self._kept, []
        super().write_many(late)
        return super().write_many(writes)


async def test_a_write_of_a_killed_bot_that_comes_between_look_and_write_of_the_next_costs_nothing(
    tmp_path: Path,
) -> None:
    clock, slow = ManualClock(), Slow()
    async with make_manager(slow, tmp_path / "journal", clock=clock) as manager:
        await manager.dispatch("ann", "hi")
        await manager.flush()
        await manager.dispatch("ann", "hi")
        slow.keeps = True
        await clock.advance(1.0)  # its second state is on its way to the store
        await manager.dispatch("ann", "hi")
        left = kill(tmp_path / "journal")
        slow.keeps = False
        async with make_manager(slow, left, clock=clock) as heir:
            assert await heir.peek("ann") == {"n": 3}
            assert heir.stats().conflicts == 0
        slow.outage()
        inside.lose_sessions(manager)

    assert (slow.inner.read("ann") or {})["n"] == 3
