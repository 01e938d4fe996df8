"""What is promised of several processes on one store, as a model beside their simulation: who may
answer, who may take the store, and what may be lost.

A session is a list of the events that it has counted. Each run of a handler appends a token of its
own, so a state tells which runs it has come from.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from actorbot._runtime.deadline_thread import MAX_STUCK
from tests.faults._sim_machine import Machine

__all__ = ["Acknowledged", "Owner", "OwnersModel", "Run"]

Log = tuple[str, ...]

LEASE = 10.0
WATCHED = 4.0  # seconds for which the taker of a lease that ran out has seen nobody renew it
RENEWED = 3.0
RETRY = 0.25
SLACK = 0.5
MOMENT = 0.05  # seconds from the decision to call the store to the call
REMEMBERED = 64  # events of a session, so that none is counted twice


@dataclass(eq=False)
class Run:
    """One run of a handler on one event."""

    token: str
    event: str
    base: Log
    owner: Owner
    returned: bool = False
    failed: bool = False


@dataclass(eq=False)
class Owner:
    """A process, from outside."""

    name: str
    slot: int
    computer: int
    machine: Machine
    deadline: float
    began: float
    ended: float = inf
    holder: str = ""
    """Its id in the lease, once it had it."""
    epoch: int = 0
    claims: bool = False
    frozen: bool = False
    """Whether it has been, at any time."""
    thawed: float = -inf
    renewed: float = -inf
    """When it last took or renewed the lease."""
    taken: float = inf
    """When another one took the lease from it."""
    came_back: bool = False
    """Whether it had the lease again, since the server had forgotten who took it."""
    lost: float = inf
    """When it first told anybody that it has lost the store."""
    gave_back: float = inf
    owing: dict[str, set[str]] = field(default_factory=dict)
    """What it had acknowledged and not flushed then, by session."""
    asked: float = -inf
    """When the last call about the lease was sent that was answered."""
    asking: set[float] = field(default_factory=set)
    """When those were sent that have not come back."""
    failed: float = -inf
    """When one last failed: it was not answered in time."""
    refused: float = -inf
    """When one last came back without an answer."""
    told: set[str] = field(default_factory=set)
    """The tokens of all states that it has handed to `on_conflict` or lists as conflicts."""
    unflushed: set[str] = field(default_factory=set)
    closed: bool = False

    @property
    def killed(self) -> bool:
        return self.machine.killed and not self.closed


@dataclass(frozen=True)
class Acknowledged:
    """Somebody was told that the event of a run has been handled."""

    token: str
    session_id: str
    owner: Owner
    at: float


class OwnersModel:
    """All sessions and processes. *complain* is told what must not be."""

    def __init__(self, mode: str, shared: bool, clocks: bool, complain: Callable[[str], None]) -> None:
        self.mode = mode
        self.shared = shared
        self._clocks = clocks  # whether they are set: then nobody can say how long a lease lasts
        self._complain = complain
        self._numbers = itertools.count()
        self.runs: dict[str, dict[str, Run]] = {}
        self.stored: dict[str, Log] = {}
        self.kept: dict[int, set[str]] = {}
        """What the journal of a slot has had."""
        self.acknowledged: list[Acknowledged] = []
        self.owners: list[Owner] = []
        self.epoch = 0
        self._changed = -inf  # when the lease last was
        self.disturbed = -inf
        """When the server last forgot leases, or its clock was set."""
        self.forgot = -inf
        self.tells_up = True
        """Whether the server tells how long it has been up."""
        """When it last forgot leases."""
        self.out_of_reach: Callable[[Owner], float] = lambda owner: -inf
        """Returns the last instant at which the server could not be reached from there."""

    # --- runs ------------------------------------------------------------------------------------

    def begin(self, owner: Owner, session_id: str, event: str, log: Log) -> Run:
        self.check_whole(session_id, log, f"a handler of {owner.name}")
        run = Run(f"{event}.{owner.name}.{next(self._numbers)}", event, log, owner)
        self.runs.setdefault(session_id, {})[run.token] = run
        return run

    def check_whole(self, session_id: str, log: Log, where: str) -> None:
        """Check that it is a state that the session has had."""
        if not log:
            return
        runs = self.runs[session_id]
        run = runs.get(log[-1])
        if run is None or run.base != log[:-1] or run.failed:
            self._complain(f"{where}: {session_id} is {log}, which it never was")
            return
        events = [runs[token].event for token in log[-REMEMBERED:]]
        if len(set(events)) < len(events):
            self._complain(f"{where}: {session_id} has counted an event twice: {log}")

    def acknowledge(self, owner: Owner, session_id: str, token: str, now: float, *, durable: bool) -> None:
        run = self.runs[session_id][token]
        if run.failed or not run.returned:
            self._complain(f"{token} was acknowledged and had failed")
        self.check_may_answer(owner, now, f"{token} was acknowledged")
        if durable or self.mode != "write-behind":
            self.make_durable(owner, session_id, token)
        self.acknowledged.append(Acknowledged(token, session_id, owner, now))

    def make_durable(self, owner: Owner, session_id: str, token: str) -> None:
        """Somebody was told that the policy has done its best for the run."""
        if token in self.stored.get(session_id, ()):
            return
        if self.mode != "journaled":
            self._complain(f"{token} was called durable before it was stored")
        elif token not in self.kept.get(owner.slot, ()):
            self._complain(f"{token} was called durable before the journal had it")

    def duplicate(self, owner: Owner, session_id: str, event: str, now: float) -> None:
        """Somebody was told that the session has counted *event* before."""
        self.check_may_answer(owner, now, f"{event} was called a duplicate")
        runs = [run for run in self.runs[session_id].values() if run.event == event and run.returned]
        if not runs:
            self._complain(f"{session_id}: {event} was called a duplicate, and never counted")
        if len(runs) == 1:
            self.acknowledged.append(Acknowledged(runs[0].token, session_id, owner, now))

    def check_may_answer(self, owner: Owner, now: float, what: str) -> None:
        """Check that *owner* may tell anybody anything."""
        if now > owner.lost:
            self._complain(f"{what} by {owner.name}, which knows that it has lost the store")
        if self.shared or now <= owner.taken or owner.came_back or self.disturbed >= owner.asked:
            return
        if not self._is_in_doubt(owner, now):
            self._complain(f"{what} by {owner.name}, which was taken over at {owner.taken:.3f}")

    def _is_in_doubt(self, owner: Owner, now: float) -> bool:
        """Tell whether *owner* has been asking without a gap, and was not answered."""
        ends = [sent + owner.deadline for sent in owner.asking]
        if sum(end <= now for end in ends) >= MAX_STUCK // 2:
            return True  # with so many it makes hardly any further call until one of these is back
        failed = max(owner.failed, *(end for end in ends if end - MOMENT <= now), -inf)
        patience = failed + 2 * RETRY + MOMENT
        return now <= patience or any(end - owner.deadline <= patience and now <= end + RETRY for end in ends)

    # --- media -----------------------------------------------------------------------------------

    def store(self, session_id: str, log: Log, owner: Owner) -> None:
        """The store has this state now."""
        self.check_whole(session_id, log, "the store")
        before = self.stored.get(session_id, ())
        if log[: len(before)] != before:
            self._complain(f"{owner.name} has written {session_id} over: it was {before}, and is {log}")
        self.stored[session_id] = log

    def keep(self, session_id: str, log: Log, slot: int) -> None:
        """The journal has this state now."""
        self.check_whole(session_id, log, "the journal")
        self.kept.setdefault(slot, set()).update(log)

    def write(self, owner: Owner, now: float) -> None:
        """*owner* begins to write to the store."""
        if now > owner.gave_back:
            self._complain(f"{owner.name} writes, and gave the store back at {owner.gave_back:.3f}")
        if now > owner.lost + SLACK:
            self._complain(f"{owner.name} writes, and has lost the store at {owner.lost:.3f}")

    def conflict(self, owner: Owner, session_id: str, log: Log) -> None:
        """*owner* tells of a state that it could not flush."""
        self.check_whole(session_id, log, f"a conflict of {owner.name}")
        owner.told.update(log)
        if self.shared or owner.taken < inf or self.forgot > -inf:
            return
        stored = self.stored.get(session_id, ())
        mine = [
            each.token
            for each in self.acknowledged
            if each.owner is owner and each.session_id == session_id and each.token in log and each.token not in stored
        ]
        if mine or self.mode != "journaled":
            self._complain(f"{owner.name} owns the store, and {session_id} was a conflict: {mine}")

    # --- the lease -------------------------------------------------------------------------------

    def swap(self, owner: Owner, old: str | None, new: str, now: float) -> None:
        """*owner* replaces the lease."""
        if new == old:
            return  # it tries whether the server takes writes
        before, after = _parse(old), _parse(new)
        came = set(after["holders"]) - set(before["holders"])
        went = set(before["holders"]) - set(after["holders"])
        if not owner.holder:
            if len(came) != 1:
                self._complain(f"{owner.name} came, and the lease went from {old} to {new}")
            owner.holder = came.pop()
            self._take(owner, before, after)
            self._check_wait(owner, now)
        elif came - {owner.holder}:
            self._complain(f"{owner.name} put somebody else into the lease: {new}")
        elif came and now > owner.gave_back:
            self._complain(f"{owner.name} took the store again after it gave it back")
        elif came and not self.shared:
            owner.came_back = True
            if self.forgot < owner.asked:
                self._complain(f"{owner.name} was not in the lease, and put itself there again")
        owner.came_back = owner.came_back or self.forgot > owner.taken
        mine = after["holders"].get(owner.holder)
        owner.renewed = now
        if mine is None:
            owner.gave_back = now
            owner.owing = self.owing(owner)
        elif mine["epoch"] != owner.epoch:
            self._complain(f"{owner.name} has renewed epoch {owner.epoch} as {mine['epoch']}")
        if len(after["holders"]) > 1 and any(each["mode"] == "exclusive" for each in after["holders"].values()):
            self._complain(f"an exclusive owner is not alone: {new}")
        if after["epoch"] < self.epoch and self.forgot == -inf:
            self._complain(f"the epoch was {self.epoch}, and goes back: {new}")
        self.epoch = max(self.epoch, after["epoch"])
        self._changed = now
        for name in went - {owner.holder}:
            self._remove(name, owner, now, since=mine["since"], until=before["holders"][name]["until"])
        if self.forgot > -inf and not self.shared:  # whoever is not there any more has lost it, too
            for other in self.owners:
                if other.holder and other.holder not in after["holders"] and other.gave_back == inf:
                    other.taken = min(other.taken, now)

    def _take(self, owner: Owner, before: Any, after: Any) -> None:
        mine = after["holders"][owner.holder]
        owner.epoch, owner.claims = mine["epoch"], mine["claims"]
        next_one = after["epoch"] == before["epoch"] + 1 or self.forgot > -inf
        if not next_one or owner.epoch != after["epoch"]:
            self._complain(f"{owner.name} has taken epoch {owner.epoch} after {before['epoch']}")
        clean = not before["holders"] and not before.get("away")
        if clean and owner.claims:
            self._complain(f"{owner.name} was handed the store, and claims its sessions")

    def _check_wait(self, owner: Owner, now: float) -> None:
        """Check that *owner* has not waited longer than for who was in its way."""
        began = owner.began if self.tells_up else owner.began + WATCHED  # there may have been no lease
        free = max(began, self.out_of_reach(owner) + WATCHED, self.forgot + WATCHED, owner.thawed + WATCHED)
        for other in self.owners:
            if other is owner or not other.holder or self.shared:
                continue
            if other.gave_back < inf or (other.ended < inf and other.computer == owner.computer):
                free = max(free, min(other.gave_back, other.ended))
            else:
                free = max(free, other.renewed + LEASE, max(owner.began, self._changed) + 2 * WATCHED)
        if now > free + SLACK + 2 * owner.deadline and not self._clocks:
            self._complain(f"{owner.name} has waited until {now:.3f}, and could have had the store at {free:.3f}")

    def _remove(self, name: str, taker: Owner, now: float, *, since: float, until: float) -> None:
        """*taker* takes the lease of *name*, which lasts *until*, by the server's clock *since*."""
        other = next((each for each in self.owners if each.holder == name), None)
        if other is None:
            self._complain(f"{taker.name} removed {name}, whom nobody knows")
            return
        known_dead = other.ended < inf and other.computer == taker.computer
        watched = now - max(taker.began, other.renewed, taker.refused)
        put_back = self.forgot > taker.taken or self.forgot > taker.asked
        if not (known_dead or put_back) and watched < WATCHED - MOMENT:
            self._complain(f"{taker.name} has taken the store from {other.name}, and watched it for {watched:.3f} s")
        if not (known_dead or self._clocks or self.forgot > -inf) and until > since:
            self._complain(f"{taker.name} has taken the store from {other.name}, whose lease had not run out")
        if other.machine.killed or other.closed:
            return
        other.taken = min(other.taken, now)
        well = max(other.thawed, self.out_of_reach(other), self.forgot)
        if other.machine.frozen_until <= now and now > well + RENEWED + RETRY + 2 * other.deadline + SLACK:
            self._complain(f"{taker.name} has taken the store from {other.name}, which was well since {well:.3f}")

    def lose(self, owner: Owner, now: float) -> None:
        """*owner* says that it has lost the store."""
        if owner.lost < inf:
            return
        owner.lost = now
        if owner.taken == inf and self.forgot == -inf:
            self._complain(f"{owner.name} says that it has lost the store, which nobody took")

    def owing(self, owner: Owner) -> dict[str, set[str]]:
        """Return what *owner* has acknowledged and the store does not have, by session."""
        owing: dict[str, set[str]] = {}
        for each in self.acknowledged:
            if each.owner is owner and each.token not in self.stored.get(each.session_id, ()):
                owing.setdefault(each.session_id, set()).add(each.token)
        return owing

    # --- ends ------------------------------------------------------------------------------------

    def close(self, owner: Owner, unflushed: Iterable[str]) -> None:
        """*owner* has closed."""
        owner.closed = True
        owner.unflushed = set(unflushed)
        for session_id, tokens in owner.owing.items():
            if session_id not in owner.unflushed and owner.taken == inf and self.forgot == -inf:
                self._complain(f"{owner.name} gave the store back, and {sorted(tokens)} was not flushed")
        if owner.lost < inf:
            for session_id, tokens in self.owing(owner).items():
                if self.mode == "journaled" and session_id in owner.unflushed:
                    continue  # it had left memory: the journal has it for the next process
                if missing := tokens - owner.told:
                    self._complain(f"{owner.name} has lost {session_id}, and told nobody of {sorted(missing)}")

    def check_end(self) -> None:
        """Everything is in the store now that anybody was told of, but for what may be lost."""
        told: dict[int, set[str]] = {}
        for owner in self.owners:
            told.setdefault(owner.slot, set()).update(owner.told)
        for each in self.acknowledged:
            owner = each.owner
            if each.token in self.stored.get(each.session_id, ()):
                continue
            excused = owner.killed or owner.taken < inf or self.forgot > -inf or each.session_id in owner.unflushed
            if not excused:
                self._complain(f"{each.token} of {owner.name} is lost, which owned the store all the time")
            elif self.mode == "journaled" and each.token not in told[owner.slot]:
                self._complain(f"{each.token} of {owner.name} is lost, and its journal has told nobody")


def _parse(text: str | None) -> Any:
    return {"epoch": 0, "holders": {}} if text is None else json.loads(text)
