"""Servers that will not do, or move: an error with a name and nothing half done, or no error."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest

from actorbot import errors
from actorbot.cluster._log import Settlement, Terms
from actorbot.cluster._redis_log import RedisLog
from actorbot.cluster._scripts import RIGHTS
from tests.servers.proxy import Proxy
from tests.servers.redis_servers import QUICK, Server, free_port
from tests.unit.cluster.logs import TERMS, a_cluster, goes_round, until_it_does
from tests.waiting import SOON, soon

pytestmark = pytest.mark.usefixtures("short_waits")

SECRET = "s3cret-pa55"
WRONG = "wr0ng-pa55"


def keys(server: Server) -> object:
    return server.ask("KEYS", "*")


async def failure_of(log: RedisLog) -> errors.ActorbotError:
    """Return the error of one that cannot join, which is the one of a caller, too."""
    with pytest.raises(errors.ActorbotError) as first:
        await log.join("ann", TERMS)
    with pytest.raises(errors.ActorbotError) as second:
        await log.open()
    await log.close()
    assert type(first.value) is type(second.value)
    assert not any(secret in f"{first.value}{first.getrepr()}" for secret in (SECRET, WRONG))
    return first.value


# --- names and URLs -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["", "a b", "a{b", "a}", "a:b", "x" * 101, "a\n", None, 7, b"bot"])
def test_a_name_that_is_none_is_refused(name: Any) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        RedisLog("redis://localhost", name)
    assert caught.value.field == "cluster"


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost",
        f"redis://:{SECRET}@localhost/bot",
        f"redis://bot:{SECRET}#x@localhost",
        f"redis+sentinel://bot:{SECRET}@localhost",
        f"redis+sentinel://bot:{SECRET}#x@localhost:26379/bots",
        f"redis+sentinel://:{SECRET}@localhost:port/bots",
        f"redis+sentinel://:{SECRET}@localhost/bots/database",
        f"redis+sentinel://localhost/bots?password={SECRET}&nonsense=1",
        "redis+sentinel:///bots",
        "mongodb+sentinel://localhost/bots",
        "localhost:6379",
        "",
        None,
        b"redis://localhost",
    ],
)
def test_a_url_that_is_none_is_refused_without_its_password(url: Any) -> None:
    with pytest.raises(errors.ConfigError) as caught:
        RedisLog(url, "mybot")
    assert caught.value.field == "url"
    assert SECRET not in f"{caught.value}{caught.getrepr()}"


# --- servers that will not do -------------------------------------------------------------------


async def test_a_server_that_is_not_there_is_named() -> None:
    port = free_port()
    error = await failure_of(RedisLog(f"redis://:{SECRET}@127.0.0.1:{port}/0", "mybot"))
    assert isinstance(error, errors.StoreUnavailableError)
    assert not isinstance(error, errors.OutcomeUnknownError)
    assert error.store == "cluster mybot"
    assert f"127.0.0.1:{port} does not answer" in str(error)


@pytest.mark.parametrize("how", ["black_hole", "garbage", "http"])
async def test_a_server_that_is_no_redis_is_named(how: str, server: Server) -> None:
    with Proxy(server.port) as between:
        between.black_hole = how == "black_hole"
        between.garbage = {"garbage": b"\x00\xff what?\r\n", "http": b"HTTP/1.1 400 Bad Request\r\n\r\n"}.get(how, b"")
        log = RedisLog(f"redis://:{SECRET}@127.0.0.1:{between.port}/0?socket_timeout=0.1", "mybot")
        error = await soon(failure_of(log))
    assert isinstance(error, errors.StoreUnavailableError)
    expected = "no answer within 0.1 s" if how == "black_hole" else "something else than a Redis"
    assert expected in str(error)


async def test_a_server_that_is_too_old_is_refused(tmp_path: Path) -> None:
    with Server(QUICK, tmp_path) as server, Proxy(server.port) as between:
        too_old = b"-ERR Invalid stream ID specified as stream command argument\r\n"  # Redis 6.0, of "("
        between.changes = lambda reply: reply.replace(b"*0\r\n", too_old, 1)
        error = await failure_of(RedisLog(f"redis://127.0.0.1:{between.port}/0", "mybot"))
        assert isinstance(error, errors.ConfigError)
        assert "Redis 6.2 or newer" in str(error)
        assert f"127.0.0.1:{between.port}" in str(error)
        assert keys(server) == []


async def test_a_replica_is_refused_until_it_is_promoted(redis_server: Server, tmp_path: Path) -> None:
    with Server(QUICK, tmp_path) as primary:
        redis_server.ask("REPLICAOF", "127.0.0.1", primary.port)
        error = await failure_of(RedisLog(redis_server.url, "mybot"))
        assert isinstance(error, errors.StoreUnavailableError)
        assert f"127.0.0.1:{redis_server.port} is a replica, which takes no writes" in str(error)
        redis_server.ask("REPLICAOF", "NO", "ONE")
        async with a_cluster(redis_server) as made:
            await goes_round(made)
            caller = await made.caller()
            ann = await made.member("ann")
            await ann.renew()
            redis_server.ask("REPLICAOF", "127.0.0.1", primary.port)  # under their feet
            for asked in (caller.append([(1, b"x")]), ann.renew(), ann.read(), caller.drain([])):
                with pytest.raises(errors.StoreUnavailableError, match=r"is a replica|closed the connection"):
                    await asked
            redis_server.ask("REPLICAOF", "NO", "ONE")
            await until_it_does(lambda: caller.append([(1, b"x")]))
            await until_it_does(ann.renew)


async def test_other_slots_or_another_protocol_are_refused(server: Server) -> None:
    async with a_cluster(server) as made:
        await made.member("ann")
        with pytest.raises(errors.ConfigError) as caught:
            await made.member("bob", Terms(slots=64, max_waiting=2_000))
        assert ("64" in str(caught.value), "256" in str(caught.value)) == (True, True)
        caller = await made.caller()
        made.ask("HSET", "meta", "slots", 128)  # made anew by somebody else
        with pytest.raises(errors.ConfigError, match="128"):
            await caller.append([(200, b"x")])
        made.ask("HSET", "meta", "slots", 256, "protocol", 2)
        for refused in (made.member("bob"), made.caller()):
            with pytest.raises(errors.ConfigError, match=r"protocol 1.* made with 2"):
                await refused
        assert made.ask("EXISTS", "log:200") == 0


async def test_a_cluster_of_which_no_shard_was_ever_started_takes_no_events(server: Server) -> None:
    async with a_cluster(server) as made:
        caller = await made.caller()
        assert await caller.open() is None
        with pytest.raises(errors.StoreUnavailableError, match="no shard"):
            await caller.append([(1, b"x")])
        assert made.ask("EXISTS", "log:1") == 0
        assert (await caller.members(), await caller.slots()) == ([], [])


# --- users and their rights ---------------------------------------------------------------------


async def test_a_wrong_password_is_told_from_none_and_neither_is_shown(tmp_path: Path) -> None:
    with Server(QUICK, tmp_path, "--requirepass", SECRET) as server:
        where = f"127.0.0.1:{server.port}"
        wrong = await failure_of(RedisLog(f"redis://:{WRONG}@{where}/0", "mybot"))
        assert f"{where} does not accept this user or password" in str(wrong)
        none = await failure_of(RedisLog(f"redis://{where}/0", "mybot"))
        assert "asks for a user or password" in str(none)
        async with a_cluster(server, f"redis://:{SECRET}@{where}/0") as made:
            await goes_round(made)


async def test_a_user_needs_the_rights_that_are_named_and_no_others(redis_server: Server) -> None:
    async with a_cluster(redis_server) as made:
        pattern = f"~{made.key('')[:-1]}*"
        url = f"redis://bot:{SECRET}@127.0.0.1:{redis_server.port}/0"
        redis_server.ask("ACL", "SETUSER", "bot", "on", f">{SECRET}", pattern, *RIGHTS.split())
        await goes_round(made, url)
        redis_server.ask("FLUSHALL")
        for right in RIGHTS.split():
            redis_server.ask("ACL", "SETUSER", "bot", right.replace("+", "-").partition("|")[0])
            error = await failure_of(RedisLog(url, made.name))
            assert isinstance(error, errors.StoreUnavailableError)
            assert right in str(error).partition("run ACL SETUSER")[0] or right in {"+evalsha", "+script|load"}
            assert f"{pattern} {RIGHTS}" in str(error)
            redis_server.ask("ACL", "SETUSER", "bot", right)
        redis_server.ask("ACL", "SETUSER", "bot", "resetkeys", "~others:*")
        error = await failure_of(RedisLog(url, made.name))
        assert f"ACL SETUSER <user> {pattern}" in str(error)
        assert keys(redis_server) == []


# --- a server in trouble ------------------------------------------------------------------------


async def test_a_full_server_takes_no_events_and_the_rest_goes_on(redis_server: Server) -> None:
    async with a_cluster(redis_server) as made:
        ann, caller = await made.member("ann"), await made.caller()
        await ann.renew()
        await caller.append([(1, b"x"), (2, b"y")])
        redis_server.ask("CONFIG", "SET", "maxmemory", 1)
        with pytest.raises(errors.StoreUnavailableError, match="OOM") as caught:
            await caller.append([(1, b"z")])
        assert not isinstance(caught.value, errors.OutcomeUnknownError)
        found = (await ann.log.read("ann", 10)).entries
        assert [each.payload for each in found] == [b"x", b"y"]
        assert (await ann.renew()).lost == []
        bob = await made.member("bob")  # which has to connect
        await bob.renew()
        await ann.give_back(128)
        assert len((await bob.renew()).granted) == 128
        done = [Settlement(each.slot, 1, [], [each.id]) for each in found]
        assert await ann.log.settle("ann", done, {"web": b"1"}) == []
        assert made.ask("XLEN", "log:1") == 0


async def test_a_shard_warns_of_a_server_that_may_lose_events(
    server: Server, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with a_cluster(server) as made:
        await made.member("ann")
    assert caplog.messages == []
    with Server(QUICK, tmp_path, "--appendonly", "no", "--maxmemory-policy", "allkeys-lru") as loses:
        async with a_cluster(loses) as made:
            await made.member("ann")
            where = f"cluster {made.name}: 127.0.0.1:{loses.port}"
    assert f"{where} loses accepted events when it crashes" in caplog.messages[0]
    assert f"{where} drops events when its memory is full (maxmemory-policy allkeys-lru)" in caplog.messages[1]


async def test_a_server_that_has_no_room_for_another_connection_says_so(tmp_path: Path) -> None:
    with Server(QUICK, tmp_path) as server, server.client() as client:
        client.config_set("maxclients", 1)
        with pytest.raises(errors.StoreUnavailableError, match="max number of clients reached"):
            await RedisLog(server.url, "mybot").open()


async def test_all_who_ask_share_one_attempt_to_connect(server: Server) -> None:
    with Proxy(server.port) as between:
        between.black_hole = True
        async with a_cluster(server, f"redis://127.0.0.1:{between.port}/0?socket_timeout=0.4") as made:
            log = made.log()
            outcomes = await soon(asyncio.gather(*(log.open() for _ in range(50)), return_exceptions=True))
            assert {type(each) for each in outcomes} == {errors.StoreUnavailableError}
            assert between.connections == 1
            between.black_hole = False
            between.reset()
            assert await log.open() is None


async def test_a_server_that_says_nothing_is_given_up_and_asked_again_when_it_is_back(tmp_path: Path) -> None:
    with Server(QUICK, tmp_path) as server:
        async with a_cluster(server, f"{server.url}?socket_timeout=0.4") as made:
            ann, caller = await made.member("ann"), await made.caller()
            await ann.renew()
            await ann.read()
            server.freeze()
            for changes in (caller.append([(1, b"x")]), ann.renew()):
                with pytest.raises(errors.OutcomeUnknownError, match="no answer within"):
                    await soon(changes)
            for reads in (ann.read(), caller.open()):
                with pytest.raises(errors.StoreUnavailableError) as caught:
                    await soon(reads)
                assert not isinstance(caught.value, errors.OutcomeUnknownError)
            server.thaw()
            assert (await until_it_does(ann.renew)).lost == []
            assert await until_it_does(ann.read) == [b"x"]  # it was done, late


async def test_a_log_that_is_closed_lets_nobody_wait(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("actorbot.cluster._redis_log.WAIT", 2 * SOON)
    async with a_cluster(server) as made:
        ann = await made.member("ann")
        reading = asyncio.create_task(ann.log.read("ann", 10))
        await asyncio.sleep(0)
        await ann.log.close()
        with pytest.raises(errors.StoreUnavailableError, match="closed"):
            await soon(reading)
        with pytest.raises(errors.StoreUnavailableError, match="closed"):
            await ann.renew()
