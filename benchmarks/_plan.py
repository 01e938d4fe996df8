"""What `python -m benchmarks all` measures: a list of settings, each a command line of its own."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks._servers import URLS

STORES = {"cluster": "redis"}  # of questions that have no choice


@dataclass(frozen=True, slots=True)
class Setting:
    """One command: a question and its options.

    Some options are always given, others only by one of the plans.
    """

    common: str
    full: str = ""
    quick: str | None = None
    """`None`: the quick plan leaves this setting out."""

    @property
    def name(self) -> str:
        """What its file is called: the question, and the values of its common options."""
        return re.sub(r"[^a-z0-9]+", "-", re.sub(r"--\S+ (?!-)", "", self.common))

    @property
    def store(self) -> str:
        """The store that it needs; "memory" if it names none."""
        found = re.search(r"--store (\w+)", self.common)
        return found[1] if found else STORES.get(self.common, "memory")

    @property
    def server(self) -> str:
        """The store, if that is a server, whose URL is to be added; or ""."""
        return self.store if self.store in URLS else ""

    def argv(self, quick: bool) -> list[str]:
        return shlex.split(f"{self.common} {(self.quick if quick else self.full) or ''}")


# A goal is decided by five runs of at least five seconds. What is only shown has three shorter
# runs.
GOAL = "--repeats 5"
PICTURE = "--repeats 3 --seconds 2"
SESSION = GOAL, "--repeats 3 --events 10000 --seconds 0.3"
# Fewer events where the floor handles a few thousand a second: 100,000 would take half a minute or
# more.
SLOW = f"{GOAL} --events 20000", "--repeats 3 --events 2000 --seconds 0.3"
SLOW_PICTURE = f"{PICTURE} --events 10000"

PLAN = (
    Setting("session --store memory --home loop --users 100", *SESSION),
    Setting("session --store memory --home loop --users 1000", *SESSION),
    Setting("session --store memory --home loop --users 10000", *SESSION),
    Setting("session --store memory --home loop --users 1000 --handler awaits", *SESSION),
    Setting("session --store memory --home loop --users 1000 --distribution zipf", PICTURE, SESSION[1]),
    Setting("session --store file --home loop --users 1000", SLOW_PICTURE, SLOW[1]),
    Setting("session --store redis --home loop --users 1000", *SLOW),
    Setting("session --store redis --home loop --users 1000 --distribution zipf", SLOW_PICTURE),
    Setting("session --store redis --home loop --users 10000", SLOW[0]),
    Setting("session --store mongo --home loop --users 1000", *SLOW),
    Setting("session --store mongo --home loop --users 10000", SLOW_PICTURE),
    Setting("session --store memory --home threads --users 100", *SESSION),
    Setting("session --store memory --home threads --users 1000", *SESSION),
    Setting("session --store memory --home threads --users 10000", SLOW[0]),
    Setting("session --store file --home threads --users 1000", SLOW_PICTURE),
    Setting("journal --sync full --users 1000", *SESSION),
    Setting("journal --sync full --users 10000", PICTURE),
    Setting("journal --sync normal --users 1000", PICTURE),
    Setting("residents --sessions 1000"),
    Setting("residents --sessions 10000", quick=""),
    Setting("residents --sessions 100000"),
    Setting("residents --sessions 300000"),
    Setting("activation --store memory", "--repeats 3 --sessions 20000", "--repeats 3 --sessions 2000"),
    Setting("activation --store redis", f"{GOAL} --sessions 30000", "--repeats 3 --sessions 2000"),
    Setting("activation --store mongo", "--repeats 3 --sessions 10000"),
    Setting("offered --store redis", GOAL, "--repeats 1 --seconds 2 --resident 20000"),
    Setting("offered --store redis --freeze", "--repeats 3"),
    Setting("offered --store redis --rate 10000", "--repeats 3"),
    Setting("hotkey --store memory", PICTURE, "--repeats 1 --events 5000 --seconds 0.3"),
    Setting(
        "churn --store redis", "--seconds 3", "--repeats 1 --users 2000 --resident 200 --events 2000 --seconds 0.3"
    ),
    Setting("policies --store redis", "", "--repeats 1 --users 200 --events 2000 --seconds 0.5"),
    Setting("outage --store redis", "--down 6 --around 6", "--users 200 --rate 500 --down 1 --around 1"),
    Setting("outage --store redis --hangs", "--down 6 --around 6"),
    Setting("drain --store redis", "", "--repeats 1 --sessions 1000"),
    Setting("deploy --store redis", "", "--deploys 2 --rate 100"),
    Setting("cluster", "", "--repeats 2 --each 0.3 --without ray nats"),
    Setting("peers --store redis --users 1000", ""),
)


def settings(quick: bool, stores: Sequence[str] | None) -> list[Setting]:
    """Return the settings of the plan; only those with these *stores*, if any are named."""
    chosen = [setting for setting in PLAN if not quick or setting.quick is not None]
    return [setting for setting in chosen if not stores or setting.store in stores]
