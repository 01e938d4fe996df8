"""Something that one of several takes."""

from __future__ import annotations

import threading

__all__ = ["Once"]


class Once:
    """Something that several may take, and only the first of them gets. Any thread."""

    __slots__ = ("_free",)

    def __init__(self) -> None:
        self._free = threading.Lock()  # never released: one thread acquires it, for good

    def take(self) -> bool:
        """Return `True` to the first caller, and `False` to everybody after it."""
        return self._free.acquire(False)
