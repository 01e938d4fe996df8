"""Several processes on the same sessions: what they count together is exact, though replies are
lost, and nobody overwrites another.
"""

from __future__ import annotations

import asyncio
import json
import random
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import pytest

from actorbot import (
    DUPLICATE,
    Context,
    FlushPolicy,
    MemorySessionStore,
    MongoSessionStore,
    RedisSessionStore,
    Retry,
    SessionManager,
    errors,
)
from actorbot._state.codec import decode_state
from actorbot._state.record import Record
from actorbot.errors import ActorbotError
from actorbot.stores.base import RecordStore, Write
from actorbot.testing import FaultyStore
from actorbot.testing._expect import make_record
from tests import ROOT
from tests.handlers import count
from tests.servers import mongo_servers, redis_servers
from tests.servers.proxy import Proxy
from tests.tiers import tiers
from tests.waiting import soon

OWNERS = 4  # processes
HOT = 3  # sessions that every process uses all the time
COOL = 1_000  # sessions that each comes to now and then
LOST = 0.2  # of the writes, the share whose reply is lost
TRIES = 100  # times that a platform would deliver an event
PATIENCE = 100.0  # seconds for a process to do its work


# --- the processes ------------------------------------------------------------------------------


class _KeepsOneId:
    """Keeps the newest write id with a record, and none of those before."""

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        short = [replace(each, record=replace(each.record, write_ids=each.record.write_id)) for each in writes]
        return super().write_many(short)  # type: ignore[misc, no-any-return]


class RedisWithoutRing(_KeepsOneId, RedisSessionStore):
    pass


class MongoWithoutRing(_KeepsOneId, MongoSessionStore):
    pass


DRIVERS = {each.__name__: each for each in (RedisSessionStore, MongoSessionStore, RedisWithoutRing, MongoWithoutRing)}


@dataclass(frozen=True)
class Task:
    """What one process is to do."""

    url: str
    driver: str
    number: int
    events: int
    hot: float
    """The share of the events that go to the hot sessions."""
    in_flight: int
    redelivers: bool
    """Whether events have ids, and are sent again until they are acknowledged."""

    def plan(self) -> Iterator[tuple[str, str]]:
        """Yield a session and an event id for each event."""
        chance = random.Random(self.number)
        hot = round(self.events * self.hot)
        sessions = [f"hot:{n % HOT}" for n in range(hot)]
        sessions += [f"cool:{chance.randrange(COOL)}" for _ in range(self.events - hot)]
        chance.shuffle(sessions)
        for n, session_id in enumerate(sessions):
            yield session_id, f"{self.number}:{n}"


def increment(task: Task) -> None:
    """Count as the task says, and print what became of the events. Runs in a process of its own."""
    outcomes: Counter[str] = Counter()

    async def send(manager: SessionManager, session_id: str, event_id: str) -> None:
        for _ in range(TRIES if task.redelivers else 1):
            try:
                value = await manager.dispatch(session_id, "hi", event_id=event_id if task.redelivers else None)
            except (errors.ConflictError, errors.StoreUnavailableError) as error:
                outcomes[type(error).__name__] += 1
            else:
                outcomes["duplicate" if value is DUPLICATE else "acknowledged"] += 1
                return

    async def work() -> None:
        policy = FlushPolicy.write_through()
        async with SessionManager(DRIVERS[task.driver](task.url), handler=count, flush=policy) as manager:
            plan = task.plan()

            async def one_after_the_other() -> None:
                for session_id, event_id in plan:
                    await send(manager, session_id, event_id)

            await asyncio.gather(*(one_after_the_other() for _ in range(task.in_flight)))

    asyncio.run(work())
    print(json.dumps(outcomes))  # noqa: T201


def run_all(function: Callable[..., None], arguments: Sequence[Any]) -> list[Any]:
    """Run *function* in as many processes as there are *arguments*, all at once; return what they
    printed.
    """
    call = f"{function.__name__}(eval(sys.argv[1]))"
    code = f"import sys; from tests.servers.test_two_owners import *; print('ready', flush=True); input(); {call}"
    with ExitStack() as stack:
        processes = []
        for each in arguments:
            command = [sys.executable, "-W", "error", "-c", code, repr(each)]
            process = subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
            processes.append(stack.enter_context(process))
            stack.callback(process.kill)
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"ready\n"
        for process in processes:
            assert process.stdin is not None
            process.stdin.write(b"\n")
            process.stdin.flush()
        said = [process.communicate(timeout=PATIENCE)[0] for process in processes]
        assert [process.returncode for process in processes] == [0] * len(processes)
    return [json.loads(each) for each in said]


# --- the servers --------------------------------------------------------------------------------


class Losses:
    """Which replies a proxy loses: one in five of those to writes, by chance."""

    def __init__(self, is_write: Callable[[bytes], bool]) -> None:
        self._is_write = is_write
        self._chance = random.Random(5)
        self._lock = threading.Lock()  # guards the count
        self.writes = 0

    def __call__(self, request: bytes) -> bool:
        if not self._is_write(request):
            return False
        with self._lock:
            self.writes += 1
            return self._chance.random() < LOST


