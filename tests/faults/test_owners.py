"""Two processes on one store: with the default policy one of them has it, and nothing that is
acknowledged is lost.
"""

from __future__ import annotations

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from actorbot import SessionManager, errors, store_from_url
from tests.faults._kills import ForkServer
from tests.faults._owners import Bots, place
from tests.handlers import count
from tests.tiers import tiers

SERVERS = ["valkey", "new redis", "redis", "redis cluster", "mongo", "mongo replica set"]
each_place = pytest.mark.parametrize("url", tiers([*SERVERS, "file"]), indirect=True)
each_server = pytest.mark.parametrize("url", tiers(SERVERS), indirect=True)
both_homes = pytest.mark.parametrize("threads", tiers([False, True]), ids=["loop", "threads"])
patient = pytest.mark.timeout(180)


@pytest.fixture
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with place(request.param, tmp_path) as found:
        yield found


@patient
@both_homes
@each_server
def test_a_second_bot_starts_when_the_first_has_closed_and_nothing_is_lost(
    url: str, threads: bool, owners: ForkServer
) -> None:
    with Bots(owners, url, threads=threads) as bots:
        first = bots.start()
        second = bots.begin()
        waits = second.hears("waits")
        first.works(200)
        assert f"process {first.pid} on {socket.gethostname()}" in waits
        assert not second.said("started")

        assert first.close()
        second.hears("started")
        second.works(200)
        assert second.close()

        assert bots.check() == {}
        assert max(when for *_, when in first.acknowledged) < min(when for *_, when in second.acknowledged)


@patient
@each_place
def test_a_second_bot_that_waits_in_vain_is_told_whom_for_and_what_to_do(url: str, owners: ForkServer) -> None:
    with Bots(owners, url) as bots:
        first = bots.start()
        said = bots.begin(takeover_timeout=0.5).hears("locked")

        assert f"process {first.pid} on {socket.gethostname()}" in said.partition(" | ")[0]
        assert f"process {first.pid} on {socket.gethostname()}" in said.partition(" | ")[2]
        assert "Close that" in said
        first.works()
        assert first.close()
        assert bots.check() == {}


@patient
@each_server
def test_bots_with_write_through_share_a_store_and_all_is_stored(url: str, owners: ForkServer) -> None:
    with Bots(owners, url, policy="write-through", sessions=8) as bots:
        both = bots.start(), bots.start()
        for bot in both:
            bot.works()
        for bot in both:
            assert bot.close()

        assert bots.check() == {}


@patient
@pytest.mark.parametrize("url", tiers(["valkey", "mongo"]), indirect=True)
@pytest.mark.parametrize(
    ("first_has", "second_has"), tiers([("write-through", "write-behind"), ("write-behind", "write-through")])
)
def test_who_shares_a_store_and_who_does_not_wait_for_each_other(
    url: str, first_has: str, second_has: str, owners: ForkServer
) -> None:
    with Bots(owners, url) as bots:
        first = bots.start(policy=first_has)
        second = bots.begin(policy=second_has)
        second.hears("waits")
        first.works()
        assert first.close()
        second.hears("started")
        second.works()
        assert second.close()

        assert bots.check() == {}


@patient
def test_bots_that_want_no_lease_run_beside_an_owner(tmp_path: Path, owners: ForkServer) -> None:
    with place("valkey", tmp_path) as url, Bots(owners, url, policy="write-through") as bots:
        owner = bots.start(ownership="exclusive")
        other = bots.start(ownership="none")
        for bot in (owner, other):
            bot.works()
        assert other.report()["ownership"] is None
        assert other.close()
        assert owner.close()
        assert bots.check() == {}


@patient
@pytest.mark.parametrize("url", tiers(["valkey", "mongo"]), indirect=True)
def test_managers_of_one_process_own_a_store_together_if_they_use_one_store_object(url: str) -> None:
    store = store_from_url(url)
    first, second = (SessionManager(store, handler=count).start_sync() for _ in range(2))
    owned = [manager.stats().ownership for manager in (first, second)]
    assert owned[0] is not None
    assert owned[1] is not None
    assert owned[0].epoch == owned[1].epoch
    assert first.close_sync().clean
    with pytest.raises(errors.StoreLockedError, match="the same store object"):
        SessionManager(store_from_url(url), handler=count, takeover_timeout=0.0).start_sync()
    assert second.dispatch_sync("ann", "hi") == 1
    assert second.close_sync().clean
    with SessionManager(store_from_url(url), handler=count) as third:
        assert third.dispatch_sync("ann", "hi") == 2
