"""How often the fault suite does a thing: some minutes' worth in CI, hours' worth with `make
torture`.
"""

from __future__ import annotations

import os

TORTURE = bool(os.environ.get("ACTORBOT_TORTURE"))


def scaled(ci: int, torture: int) -> int:
    """Return the count for the tier that runs."""
    return torture if TORTURE else ci
