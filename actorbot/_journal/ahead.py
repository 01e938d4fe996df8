"""What is to be committed to the journal before it counts."""

from __future__ import annotations

from actorbot._state.committed import Committed, Lineage
from actorbot.errors import ActorbotError

__all__ = ["Ahead"]


class Ahead:
    """A state on its way to the journal, and who waits for that: one object for each event.

    With a function to be told of the end there would be six objects more for each event in flight,
    and the garbage collector would walk over all of them.
    """

    __slots__ = ("committed", "lineages", "session_id", "write_ids")

    def __init__(self, session_id: str, committed: Committed, write_ids: bytes, lineages: tuple[Lineage, ...]) -> None:
        self.session_id = session_id
        self.committed = committed
        self.write_ids = write_ids
        """Those of the record that the store has confirmed."""
        self.lineages = lineages

    def settle(self, error: ActorbotError | None) -> None:
        """Note that the journal has the state, or why not; called once, at home."""
        raise NotImplementedError