@dataclass(frozen=True)
class Place:
    """A server of which each test has an empty part."""

    store: RecordStore
    proxy: Proxy
    losses: Losses
    far_url: str
    """Through the proxy."""

    def sessions(self) -> dict[str, Any]:
        ids = [f"hot:{n}" for n in range(HOT)] + [f"cool:{n}" for n in range(COOL)]
        return dict(zip(ids, map(state, self.store.read_many(ids)), strict=True))

    def count(self) -> int:
        return sum(each["n"] for each in self.sessions().values())


def state(found: Record | ActorbotError | None) -> dict[str, Any]:
    if isinstance(found, ActorbotError):
        raise found
    return {"n": 0} if found is None or found.state is None else decode_state(found.state)


@pytest.fixture(params=tiers(["redis", "mongo"]))
def place(request: pytest.FixtureRequest) -> Iterator[Place]:
    with ExitStack() as stack:
        store: RecordStore
        if request.param == "redis":
            server = redis_servers.shared()
            server.ask("FLUSHALL")
            store, port, scheme = RedisSessionStore(server.url), server.port, "redis://127.0.0.1:{}/0"
        else:
            mongo = mongo_servers.shared()
            with mongo.client() as client:
                client.drop_database("actorbot")
            store, port, scheme = (
                MongoSessionStore(mongo.url),
                mongo.port,
                "mongodb://127.0.0.1:{}/?directConnection=true",
            )
        store.init()
        stack.callback(store.close)
        losses = Losses(redis_servers.is_write if request.param == "redis" else mongo_servers.is_update)
        proxy = stack.enter_context(Proxy(port))
        proxy.loses = losses
        yield Place(store, proxy, losses, scheme.format(proxy.port))


def count_in_processes(place: Place, **options: Any) -> Counter[str]:
    tasks = [Task(url=place.far_url, number=number, **options) for number in range(OWNERS)]
    total: Counter[str] = Counter()
    for each in run_all(increment, tasks):
        total.update(each)
    print(f"{total}, {place.proxy.lost} of {place.losses.writes} replies lost, {place.count()} counted")  # noqa: T201
    assert place.proxy.lost >= 0.15 * place.losses.writes
    return total


@pytest.mark.timeout(300)
@pytest.mark.parametrize("events", tiers([500, 2_500]))  # of each process
def test_what_four_processes_count_is_exact_though_replies_are_lost(place: Place, events: int) -> None:
    # Not hotter: on a busy machine a process stood still while others counted 64 events of one
    # session, which forgets an id then.
    said = count_in_processes(
        place, driver=type(place.store).__name__, events=events, hot=0.03, in_flight=64, redelivers=True
    )

    assert place.count() == OWNERS * events
    assert said["acknowledged"] + said["duplicate"] == OWNERS * events


@pytest.mark.long
@pytest.mark.timeout(300)
def test_without_event_ids_what_was_acknowledged_counts_once_and_what_is_unknown_at_most_once(place: Place) -> None:
    events = 500
    said = count_in_processes(
        place, driver=type(place.store).__name__, events=events, hot=0.1, in_flight=64, redelivers=False
    )

    unknown = said["OutcomeUnknownError"]
    assert said["acknowledged"] <= place.count() <= said["acknowledged"] + unknown
    unanswered = place.proxy.lost / place.losses.writes * OWNERS * events  # a reply is that of a batch
    assert unknown < unanswered / 2, "the write ids resolve most"


@pytest.mark.long
@pytest.mark.timeout(300)
def test_of_the_test_without_the_ring_of_write_ids_events_count_twice(place: Place) -> None:
    driver = type(place.store).__name__.replace("SessionStore", "WithoutRing")
    said = count_in_processes(place, driver=driver, events=100, hot=1.0, in_flight=6, redelivers=False)

    assert place.count() > said["acknowledged"] + said["OutcomeUnknownError"]


# --- write-behind -------------------------------------------------------------------------------


def append(task: Task) -> None:
    """Append to the lists in the sessions, and print which tags were acknowledged, made durable,
    and handed over in conflicts.
    """
    said: dict[str, list[str]] = {"acknowledged": [], "durable": [], "refused": [], "handed over": []}

    async def add(context: Context) -> None:
        context.session.setdefault("tags", []).append(context.event)

    def keep(_: str, unflushed: dict[str, Any]) -> None:
        said["handed over"] += unflushed["tags"]

    async def work() -> None:
        policy = FlushPolicy.write_behind(max_delay=0.02)
        store = DRIVERS[task.driver](task.url)
        async with SessionManager(store, handler=add, flush=policy, ownership="none", on_conflict=keep) as manager:
            for n, (session_id, tag) in enumerate(task.plan()):
                durable = n % 5 == 0
                try:
                    await manager.dispatch(session_id, tag, durable=durable)
                except errors.ConflictError:
                    said["refused"].append(tag)
                else:
                    said["durable" if durable else "acknowledged"].append(tag)

    asyncio.run(work())
    print(json.dumps(said))  # noqa: T201


