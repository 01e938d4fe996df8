"""A store that several processes can reach, without any server: a driver with a lease."""

from __future__ import annotations

import json
import threading
import time
from typing import Any

from tests.backends import DictStore

NOBODY = json.dumps({"format": 1, "epoch": 1, "holders": {}, "away": {}})
"""The lease of a store whose owner has given it back."""


class Place:
    """Where the sessions and the lease are."""

    def __init__(self) -> None:
        self.data: dict[str, dict[str, Any]] = {}
        self.lease: str | None = NOBODY
        self.lock = threading.Lock()

    @property
    def owners(self) -> int:
        """How many have the lease."""
        return 0 if self.lease is None else len(json.loads(self.lease)["holders"])

    def take_over(self) -> None:
        """Take it, as another machine's process does that has waited until the lease ran out."""
        with self.lock:
            lease = json.loads(self.lease or NOBODY)
            held = next(iter(lease["holders"].values()))
            other = held | {"epoch": lease["epoch"] + 1, "process": held["process"] | {"host": "other"}}
            lease |= {"epoch": lease["epoch"] + 1, "holders": {"other": other}}
            self.lease = json.dumps(lease)


class LeasedStore(DictStore):
    """A driver with a lease. Each object is taken for one of another process."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place, self.data = place, place.data

    def read_lease(self) -> tuple[str | None, float]:
        return self.place.lease, time.time()

    def swap_lease(self, old: str | None, new: str) -> bool:
        with self.place.lock:
            if self.place.lease != old:
                return False
            self.place.lease = new
            return True
