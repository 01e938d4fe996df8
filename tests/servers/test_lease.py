"""One owner for each store with a server: whatever happens to the server, nobody comes in beside an
owner that lives, and who lives goes on.
"""

from __future__ import annotations

import asyncio
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from actorbot import FlushPolicy, MongoSessionStore, RedisSessionStore, Retry, SessionManager, errors
from actorbot._ownership import keeper, lease
from actorbot.stores.base import LeaseFound, RecordStore
from tests.handlers import count
from tests.servers import mongo_servers, redis_servers
from tests.servers.leases import LEASE, epoch, flush, rival, until_lease, until_renewed
from tests.servers.proxy import Proxy
from tests.tiers import tiers
from tests.waiting import HANGS, soon, until

ROOT = Path(__file__).parents[2]
KINDS = [
    redis_servers.QUICK,
    "mongo",
    *(kind for kind in redis_servers.PLACES if kind != redis_servers.QUICK),
    "mongo replica set",
]
OWN = [redis_servers.QUICK, "mongo", "mongo replica set"]
POLICY = FlushPolicy.write_behind(max_delay=0.05, store_deadline=2.0, retry=Retry(base=0.05, cap=0.2))


@pytest.fixture(autouse=True)
def leases_of_these_tests(nobody_waits_for_a_young_server: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keeper, "LEASE", LEASE)
    monkeypatch.setattr(keeper, "WATCHED", lease.WATCHED)


# --- servers that other tests use, too ----------------------------------------------------------


@dataclass
class Place:
    """Sessions of one test, on a server."""

    make_store: Callable[[], Any]
    put_instead: Callable[[Any], object]
    """Put something else in the place of the lease; `None`: nothing."""
    where: str
    """What an error calls that place."""
    open: ExitStack

    def look(self) -> Any:
        """A store of somebody who looks at the lease."""
        store = self.make_store().init()
        self.open.callback(store.close)
        return store


@pytest.fixture(params=tiers(KINDS, *KINDS[:2]))
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    with ExitStack() as stack:
        if request.param.startswith("mongo"):
            replica_set = "replica set" in request.param
            server = mongo_servers.shared(replica_set)
            name = f"lease_{os.getpid()}_{tmp_path.name}"
            beside = stack.enter_context(server.client())["actorbot_tests"][f"{name}.lease"]

            def replace(value: Any) -> None:
                beside.delete_many({})
                if value is not None:
                    beside.insert_one({"_id": "lease"} | ({"text": value} if isinstance(value, str) else value))

            yield Place(
                lambda: MongoSessionStore(server.url, database="actorbot_tests", collection_name=name),
                replace,
                f"'lease' of the collection '{name}.lease'",
                stack,
            )
            return
        client = stack.enter_context(redis_servers.shared(request.param).client())
        prefix = f"{tmp_path.name}:"
        key = prefix.encode() + b"\0lease"

        def put_instead(value: Any) -> None:
            client.delete(key)
            if isinstance(value, dict):
                client.hset(key, mapping={"a": "b"})
            elif value is not None:
                client.set(key, value)

        url = redis_servers.shared(request.param).url
        yield Place(lambda: RedisSessionStore(url, key_prefix=prefix), put_instead, f"{prefix}\\x00lease", stack)


async def test_a_second_bot_is_told_who_has_the_store_and_begins_when_that_one_has_ended(place: Place) -> None:
    async with SessionManager(place.make_store(), handler=count) as first:
        await first.dispatch("ann", "hi")
        with pytest.raises(errors.StoreLockedError, match=f"process {os.getpid()} on {socket.gethostname()}"):
            await SessionManager(place.make_store(), handler=count, takeover_timeout=0.1).start()
        async with rival(place.make_store()) as second:
            await until_renewed(place.look())
            assert not second.done()
            await first.close()
            manager = await soon(second)
            assert epoch(manager) == 2
            assert await manager.dispatch("ann", "hi") == 2


