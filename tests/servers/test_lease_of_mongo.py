"""The lease in MongoDB, through elections; and servers that do not tell what a lease needs."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator

import pytest
from pymongo.errors import PyMongoError

from actorbot import FlushPolicy, MongoSessionStore, Retry, SessionManager, errors
from actorbot._ownership import keeper, lease
from tests.handlers import count
from tests.servers import mongo_servers
from tests.servers.leases import LEASE, epoch, flush, rival, until_lease, until_renewed
from tests.servers.mongo_servers import MongoServer
from tests.servers.proxy import Proxy
from tests.tiers import tiers
from tests.waiting import HANGS, soon, until

POLICY = FlushPolicy.write_behind(max_delay=0.05, retry=Retry(base=0.05, cap=0.2))


@pytest.fixture(autouse=True)
def leases_of_these_tests(nobody_waits_for_a_young_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "LEASE", LEASE)
    monkeypatch.setattr(keeper, "WATCHED", lease.WATCHED)


# --- a replica set ------------------------------------------------------------------------------


@pytest.fixture
def members() -> Iterator[list[MongoServer]]:
    with mongo_servers.replica_set(1, 1, 1) as servers:
        yield servers


def url_of(members: list[MongoServer]) -> str:
    return f"mongodb://{','.join(f'127.0.0.1:{each.port}' for each in members)}/?replicaSet=rs2"


def primary_of(members: list[MongoServer]) -> MongoServer:
    end = time.monotonic() + HANGS
    while time.monotonic() < end:
        for each in members:
            with each.client(f"mongodb://127.0.0.1:{each.port}/", directConnection=True) as client:
                try:
                    if client.admin.command("hello")["isWritablePrimary"]:
                        return each
                except PyMongoError:
                    pass  # it has gone
    raise AssertionError("they elect no primary")


def step_down(primary: MongoServer) -> None:
    with primary.client(directConnection=True) as client:
        client.admin.command("replSetStepDown", 30, force=True)


CHANGES: dict[str, Callable[[MongoServer], object]] = {
    "stepped down": step_down,
    "killed": MongoServer.kill,
    "frozen": MongoServer.freeze,
}


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
async def test_another_primary_gives_no_second_owner_and_costs_no_event(
    change: Callable[[MongoServer], object], members: list[MongoServer]
) -> None:
    n = 0

    async def talk() -> None:
        nonlocal n
        n += 1
        assert await soon(owner.dispatch("ann", "hi")) == n

    async with (
        SessionManager(MongoSessionStore(url_of(members)), handler=count, flush=POLICY) as owner,
        rival(MongoSessionStore(url_of(members))) as second,
    ):
        await talk()
        await flush(owner)
        before = primary_of(members)
        await asyncio.to_thread(change, before)
        others = [each for each in members if each is not before]
        election = asyncio.create_task(asyncio.to_thread(primary_of, others))
        while not election.done():
            await talk()
            await asyncio.sleep(0.05)
        look = MongoSessionStore(url_of(members))
        await asyncio.to_thread(look.init)
        for _ in range(3):
            held = await until_renewed(look)
            await talk()
            assert (held["epoch"], epoch(owner), second.done()) == (1, 1, False)
        look.close()
        await flush(owner)
        await until(lambda: owner.health().status == "ready")
        assert owner.stats().conflicts == 0
        await owner.close()
        heir = await asyncio.wait_for(second, HANGS)
        assert (epoch(heir), await heir.dispatch("ann", "hi")) == (2, n + 1)


@pytest.mark.long
@pytest.mark.timeout(120)
def test_a_lease_that_no_majority_has_is_not_had_and_it_is_read_where_it_is_written(members: list[MongoServer]) -> None:
    primary = primary_of(members)
    with primary.client(directConnection=True) as client:
        client.admin.command("replSetReconfig", _patient(client.admin.command("replSetGetConfig")["config"]))
    store = MongoSessionStore(f"{url_of(members)}&readPreference=secondary&timeoutMS=3000").init()
    assert store.swap_lease(None, "a text")
    for each in members:
        if each is not primary:
            each.freeze()
    assert store.read_lease().text == "a text"
    with pytest.raises(errors.OutcomeUnknownError):
        store.swap_lease("a text", "another")
    for each in members:
        each.thaw()
    store.close()


def _patient(config: dict[str, object]) -> dict[str, object]:
    """Have a primary wait for long before it steps down."""
    settings = config["settings"]
    assert isinstance(settings, dict)
    return config | {
        "version": int(str(config["version"])) + 1,
        "settings": settings | {"electionTimeoutMillis": 60_000},
    }


# --- one server ---------------------------------------------------------------------------------


@pytest.mark.parametrize("what", tiers(["collection", "database"]))
async def test_a_lease_that_is_dropped_with_its_collection_goes_back_to_its_owner(what: str) -> None:
    database = f"lease_{os.getpid()}_{what}"

    def make() -> MongoSessionStore:
        return MongoSessionStore(mongo_servers.shared().url, database=database)

    look = make().init()
    with mongo_servers.shared().client() as client:
        async with SessionManager(make(), handler=count) as owner, rival(make()) as second:
            if what == "collection":
                client[database].drop_collection("sessions.lease")
            else:
                client.drop_database(database)
            assert (await until_lease(look, bool))["epoch"] == 1
            assert (epoch(owner), second.done()) == (1, False)
            await owner.close()
            assert epoch(await soon(second)) == 2
        look.close()
        client.drop_database(database)


def test_a_server_that_does_not_say_since_when_it_is_up_or_what_time_it_is() -> None:
    with Proxy(mongo_servers.shared().port) as between:
        store = MongoSessionStore(
            f"mongodb://127.0.0.1:{between.port}/?directConnection=true", collection_name=f"told_{os.getpid()}"
        ).init()
        told = store.read_lease()
        between.changes = lambda reply: reply.replace(b"\3topologyVersion\0", b"\3topologyVersioX\0")
        less = store.read_lease()
        between.changes = lambda reply: reply.replace(b"\x09localTime\0", b"\x09localTimX\0")
        with pytest.raises(errors.StoreUnavailableError, match="does not tell its time, which a lease needs"):
            store.read_lease()
        between.changes = lambda reply: reply
        store.close()

    assert told.up is not None
    assert told.up > 0.0
    assert less.up is None
    assert less.now >= told.now
