"""A log in memory, for one caller and a shard that the test itself plays."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from actorbot.cluster._log import Answers, Log, MemberState, Reading, Settlement, Standing, Terms
from actorbot.cluster._packing import Request, pack_answers, pack_error, pack_result, unpack_request
from actorbot.errors import OutcomeUnknownError

Handle = Callable[[Request], Any]


class MemoryLog(Log):
    """What callers append is kept; `play` handles it, and `answer` answers it."""

    def __init__(self, slots: int = 16, max_waiting: int = 1_000) -> None:
        self.terms: Terms | None = Terms(slots, max_waiting)
        self.appended: list[list[Request]] = []
        """The batches, as they came."""
        self.slots_of: list[int] = []
        """The slot of each request."""
        self.failures: list[BaseException] = []
        """What the next appends raise; with an OutcomeUnknownError it is appended all the same."""
        self.full: set[int] = set()
        self.held = asyncio.Event()
        self.held.set()
        self.deaf: BaseException | None = None
        """What reading answers raises."""
        self.opened = self.closed = 0
        self.handle: Handle | None = None
        """Answers each request as it is appended."""
        self.states: list[MemberState] = []
        self.owners: list[tuple[int, str, int]] = []
        self._answers: dict[str, list[bytes]] = {}
        self._batches: dict[str, tuple[int, list[bool]]] = {}
        self._news = asyncio.Event()

    @property
    def requests(self) -> list[Request]:
        return [request for batch in self.appended for request in batch]

    def answer(self, request: Request, value: Any = None, *, error: BaseException | None = None) -> None:
        """Answer as a shard would."""
        outcome = pack_result(value) if error is None else pack_error(error)
        self.send(request.caller, pack_answers([(request.number, outcome)]))

    def send(self, caller: str, payload: bytes) -> None:
        self._answers.setdefault(caller, []).append(payload)
        self._news.set()

    async def open(self) -> Terms | None:
        self.opened += 1
        if self.failures and not self.appended:
            raise self.failures.pop(0)
        return self.terms

    async def close(self) -> None:
        self.closed += 1

    async def append(self, events: Sequence[tuple[int, bytes]], caller: str = "", batch: int = 0) -> list[bool]:
        await self.held.wait()
        await asyncio.sleep(0)
        failure = self.failures.pop(0) if self.failures else None
        if failure is not None and not isinstance(failure, OutcomeUnknownError):
            raise failure
        if self._batches.get(caller, (0, []))[0] != batch:
            self._take(events)
            self._batches[caller] = batch, [slot not in self.full for slot, _ in events]
        if failure is not None:
            raise failure
        return self._batches[caller][1]

    def _take(self, events: Sequence[tuple[int, bytes]]) -> None:
        requests = [unpack_request(payload) for slot, payload in events if slot not in self.full]
        self.appended.append(requests)
        self.slots_of += [slot for slot, _ in events]
        for request in requests if self.handle is not None else ():
            try:
                self.answer(request, self.handle(request))
            except Exception as error:
                self.answer(request, error=error)

    async def answers(self, caller: str, after: str) -> Answers:
        if self.deaf is not None:
            raise self.deaf
        read = int(after)
        self._news.clear()
        if len(self._answers.get(caller, ())) <= read:
            await self._news.wait()
            if self.deaf is not None:
                raise self.deaf
        payloads = self._answers.get(caller, [])[read:]
        return Answers(str(read + len(payloads)), payloads)

    def forget_answers(self) -> None:
        self._answers.clear()

    def deafen(self, error: BaseException | None) -> None:
        self.deaf = error
        self._news.set()

    async def members(self) -> list[MemberState]:
        return self.states

    async def slots(self) -> list[tuple[int, str, int]]:
        return self.owners

    # --- a caller needs nothing of this ----------------------------------------------------------

    async def join(self, member: str, terms: Terms) -> Terms:
        raise NotImplementedError

    async def read(self, member: str, room: int) -> Reading:
        raise NotImplementedError

    async def settle(self, member: str, settlements: Sequence[Settlement], answers: Mapping[str, bytes]) -> list[int]:
        raise NotImplementedError

    async def lease(
        self, member: str, lease: float, held: Mapping[int, int], info: str, *, leaving: bool, gone: Iterable[str] = ()
    ) -> Standing:
        raise NotImplementedError

    async def release(self, member: str, held: Mapping[int, int], *, leave: bool = False) -> None:
        raise NotImplementedError

    async def drain(self, members: Iterable[str]) -> None:
        raise NotImplementedError
