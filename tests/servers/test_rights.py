"""Users who may do little: what docs/stores.md says is enough, and what is missing is named."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actorbot import MemorySessionStore, MongoSessionStore, RedisSessionStore, SessionManager, errors
from actorbot.stores import copy
from actorbot.stores.base import Record, Write
from actorbot.testing._expect import make_record, put
from tests.handlers import count
from tests.servers import mongo_servers
from tests.servers.redis_servers import KINDS, Server, sentinel

PAGE = (Path(__file__).parents[2] / "docs" / "stores.md").read_text("utf-8")
PASSWORD = "s3cret-pa55"

ACL = re.findall(r"ACL SETUSER bot on >password (.+)", PAGE)[0].split()
"""The smallest user of a Redis, as the page has it."""
MORE = ["+info", "+config|get", "+scan", "+renamenx", "+expire"]
NEEDED = [each for each in ACL if each not in ("~bot:*", "+time")]

ROLE: list[dict[str, Any]] = json.loads(
    re.sub(r"(\w+):", r'"\1":', re.findall(r"privileges: (\[\n.+?\n  \])", PAGE, re.DOTALL)[0]).replace(",\n  ]", "\n]")
)
"""The privileges of the smallest role of a MongoDB, as the page has them."""


# --- Redis --------------------------------------------------------------------------------------


@pytest.fixture
def as_user(redis_server: Server) -> Iterator[Callable[..., RedisSessionStore]]:
    """Make a store whose user has these rights and no others."""
    stores = []

    def make(*rights: str) -> RedisSessionStore:
        redis_server.ask("ACL", "SETUSER", "bot", "reset", "on", f">{PASSWORD}", *rights)
        url = f"redis://bot:{PASSWORD}@127.0.0.1:{redis_server.port}/0"
        stores.append(RedisSessionStore(url, key_prefix="bot:"))
        return stores[-1]

    yield make
    for each in stores:
        each.close()


async def test_a_bot_lives_with_the_rights_of_the_page(
    as_user: Callable[..., RedisSessionStore], redis_server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "actorbot")
    for n in (1, 2):
        async with SessionManager(as_user(*ACL), handler=count) as manager:
            assert await manager.dispatch("ann", "hi") == n
            await manager.dispatch("bob", "hi")
            redis_server.ask("SCRIPT", "FLUSH")
            await manager.destroy("bob")

    assert not caplog.records
    assert sorted(redis_server.ask("KEYS", "*")) == [b"bot:\x00lease", b"bot:ann", b"bot:bob"]  # type: ignore[call-overload]


def test_the_tools_do_with_the_other_rights_of_the_page(as_user: Callable[..., RedisSessionStore]) -> None:
    store = as_user(*ACL, *MORE).init()
    put(store, "ann", {"n": 1})
    report = copy(store, MemorySessionStore())

    assert all(each in PAGE.replace("\\|", "|") for each in MORE)
    assert report.copied == 1
    assert {each.level for each in store.examine()} == {"ok"}


@pytest.mark.parametrize("right", NEEDED)
def test_a_right_that_is_missing_is_named_before_the_first_event(
    right: str, as_user: Callable[..., RedisSessionStore], redis_server: Server
) -> None:
    store = as_user(*(each for each in ACL if each != right))
    with pytest.raises(errors.StoreUnavailableError) as caught:
        store.init()
    found = {each.what: each for each in store.examine()}

    assert f"the rights {right};" in str(caught.value)
    assert found["rights"].level == "failure"
    assert right in found["rights"].text.split()
    assert not redis_server.ask("KEYS", "*")


def test_all_that_is_missing_is_named_at_once(as_user: Callable[..., RedisSessionStore]) -> None:
    with pytest.raises(errors.StoreUnavailableError, match=r"\+evalsha \+script\|load \+mget \+get \+exists \+set;"):
        as_user("~bot:*", "+eval").init()
    with pytest.raises(errors.StoreUnavailableError, match=r"the rights ~bot:\*;"):
        as_user("~other:*", "+@all").init()


async def test_a_user_who_may_not_ask_the_time_is_told_of_and_gets_no_lease(
    as_user: Callable[..., RedisSessionStore], caplog: pytest.LogCaptureFixture
) -> None:
    store = as_user(*(each for each in ACL if each != "+time"))
    put(store.init(), "ann", {"n": 1})
    assert "+time" in caplog.text
    with pytest.raises(
        errors.StoreUnavailableError, match=r"ACL SETUSER <user> \+time, or start with ownership='none'"
    ):
        await SessionManager(store, handler=count).start()
    async with SessionManager(store, handler=count, ownership="none") as manager:
        assert await manager.dispatch("ann", "hi") == 2


@pytest.mark.parametrize("right", NEEDED)
def test_a_right_that_is_taken_while_the_bot_runs_never_reads_as_a_damaged_session(
    right: str, as_user: Callable[..., RedisSessionStore]
) -> None:
    store = as_user(*ACL).init()
    first = put(store, "ann", {"n": 1})
    as_user(*(each for each in ACL if each != right))
    second = Write(make_record("ann", {"n": 2}, first), first.write_id)
    outcomes = [
        outcome(lambda: store.write_many([second])),
        *(outcome(lambda each=each: store.read_many([each])) for each in ("ann", "nobody")),
    ]

    assert {type(each) for each in outcomes} <= {errors.StoreUnavailableError, Record, type(None)}
    spared = ("+eval", "+script|load", "+exists")  # another command does for them here
    assert (errors.StoreUnavailableError in {type(each) for each in outcomes}) == (right not in spared)


def outcome(call: Callable[[], Any]) -> Any:
    try:
        return call()[0]
    except errors.ActorbotError as error:
        return error


def test_a_replica_is_called_one_also_by_who_may_not_ask_and_when_it_has_become_one(
    as_user: Callable[..., RedisSessionStore], redis_server: Server, tmp_path: Path
) -> None:
    running = as_user(*ACL).init()
    first = put(running, "ann", {"n": 1})
    with Server(redis_server.kind, tmp_path) as primary:
        redis_server.ask("REPLICAOF", "127.0.0.1", primary.port)
        for call in (lambda: put(running, "ann", {"n": 2}, first), as_user(*ACL).init):
            with pytest.raises(errors.StoreUnavailableError, match="is a replica, which takes no writes") as caught:
                call()
            assert type(caught.value) is errors.StoreUnavailableError


@pytest.mark.parametrize("kind", KINDS)
def test_a_sentinel_is_called_one(kind: str, tmp_path: Path) -> None:
    with sentinel(kind, tmp_path) as server:
        store = RedisSessionStore(server.url)
        with pytest.raises(errors.StoreUnavailableError, match="is a Sentinel"):
            store.init()
        assert "failure" in {each.level for each in store.examine()}
        store.close()


# --- MongoDB ------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def guarded() -> Iterator[mongo_servers.MongoServer]:
    with mongo_servers.server(password=PASSWORD) as own:
        yield own


def store_of(server: mongo_servers.MongoServer, privileges: list[dict[str, Any]]) -> MongoSessionStore:
    """Make a store whose user has these privileges and no others."""
    with server.client() as client:
        database = client["mybot"]
        for each in database.command("usersInfo")["users"]:
            database.command("dropUser", each["user"])
        for each in database.command("rolesInfo")["roles"]:
            database.command("dropRole", each["role"])
        database.command("createRole", "actorbot", privileges=privileges, roles=[])
        database.command("createUser", "bot", pwd="pw", roles=["actorbot"])
    return MongoSessionStore(f"mongodb://bot:pw@127.0.0.1:{server.port}/mybot")


@pytest.mark.long
async def test_a_bot_lives_with_the_role_of_the_page(
    guarded: mongo_servers.MongoServer, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "actorbot")
    store = store_of(guarded, ROLE)
    async with SessionManager(store, handler=count) as manager:
        assert await manager.dispatch("ann", "hi") == 1
        await manager.dispatch("bob", "hi")
        await manager.destroy("bob")
    store.init()
    levels = {each.what: each.level for each in store.examine()}
    report = copy(store, MemorySessionStore())
    store.close()

    assert not caplog.records
    assert (report.copied, len(report.failed)) == (1, 0)
    assert "failure" not in levels.values()
    assert {what for what, level in levels.items() if level == "warning"} == {"persistence", "expiry"}
    assert "listIndexes" in PAGE
    assert "serverStatus" in PAGE


@pytest.mark.long
@pytest.mark.parametrize(
    ("collection", "action"),
    [(each["resource"]["collection"], action) for each in ROLE[:2] for action in each["actions"]],
)
def test_an_action_that_is_missing_is_named_before_the_first_event(
    collection: str, action: str, guarded: mongo_servers.MongoServer
) -> None:
    less = [
        each
        | {"actions": [one for one in each["actions"] if (each["resource"]["collection"], one) != (collection, action)]}
        for each in ROLE
    ]
    store = store_of(guarded, less)
    said = f"does not let this user {action}: a role needs these actions on the resource"
    with pytest.raises(errors.StoreUnavailableError) as caught:
        store.init()
        store.read_lease()  # which a manager does first, unless it is told that nobody else runs
    found = {each.what: each for each in store.examine()}
    store.close()

    assert f"{said} {{ db: 'mybot', collection: '{collection}' }}" in str(caught.value)
    assert found["rights"].level == "failure"
    assert said in found["rights"].text


@pytest.mark.long
def test_a_user_who_may_not_set_damage_aside_is_told_of_by_the_doctor(guarded: mongo_servers.MongoServer) -> None:
    store = store_of(guarded, ROLE[:2]).init()
    put(store, "cid", {"n": 1})
    found = {each.what: each for each in store.examine()}
    store.close()

    assert found["rights"].level == "warning"
    assert "sessions.damaged" in found["rights"].text
