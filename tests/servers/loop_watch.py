"""Whether an event loop is kept from its work: by a call that waits for the network, or sleeps, in
the loop's own thread.
"""

from __future__ import annotations

import socket
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Self

import pytest

WAITING = ("connect", "connect_ex", "recv", "recv_into", "recvmsg", "send", "sendall", "sendmsg")


class LoopWatch:
    """Notes such calls in the thread of the running loop, while its block lasts.

    It counts calls, not seconds: those are the machine's.
    """

    def __init__(self) -> None:
        self.blocked: list[str] = []
        """Where each of them came from."""
        self._patch = pytest.MonkeyPatch()

    async def __aenter__(self) -> Self:
        self._thread = threading.get_ident()
        for name in WAITING:
            self._patch.setattr(socket.socket, name, self._watched(getattr(socket.socket, name)))
        self._patch.setattr(time, "sleep", self._watched(time.sleep))
        return self

    async def __aexit__(self, *_: object) -> None:
        self._patch.undo()

    def _watched(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **options: Any) -> Any:
            ours = args[0] if args and isinstance(args[0], socket.socket) else None
            # The loop's own pair of sockets, with which other threads wake it, is of another
            # family.
            if threading.get_ident() == self._thread and (ours is None or ours.family != socket.AF_UNIX):
                self.blocked.append("".join(traceback.format_stack(limit=8)))
            return function(*args, **options)

        return call
