"""Which bots are killed: on which stores, with which policy, from which seed."""

from __future__ import annotations

import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal

import pytest

from actorbot import FlushPolicy
from tests.faults._worker import Orders
from tests.servers import mongo_servers, redis_servers
from tests.tiers import tiers

URLS: dict[str, Callable[[Path], str]] = {
    "file": lambda folder: f"file://{folder}/sessions",
    "redis": lambda folder: f"{redis_servers.shared().url}?key_prefix={folder.name}:",
    "mongo": lambda folder: f"{mongo_servers.shared().url}?database=actorbot_faults&collection_name={folder.name}",
}
one_store = pytest.mark.parametrize("kind", tiers(list(URLS), "file"))  # and the others in `make test-all`
SESSIONS = 12


def journaled(folder: Path, sync: Literal["full", "normal"] = "full", **knobs: Any) -> FlushPolicy:
    return FlushPolicy.journaled(folder / "journal", sync=sync, **knobs)


def orders(kind: str, folder: Path, policy: FlushPolicy, **others: Any) -> Orders:
    """Make the orders for a store of *kind*, of the test whose *folder* it is.

    The seed is ACTORBOT_SEED, or a new one each time.
    """
    return orders_for(URLS[kind](folder), policy, **others)


def orders_for(url: str, policy: FlushPolicy, **others: Any) -> Orders:
    seed = int(os.environ.get("ACTORBOT_SEED") or random.randrange(10**6))
    start = {f"platform:{number}": 0 for number in range(SESSIONS)}
    made = Orders(url=url, policy=str(policy), seed=seed, start=start, **others)
    print(f"ACTORBOT_SEED={seed} {made}")  # shown if the test fails
    return made