@pytest.mark.parametrize(
    ("value", "how"),
    tiers([({"another": "kind"}, "something else"), ("hello", "cannot be read"), ('{"format": 2}', "another release")]),
)
async def test_what_stands_in_the_place_of_the_lease_is_named_at_the_start_and_costs_a_running_bot_nothing(
    value: Any, how: str, place: Place
) -> None:
    look = place.look()
    async with SessionManager(place.make_store(), handler=count) as manager:
        place.put_instead(value)
        await until(lambda: manager.health().status == "degraded")
        assert how in manager.health().reason
        assert await manager.dispatch("ann", "hi") == 1
        with pytest.raises(errors.StoreError, match=how) as caught:
            await SessionManager(place.make_store()).start()
        assert how != "something else" or place.where in str(caught.value).replace("\\\\", "\\")
        place.put_instead(None)
        await until(lambda: manager.health().status == "ready")
        assert (await until_renewed(look))["epoch"] == epoch(manager) == 1
        assert await manager.dispatch("ann", "hi", durable=True) == 2


async def test_a_lease_that_is_gone_goes_back_to_its_owner_and_not_to_who_waits_for_it(place: Place) -> None:
    look = place.look()
    async with SessionManager(place.make_store(), handler=count) as owner, rival(place.make_store()) as second:
        place.put_instead(None)  # as a server does that is full, or somebody who empties it
        assert (await until_lease(look, bool))["epoch"] == 1
        assert not second.done()
        assert await owner.dispatch("ann", "hi", durable=True) == 1
        await owner.close()
        assert epoch(await soon(second)) == 2


@pytest.mark.long
@pytest.mark.parametrize("seconds", [3600.0, -3600.0])
async def test_a_server_whose_clock_is_set_gives_no_second_owner(seconds: float, place: Place) -> None:
    kind = type(place.make_store())

    class Set(kind):  # type: ignore[misc, valid-type]
        """Sees the server's clock as somebody may set it."""

        ahead: ClassVar[float] = 0.0

        def read_lease(self) -> LeaseFound:
            found: LeaseFound = super().read_lease()
            return found._replace(now=found.now + self.ahead)

    def make() -> RecordStore:
        store = place.make_store()
        store.__class__ = Set
        return store  # type: ignore[no-any-return]

    look = place.look()
    async with SessionManager(make(), handler=count) as owner, rival(make()) as second:
        Set.ahead = seconds
        await until_renewed(look, times=2)
        assert not second.done()
        assert (epoch(owner), owner.health().status) == (1, "ready")
        await owner.close()
        assert epoch(await soon(second)) == 2


CHILD = """
import asyncio, sys, time
ahead, true = float(sys.argv[1]), time.time
time.time = lambda: true() + ahead
from actorbot import MongoSessionStore, RedisSessionStore, SessionManager
from actorbot._ownership import keeper
from tests.handlers import count
keeper.LEASE = float(sys.argv[2])

async def main():
    async with SessionManager(eval(sys.argv[3]), handler=count, takeover_timeout=600.0) as manager:
        print(manager.stats().ownership.epoch, await manager.dispatch("ann", "hi"), flush=True)
        await asyncio.to_thread(sys.stdin.readline)

asyncio.run(main())
"""


def start(command: list[str]) -> Any:
    return subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


@pytest.mark.long
async def test_bots_whose_clocks_are_90_seconds_apart_are_no_owners_side_by_side(place: Place) -> None:
    look = place.look()
    url = repr(look).split()[1].rstrip(",")
    made = (
        f"RedisSessionStore('redis://{url}/0', key_prefix='{look.key_prefix}')"
        if isinstance(look, RedisSessionStore)
        else f"MongoSessionStore('mongodb://{url}/', database='actorbot_tests',"
        f" collection_name='{look._link.collection_name}')"
    )
    with ExitStack() as stack:
        bots = []
        for ahead in (90.0, -90.0):
            command = [sys.executable, "-W", "error", "-c", CHILD, str(ahead), str(LEASE), made]
            bots.append(start(command))
            stack.callback(bots[-1].kill)
            stack.enter_context(bots[-1])
            if len(bots) == 1:
                assert await asyncio.to_thread(bots[0].stdout.readline) == "1 1\n"
        said = asyncio.create_task(asyncio.to_thread(bots[1].stdout.readline))
        assert (await until_renewed(look, times=5))["epoch"] == 1
        assert not said.done()
        print(file=bots[0].stdin, flush=True)
        assert await asyncio.wait_for(said, HANGS) == "2 2\n"
        print(file=bots[1].stdin, flush=True)
        assert [await asyncio.to_thread(bot.wait, HANGS) for bot in bots] == [0, 0]


