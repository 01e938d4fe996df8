"""`Answers`: what handlers have returned, for those who send the same event again.

Only for events that were dispatched with `on_duplicate="result"`. An answer is kept as a session
would keep it, so that each caller gets a copy of his own. What no session keeps is not remembered.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from concurrent.futures import Future
from types import TracebackType
from typing import Any, Final, NamedTuple, Self

from actorbot._event import DUPLICATE
from actorbot._runtime.home import Home, new_future
from actorbot._state.codec import decode_state, encode_state
from actorbot._state.committed import digest_of
from actorbot.errors import NotEncodableError, SessionTooLargeError

__all__ = ["Answers", "Run"]

MOST: Final = 10_000  # answers of all sessions
MOST_BYTES: Final = 16 << 20  # that they may take together


class _Key(NamedTuple):
    session_id: str
    digest: bytes


class Answers:
    """The newest answers of a manager's sessions. Any thread."""

    def __init__(self, home: Home, max_bytes: int, patience: float) -> None:
        self.home = home
        self.max_bytes = max_bytes
        """An answer of more bytes is not remembered."""
        self.patience = patience
        """Seconds for which a duplicate waits until the first is acknowledged."""
        self._lock = threading.Lock()  # guards the rest
        self._kept: OrderedDict[_Key, bytes] = OrderedDict()  # oldest first
        self._digests: dict[str, set[bytes]] = {}  # of those kept, by session
        self._bytes = 0
        self._runs: dict[_Key, list[Run]] = {}  # that have not ended, in the order of their begin

    def run(self, session_id: str, event_id: str) -> Run:
        """Make the run of one event, to be used in a `with` around its turn."""
        return Run(self, _Key(session_id, digest_of(event_id)))

    def forget(self, session_id: str) -> None:
        """Forget the answers of a session: it was destroyed."""
        with self._lock:
            for digest in list(self._digests.get(session_id, ())):
                self._drop(_Key(session_id, digest))

    def _begin(self, run: Run) -> list[Run]:
        with self._lock:
            runs = self._runs.setdefault(run.key, [])
            earlier = list(runs)
            runs.append(run)
        return earlier

    def _end(self, run: Run, encoded: bytes | None) -> None:
        key = run.key
        with self._lock:
            runs = self._runs[key]
            runs.remove(run)
            if not runs:
                del self._runs[key]
            if encoded is None:
                return
            self._drop(key)
            self._kept[key] = encoded
            self._digests.setdefault(key.session_id, set()).add(key.digest)
            self._bytes += len(encoded)
            while len(self._kept) > MOST or self._bytes > MOST_BYTES:
                self._drop(next(iter(self._kept)))

    def _drop(self, key: _Key) -> None:
        # The caller holds the lock.
        encoded = self._kept.pop(key, None)
        if encoded is None:
            return
        self._bytes -= len(encoded)
        digests = self._digests[key.session_id]
        digests.discard(key.digest)
        if not digests:
            del self._digests[key.session_id]

    def _find(self, key: _Key) -> bytes | None:
        with self._lock:
            return self._kept.get(key)


class Run:
    """One dispatch of an event, whose answer is remembered."""

    def __init__(self, answers: Answers, key: _Key) -> None:
        self.key = key
        self._answers = answers
        self._encoded: bytes | None = None
        self._ended: Future[None] = new_future()
        self._earlier: list[Run] = []

    def __enter__(self) -> Self:
        self._earlier = self._answers._begin(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._answers._end(self, self._encoded)
        self._ended.set_result(None)

    def keep(self, value: Any) -> None:
        """Remember what the handler has returned, if a session could keep it."""
        try:
            self._encoded = encode_state({"": value}, self._answers.max_bytes)
        except (NotEncodableError, SessionTooLargeError):
            return

    async def first(self) -> Any:
        """Return a copy of the first answer; `DUPLICATE` if it is not, or no longer, remembered.

        The event was handled before: if by a run that is not over yet, that one only waits until
        its answer is acknowledged.
        """
        answers = self._answers
        for run in self._earlier:
            try:
                await answers.home.wait(run._ended, answers.patience)
            except TimeoutError:
                return DUPLICATE
        encoded = answers._find(self.key)
        return DUPLICATE if encoded is None else decode_state(encoded)[""]
