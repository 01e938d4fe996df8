"""SIGSTOP of a bot that owns its store, for longer than its lease or shorter, at any moment: after
another bot has taken the store over, it acknowledges nothing and answers nobody, and nothing that
the new owner has acknowledged is lost.
"""

from __future__ import annotations

import random
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from tests.faults._kills import ForkServer
from tests.faults._owners import Bot, Bots, place
from tests.faults._scale import scaled
from tests.tiers import tiers

LEASE = 1.0  # seconds
patient = pytest.mark.timeout(scaled(180, 1800))


class Freezes:
    """Freezes the owner again and again. Whoever takes the store over is the next to be frozen."""

    def __init__(self, bots: Bots, chance: random.Random) -> None:
        self._bots = bots
        self._chance = chance
        self.freezes = self.taken = 0
        self.late: list[str] = []
        """What was acknowledged, or sent, by a bot that had lost its store."""
        self._owner = bots.start(**self._journal())
        self._next: Bot | None = None

    def _journal(self) -> dict[str, Any]:
        """A bot with a journal has one of its own, as on a machine of its own."""
        policy = self._bots.owning.policy
        return {"policy": policy.replace("NUMBER", str(len(self._bots.all)))}

    def freeze(self, seconds: float) -> None:
        """Freeze the owner at any moment for so many *seconds*, and see what becomes of it."""
        owner, other = self._owner, self._next or self._bots.begin(**self._journal())
        self._next = other
        other.hears("waits")
        owner.works(20)
        _pass(self._chance.uniform(0.0, 0.3 * LEASE))
        self.freezes += 1
        owner.freeze()
        _pass(seconds)
        owner.thaw()
        if owner.loses_or_works(20):
            self.taken += 1
            self._lose(owner, other)
            self._owner, self._next = other, None

    def _lose(self, owner: Bot, other: Bot) -> None:
        other.hears("started")
        assert other.claims
        report = owner.report()
        assert report["health"] == "failing"
        assert str(other.pid) in report["reason"]
        assert set(report["verbs"].values()) == {"OwnershipLostError"}
        for kind, each in (("ack", owner.acknowledged), ("reply", owner.replies)):
            self.late += [f"{kind} {tag} {when - other.taken:+.6f}" for _, tag, when in each if when > other.taken]
        other.works(50)
        owner.close()

    def end(self) -> None:
        """Close all, and compare the store and `conflicts()` with what was acknowledged."""
        assert self._owner.close()
        if self._next is not None:
            self._next.hears("started")
            assert self._next.close()
        stood = [self._owner, *([] if self._next is None else [self._next])]
        missing = self._bots.check(lost=[bot for bot in self._bots.all if bot not in stood])
        for bot in self._bots.all:
            for session, tag, _ in bot.acknowledged:
                if tag in missing[session]:
                    assert tag in bot.kept[session], f"{tag} is neither stored nor in conflicts()"


def _pass(seconds: float) -> None:
    """Let time pass in which other processes run, or are frozen."""
    Event().wait(seconds)


@patient
@pytest.mark.parametrize("kind", tiers(["valkey", "mongo"]))
@pytest.mark.parametrize("policy", tiers(["write-behind", "write-through", "journaled"], "write-behind"))
@pytest.mark.parametrize("threads", tiers([False, True]), ids=["loop", "threads"])
def test_who_was_frozen_and_has_lost_its_store_acknowledges_nothing(
    kind: str, policy: str, threads: bool, tmp_path: Path, owners: ForkServer
) -> None:
    if policy == "journaled":
        policy = f"journaled:path={tmp_path}/journal-NUMBER"
    options: dict[str, Any] = {"policy": policy, "threads": threads, "ownership": "exclusive", "lease": LEASE}
    with place(kind, tmp_path) as url, Bots(owners, url, **options) as bots:
        chance = random.Random()
        freezes = Freezes(bots, chance)
        for _ in range(scaled(3, 50)):
            freezes.freeze(chance.uniform(0.5, 3.0) * LEASE)
        freezes.end()
        print(f"{freezes.freezes} freezes, {freezes.taken} takeovers, late: {freezes.late}")
