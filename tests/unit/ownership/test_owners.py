"""Several owners of one lease, each as slow as it likes, on a server whose clock is set: however it
goes, there are no two at a time.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Literal

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from actorbot._ownership.lease import MOST_AWAY, Holder, InTheWay, Lease, Lost, Mode, renew, take, without
from tests.unit.ownership.owners import LEASE, process

RUNS, MORE_RUNS, STEPS = 100, 1_500, 60
WHICH = st.integers(0, 5)


@dataclass
class Reading:
    """What an owner has read, and may act on much later."""

    what: Literal["take", "renew", "give back"]
    text: str | None
    now: float
    asked: float
    watched: float


@dataclass
class Owner:
    name: str
    mode: Mode
    near: bool
    """Whether others can tell that its process has ended."""
    alive: bool = True
    mine: Holder | None = None
    until: float = -math.inf
    """The second, of real time, from which on it asks before it acknowledges."""
    renewed: float = -math.inf
    """When it had asked for what it knows."""
    reading: Reading | None = None
    seen: tuple[str | None, float] = field(default=("nothing", 0.0))


class Owners(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.text: str | None = None
        self.history: list[str | None] = [None]
        self.time = 1_000.0
        self.clock = 0.0  # how far the server's clock is from the time
        self.upset = -math.inf  # when it was last set forward, or the server last forgot
        self.owners: list[Owner] = []

    def one(self, which: int) -> Owner | None:
        there = [each for each in self.owners if each.alive]
        return there[which % len(there)] if there else None

    def is_gone(self, name: str, _: Holder) -> bool:
        return any(each.name == name and each.near and not each.alive for each in self.owners)

    def put(self, old: str | None, new: str) -> bool:
        if self.text != old:
            return False
        self.text = new
        self.history.append(new)
        return True

    # --- what owners do ---------------------------------------------------------------------------

    @rule(mode=st.sampled_from(["exclusive", "exclusive", "shared"]), near=st.booleans())
    @precondition(lambda self: sum(each.alive for each in self.owners) < 4)
    def start(self, mode: Mode, near: bool) -> None:
        self.owners.append(Owner(f"{len(self.owners)}", mode, near))

    @rule(which=WHICH)
    def ask(self, which: int) -> None:
        owner = self.one(which)
        if owner is None:
            return
        if owner.seen[0] != self.text:
            owner.seen = self.text, self.time
        what: Literal["take", "renew"] = "take" if owner.mine is None else "renew"
        owner.reading = Reading(what, self.text, self.time + self.clock, self.time, self.time - owner.seen[1])

    @rule(which=WHICH)
    def go_on(self, which: int) -> None:
        owner = self.one(which)
        if owner is None or owner.reading is None:
            return
        reading, owner.reading = owner.reading, None
        old = Lease.parse(reading.text, "a store")
        if reading.what == "give back":
            owner.alive = not self.put(reading.text, without(old, owner.name).to_text())
        elif reading.what == "take":
            self.take(owner, reading, old)
        elif owner.mine is not None:
            outcome = renew(old, owner.name, owner.mine, reading.now)
            if isinstance(outcome, Lost):
                owner.alive, owner.until = False, -math.inf
            elif self.put(reading.text, outcome.to_text()):
                self.renewed(owner, outcome, reading)

    def take(self, owner: Owner, reading: Reading, old: Lease) -> None:
        mine = Holder(process(len(self.owners)), owner.mode, LEASE)
        outcome = take(old, owner.name, mine, reading.now, reading.watched, is_gone=self.is_gone)
        if isinstance(outcome, InTheWay) or not self.put(reading.text, outcome.to_text()):
            return
        self.renewed(owner, outcome, reading)
        assert outcome.epoch == outcome.holders[owner.name].epoch == old.epoch + 1
        lost = {**old.away, **old.holders}.keys() - outcome.holders.keys()
        forgotten = {name for name in lost if not self.is_gone(name, mine)} - outcome.away.keys()
        assert not forgotten, "who may write late is remembered"
        assert len(outcome.away) <= MOST_AWAY
        assert outcome.holders[owner.name].claims or not lost

    def renewed(self, owner: Owner, outcome: Lease, reading: Reading) -> None:
        owner.mine, owner.until = outcome.holders[owner.name], reading.asked + LEASE
        owner.renewed = reading.asked

    @rule(which=WHICH)
    def give_back(self, which: int) -> None:
        """Also of one that has just asked, and whose answer then comes late."""
        owner = self.one(which)
        if owner is not None and owner.mine is not None:
            owner.until = -math.inf
            owner.reading = Reading("give back", self.text, self.time, self.time, 0.0)

    @rule(which=WHICH)
    def die(self, which: int) -> None:
        owner = self.one(which)
        if owner is not None:
            owner.alive = False

    # --- what befalls them ------------------------------------------------------------------------

    @rule(seconds=st.sampled_from([0.1, 1.0, 3.0, 4.1, 10.0, 11.0]))
    def wait(self, seconds: float) -> None:
        self.time += seconds

    @rule(seconds=st.sampled_from([-3600.0, -90.0, -9.0, 5.0, 90.0, 3600.0]))
    def set_the_clock(self, seconds: float) -> None:
        self.clock += seconds
        if seconds > 0:
            self.be_upset()

    @rule(back=st.integers(1, 5))
    def go_back(self, back: int) -> None:
        self.text = self.history[-1 - back] if back < len(self.history) else None
        self.be_upset()

    def be_upset(self) -> None:
        self.upset, self.time = self.time, self.time + 0.001

    # --- what must hold ---------------------------------------------------------------------------

    @invariant()
    def no_two_have_it_at_a_time(self) -> None:
        # Who asked before the server forgot finds out when it asks again: it is not counted.
        have = [each for each in self.owners if each.alive and self.time < each.until and each.renewed > self.upset]
        modes = [each.mode for each in have]
        assert len(have) < 2 or "exclusive" not in modes, have

    @invariant()
    def a_lease_is_never_exclusive_beside_others(self) -> None:
        holders = Lease.parse(self.text, "a store").holders
        assert len(holders) < 2 or {each.mode for each in holders.values()} == {"shared"}
        assert all(each.epoch <= Lease.parse(self.text, "a store").epoch for each in holders.values())

    @invariant()
    def epochs_grow(self) -> None:
        if self.upset == -math.inf:
            epochs = [Lease.parse(text, "a store").epoch for text in self.history[-2:]]
            assert epochs == sorted(epochs)


Owners.TestCase.settings = settings(max_examples=RUNS, stateful_step_count=STEPS, deadline=None)
TestOwners = pytest.mark.timeout(600)(Owners.TestCase)


class MoreOwners(Owners):
    pass


MoreOwners.TestCase.settings = settings(max_examples=MORE_RUNS, stateful_step_count=STEPS, deadline=None)
TestMoreOwners = pytest.mark.long(pytest.mark.timeout(1_200)(MoreOwners.TestCase))


async def test_a_process_that_was_paused_before_its_answer_came_harms_nobody() -> None:
    """The machine above, once by hand: paused with what it has read, while others have gone on."""
    owners = Owners()
    for near in (False, False):
        owners.start("exclusive", near)
    owners.ask(0)
    owners.go_on(0)
    owners.ask(0)  # and is frozen before it swaps
    for seconds in (11.0, 4.1):
        owners.wait(seconds)
        owners.ask(1)
    owners.go_on(1)
    before = owners.text
    owners.go_on(0)

    assert owners.text == before
    assert owners.owners[1].mine is not None
    assert replace(owners.owners[1].mine).epoch == 2
    owners.ask(0)
    owners.go_on(0)
    assert not owners.owners[0].alive  # it has learnt that it lost it
