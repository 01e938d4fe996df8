"""A process that is frozen, taken over and thawed acknowledges nothing and answers nobody, wherever
in an event the freeze has met it.

`tests/faults/test_owners_frozen.py` freezes real processes, at random.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from math import inf
from pathlib import Path
from queue import Queue
from typing import Any

import pytest

from actorbot import Context, FlushPolicy, SessionManager, errors
from actorbot._manager import parts
from actorbot._ownership.lease import Lease
from actorbot._runtime.clock import SystemClock
from actorbot._state.record import Record
from actorbot.errors import ActorbotError
from actorbot.ext.asgi import webhook_app
from actorbot.ext.webhooks import Telegram
from actorbot.stores.base import Write
from actorbot.testing._expect import make_record
from tests.backends import LeasedMemoryStore
from tests.ext.deliveries import SECRET, deliver, message, serving
from tests.handlers import count
from tests.homes import both_homes, on_a_loop, on_threads
from tests.unit.ownership.owners import holder
from tests.waiting import SOON

LONG = 60.0  # seconds: many leases


class Frozen(LeasedMemoryStore):
    """A store that is taken over while the process is frozen."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = ItsClock(self)
        self.ahead = 0.0
        """Seconds for which the process was frozen."""
        self.is_taken = True
        """Whether another process takes it meanwhile."""
        self.looks = inf
        """After so many looks at the time of the lease it is frozen."""
        self.in_commit = self.in_write = False
        """Where else it is frozen."""
        self.writes_of_other: list[Write] = []
        """What the new owner writes meanwhile."""

    def freeze(self) -> None:
        """Be frozen and taken over, and go on."""
        self.looks, self.in_commit, self.in_write = inf, False, False
        self.ahead += LONG
        if not self.is_taken:
            return
        old = self.driver.lease
        found = Lease.parse(old, "a store")
        taken = replace(holder(epoch=found.epoch + 1), since=time.time(), until=time.time() + 10.0)
        assert self.driver.swap_lease(old, Lease(found.epoch + 1, {"other": taken}, dict(found.holders)).to_text())
        super().write_many(self.writes_of_other)

    def seconds(self) -> float:
        """Return the time of the lease."""
        now = time.monotonic() + self.ahead
        self.looks -= 1
        if not self.looks:
            self.freeze()
        return now

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        if self.in_write:
            self.freeze()
        return super().write_many(writes)


class ItsClock(SystemClock):
    """Each commit looks at it."""

    def __init__(self, store: Frozen) -> None:
        super().__init__()
        self._store = store
        self.wall = self._wall  # type: ignore[method-assign, assignment]

    def _wall(self) -> float:
        if self._store.in_commit:
            self._store.freeze()
        return time.time()


class ClockOfLease(SystemClock):
    def __init__(self, store: Frozen) -> None:
        super().__init__()
        self.monotonic = store.seconds  # type: ignore[method-assign, assignment]


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Frozen]:
    store = Frozen()
    monkeypatch.setattr(parts, "real_clock", lambda _: ClockOfLease(store))
    yield store
    store.clock.close()


def in_the_handler(store: Frozen) -> None:
    store.freeze()


def in_the_commit(store: Frozen) -> None:
    store.in_commit = True


def in_the_write(store: Frozen) -> None:
    store.in_write = True


def after_the_last_look(store: Frozen) -> None:
    store.looks = 1


def dispatch(manager: SessionManager, _: Callable[[Context], None]) -> None:
    manager.dispatch_sync("ann", "hi")


def submit(manager: SessionManager, _: Callable[[Context], None]) -> None:
    manager.submit_sync("ann", "hi").result_sync()


def turn(manager: SessionManager, handle: Callable[[Context], None]) -> None:
    with manager.turn_sync("ann") as borrowed:
        handle(borrowed)


VERBS = {each.__name__: each for each in (dispatch, submit, turn)}
POLICIES = ["write-behind", "write-through", "journaled"]
MOMENTS = [(in_the_handler, each) for each in POLICIES] + [
    (in_the_commit, "write-behind"),
    (in_the_commit, "journaled"),
    (in_the_write, "write-through"),
]


def policy_of(name: str, folder: Path) -> FlushPolicy:
    return FlushPolicy.parse(f"journaled:path={folder / 'journal'}" if name == "journaled" else name)


@both_homes
@pytest.mark.parametrize(("moment", "policy"), MOMENTS)
@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_nothing_is_acknowledged_and_nobody_answered(
    verb: Callable[..., None], moment: Callable[[Frozen], None], policy: str, home: Any, store: Frozen, tmp_path: Path
) -> None:
    sent: list[Any] = []

    def handle(context: Context) -> None:
        if not context.is_new:  # so that the session is in memory
            moment(store)
            context.send_text("hello")
        context.session["n"] = 1

    def deliver(session_id: str, text: str) -> None:
        sent.append(text)

    options = {"flush": policy_of(policy, tmp_path), "ownership": "exclusive", "clock": store.clock}
    with home(store=store, handler=handle, deliver=deliver, **options) as manager:
        verb(manager, handle)
        with pytest.raises(errors.OwnershipLostError):
            verb(manager, handle)
        assert manager.health().status == "failing"
    assert sent == []


async def test_nothing_is_acknowledged_on_the_loop(store: Frozen) -> None:
    def handle(context: Context) -> None:
        in_the_commit(store)

    async with SessionManager(store, handler=handle, clock=store.clock) as manager:
        with pytest.raises(errors.OwnershipLostError):
            await manager.dispatch("ann", "hi")