def test_behind_the_conversation_nothing_is_overwritten_and_what_is_lost_was_handed_over(place: Place) -> None:
    place.proxy.loses = lambda _: False
    driver = type(place.store).__name__
    options: dict[str, Any] = {"driver": driver, "events": 1_000, "hot": 1.0, "in_flight": 1, "redelivers": False}
    tasks = [Task(url=place.far_url, number=number, **options) for number in range(2)]
    said = run_all(append, tasks)

    stored = [tag for each in place.sessions().values() for tag in each.get("tags", ())]
    assert len(stored) == len(set(stored))
    for number, each in enumerate(said):
        mine = {tag for tag in each["handed over"] if tag.startswith(f"{number}:")}
        kept = {*each["acknowledged"], *each["durable"]}.intersection(stored)
        assert kept
        assert set(each["durable"]) <= kept, "what was confirmed stays, whatever others write"
        assert set(each["refused"]).isdisjoint(stored)
        assert {*each["acknowledged"], *each["durable"]} - kept == mine - set(stored) - set(each["refused"])
    assert any(each["handed over"] for each in said)


# --- answers that are lost, one by one ----------------------------------------------------------

IMPATIENT = FlushPolicy.write_through(
    retry=Retry(base=600.0, cap=600.0)
)  # whoever pauses once pauses longer than a test


class Crowded(MemorySessionStore):
    """Loses the answer to its first write, done or not, and lets *others* write the session before
    it can be sent again.
    """

    def __init__(self, others: int, done: bool) -> None:
        super().__init__()
        self.others, self.done = others, done

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        if not self.others:
            return super().write_many(writes)
        newest = None
        if self.done:
            super().write_many(writes)
            newest = writes[0].record
        for n in range(self.others):
            event_ids = b"" if newest is None else newest.event_ids
            newest = replace(make_record("ann", {"n": n + 1 + self.done}, newest), event_ids=event_ids)
            super().write_many([Write(newest, None)])
        self.others = 0
        raise errors.OutcomeUnknownError("memory", "the answer is lost")


async def test_a_write_whose_answer_is_lost_is_sent_again_at_once() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count, flush=IMPATIENT) as manager:
        store.lose_replies(4)
        await soon(manager.dispatch("ann", "hi"))
        assert await manager.peek("ann") == {"n": 1}


async def test_a_long_pause_that_was_broken_off_delays_nothing_later() -> None:
    store = FaultyStore()
    async with SessionManager(store, handler=count, flush=IMPATIENT) as manager:
        store.lose_replies(5)
        with pytest.raises(errors.OutcomeUnknownError):
            await manager.dispatch("ann", "hi")
        await soon(manager.dispatch("ann", "hi"))
        store.lose_replies(1)
        await soon(manager.dispatch("ann", "hi"))
        assert await manager.peek("ann") == {"n": 3}


@pytest.mark.parametrize("others", [1, 15])
@pytest.mark.parametrize("done", [True, False])
async def test_a_write_that_others_have_followed_counts_once(others: int, done: bool) -> None:
    store = Crowded(others, done)
    async with SessionManager(store, handler=count, flush=FlushPolicy.write_through()) as manager:
        await manager.dispatch("ann", "hi")
        assert (store.read("ann") or {})["n"] == others + 1


@pytest.mark.parametrize(("others", "done"), [(16, True), (17, False)])
async def test_a_write_that_more_have_followed_than_are_remembered_is_unknown_and_not_run_again(
    others: int, done: bool
) -> None:
    store = Crowded(others, done)
    async with SessionManager(store, handler=count, flush=FlushPolicy.write_through()) as manager:
        with pytest.raises(errors.OutcomeUnknownError):
            await manager.dispatch("ann", "hi")
        assert (store.read("ann") or {})["n"] == 17


async def test_an_event_id_tells_for_longer_than_write_ids_whether_the_event_was_counted() -> None:
    for done in (True, False):
        async with SessionManager(Crowded(16, done), handler=count, flush=FlushPolicy.write_through()) as manager:
            assert (await manager.dispatch("ann", "hi", event_id="1") is DUPLICATE) == done
            assert await manager.peek("ann") == {"n": 17}


async def test_a_borrowed_turn_that_cannot_be_told_from_others_ends_with_an_unknown_outcome() -> None:
    async with SessionManager(Crowded(16, True), flush=FlushPolicy.write_through()) as manager:
        with pytest.raises(errors.OutcomeUnknownError):
            async with manager.turn("ann") as turn:
                turn.session["n"] = 1
        assert await manager.peek("ann") == {"n": 17}
