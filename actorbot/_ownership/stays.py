"""The holders that this process is: one for each store object, while managers use it."""

from __future__ import annotations

import secrets
import threading
from dataclasses import dataclass, field
from typing import Final

from actorbot._ownership.lease import Holder
from actorbot._runtime.forks import kept_from_children
from actorbot._runtime.process import Process, is_gone, is_same

__all__ = ["has_ended", "stays"]


@dataclass(slots=True, eq=False)
class Stay:
    """One store object, from its first manager to its last: a holder of the lease."""

    opened: object  # kept, so that its id is not given again
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    users: int = 0
    clean: bool = True


class Stays:
    """The ids of this process in leases: one for each store object, while a manager uses it."""

    def __init__(self) -> None:
        self._leave_to_parent()
        kept_from_children.add(self)

    def _leave_to_parent(self) -> None:
        self._lock = threading.Lock()  # guards `_of`
        self._of: dict[int, Stay] = {}

    def __contains__(self, name: str) -> bool:
        with self._lock:
            return any(stay.name == name for stay in self._of.values())

    def join(self, opened: object) -> str:
        with self._lock:
            stay = self._of.setdefault(id(opened), Stay(opened))
            stay.users += 1
            return stay.name

    def leave(self, opened: object, *, clean: bool) -> bool:
        """Tell whether that was the last one, and all of them were *clean*."""
        with self._lock:
            if (stay := self._of.get(id(opened))) is None:
                return False  # it is the parent's, and this is a forked child
            stay.users -= 1
            stay.clean = stay.clean and clean
            if stay.users:
                return False
            del self._of[id(opened)]
            return stay.clean


stays: Final = Stays()


def has_ended(here: Process, name: str, holder: Holder) -> bool:
    """Tell whether a holder is known to have ended: its process, or its stay in this one."""
    return name not in stays if is_same(holder.process, here) else is_gone(holder.process)