async def test_no_borrowed_turn_is_acknowledged_on_the_loop(store: Frozen) -> None:
    async with SessionManager(store, clock=store.clock) as manager:
        with pytest.raises(errors.OwnershipLostError):
            async with manager.turn("ann"):
                in_the_commit(store)


@pytest.mark.parametrize("verb", VERBS.values(), ids=VERBS)
def test_a_thread_that_hears_late_of_its_event_on_the_loop_is_not_told_that_it_is_done(
    verb: Callable[..., None], store: Frozen
) -> None:
    def handle(context: Context) -> None:
        after_the_last_look(store)

    with (
        on_a_loop(store=store, handler=handle, clock=store.clock) as manager,
        pytest.raises(errors.OwnershipLostError),
    ):
        verb(manager, handle)


async def test_who_hears_late_of_an_event_that_was_submitted_is_not_told_that_it_is_done(store: Frozen) -> None:
    async def handle(context: Context) -> None:
        after_the_last_look(store)

    async with SessionManager(store, handler=handle, clock=store.clock) as manager:
        receipt = await manager.submit("ann", "hi")
        with pytest.raises(errors.OwnershipLostError):
            await receipt.result()
        with pytest.raises(errors.OwnershipLostError):
            await asyncio.to_thread(receipt.result_sync)


@pytest.mark.parametrize("answer", ["acknowledged", "accepted"])
async def test_a_platform_is_not_told_that_its_event_is_handled(answer: Any, store: Frozen) -> None:
    class Asked(Telegram):
        def incoming(self, payload: Any) -> Any:
            (after_the_last_look if answer == "acknowledged" else in_the_handler)(store)
            return super().incoming(payload)

    manager = SessionManager(store, handler=count, clock=store.clock)
    async with serving(webhook_app(manager, {"/telegram": Asked(SECRET, answer=answer)})) as client:
        assert (await deliver(client, "telegram", message("telegram", 7, 1))).status_code == 503


async def test_a_platform_is_told_to_come_again_by_who_was_frozen_and_then_closed(store: Frozen) -> None:
    async def handle(context: Context) -> None:
        store.is_taken = False
        store.freeze()
        await manager.close()

    manager = SessionManager(store, handler=handle, clock=store.clock, close_timeout=0.2)
    async with serving(webhook_app(manager, {"/telegram": Telegram(SECRET, answer="acknowledged")})) as client:
        assert (await deliver(client, "telegram", message("telegram", 7, 1))).status_code == 503


def say_at_once(sent: list[str]) -> Callable[..., Any]:
    def deliver(session_id: str, text: str) -> None:
        sent.append(text)

    return deliver


def say_on_a_loop(sent: list[str]) -> Callable[..., Any]:
    async def deliver(session_id: str, text: str) -> None:
        sent.append(text)

    return deliver


# Where `deliver` runs in another thread than the one that is about to call it.
@pytest.mark.parametrize(("home", "deliver"), [(on_a_loop, say_at_once), (on_threads, say_on_a_loop)])
def test_a_reply_is_not_sent_by_a_thread_that_comes_late_to_it(
    home: Any, deliver: Callable[[list[str]], Callable[..., Any]], store: Frozen
) -> None:
    failed, sent = Queue[Exception](), list[str]()

    def handle(context: Context) -> None:
        context.send_text("hello")
        store.looks = 2  # the turn's own, and the one before the reply is handed to that thread

    options = {"deliver": deliver(sent), "on_error": lambda _, error: failed.put(error), "clock": store.clock}
    with home(store=store, handler=handle, **options) as manager:
        manager.submit_sync("ann", "hi")
        assert isinstance(failed.get(timeout=SOON), errors.OwnershipLostError)
    assert sent == []


@both_homes
def test_a_destroy_does_not_go_over_what_the_new_owner_has_written(home: Any, store: Frozen) -> None:
    with home(store=store, handler=count, clock=store.clock) as manager:
        manager.dispatch_sync("ann", "hi")
        manager.flush_sync()
        old = store.read_many(["ann"])[0]
        assert isinstance(old, Record)
        store.writes_of_other = [Write(make_record("ann", {"n": 2}, old), old.write_id)]
        store.in_write = True
        with pytest.raises(errors.OwnershipLostError):
            manager.destroy_sync("ann")
    assert (store.read("ann") or {})["n"] == 2


@both_homes
@pytest.mark.parametrize(
    ("moment", "policy"),
    [
        *((in_the_handler, each) for each in POLICIES),
        *((moment, each) for moment in (in_the_commit, after_the_last_look) for each in ("write-behind", "journaled")),
    ],
)
def test_who_was_frozen_and_not_taken_over_goes_on(
    moment: Callable[[Frozen], None], policy: str, home: Any, store: Frozen, tmp_path: Path
) -> None:
    def handle(context: Context) -> Any:
        if context.event == "freeze":
            moment(store)
        return count(context)

    store.is_taken = False
    options = {"flush": policy_of(policy, tmp_path), "ownership": "exclusive", "clock": store.clock}
    with home(store=store, handler=handle, **options) as manager:
        assert [manager.dispatch_sync("ann", event) for event in ("hi", "freeze", "hi")] == [1, 2, 3]
        assert manager.health().status == "ready"
    assert (store.read("ann") or {})["n"] == 3
