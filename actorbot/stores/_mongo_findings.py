"""What a MongoDB server says of itself, judged: may it lose sessions, and does it remove those that have ended?"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from actorbot.stores._finding import Finding

__all__ = ["has_expiry", "judge_server"]


def judge_server(
    hello: Mapping[str, Any], version: str, status: Mapping[str, Any] | None, indexes: Iterable[Mapping[str, Any]]
) -> Iterator[Finding]:
    """Judge what it answers to `hello`, its *version*, its `serverStatus` if that may be asked, and a collection's *indexes*."""
    yield Finding("version", "ok", f"runs MongoDB {version}")
    yield _role(hello)
    yield _persistence(status)
    yield Finding("writes", "ok", "are confirmed by a majority and journaled (w=majority, j=true)")
    if has_expiry(indexes):
        yield Finding("expiry", "ok", "has a TTL index on expireAt, which removes what has ended")
    else:
        text = "has no TTL index on expireAt, so expired sessions are not removed; drop the other index on expireAt"
        yield Finding("expiry", "warning", text)


def has_expiry(indexes: Iterable[Mapping[str, Any]]) -> bool:
    """Tell whether one of the *indexes* has the server remove what has ended."""
    return any(list(each["key"]) == [("expireAt", 1)] and "expireAfterSeconds" in each for each in indexes)


def _role(hello: Mapping[str, Any]) -> Finding:
    if hello.get("msg") == "isdbgrid":
        return Finding("role", "ok", "is a router of a sharded cluster")
    if not hello.get("isWritablePrimary"):
        return Finding(
            "role", "failure", f"takes no writes; name its primary, {hello.get('primary', 'which is unknown')}"
        )
    if "setName" not in hello:
        return Finding("role", "ok", "is a standalone server, whose disk has the only copy")
    members = len(hello.get("hosts", ()))
    return Finding("role", "ok", f"is the primary of replica set {hello['setName']}, which has {members} with data")


def _persistence(status: Mapping[str, Any] | None) -> Finding:
    if status is None:
        return Finding("persistence", "warning", "cannot be told: this user may not ask for serverStatus")
    engine = status.get("storageEngine", {})
    name = engine.get("name", "unknown")
    if not engine.get("persistent", False):
        return Finding("persistence", "warning", f"loses all sessions when it ends: its storage engine is {name}")
    return Finding("persistence", "ok", f"keeps what it has on disk (storage engine {name})")
