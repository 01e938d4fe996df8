"""What `stats()` and `members()` of a cluster say."""

from __future__ import annotations

import json

import pytest

from actorbot.cluster import Cluster, Member, _cluster
from actorbot.cluster._log import MemberState
from actorbot.errors import StoreUnavailableError
from tests.memory_log import MemoryLog
from tests.waiting import soon, until


def info(host: str, since: float, handled: int) -> str:
    said = {"host": host, "pid": 7, "program": "bot.py", "since": since, "handled": handled}
    return json.dumps(said | {"in_hand": 2, "reruns": 3, "conflicts": 4, "fenced": 5})


async def test_the_members_are_listed_with_what_they_own_and_what_they_do() -> None:
    log = MemoryLog(slots=4)
    log.states = [
        MemberState("b", info("two", 20.0, 200), 4.5, False),
        MemberState("a", info("one", 10.0, 100), -0.5, True),
    ]
    log.owners = [(3, "a", 10), (1, "b", 0), (2, "", 7), (9, "a", 1)]
    async with Cluster(log) as cluster:
        members = await soon(cluster.members())

    assert members == [
        Member("a", "one", 7, "bot.py", 2, 11, 10.0, -0.5, True, 100, 2, 3, 4, 5),
        Member("b", "two", 7, "bot.py", 1, 0, 20.0, 4.5, False, 200, 2, 3, 4, 5),
    ]


@pytest.mark.parametrize("said", ["", "[]", "{", '{"pid": "x", "since": null, "handled": -1.5, "more": {}}'])
async def test_a_member_of_another_release_that_says_something_else_is_listed_all_the_same(said: str) -> None:
    log = MemoryLog()
    log.states = [MemberState("a", said, 1.0, False)]
    async with Cluster(log) as cluster:
        assert await soon(cluster.members()) == [Member("a", "", 0, "", 0, 0, 0.0, 1.0, False, 0, 0, 0, 0, 0)]


async def test_a_cluster_whose_log_has_not_answered_for_a_while_is_failing(monkeypatch: pytest.MonkeyPatch) -> None:
    log = MemoryLog()
    log.handle = lambda _: None
    async with Cluster(log, cluster="mine") as cluster:
        assert cluster.health().status == "ready"
        log.deafen(StoreUnavailableError("cluster mine", "no connection"))
        monkeypatch.setattr(_cluster, "SILENT", 0.0)
        await until(lambda: cluster.stats().silent > 0.0)
        health = cluster.health()
        assert health.status == "failing"
        assert health.reason.startswith("cluster mine has not answered for")
        monkeypatch.setattr(_cluster, "SILENT", 60.0)
        log.deafen(None)
        await soon(cluster.dispatch("ann", "hi"))
        assert cluster.health().status == "ready"
