"""What a bot author writes by hand instead: the floors that actorbot is measured against.

None of them promises anything else. Every floor decodes the session with `msgpack.unpackb`, changes
it and encodes it with `msgpack.packb`, once for each event.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import msgpack
import pykka

from benchmarks._workload import remember, remember_and_await

STOP_TIMEOUT = 120.0


class Shelf(Protocol):
    """Where a floor keeps its encoded sessions: a `dict`, or a folder."""

    def get(self, session_id: str, /) -> bytes | None: ...
    def __setitem__(self, session_id: str, data: bytes, /) -> None: ...


class FolderShelf:
    """A file per session, read and written in place: no fsync, no atomic replace, no lock."""

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="actorbot-floor-"))

    def get(self, session_id: str, /) -> bytes | None:
        try:
            return self._file(session_id).read_bytes()
        except FileNotFoundError:
            return None

    def __setitem__(self, session_id: str, data: bytes, /) -> None:
        self._file(session_id).write_bytes(data)

    def _file(self, session_id: str) -> Path:
        return self.folder / session_id.replace(":", "_")


class Floor:
    """What the two floors share: a shelf, and a store write for every event."""

    def __init__(self, shelf: Shelf) -> None:
        self._shelf = shelf

    def counter_of(self, session_id: str) -> int:
        data = self._shelf.get(session_id)
        return 0 if data is None else int(msgpack.unpackb(data)["n"])

    def writes_per_event(self, events: int) -> float:
        return 1.0

    def clear(self) -> None:
        """Remove what the shelf left on disk."""
        if isinstance(self._shelf, FolderShelf):
            shutil.rmtree(self._shelf.folder)


class LockFloor(Floor):
    """asyncio: one `asyncio.Lock` per user around read, change and write."""

    name = "asyncio.Lock per user"

    def __init__(self, shelf: Shelf, handler: str) -> None:
        super().__init__(shelf)
        make = {"async": _inline_dispatch, "awaits": _awaiting_dispatch, "sync": _threaded_dispatch}[handler]
        self.dispatch: Callable[[str, str], Awaitable[Any]] = make(shelf)

    async def open(self, users: Sequence[str]) -> None:
        pass

    async def flush(self) -> None:
        pass

    async def close(self) -> None:
        self.clear()


# Closures, not methods: this is the quickest way to write it by hand, and so the higher floor.


def _inline_dispatch(shelf: Shelf) -> Callable[[str, str], Awaitable[Any]]:
    locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
    read, write = shelf.get, shelf.__setitem__

    async def dispatch(session_id: str, text: str) -> None:
        async with locks[session_id]:
            data = read(session_id)
            state = {} if data is None else msgpack.unpackb(data)
            remember(state, text)
            write(session_id, msgpack.packb(state))

    return dispatch


def _awaiting_dispatch(shelf: Shelf) -> Callable[[str, str], Awaitable[Any]]:
    locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
    read, write = shelf.get, shelf.__setitem__

    async def dispatch(session_id: str, text: str) -> None:
        async with locks[session_id]:
            data = read(session_id)
            state = {} if data is None else msgpack.unpackb(data)
            await remember_and_await(state, text)
            write(session_id, msgpack.packb(state))

    return dispatch


def _threaded_dispatch(shelf: Shelf) -> Callable[[str, str], Awaitable[Any]]:
    locks: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)
    read, write = shelf.get, shelf.__setitem__

    async def dispatch(session_id: str, text: str) -> None:
        async with locks[session_id]:
            data = read(session_id)
            state = {} if data is None else msgpack.unpackb(data)
            await asyncio.to_thread(remember, state, text)
            write(session_id, msgpack.packb(state))

    return dispatch


class PykkaFloor(Floor):
    """threads: a stock `pykka.ThreadingActor` per user, asked once for each event.

    All actors are started before the clock.
    """

    name = "pykka.ThreadingActor per user"

    def __init__(self, shelf: Shelf) -> None:
        super().__init__(shelf)
        self._refs: dict[str, pykka.ActorRef[StockActor]] = {}

    def open(self, users: Sequence[str]) -> None:
        for user in users:
            self._refs[user] = StockActor.start(user, self._shelf)

    def dispatch(self, session_id: str, text: str) -> Any:
        return self._refs[session_id].ask(text)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        """Stop every actor, so that none of their threads disturbs the next run.

        Ten thousand actors take seconds.
        """
        stopped = [ref.stop(block=False) for ref in self._refs.values()]
        for stop in stopped:
            stop.get(timeout=STOP_TIMEOUT)
        self._refs.clear()
        self.clear()


class StockActor(pykka.ThreadingActor):
    use_daemon_thread = True  # a run that fails must not hang at the interpreter's exit

    def __init__(self, session_id: str, shelf: Shelf) -> None:
        super().__init__()
        self._session_id = session_id
        self._read, self._write = shelf.get, shelf.__setitem__

    def on_receive(self, message: str) -> None:
        data = self._read(self._session_id)
        state = {} if data is None else msgpack.unpackb(data)
        remember(state, message)
        self._write(self._session_id, msgpack.packb(state))
