"""Where a store keeps its lease: a text that says who owns it (`actorbot._ownership`)."""

from __future__ import annotations

from math import inf
from typing import Any, Final, NamedTuple

__all__ = ["METHODS", "LeaseFound", "LeaseKeeping", "keeps_lease"]

METHODS: Final = ("read_lease", "swap_lease")


class LeaseFound(NamedTuple):
    """What a store says of its lease."""

    text: str | None
    """What was last put there; `None` if nothing was."""
    now: float
    """Wall-clock seconds, by the clock of the server: all processes must see the same clock."""
    up: float | None = inf
    """Seconds that the server has been up; `None` if it does not tell.

    A server that was just started may have lost a lease. Infinite: this one loses none.
    """


class LeaseKeeping:
    """The part of a store that keeps a lease: a text, replaced by compare-and-set.

    A store that several processes can reach overrides all three.
    """

    keeps_lease: bool = False
    """Whether it keeps a lease, by `read_lease` and `swap_lease`."""

    def read_lease(self) -> LeaseFound:
        """Return the text that says who owns the store, and the server's time.

        This and `swap_lease` are called on a thread of their own, between `init` and `close`, also
        while other methods run. They should answer sooner than `store_deadline`.

        Raises: StoreUnavailableError; StoreError if something else stands in its place.
        """
        raise NotImplementedError

    def swap_lease(self, old: str | None, new: str) -> bool:
        """Put *new* in the place of *old*, in one step; `False` if something else is there.

        *old* may be `None`: there must be nothing. The two may be equal. It is as safe as a
        confirmed write. Raises: as `read_lease`.
        """
        raise NotImplementedError


def keeps_lease(store: Any) -> bool:
    """Tell whether any store or driver keeps a lease."""
    if isinstance(store, LeaseKeeping):
        return store.keeps_lease
    return all(callable(getattr(store, name, None)) for name in METHODS)
