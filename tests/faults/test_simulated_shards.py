"""A cluster keeps its promises, whatever befalls shards, callers, the Redis and the store at once:
a simulated world in which the real shards, callers and scripts run.

A failure prints its seed, and `simulate_shards(seed, …)` repeats it step by step.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha1
from typing import Any

import pytest

from actorbot import DUPLICATE
from actorbot.cluster import _lane, _line, _scripts
from actorbot.cluster._hand_over import HandOver
from actorbot.cluster._held import Slot, Work
from actorbot.cluster._lane import Lane
from actorbot.cluster._packing import pack_result
from actorbot.cluster._redis_log import RedisLog
from actorbot.cluster._scripts import Script
from tests.faults._scale import scaled
from tests.faults._sim_shards import simulate_shards
from tests.faults._simulation import SimulationError
from tests.tiers import tiers

SEEDS = scaled(200, 20_000)
PARTS = 40


@pytest.mark.timeout(scaled(180, 7_200))
@pytest.mark.parametrize("part", tiers(range(PARTS)))
def test_every_acknowledged_event_is_counted_once_and_in_order_whatever_goes_wrong(part: int) -> None:
    seen: Counter[str] = Counter()
    for seed in range(part, SEEDS, PARTS):
        seen += simulate_shards(seed).counts
    assert seen["acknowledged"] > 5 * SEEDS / PARTS
    for kind in () if SEEDS / PARTS < 100 else ("frozen", "killed", "closed", "taken over", "given back", "cut off"):
        assert seen[kind] > 0, f"there were no {kind}: nothing was proven about them"


@pytest.mark.parametrize("seed", tiers([3, 14, 159, 2653]))
def test_the_same_seed_gives_the_same_trace(seed: int) -> None:
    assert simulate_shards(seed).trace == simulate_shards(seed).trace != simulate_shards(seed + 1).trace


# --- faults seeded on purpose: a simulation that does not find them proves nothing ---------------

Patch = pytest.MonkeyPatch


def _say_instead(patch: Patch, name: str, right: str, wrong: str) -> None:
    """Have a script say something else."""
    script = getattr(_scripts, name)
    assert script.text.count(right.encode()) == 1, f"{name} has no line {right!r}"
    text = script.text.replace(right.encode(), wrong.encode())
    broken = Script(text, sha1(text).hexdigest().encode())
    patch.setattr(_line, "ALL", [broken if each is script else each for each in _scripts.ALL])
    patch.setattr(_scripts, name, broken)


def _always(value: Any) -> property:
    """An attribute that nobody can change."""
    return property(lambda owner: value, lambda owner, other: None)


def _settles_without_its_epoch(patch: Patch) -> None:
    _say_instead(patch, "SETTLE", "if owner ~= me or epoch_now ~= epoch then", "if false then")


def _does_not_claim(patch: Patch) -> None:
    patch.setattr(Slot, "claims", _always(False), raising=False)


def _does_not_reset_the_cursor(patch: Patch) -> None:
    patch.setattr(RedisLog, "_anew", _always(frozenset()), raising=False)


def _does_not_read_a_granted_slot_from_its_start(patch: Patch) -> None:
    take = RedisLog._take

    def forgetful(self: RedisLog, *args: Any) -> None:
        anew = set(self._anew)
        take(self, *args)
        self._anew = anew

    patch.setattr(RedisLog, "_take", forgetful)


def _gives_back_before_it_has_flushed(patch: Patch) -> None:
    give = HandOver._give
    patch.setattr(HandOver, "_give", lambda self, slot, sessions: give(self, slot, []))


def _sends_replies_before_they_are_settled(patch: Patch) -> None:
    dispatch = _lane.dispatch_with
    patch.setattr(_lane, "dispatch_with", lambda *args, **options: dispatch(*args, **options | {"confirmation": None}))


def _lets_go_before_it_is_flushed(patch: Patch) -> None:
    patch.setattr(_lane, "is_flushed", lambda goal: True)


def _is_heard_again_of_what_was_acknowledged(patch: Patch) -> None:
    patch.setattr(Work, "silent", _always(False))


def _lets_a_duplicate_go_at_once(patch: Patch) -> None:
    succeed = Lane._succeed

    def at_once(self: Lane, work: Work, outcome: bytes) -> None:
        if outcome == pack_result(DUPLICATE):
            work.goal = None
        succeed(self, work, outcome)

    patch.setattr(Lane, "_succeed", at_once)


def _goes_on_before_a_failure_is_settled(patch: Patch) -> None:
    fail = Lane._fail

    async def at_once(self: Lane, work: Work, error: Exception) -> None:
        failing = fail(self, work, error)
        with suppress(StopIteration):
            failing.send(None)
            failing.close()

    patch.setattr(Lane, "_fail", at_once)


def _takes_over_while_nobody_could_renew(patch: Patch) -> None:
    _say_instead(patch, "LEASE", "if now < last or now - last > lease / 2 then", "if false then")


def _takes_the_slots_of_the_living(patch: Patch) -> None:
    _say_instead(patch, "LEASE", "elseif score <= 0 or score <= now and now >= hold then", "else")


def _does_not_tell_what_was_acknowledged(patch: Patch) -> None:
    _say_instead(patch, "LEASE", "call('SMEMBERS', of('acked', slot))", "{}")


WRITE_BEHIND: dict[str, Any] = {
    "mode": "write-behind",
    "forgets": False,
    "clocks": False,
    "scenes": 6,
    "max_waiting": 2_000,
}
ACKNOWLEDGED = WRITE_BEHIND | {"keep": "acknowledged"}
FLUSHED = WRITE_BEHIND | {"keep": "flushed"}
THROUGH = FLUSHED | {"mode": "write-through"}
FROZEN = {"likes": ("freeze", "freeze amid a call"), "lease": 1.0}
LOST = {"faults": 0.05}
HANDED = {"likes": ("join", "close", "drain"), "gap": 0.3, "faults": 0.0}
BUSY = {"sessions": 1, "callers": 3, "places": 2, "slots": 1, "pause": 0.2, "gap": 1.0, "scenes": 10}
AWAY = {"likes": ("store away", "kill"), "scenes": 10, "gap": 0.3, "max_delay": 20.0, "max_events": 100, "lease": 1.0}
KILLED = {"likes": ("kill", "kill amid a call"), "lease": 1.0}
CUT_OFF = {"likes": ("cut off",), "lease": 1.0}
FAULTS: dict[str, tuple[Callable[[Patch], None], dict[str, Any]]] = {
    "no epoch in settle": (_settles_without_its_epoch, FLUSHED | FROZEN),
    "no claim": (_does_not_claim, ACKNOWLEDGED | FROZEN | {"max_delay": 3.0}),
    "cursor not reset": (_does_not_reset_the_cursor, THROUGH | LOST),
    "a granted slot is not read from its start": (_does_not_read_a_granted_slot_from_its_start, FLUSHED | KILLED),
    "release before flush": (_gives_back_before_it_has_flushed, ACKNOWLEDGED | HANDED),
    "replies before they are settled": (_sends_replies_before_they_are_settled, FLUSHED | CUT_OFF),
    "out of the log before it is flushed": (_lets_go_before_it_is_flushed, FLUSHED | KILLED),
    "answered and replied twice": (_is_heard_again_of_what_was_acknowledged, FLUSHED | KILLED),
    "a duplicate goes at once": (_lets_a_duplicate_go_at_once, FLUSHED | AWAY),
    "goes on before a failure is settled": (
        _goes_on_before_a_failure_is_settled,
        THROUGH | CUT_OFF | BUSY | {"store_faults": 0.3},
    ),
    "taken over while nobody could renew": (
        _takes_over_while_nobody_could_renew,
        FLUSHED | {"likes": ("freeze the redis",)},
    ),
    "the slots of the living": (_takes_the_slots_of_the_living, FLUSHED | HANDED),
    "acknowledged events are not told": (_does_not_tell_what_was_acknowledged, FLUSHED | KILLED),
}


FIRST = 1_000_000


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", FAULTS)
def test_a_fault_that_is_seeded_is_found(fault: str, monkeypatch: Patch) -> None:
    """The rarest show in one seed of 100."""
    break_it, plan = FAULTS[fault]
    break_it(monkeypatch)
    with pytest.raises(SimulationError, match=r"seed \d+"):
        for seed in range(FIRST, FIRST + 300):
            simulate_shards(seed, **plan)


@pytest.mark.long
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fault", FAULTS)
def test_where_a_fault_is_found_all_is_well_without_it(fault: str) -> None:
    for seed in range(FIRST, FIRST + 15):
        simulate_shards(seed, **FAULTS[fault][1])
