"""A platform that sends events and tries again, and the judge who counts what became of them.

The tags of a session's events are numbers, in the order in which they are sent. A shard appends
each to the list in its session; so an event that is missing in the store, or there twice, can be
told.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pytest

from actorbot import DUPLICATE, errors, store_from_url
from actorbot.cluster import Cluster, _caller
from actorbot.cluster._packing import unpack_answers, unpack_outcome
from tests.cluster._shards import Shards
from tests.cluster._slots import Owner, owners
from tests.faults._kills import state_in

TIMEOUT = 10.0  # seconds for an answer
AGAIN = 0.1  # seconds until an event that got an error is sent again
PATIENCE = 60.0  # seconds for all events to be answered, and for a condition to hold


@dataclass(slots=True)
class Sent:
    """An event, and what became of it."""

    session: str
    tag: int
    at: float
    """When it was first sent; monotonic seconds, as below."""
    errors: list[str] = field(default_factory=list)
    answer: Any = None
    """The pid of the shard that handled it, or DUPLICATE."""
    answered: float | None = None
    """When it was answered; if nobody wants an answer, when it was accepted."""

    @property
    def wait(self) -> float:
        """The seconds from the event to its answer."""
        assert self.answered is not None
        return self.answered - self.at


class Platform:
    """Sends events to sessions in turn, at a rate, whatever becomes of those before."""

    def __init__(self, cluster: Cluster, *, rate: float = 100.0, name: str = "user", waits: bool = True) -> None:
        self._cluster = cluster
        self._rate = rate
        self._waits = waits
        """Whether it wants an answer; or else it is content when an event is accepted."""
        # An event that is sent again after TIMEOUT must be among the last 64 of its session.
        self.sessions = [f"{name}:{number}" for number in range(int(0.4 * rate))]
        self.sent: list[Sent] = []
        self.events: Counter[str] = Counter()
        """The tag of each session's next event."""
        self.answered = 0
        self.pids: dict[int, set[int]] = defaultdict(set)
        """Of each request, the shards whose answers came."""
        self._sending: set[asyncio.Task[None]] = set()
        self._stops = False

    async def run(self) -> None:
        due = monotonic()
        while True:
            await asyncio.sleep(max(0.0, due - monotonic()))
            if self._stops:
                return
            due += 1 / self._rate
            self.send(self.sessions[len(self.sent) % len(self.sessions)])

    def send(self, session: str) -> Sent:
        """Begin to send the session's next event."""
        sent = Sent(session, self.events[session], monotonic())
        self.events[session] += 1
        self.sent.append(sent)
        task = asyncio.get_running_loop().create_task(self._send(sent))
        self._sending.add(task)
        task.add_done_callback(self._sending.discard)
        return sent

    async def _send(self, sent: Sent) -> None:
        event_id = f"{sent.session}/{sent.tag}"
        while monotonic() < sent.at + PATIENCE:
            try:
                if sent.tag % 4 and self._waits:
                    sent.answer = await self._cluster.dispatch(sent.session, sent.tag, event_id=event_id)
                else:
                    receipt = await self._cluster.submit(sent.session, sent.tag, event_id=event_id)
                    sent.answer = await receipt.result() if self._waits else None
            except errors.ActorbotError as error:
                sent.errors.append(f"{type(error).__name__}: {error}")
                await asyncio.sleep(AGAIN)
            else:
                sent.answered = monotonic()
                self.answered += 1
                return

    async def settle(self) -> None:
        """Send nothing new, and wait until all is answered."""
        self._stops = True
        if self._sending:
            await asyncio.wait(self._sending, timeout=PATIENCE)

    def sessions_of(self, pid: int) -> set[str]:
        """Return the sessions whose newest answer is of this shard."""
        newest = {each.session: each.answer for each in self.sent if each.answered}
        return {session for session, answer in newest.items() if answer == pid}

    def longest_wait(self, first: int) -> float:
        """Return the longest wait of the events from the one with this number on."""
        return max((each.wait for each in self.sent[first:] if each.answered), default=0.0)

    # --- how a test waits ------------------------------------------------------------------------

    async def goes_on(self, events: int = 50) -> None:
        """Wait until so many more events are answered."""
        goal = self.answered + events
        await patiently(lambda: self.answered >= goal)

    async def catches_up(self) -> None:
        """Wait until all that was sent before is answered."""
        sent = list(self.sent)
        await patiently(lambda: all(each.answered is not None for each in sent))

    async def passes(self, seconds: float) -> None:
        """Let the load go on for a time in which something else happens, or is frozen."""
        await asyncio.sleep(seconds)


async def patiently(condition: Callable[[], object]) -> None:
    """Let the loop run until *condition* holds."""
    async with asyncio.timeout(PATIENCE):
        while not condition():
            await asyncio.sleep(0.01)


async def balanced(shards: Shards) -> dict[int, Owner]:
    """Wait until each living shard has its equal part of the slots, within 10 %."""
    living, slots = {process.pid for process in shards.living}, shards.shape.slots
    equal = slots / len(living)

    def is_balanced() -> bool:
        parts = Counter(each.pid for each in owners(shards.shape.url).values())
        return parts.keys() == living and all(abs(part - equal) <= max(1.0, 0.1 * equal) for part in parts.values())

    await patiently(is_balanced)
    return owners(shards.shape.url)


