"""SIGKILL at any moment: with a journal or write-through it costs nothing, with write-behind no
more than the policy says.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from actorbot import FlushPolicy
from tests.faults._kills import Campaign, ForkServer, Ledger, Tally, kill_again_and_again
from tests.faults._scale import scaled
from tests.faults._victims import journaled, one_store, orders
from tests.faults._worker import Orders
from tests.tiers import tiers

patient = pytest.mark.timeout(scaled(180, 600))


def assert_nothing_is_lost(tally: Tally) -> None:
    assert tally.faults == []
    assert (tally.lost, tally.most_lost) == (0, 0)
    assert tally.acknowledged > tally.kills  # it was at work


@patient
@pytest.mark.parametrize("sync", tiers(["full", "normal"]))
@one_store
def test_a_kill_costs_a_bot_with_a_journal_nothing(kind: str, sync: str, server: ForkServer, tmp_path: Path) -> None:
    tally = kill_again_and_again(server, orders(kind, tmp_path, journaled(tmp_path, sync)), scaled(50, 1000))

    assert_nothing_is_lost(tally)
    assert tally.duplicates > 0  # events that had been counted when the kill came, and were sent again


@patient
def test_a_kill_costs_a_bot_on_threads_with_a_journal_nothing(server: ForkServer, tmp_path: Path) -> None:
    threaded = orders("file", tmp_path, journaled(tmp_path), threads=True, in_flight=1)

    assert_nothing_is_lost(kill_again_and_again(server, threaded, scaled(30, 1000)))


@patient
@one_store
def test_a_kill_costs_nothing_with_write_through(kind: str, server: ForkServer, tmp_path: Path) -> None:
    tally = kill_again_and_again(server, orders(kind, tmp_path, FlushPolicy.write_through()), scaled(30, 300))

    assert_nothing_is_lost(tally)


@patient
@one_store
def test_no_kill_brings_a_destroyed_session_back(kind: str, server: ForkServer, tmp_path: Path) -> None:
    tally = kill_again_and_again(server, orders(kind, tmp_path, journaled(tmp_path), destroys=True), scaled(50, 1000))

    assert_nothing_is_lost(tally)
    assert tally.destroyed > 3


@patient
@one_store
def test_a_kill_costs_write_behind_at_most_max_events_of_a_session(
    kind: str, server: ForkServer, tmp_path: Path
) -> None:
    policy = FlushPolicy.write_behind(max_events=20, max_delay=0.5)
    tally = kill_again_and_again(server, orders(kind, tmp_path, policy), scaled(20, 300))

    assert tally.faults == []  # among them torn lists: what is left is what some number of events made
    assert 0 < tally.most_lost <= 20
    assert tally.acknowledged > tally.lost


@patient
@one_store
def test_a_kill_costs_write_behind_at_most_max_delay_and_store_deadline(
    kind: str, server: ForkServer, tmp_path: Path
) -> None:
    policy = FlushPolicy.write_behind(max_events=1_000_000, max_delay=0.1, store_deadline=1.0)
    campaign = Campaign(server, orders(kind, tmp_path, policy, in_flight=1))
    for _ in range(scaled(2, 30)):
        life = campaign.live()
        assert campaign.follow(life, "ready")
        campaign.follow(life, "", 1.5)  # until the first events have long had to be in the store
        campaign.kill(life)
    campaign.finish()

    print(campaign.tally)
    assert campaign.tally.faults == []
    # All but the last moments had long been in the store. How many seconds those were is printed:
    # `pytest -rP`.
    assert 0 < campaign.tally.lost < campaign.tally.acknowledged / 2


# --- whether the harness would notice -----------------------------------------------------------


def find(server: ForkServer, mutant: Orders, found: Callable[[Tally], object]) -> None:
    """Kill *mutant* until the harness has found its fault."""
    campaign = Campaign(server, mutant)
    while not found(campaign.tally):
        campaign.kill_at_random()
        assert campaign.tally.kills < 400, f"nothing was found: {mutant}"


@pytest.mark.long
def test_the_harness_finds_a_bot_that_acknowledges_before_the_commit(server: ForkServer, tmp_path: Path) -> None:
    mutant = orders("file", tmp_path, journaled(tmp_path), mutant="acknowledges early")

    find(server, mutant, lambda tally: tally.lost)


@pytest.mark.long
def test_the_harness_finds_a_bot_that_replies_before_the_commit(server: ForkServer, tmp_path: Path) -> None:
    mutant = orders("file", tmp_path, journaled(tmp_path), mutant="ungated")

    find(server, mutant, lambda tally: any("has left" in fault for fault in tally.faults))


@pytest.mark.long
def test_the_harness_finds_a_bot_that_brings_sessions_back(server: ForkServer, tmp_path: Path) -> None:
    mutant = orders("file", tmp_path, journaled(tmp_path), mutant="destroys later", destroys=True)

    find(server, mutant, lambda tally: any("since it was destroyed" in fault for fault in tally.faults))


@pytest.mark.long
@pytest.mark.parametrize(
    ("lines", "fault"),
    [
        (["found a torn [3,5]"], "torn"),
        (["done a 0", "done a 1", "found a 0 0"], ""),
        (["done a 0", "found a 0 7"], "was ever sent"),
        (["reply a 1", "reply a 0"], "came after"),
        (["reply a 1", "reply a 1"], "came after"),
        (["done a 0", "reply a 1", "found a 0 0"], "has left"),
        (["done a 0", "destroyed a 1", "found a 0 0"], "since it was destroyed"),
        (["done a 0", "destroying a 1", "found a -1 -1", "found a 0 0"], "since it was destroyed"),
        (["fault conflict"], "conflict"),
    ],
)
def test_the_harness_notices(lines: list[str], fault: str, tmp_path: Path) -> None:
    tally = Tally()
    ledger = Ledger(Orders(url="", policy=str(journaled(tmp_path)), seed=0, start={"a": 0}), tally)
    for line in lines:
        assert tally.faults == []
        ledger.take(line.split())

    assert tally.lost if not fault else fault in tally.faults[0]


@pytest.mark.long
@pytest.mark.parametrize("end", [["destroyed a 1", "found a -1 -1"], ["found a -1 -1"]])
def test_the_harness_misses_nothing_that_was_destroyed_before_anybody_heard_of_it(
    end: list[str], tmp_path: Path
) -> None:
    tally = Tally()
    ledger = Ledger(Orders(url="", policy=str(journaled(tmp_path)), seed=0, start={"a": 0}), tally)
    for line in [
        "done a 0",
        "reply a 1",
        "found a 0 1",
        "destroying a 1",
        *end,
        "reply a 1",
        "done a 1",
        "found a 1 1",
    ]:
        ledger.take(line.split())

    assert (tally.faults, tally.lost) == ([], 0)
