"""What a start that wants a lease waits for, and what it says if it waits in vain."""

from __future__ import annotations

from typing import NamedTuple

from actorbot._runtime.locked import locked
from actorbot.errors import StoreLockedError, StoreUnavailableError

__all__ = ["Obstacle"]


class Obstacle(NamedTuple):
    """Why a lease cannot be taken yet."""

    reason: str
    passes: bool
    """Whether it goes away in a moment, without anybody's doing: that does not count as waiting."""
    error: StoreUnavailableError | None = None
    """What is the matter, if it is the store itself."""
    is_here: bool = False
    """Whether it is this process, by another store object."""

    def locked(self, store: str, waited: float) -> StoreLockedError:
        """Make the error of a start that has *waited* so many seconds."""
        ways_on = "Close that process; or let both use FlushPolicy.write_through(), which several may share"
        if self.is_here:
            ways_on = "Close the other manager first, or give both managers the same store object"
        return locked(store, self.reason, f"Waited {waited:.1f} s (takeover_timeout). {ways_on}", is_here=self.is_here)
