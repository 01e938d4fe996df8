"""What a user of MongoDB may do with the collection, as the server says to everybody of himself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from actorbot.errors import StoreUnavailableError
from actorbot.stores._findings import Finding
from actorbot.stores._mongo_documents import OPTIONS
from actorbot.stores._mongo_link import Link

__all__ = ["check_rights", "check_lease_rights", "judge_rights"]

NEEDED: Final = ("find", "insert", "update", "createIndex")
"""Without them no session can be kept."""
DAMAGED: Final = ("insert", "createIndex")
"""Without them, in the collection beside, a damaged session cannot be set aside."""
LEASE: Final = ("find", "insert", "update")
"""Without them, in the other collection beside, nobody can tell who owns the sessions."""


def check_rights(link: Link) -> None:
    """Raises: StoreUnavailableError if an action is missing that every bot needs; PyMongoError."""
    if lacking := _lacking(link, link.collection_name, NEEDED):
        raise StoreUnavailableError("mongo", f"{link.hosts} {_say(link, link.collection_name, lacking)}")


def check_lease_rights(link: Link) -> None:
    """Raises: StoreUnavailableError if an action is missing that a lease needs; PyMongoError."""
    if lacking := _lacking(link, link.lease_name, LEASE):
        said = _say(link, link.lease_name, lacking)
        raise StoreUnavailableError("mongo", f"{link.hosts} {said}; or pass ownership='none' if nobody else runs")


def judge_rights(link: Link) -> Iterator[Finding]:
    """Yield what this user may not do. Raises: StoreUnavailableError, PyMongoError."""
    beside = f"{link.collection_name}.damaged"
    needed = {link.collection_name: NEEDED, link.lease_name: LEASE}
    lacks = [
        _say(link, name, lacking) for name, actions in needed.items() if (lacking := _lacking(link, name, actions))
    ]
    if lacks:
        yield Finding("rights", "failure", "; it ".join(lacks))
    elif lacking := _lacking(link, beside, DAMAGED):
        yield Finding("rights", "warning", _say(link, beside, lacking))


def _lacking(link: Link, collection: str, actions: Sequence[str]) -> list[str]:
    database = link.collection.database
    with link.call().command():
        told = database.command("connectionStatus", showPrivileges=True, codec_options=OPTIONS)["authInfo"]
    if not told["authenticatedUsers"]:  # the server asks for no user, or refuses whoever has none
        return []
    allowed: set[str] = set()
    for each in told["authenticatedUserPrivileges"]:
        if _is_about(each["resource"], database.name, collection):
            allowed.update(each["actions"])
    return [action for action in actions if not allowed & {action, "anyAction"}]


def _is_about(resource: Mapping[str, Any], database: str, collection: str) -> bool:
    if resource.get("anyResource"):
        return True
    return resource.get("db") in ("", database) and resource.get("collection") in ("", collection)


def _say(link: Link, collection: str, actions: Sequence[str]) -> str:
    place = f"{{ db: {link.database!r}, collection: {collection!r} }}"
    return f"does not let this user {', '.join(actions)}: a role needs these actions on the resource {place}"