# --- a server of the test's own, through a network that misbehaves ------------------------------


@dataclass
class Far:
    """A server of the test's own, behind a proxy."""

    kind: str
    server: Any
    proxy: Proxy
    open: ExitStack

    def look(self) -> Any:
        """A store of somebody who looks at the lease, nearer to the server."""
        store = self.make_store(near=True).init()
        self.open.callback(store.close)
        return store

    def make_store(self, *, near: bool = False) -> Any:
        port = self.server.port if near else self.proxy.port
        if self.kind.startswith("mongo"):
            return MongoSessionStore(f"mongodb://127.0.0.1:{port}/?directConnection=true")
        return RedisSessionStore(f"redis://127.0.0.1:{port}/0")

    def refuse_writes(self, refuse: bool) -> None:
        """Have the server answer reads alone, as one does whose replicas or disk have gone."""
        if self.kind.startswith("mongo"):
            with self.server.client() as client:
                client.admin.command({"fsync": 1, "lock": True} if refuse else {"fsyncUnlock": 1})
        else:
            self.server.ask("CONFIG", "SET", "min-replicas-to-write", 1 if refuse else 0)


@pytest.fixture(params=tiers(OWN, redis_servers.QUICK))
def far(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Far]:
    with ExitStack() as stack:
        if request.param.startswith("mongo"):
            server: Any = stack.enter_context(mongo_servers.server(replica_set="replica set" in request.param))
        else:
            server = stack.enter_context(redis_servers.Server(request.param, tmp_path))
        yield Far(request.param, server, stack.enter_context(Proxy(server.port)), stack)


def is_swap(request: bytes) -> bool:
    """Tell whether a client asks for the lease, or renews it."""
    asks = b"EVAL" in request or b"insert" in request or b"update" in request
    return asks and (b"\0lease" in request or b".lease" in request)


@pytest.mark.long
async def test_a_bot_that_has_its_lease_begins_though_it_was_not_told_so(far: Far) -> None:
    look, lost = far.look(), []

    def loses(request: bytes) -> bool:
        return is_swap(request) and not lost and (lost.append(request) or True)  # type: ignore[func-returns-value]

    far.proxy.loses = loses
    async with SessionManager(far.make_store(), handler=count) as manager:
        assert epoch(manager) == 1
        lost.clear()
        held = await until_renewed(look, times=2)
        assert len(lost) == 1
        assert (held["epoch"], len(held["holders"]), manager.health().status) == (1, 1, "ready")


@pytest.mark.long
@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["frozen", "black hole", "refuses writes"])
async def test_a_server_that_is_away_for_three_leases_gives_no_second_owner(how: str, far: Far) -> None:
    look, n = far.look(), 0
    async with (
        SessionManager(far.make_store(), handler=count, flush=POLICY) as owner,
        rival(far.make_store()) as second,
    ):
        assert await owner.dispatch("ann", "hi", durable=True) == 1
        if how == "refuses writes":
            far.refuse_writes(True)
        elif how == "frozen":
            far.server.freeze()
        else:
            far.proxy.black_hole = True
        loop = asyncio.get_running_loop()
        back = loop.time() + 3 * LEASE
        while loop.time() < back:  # the bot goes on from memory
            n += 1
            assert await asyncio.wait_for(owner.dispatch("ann", "hi"), LEASE) == n + 1
            await asyncio.sleep(0.1)
        assert owner.health().status == "degraded"
        if how == "refuses writes":
            far.refuse_writes(False)
        elif how == "frozen":
            far.server.thaw()
        else:
            far.proxy.black_hole = False
        assert (await until_renewed(look))["epoch"] == 1
        assert not second.done()
        await flush(owner)
        assert (await owner.dispatch("ann", "hi", durable=True), epoch(owner)) == (n + 2, 1)
        await owner.close()
        manager = await soon(second)
        assert (epoch(manager), await manager.dispatch("ann", "hi")) == (2, n + 3)
