"""What a Redis server says of itself, as far as this user may ask."""

from __future__ import annotations

import logging
from collections.abc import Iterator

from actorbot.errors import StoreUnavailableError
from actorbot.stores._findings import Finding, judge_redis
from actorbot.stores._redis_link import Link, is_refused

__all__ = ["check_server", "examine", "time_of"]

logger = logging.getLogger("actorbot")


def check_server(link: Link) -> None:
    """Warn of a server that may lose sessions. Raises: StoreUnavailableError if it will not do."""
    for finding in judge_redis(_facts_of(link), in_cluster=link.is_cluster):
        if finding.level == "failure":
            raise StoreUnavailableError("redis", f"{link.where} {finding.text}")
        if finding.level == "warning":
            logger.warning("redis: %s %s", link.where, finding.text)
        elif finding.what == "role":
            logger.info("redis: %s is %s", link.where, finding.text.removeprefix("is "))


def examine(link: Link) -> Iterator[Finding]:
    """Yield how good the server is for sessions. Raises: StoreUnavailableError."""
    facts = _facts_of(link)
    yield from judge_redis(facts, in_cluster=link.is_cluster)
    if not {"redis_version", "save"} <= facts.keys():
        text = "cannot be told: this user needs +info +config|get for it"
        yield Finding("server" if "redis_version" not in facts else "persistence", "warning", text)


def _facts_of(link: Link) -> dict[str, str]:
    """Return what `INFO` and `CONFIG GET` tell. Raises: StoreUnavailableError."""
    facts: dict[str, str] = {}
    try:
        told = link.ask("INFO")
        if type(told) is not bytes:
            raise link.misunderstood(StoreUnavailableError)
        lines = told.decode("utf-8", "replace").splitlines()
        facts.update(line.split(":", 1) for line in lines if ":" in line)  # type: ignore[misc]
        for name in ("appendfsync", "save"):
            setting = link.ask("CONFIG", "GET", name)  # its name and its value
            facts[name] = setting[-1].decode() if type(setting) is list and setting else "unknown"
    except StoreUnavailableError as error:
        if not is_refused(error):
            raise
        logger.debug("redis: whether the server may lose sessions cannot be told: %s", error)
    return facts


def time_of(link: Link) -> float | None:
    """Return the server's wall-clock seconds; `None` if the user may not ask.

    Raises: StoreUnavailableError.
    """
    try:
        told = link.ask("TIME")
    except StoreUnavailableError as error:
        if not is_refused(error):
            raise
        return None
    try:
        seconds, micro = told
        return int(seconds) + int(micro) / 1e6
    except (TypeError, ValueError):
        raise link.misunderstood(StoreUnavailableError) from None
