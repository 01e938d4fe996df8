"""SIGKILL of a bot that owns its store: the next one on this machine goes on at once, one elsewhere
when the lease has run out, and what is lost is what the policy says.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from actorbot import FlushPolicy, store_from_url
from actorbot._ownership.lease import Holder, Lease
from tests.faults._kills import ForkServer
from tests.faults._owners import Bot, Bots, place
from tests.faults._scale import scaled
from tests.tiers import tiers

AN_HOUR = 3600.0
UNSHARED = ("unshare", "--pid", "--fork", "--mount-proc", "--kill-child")
patient = pytest.mark.timeout(scaled(180, 1200))


def assert_a_prefix_is_left(bots: Bots, killed: Bot) -> int:
    """Check that a killed bot has lost the newest of what it had acknowledged in a session, and no
    more than the policy allows; return how many.
    """
    stored = bots.stored()
    policy = FlushPolicy.parse(killed.owning.policy)
    lost = 0
    for session, tags in stored.items():
        mine = [tag for each, tag, _ in killed.acknowledged if each == session]
        missing = [tag for tag in mine if tag not in tags]
        assert missing == mine[len(mine) - len(missing) :]
        assert len(missing) <= (policy.max_events if policy.mode == "write-behind" else 0)
        lost += len(missing)
    return lost


@patient
@pytest.mark.parametrize("kind", tiers(["valkey", "mongo", "file"]))
@pytest.mark.parametrize("policy", tiers(["write-behind:max_delay=0.1", "journaled", "write-through"]))
@pytest.mark.parametrize("threads", tiers([False, True]), ids=["loop", "threads"])
def test_the_next_start_on_this_machine_goes_on_at_once_after_a_kill(
    kind: str, policy: str, threads: bool, tmp_path: Path, owners: ForkServer
) -> None:
    chance = random.Random()
    full = f"journaled:path={tmp_path / 'journal'}" if policy == "journaled" else policy
    options = {"policy": full, "threads": threads, "ownership": None if kind == "file" else "exclusive"}
    with place(kind, tmp_path) as url, Bots(owners, url, **options) as bots:
        for _ in range(scaled(4, 100)):
            # A start that had to wait for such a lease would not end here.
            bot = bots.start(lease=AN_HOUR, old_server=True)
            assert bot.claims == (kind != "file" and len(bots.all) > 1)
            assert not bot.said("waits")
            bot.works(chance.randint(1, 150))
            bot.kill()
        last = bots.start()
        last.works(20)
        assert last.close()

        lost = sum(assert_a_prefix_is_left(bots, bot) for bot in bots.all)
        bots.check(lost=bots.all[:-1] if policy.startswith("write-behind") else ())
        print(f"{len(bots.all) - 1} kills, {sum(len(bot.acknowledged) for bot in bots.all)} acknowledged, {lost} lost")


@contextmanager
def elsewhere(how: str, owners: ForkServer) -> Iterator[tuple[ForkServer, str]]:
    """Yield where bots come from that cannot see this machine's processes, and what namespace they
    say that they are in.
    """
    if how == "says so":
        yield owners, "pid:[elsewhere]"
        return
    try:
        subprocess.run([*UNSHARED, "true"], check=True, capture_output=True, timeout=20)
    except (OSError, subprocess.SubprocessError):
        pytest.skip("this machine lets nobody make a namespace of process ids")
    server = ForkServer("tests.faults._owner", under=UNSHARED)
    try:
        yield server, ""
    finally:
        server.close()


def holder_in(url: str) -> Holder:
    """Return who has the store, as its lease says."""
    store = store_from_url(url)
    store.init()
    try:
        (holder,) = Lease.parse(store.read_lease().text, "test").holders.values()
        return holder
    finally:
        store.close()


@patient
@pytest.mark.parametrize("kind", tiers(["valkey", "mongo"]))
@pytest.mark.parametrize("how", ["says so", "is there"])
def test_a_start_elsewhere_waits_until_the_lease_of_a_killed_bot_has_run_out(
    how: str, kind: str, tmp_path: Path, owners: ForkServer
) -> None:
    with (
        elsewhere(how, owners) as (server, namespace),
        place(kind, tmp_path) as url,
        Bots(owners, url, lease=1.0) as bots,
    ):
        killed = bots.start()
        killed.works()
        killed.kill()
        before = holder_in(url)

        other = bots.start(server=server, namespace=namespace)
        assert other.said("waits")
        assert other.claims
        assert holder_in(url).since >= before.until
        other.works()
        assert other.close()
        assert_a_prefix_is_left(bots, killed)
        bots.check(lost=[killed])
