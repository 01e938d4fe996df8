"""Servers that are not what the URL promises: an error with a name, in time, without the password,
and the loop is never blocked.
"""

from __future__ import annotations

import asyncio
import logging
import time
import traceback
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pymongo
import pytest
import redis

from actorbot import Context, FlushPolicy, MongoSessionStore, RedisSessionStore, SessionManager, errors
from actorbot.stores.base import RecordStore
from tests.handlers import count
from tests.servers import mongo_servers, redis_servers
from tests.servers.loop_watch import LoopWatch
from tests.servers.proxy import Proxy
from tests.tiers import tiers
from tests.waiting import HANGS, until

SECRET = "s3cret-pa55"
WRONG = "wr0ng-pa55"
BIG = 40 * 1024**2


def lengthen(context: Context) -> int:
    context.session["text"] = "x" * context.event
    return len(context.session["text"])


@dataclass
class Guarded:
    """A server that asks for a password."""

    kind: str
    port: int
    set_password: Callable[[str], object]

    def make_store(self, port: int, password: str = SECRET) -> RecordStore:
        if self.kind == "redis":
            return RedisSessionStore(f"redis://:{password}@127.0.0.1:{port}/0")
        return MongoSessionStore(f"mongodb://bot:{password}@127.0.0.1:{port}/?directConnection=true")


@pytest.fixture(scope="module", params=["redis", "mongo"])
def guarded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guarded]:
    with ExitStack() as stack:
        if request.param == "redis":
            folder = tmp_path_factory.mktemp("redis")
            server = stack.enter_context(redis_servers.Server(redis_servers.QUICK, folder, "--requirepass", SECRET))
            one = stack.enter_context(redis.Redis(port=server.port, password=SECRET))
            yield Guarded("redis", server.port, lambda password: one.config_set("requirepass", password))
        else:
            mongo = stack.enter_context(mongo_servers.server(password=SECRET))
            two = stack.enter_context(mongo.client())
            change = two.admin.command
            yield Guarded("mongo", mongo.port, lambda password: change("updateUser", "bot", pwd=password))


@pytest.fixture
def proxy(guarded: Guarded) -> Iterator[Proxy]:
    with Proxy(guarded.port) as between:
        yield between


@pytest.fixture
def said(caplog: pytest.LogCaptureFixture) -> Iterator[list[object]]:
    """Where a test puts what was shown to somebody: at its end no password may be in it, nor in the
    log at its most talkative.
    """
    shown: list[object] = []
    with caplog.at_level(logging.DEBUG):
        yield shown
    texts = [caplog.text, *(f"{vars(each)}" for each in caplog.records)]
    for each in shown:
        texts += [repr(each), str(each)]
        if isinstance(each, BaseException):
            texts += traceback.format_exception(each)
    for text in texts:
        assert SECRET not in text
        assert WRONG not in text


async def fails(what: Awaitable[Any]) -> errors.StoreUnavailableError:
    """Return the error of what must not hang: the deadlines are far below the bound, and what
    servers and drivers wait for is above.
    """
    with pytest.raises(errors.StoreUnavailableError) as caught:
        await asyncio.wait_for(what, HANGS)
    return caught.value


async def off_the_loop(what: Callable[[], Awaitable[None]]) -> None:
    """Do what must not keep the loop from its work."""
    async with LoopWatch() as watch:
        await what()
    assert watch.blocked == []


# --- at the start -------------------------------------------------------------------------------

