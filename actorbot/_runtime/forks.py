"""What a forked child must not keep: it has its parent's open files, and none of its threads."""

from __future__ import annotations

import os
import weakref
from typing import Final, Protocol

__all__ = ["KeptFromChildren", "kept_from_children"]


class KeptFromChildren(Protocol):
    """Something that belongs to the process that made it."""

    def _leave_to_parent(self) -> None:
        """Let go of it, in a forked child. Called where the parent's threads are gone.

        A lock that one of them held when the process was forked stays held for ever.
        """


kept_from_children: Final[weakref.WeakSet[KeptFromChildren]] = weakref.WeakSet()
"""Who has something of that kind now. Each adds and discards itself."""


def _after_fork() -> None:
    for owner in list(kept_from_children):
        owner._leave_to_parent()


if hasattr(os, "register_at_fork"):  # not on Windows
    os.register_at_fork(after_in_child=_after_fork)