@asynccontextmanager
async def load(cluster: Cluster, **options: Any) -> AsyncIterator[Platform]:
    """Send events as long as the block lasts, and then until all are answered."""
    platform = Platform(cluster, **options)
    running = asyncio.get_running_loop().create_task(platform.run())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(_caller, "unpack_answers", heard_by(platform))
        try:
            yield platform
            await platform.settle()
        finally:
            platform._stops = True
            await running
            for task in platform._sending:
                task.cancel()


def heard_by(platform: Platform) -> Callable[[bytes], list[tuple[int, bytes]]]:
    """Return an `unpack_answers` that notes whose answers come, those nobody waits for, too."""

    def heard(payload: bytes) -> list[tuple[int, bytes]]:
        answers = unpack_answers(payload)
        for number, outcome in answers:
            with suppress(errors.ActorbotError):
                answer = unpack_outcome(outcome, "")
                if answer is not DUPLICATE:
                    platform.pids[number].add(answer)
        return answers

    return heard


# --- the judge ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """What is wrong, and some figures to print."""

    events: int
    unanswered: list[str]
    lost: list[str]
    """Acknowledged, and not in the store."""
    lost_by: Counter[int]
    """The shards that had acknowledged these."""
    gaps: list[str]
    """Those that are lost although a later one of the same shard is in the session."""
    twice: list[str]
    """In the store more than once."""
    disorder: list[str]
    """Sessions that do not have their events in the order in which they were accepted."""
    strange: list[str]
    """In the store, and never sent."""
    replied_twice: list[str]
    answered_by_two: list[int]
    """Requests that two shards have answered, one of which did not own the slot any more."""
    duplicates: int
    """Events that were sent once, and answered as if they had been sent twice."""
    errors: Counter[str]
    worst: float
    """Seconds; the longest wait for an answer."""
    conflicts: int
    faults: list[str]

    @property
    def wrong(self) -> dict[str, list[Any]]:
        names = ("unanswered", "lost", "twice", "disorder", "strange", "replied_twice", "answered_by_two", "faults")
        return {name: found[:20] for name in names if (found := getattr(self, name))}

    def __str__(self) -> str:
        wrong = {name: len(getattr(self, name)) for name in self.wrong}
        return (
            f"{self.events} events, wrong: {wrong or 'nothing'}, lost by {dict(self.lost_by)}, "
            f"DUPLICATE {self.duplicates}, "
            f"worst wait {self.worst:.3f} s, conflicts {self.conflicts}, errors {dict(self.errors)}"
        )


def judge(platform: Platform, shards: Shards) -> Verdict:
    """Compare the store with what was acknowledged. All shards must have ended."""
    assert not shards.living
    stored = stored_tags(shards.shape.store, platform.sessions)
    known = {(each.session, each.tag): each for each in platform.sent}
    in_order: dict[str, list[int]] = defaultdict(list)
    for session, tags in stored.items():
        in_order[session] = [tag for tag in tags if (session, tag) in known and not known[session, tag].errors]
    answered = [each for each in platform.sent if each.answered is not None]
    verdict = Verdict(
        events=len(platform.sent),
        unanswered=[f"{each.session}/{each.tag}: {each.errors[-1:]}" for each in platform.sent if not each.answered],
        lost=[f"{each.session}/{each.tag}" for each in answered if each.tag not in stored[each.session]],
        lost_by=Counter(each.answer for each in answered if each.tag not in stored[each.session]),
        gaps=gaps_of(answered, stored),
        twice=[f"{name}/{tag}" for name, tags in stored.items() for tag, count in Counter(tags).items() if count > 1],
        disorder=[name for name, tags in in_order.items() if tags != sorted(tags)],
        strange=[f"{name}/{tag}" for name, tags in stored.items() for tag in tags if (name, tag) not in known],
        replied_twice=[f"{name}/{tag}" for (name, tag), count in shards.replies().items() if count > 1],
        answered_by_two=[number for number, pids in platform.pids.items() if len(pids) > 1],
        duplicates=sum(each.answer is DUPLICATE and not each.errors for each in answered),
        errors=Counter(error.partition(":")[0] for each in platform.sent for error in each.errors),
        worst=max((each.wait for each in answered), default=0.0),
        conflicts=shards.conflicts(),
        faults=shards.faults(),
    )
    print(verdict)
    return verdict


def gaps_of(answered: Iterable[Sent], stored: Mapping[str, list[int]]) -> list[str]:
    newest: dict[tuple[str, Any], int] = {}
    for each in answered:
        if each.tag in stored[each.session]:
            newest[each.session, each.answer] = max(each.tag, newest.get((each.session, each.answer), 0))
    missing = [each for each in answered if each.tag not in stored[each.session]]
    return [f"{each.session}/{each.tag}" for each in missing if each.tag < newest.get((each.session, each.answer), 0)]


def stored_tags(url: str, sessions: Iterable[str]) -> dict[str, list[int]]:
    """Return the tags of each session as they are in the store, read without a manager."""
    store = store_from_url(url)
    store.init()
    try:
        return {each: (state_in(store, each) or {}).get("tags", []) for each in sessions}
    finally:
        store.close()


def p99(waits: Iterable[float]) -> float:
    ordered = sorted(waits)
    return ordered[len(ordered) * 99 // 100] if ordered else 0.0


def rounded(seconds: Iterable[float]) -> list[float]:
    """Return the longest five."""
    return [round(each, 3) for each in sorted(seconds)[-5:]]
