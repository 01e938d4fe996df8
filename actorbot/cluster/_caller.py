"""`Caller`: brings requests to the log, several at a time, and takes their answers from it.

All runs on the cluster's loop; only a request may be made elsewhere. What a request is worth to
its caller is one future, which the answer ends, or what went wrong: no task, no timer of its own.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from copy import copy
from hashlib import blake2b
from typing import Any, Final, Literal
from uuid import uuid4

from actorbot._state.values import UndecodableError
from actorbot.cluster._asked import Asked, Outcome, Stage
from actorbot.cluster._log import Log, Terms
from actorbot.cluster._packing import Kind, Request, pack_request, unpack_answers
from actorbot.cluster._slots import slot_of
from actorbot.cluster._waiting import Waiting
from actorbot.errors import (
    ConfigError,
    ManagerClosedError,
    OutcomeUnknownError,
    OverloadedError,
    StoreUnavailableError,
)

__all__ = ["Caller"]

logger = logging.getLogger("actorbot")

Way = Literal["append", "answers"]

PATIENCE: Final = 5.0  # seconds in which a request must be in the log
PAUSE: Final = 0.1  # seconds between two tries
BATCH: Final = 256  # requests that one append takes
BATCH_BYTES: Final = 1024 * 1024
UNSENT_BYTES: Final = 64 * 1024 * 1024  # of requests that wait for the log to take them
OVERHEAD: Final = 500  # bytes that a waiting request takes besides
LONGEST_ID: Final = 512  # bytes of an event id that is sent as it is


class Caller:
    """One caller of the cluster *name*, from the start to the close of a `Cluster`."""

    def __init__(self, log: Log, name: str, terms: Terms) -> None:
        self.slots = terms.slots
        self.store = f"cluster {name}"
        self.id = uuid4().hex[:16]
        self.answered = self.refused = self.appends = self.repeated = 0
        self.waiting = Waiting(self.store)
        self._log = log
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count(1)
        self._queue: deque[Asked] = deque()
        self._unsent_bytes = 0
        self._wake: asyncio.Future[None] | None = None
        self._heard = self._loop.time()
        self._failures: dict[Way, Exception] = {}  # what does not go on just now, and why
        self._closed = False
        self._tasks = [self._loop.create_task(self._live(run)) for run in (self._send, self._listen)]

    # --- any thread ------------------------------------------------------------------------------

    def make(
        self,
        kind: Kind,
        session_id: str,
        timeout: float,
        outcome: Outcome,
        event: bytes = b"",
        event_id: str | None = None,
        durable: bool = False,
        again: bool = False,
        slot: int = -1,
    ) -> Asked:
        """Make a request, for `ask`."""
        number = next(self._numbers)
        # Without an id of its own it has one all the same: a shard may have to run it again.
        whose = f"{self.id}:{number}" if event_id is None else _event_id(event_id)
        again = again and event_id is not None
        request = Request(kind, session_id, event, whose, self.id, number, bool(durable), again)
        return Asked(session_id, slot, number, whose, pack_request(request), timeout, outcome)

    def silent_for(self) -> float:
        """Return the seconds since the log has last answered."""
        return max(0.0, self._loop.time() - self._heard)

    def refusal(self) -> Exception | None:
        """Return what the last append has failed with, if it has."""
        return self._failures.get("append")

    @property
    def unsent(self) -> int:
        """Requests that the log does not have."""
        return len(self._queue)

    # --- at home ---------------------------------------------------------------------------------

    def ask(self, asked: Asked) -> None:
        """Send a request. Whatever goes wrong ends its futures."""
        if self._closed:
            asked.fail(_closed(asked))
            return
        size = len(asked.payload) + OVERHEAD
        if self._unsent_bytes + size > UNSENT_BYTES and self._queue:
            self.refused += 1
            asked.fail(OverloadedError(f"{self._unsent_bytes:,} bytes wait for {self.store} to take them"))
            return
        self.waiting.add(asked)
        self._unsent_bytes += size
        self._queue.append(asked)
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)  # the sender runs after all that this tick of the loop brings

    async def close(self) -> None:
        """End all that waits: nobody knows its outcome."""
        self._end()
        for task in self._tasks:
            task.cancel()
        await asyncio.wait(self._tasks)

    def _end(self) -> None:
        self._closed = True
        for asked in self.waiting.close():
            asked.fail(_closed(asked))
        self._queue.clear()

    async def _live(self, run: Any) -> None:
        """Run one of the two tasks. If the loop ends it, nobody waits any more."""
        try:
            await run()
        except Exception:
            logger.exception("%s: this caller has ended", self.store)
        finally:
            self._end()

    # --- to the log ------------------------------------------------------------------------------

    async def _send(self) -> None:
        while True:
            if not self._queue:
                self._wake = self._loop.create_future()
                await self._wake
            await self._append(self._next_batch())  # and keep it no longer: it has receipts

    def _next_batch(self) -> list[Asked]:
        batch, size, queue = list[Asked](), 0, self._queue
        while queue and len(batch) < BATCH and (size == 0 or size + len(queue[0].payload) <= BATCH_BYTES):
            asked = queue.popleft()
            self._unsent_bytes -= len(asked.payload) + OVERHEAD
            if asked.is_over():
                self.waiting.forget(asked)  # nothing is sent
                continue
            asked.stage = Stage.SENT
            size += len(asked.payload)
            batch.append(asked)
        return batch

    async def _append(self, batch: list[Asked]) -> None:
        """Append *batch*, again and again as long as somebody has the patience.

        One that may have been appended stays as it is: under its number it is appended once.
        """
        if not batch:
            return
        self.appends += 1
        in_doubt, events = False, self._events(batch)
        while events:
            try:
                taken = await self._log.append(events, self.id, self.appends)
            except OutcomeUnknownError as error:
                in_doubt = True
                self._give_up_late(batch, error, in_doubt)
            except (StoreUnavailableError, ConfigError) as error:
                self._give_up_late(batch, error, in_doubt)
                if isinstance(error, ConfigError):
                    await self._ask_terms()  # the cluster was made anew
            except Exception as error:
                logger.exception("%s: an append failed", self.store)
                self._give_up(batch, error)
                return
            else:
                self._hear("append")
                self._note(batch, taken)
                return
            await asyncio.sleep(PAUSE)
            left = [asked for asked in batch if not asked.is_over()]
            if not (in_doubt and left):
                batch, events = left, self._events(left)
            self.repeated += bool(events)

    def _events(self, batch: list[Asked]) -> list[tuple[int, bytes]]:
        return [(self._slot_of(asked), asked.payload) for asked in batch]

    def _slot_of(self, asked: Asked) -> int:
        return slot_of(asked.session_id, self.slots) if asked.slot < 0 else asked.slot

    def _note(self, batch: list[Asked], taken: Iterable[bool]) -> None:
        for asked, is_taken in zip(batch, taken, strict=True):
            if is_taken:
                self.waiting.accept(asked)
                continue
            self.refused += 1
            self.waiting.forget(asked)
            where = f"slot {self._slot_of(asked)} of {self.store}"
            asked.fail(OverloadedError(f"{where} is full: no shard owns it, or its shard is too slow"))

    def _give_up_late(self, batch: list[Asked], error: Exception, in_doubt: bool) -> None:
        """Fail what has waited too long for the log."""
        self._note_failure("append", error)
        latest = self._loop.time() - PATIENCE
        late = [asked for asked in batch if asked.since <= latest]
        reason = f"the request was not accepted within {PATIENCE:g} s"
        if in_doubt:
            text = f"{reason}, or perhaps it was: the log did not answer. Send it again with the same event id: {error}"
            self._give_up(late, OutcomeUnknownError(self.store, text))
        unsent = StoreUnavailableError(self.store, f"{reason}; nothing was done: {error}")
        if not in_doubt:
            self._give_up(late, unsent)
        while self._queue and self._queue[0].since <= latest:
            asked = self._queue.popleft()
            self._unsent_bytes -= len(asked.payload) + OVERHEAD
            self._give_up([asked], unsent)

    def _give_up(self, late: Iterable[Asked], error: Exception) -> None:
        for asked in late:
            self.waiting.forget(asked)
            asked.fail(copy(error))  # each has a traceback of its own

    async def _ask_terms(self) -> None:
        with suppress(StoreUnavailableError, ConfigError):
            terms = await self._log.open()
            if terms is not None:
                self.slots = terms.slots

    # --- from the log ----------------------------------------------------------------------------

    async def _listen(self) -> None:
        cursor = "0"
        while True:
            try:
                answers = await self._log.answers(self.id, cursor)
            except Exception as error:
                if not (isinstance(error, StoreUnavailableError | ConfigError) or "answers" in self._failures):
                    logger.exception("%s: answers could not be read", self.store)
                self._note_failure("answers", error)
                cursor = "0"  # of a server that has forgotten them, or whose clock went back
                await asyncio.sleep(PAUSE)
                continue
            self._hear("answers")
            cursor = answers.cursor
            for payload in answers.payloads:
                self._take(payload)

    def _take(self, payload: bytes) -> None:
        try:
            answers = unpack_answers(payload)
        except (UndecodableError, TypeError, ValueError):
            logger.exception("%s: an answer cannot be read; is a shard of another release?", self.store)
            return
        for number, outcome in answers:
            self.answered += self.waiting.answer(number, outcome)

    def _hear(self, way: Way) -> None:
        self._heard = self._loop.time()
        if self._failures.pop(way, None) is not None and not self._failures:
            logger.info("%s answers again", self.store)

    def _note_failure(self, way: Way, error: Exception) -> None:
        # Each way has its own end: a server may answer reads, and refuse writes.
        if not self._failures:
            logger.warning("%s does not answer, or refuses: trying again: %s", self.store, error)
        self._failures[way] = error


def _closed(asked: Asked) -> ManagerClosedError:
    return ManagerClosedError(f"the cluster was closed before the answer came; {asked.stage.value}")


def _event_id(given: object) -> str:
    """Return the text of an event id, or a digest of it if the text cannot be sent."""
    text = str(given)
    with suppress(UnicodeEncodeError):
        if len(text.encode()) <= LONGEST_ID:
            return text
    return blake2b(text.encode("utf-8", "surrogatepass"), digest_size=32).hexdigest()
