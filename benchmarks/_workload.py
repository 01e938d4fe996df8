"""The session workload.

What an event does to its session, who sends how many events, and what the store must have
afterwards.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import string
from collections import Counter
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass
from typing import Any, Literal

Distribution = Literal["uniform", "zipf"]

SEED = 2017
LAST = 10  # texts that a session keeps; ten of 25-90 characters make 0.3-1 KB encoded


def remember(session: MutableMapping[str, Any], text: str) -> None:
    """Handle one event: count it, and keep its text among the last ten."""
    session["n"] = session.get("n", 0) + 1
    last = session.setdefault("last", [])
    last.append(text)
    del last[:-LAST]


async def remember_and_await(session: MutableMapping[str, Any], text: str) -> None:
    """Do the same, and let others run between the read and the write.

    Without a lock, updates get lost here.
    """
    count = session.get("n", 0)
    await asyncio.sleep(0)
    session["n"] = count + 1
    last = session.setdefault("last", [])
    last.append(text)
    del last[:-LAST]


@dataclass(frozen=True, slots=True)
class Workload:
    """One sequence of events, the same for every contender."""

    users: tuple[str, ...]
    events: tuple[tuple[str, str], ...]
    """(session id, text), in the order in which they are taken."""
    in_flight: int
    """Tasks or threads that take events from the sequence, each one at a time."""

    def head(self, events: int) -> Workload:
        """Return the same workload with its first *events* events only."""
        return Workload(self.users, self.events[:events], self.in_flight)

    def wrong_counters(self, rounds: int, counter_of: Callable[[str], int]) -> dict[str, int]:
        """Return the sessions whose counter is wrong after *rounds* rounds.

        Also how many events they miss.
        """
        expected = Counter(user for user, _ in self.events)
        missing = {user: expected[user] * rounds - counter_of(user) for user in self.users}
        return {user: count for user, count in missing.items() if count}


def make_workload(users: int, events: int, in_flight: int, distribution: Distribution) -> Workload:
    """Draw the users of *events* events and their texts.

    The same arguments draw the same workload.
    """
    draw = random.Random(SEED)
    names = tuple(f"bench:{number}" for number in range(users))
    weights = [1.0 if distribution == "uniform" else 1.0 / rank for rank in range(1, users + 1)]
    senders = draw.choices(names, cum_weights=list(itertools.accumulate(weights)), k=events)
    texts = make_texts(1000)
    return Workload(names, tuple(zip(senders, draw.choices(texts, k=events), strict=True)), in_flight)


def make_texts(count: int) -> list[str]:
    """Make *count* messages of 25 to 90 characters."""
    draw = random.Random(SEED)
    return ["".join(draw.choices(string.ascii_lowercase + " ", k=draw.randint(25, 90))) for _ in range(count)]
