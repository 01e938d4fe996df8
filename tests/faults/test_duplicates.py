"""An event that a platform delivers again, also around a kill, is counted once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tests.faults._kills import Campaign, ForkServer
from tests.faults._scale import scaled
from tests.faults._victims import SESSIONS, journaled, one_store, orders
from tests.faults._worker import deliveries

EVENTS = 10_000 // SESSIONS + 1  # of each session
KILLS = 5


@pytest.mark.timeout(scaled(180, 600))
@one_store
def test_each_of_10000_events_counts_once_however_often_it_comes_and_the_bot_is_killed(
    kind: str, server: ForkServer, tmp_path: Path
) -> None:
    for number in range(scaled(1, 20)):
        folder = tmp_path / f"{tmp_path.name}.{number}"
        folder.mkdir()
        made = orders(kind, folder, journaled(folder), events=EVENTS)
        campaign = Campaign(server, made)
        count = sum(len(deliveries(made, session)) for session in made.start)
        while campaign.tally.kills < KILLS:
            life = campaign.live()
            campaign.follow(life, "done", count=campaign.chance.randrange(1, count // KILLS))
            campaign.kill(life)
        campaign.finish()

        print(campaign.tally)
        assert campaign.tally.faults == []
        assert campaign.tally.lost == 0
        assert set(campaign.ledger.positions().values()) == {len(deliveries(made, each)) for each in made.start}
        assert count > 1.9 * EVENTS * SESSIONS  # delivered twice on the average


@pytest.mark.long
def test_the_harness_finds_a_bot_that_forgets_event_ids(server: ForkServer, tmp_path: Path) -> None:
    made = orders("file", tmp_path, journaled(tmp_path), events=100)
    campaign = Campaign(server, replace(made, mutant="remembers little"))
    campaign.finish()

    assert any("torn" in fault for fault in campaign.tally.faults)