AT_START: dict[str, Callable[[Proxy], object]] = {
    "a wrong password": lambda _: None,
    "nobody listens": Proxy.close,
    "it never answers": lambda proxy: setattr(proxy, "black_hole", True),
    "it talks of something else": lambda proxy: setattr(proxy, "garbage", b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "it agrees to everything": lambda proxy: setattr(proxy, "garbage", b"+OK\r\n"),
}


@pytest.mark.parametrize("fault", tiers(list(AT_START)))
async def test_a_bot_does_not_start_and_says_which_server_is_to_blame(
    fault: str, guarded: Guarded, proxy: Proxy, said: list[object]
) -> None:
    AT_START[fault](proxy)

    async def start() -> None:
        store = guarded.make_store(proxy.port, WRONG)
        manager = SessionManager(store, handler=count)
        error = await fails(manager.start())
        said.extend([error, store, manager, manager.health()])
        assert f"127.0.0.1:{proxy.port}" in str(error)

    await off_the_loop(start)


# --- later --------------------------------------------------------------------------------------


def begin(fault: str, guarded: Guarded, proxy: Proxy) -> None:
    """Let something go wrong with a server that a bot uses already."""
    if fault == "the password was changed":
        guarded.set_password("another")
    elif fault == "it never answers":
        proxy.black_hole = True
    elif fault == "it talks of something else":
        proxy.garbage = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    elif fault == "it agrees to everything":
        proxy.garbage = b"+OK\r\n"
    else:
        proxy.upstream = redis_servers.free_port()
    if fault in {"the password was changed", "it has gone"}:
        proxy.reset()


def end(fault: str, guarded: Guarded, proxy: Proxy) -> None:
    proxy.black_hole, proxy.garbage, proxy.upstream = False, b"", guarded.port
    if fault == "the password was changed":
        guarded.set_password(SECRET)
    proxy.reset()


@pytest.mark.parametrize(
    "fault",
    tiers(
        [
            "the password was changed",
            "it has gone",
            "it never answers",
            "it talks of something else",
            "it agrees to everything",
        ],
        "it never answers",
    ),
)
async def test_a_bot_that_runs_refuses_in_time_what_it_cannot_promise_and_goes_on_when_it_can(
    fault: str, guarded: Guarded, proxy: Proxy, said: list[object]
) -> None:
    store = guarded.make_store(proxy.port)
    async with SessionManager(store, handler=count, flush=FlushPolicy.write_through(), close_timeout=1.0) as manager:
        known, runs = f"ann {fault}", 0
        await manager.dispatch(known, "hello", event_id="0")

        async def meet_the_fault() -> None:
            nonlocal runs
            runs += 1
            await asyncio.to_thread(begin, fault, guarded, proxy)
            try:
                writing = fails(manager.dispatch(known, "hello", event_id=f"{runs}"))
                reading = fails(manager.dispatch(f"bob {fault}", "hello"))
                said.extend([*await asyncio.gather(writing, reading), manager.health(), manager, store])
                assert manager.health().status == "degraded"
            finally:
                await asyncio.to_thread(end, fault, guarded, proxy)
            await insist(lambda: manager.dispatch(known, "hello", event_id=f"{runs}"))

        await off_the_loop(meet_the_fault)
        await insist(lambda: manager.dispatch(f"bob {fault}", "hello"))
        assert (await manager.peek(known) or {})["n"] == runs + 1
        await until(lambda: manager.health().status == "ready")  # its lease is renewed in a moment


async def insist(send: Callable[[], Awaitable[Any]]) -> None:
    """Send it until it is acknowledged."""
    async with asyncio.timeout(HANGS):
        while True:
            try:
                await send()
            except (errors.StoreUnavailableError, errors.ConflictError):
                await asyncio.sleep(0.01)
            else:
                return


# --- servers that take no writes ----------------------------------------------------------------


async def test_a_full_redis_refuses_events_until_it_has_space_and_sessions_can_be_read(
    tmp_path: Path, said: list[object]
) -> None:
    options = ("--maxmemory", "2mb", "--maxmemory-policy", "noeviction")
    with redis_servers.Server(redis_servers.QUICK, tmp_path, *options) as server:
        store = RedisSessionStore(server.url)
        async with SessionManager(store, handler=lengthen, flush=FlushPolicy.write_through()) as manager:
            first = (await fill(manager)) - 1

            async def meet_the_wall() -> None:
                error = await fails(manager.dispatch(f"user:{first}", 150_000))
                said.append(error)
                assert "maxmemory" in str(error)
                assert type(error) is errors.StoreUnavailableError

            await off_the_loop(meet_the_wall)
            assert len((await manager.peek(f"user:{first}") or {})["text"]) == 100_000, "rolled back"
            assert manager.health().status == "degraded"
            async with SessionManager(RedisSessionStore(server.url), flush=FlushPolicy.write_through()) as other:
                assert len((await other.peek("user:0") or {})["text"]) == 100_000
            server.ask("CONFIG", "SET", "maxmemory", "100mb")
            assert await manager.dispatch(f"user:{first}", 150_000) == 150_000
            assert manager.health().status == "ready"


async def fill(manager: SessionManager) -> int:
    """Make sessions until the server takes no more, and return how many there are."""
    for n in range(40):
        try:
            await manager.dispatch(f"user:{n}", 100_000)
        except errors.StoreUnavailableError:
            return n
    raise AssertionError("two megabytes hold four")


@pytest.mark.long
async def test_a_full_redis_gets_what_was_said_behind_the_conversation_when_it_has_space(tmp_path: Path) -> None:
    with redis_servers.Server(
        redis_servers.QUICK, tmp_path, "--maxmemory", "2mb", "--maxmemory-policy", "noeviction"
    ) as server:
        policy = FlushPolicy.write_behind(max_delay=0.02)
        async with SessionManager(RedisSessionStore(server.url), handler=lengthen, flush=policy) as manager:

            async def talk() -> None:
                await asyncio.gather(*(manager.dispatch(f"user:{n}", 100_000) for n in range(40)))

            await off_the_loop(talk)
            with pytest.raises(errors.StoreUnavailableError, match="maxmemory"):
                await manager.flush()
            assert manager.health().status == "degraded"
            server.ask("CONFIG", "SET", "maxmemory", "100mb")
            await insist(manager.flush)
        assert server.ask("DBSIZE") == 40 + 1  # the lease


async def test_a_redis_that_has_become_a_replica_refuses_events_until_it_is_the_primary_again(
    tmp_path: Path, said: list[object]
) -> None:
    for name in ("one", "two"):
        (tmp_path / name).mkdir()
    with (
        redis_servers.Server(redis_servers.QUICK, tmp_path / "one") as primary,
        redis_servers.Server(redis_servers.QUICK, tmp_path / "two") as server,
    ):
        store = RedisSessionStore(server.url)
        async with SessionManager(store, handler=count, flush=FlushPolicy.write_through()) as manager:
            await manager.dispatch("ann", "hello")
            server.ask("REPLICAOF", "127.0.0.1", primary.port)

            async def meet_the_replica() -> None:
                error = await fails(manager.dispatch("ann", "hello"))
                said.append(error)
                assert type(error) is errors.StoreUnavailableError
                other = SessionManager(RedisSessionStore(server.url), handler=count)
                assert f"127.0.0.1:{primary.port}" in str(await fails(other.start()))

            await off_the_loop(meet_the_replica)
            server.ask("REPLICAOF", "NO", "ONE")
            await insist(lambda: manager.dispatch("ann", "hello"))


@pytest.fixture(scope="module")
def two_mongos(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[int, int]]:
    """The ports of the primary and of the secondary of a replica set."""
    with mongo_servers.replica_set(1, 0) as members:
        yield members[0].port, members[1].port


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_mongodb_secondary_is_no_server_for_a_bot(two_mongos: tuple[int, int], said: list[object]) -> None:
    secondary = two_mongos[1]

    async def start() -> None:
        store = MongoSessionStore(f"mongodb://127.0.0.1:{secondary}/?directConnection=true")
        error = await fails(SessionManager(store, handler=count).start())
        said.append(error)
        print(error)  # noqa: T201
        assert f"127.0.0.1:{secondary}" in str(error)

    await off_the_loop(start)
    named = MongoSessionStore(f"mongodb://127.0.0.1:{secondary}/?replicaSet=rs2")  # which leads to the primary
    async with SessionManager(named, handler=count, flush=FlushPolicy.write_through()) as manager:
        assert await manager.dispatch("ann", "hello") == 1


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_a_mongodb_that_has_stepped_down_refuses_events_until_it_is_the_primary_again(
    two_mongos: tuple[int, int], said: list[object]
) -> None:
    url = f"mongodb://127.0.0.1:{two_mongos[0]}/?directConnection=true"
    client: pymongo.MongoClient[Any]
    with pymongo.MongoClient(url) as client:
        store = MongoSessionStore(url, collection_name="stepped")
        async with SessionManager(store, handler=count, flush=FlushPolicy.write_through()) as manager:
            await manager.dispatch("ann", "hello", event_id="0")
            client.admin.command("replSetStepDown", 60, force=True)
            try:

                async def meet_the_secondary() -> None:
                    writing = fails(manager.dispatch("ann", "hello", event_id="1"))
                    reading = fails(manager.dispatch("bob", "hello"))
                    said.extend(await asyncio.gather(writing, reading))

                await off_the_loop(meet_the_secondary)
            finally:
                client.admin.command("replSetFreeze", 0)
            await asyncio.to_thread(wait_for_primary, client)
            await insist(lambda: manager.dispatch("ann", "hello", event_id="1"))
            assert await manager.peek("ann") == {"n": 2}


def wait_for_primary(client: pymongo.MongoClient[Any]) -> None:
    until = time.monotonic() + 30.0
    while not client.admin.command("hello")["isWritablePrimary"]:
        assert time.monotonic() < until
        time.sleep(0.02)


# --- a session that MongoDB does not take -------------------------------------------------------


@pytest.mark.timeout(180)
async def test_a_session_over_the_sixteen_megabytes_of_mongodb_is_rolled_back_and_concerns_nobody_else(
    tmp_path: Path,
) -> None:
    store = mongo_servers.shared_store(tmp_path)
    policy = FlushPolicy.write_through()
    async with SessionManager(store, handler=lengthen, flush=policy, max_session_bytes=BIG) as manager:
        await manager.dispatch("large", 3)
        large = manager.dispatch("large", 17 * 1024**2)
        outcomes = await asyncio.gather(
            large, *(manager.dispatch(f"user:{n}", n) for n in range(20)), return_exceptions=True
        )

        assert isinstance(outcomes[0], errors.SessionTooLargeError)
        assert outcomes[1:] == list(range(20))
        assert await manager.peek("large") == {"text": "xxx"}
        assert await manager.dispatch("large", 4) == 4
        assert manager.health().status == "ready"


@pytest.mark.long
@pytest.mark.timeout(180)
async def test_behind_the_conversation_a_session_over_sixteen_megabytes_waits_alone(tmp_path: Path) -> None:
    store = mongo_servers.shared_store(tmp_path)
    policy = FlushPolicy.write_behind(max_delay=0.02)
    async with SessionManager(store, handler=lengthen, flush=policy, max_session_bytes=BIG) as manager:
        await asyncio.gather(
            manager.dispatch("large", 17 * 1024**2), *(manager.dispatch(f"user:{n}", n) for n in range(20))
        )
        with pytest.raises(errors.SessionTooLargeError):
            await manager.flush("large")
        for n in range(20):
            await manager.flush(f"user:{n}")

        assert manager.health().status == "degraded"
        await manager.dispatch("large", 5)
        await manager.flush("large")
        assert manager.health().status == "ready"
