"""Sessions end by the server's clock, however wrong the clock of a bot's machine is."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from actorbot import FileSessionStore, RedisSessionStore, SessionManager, errors
from actorbot._runtime.clock import SystemClock
from actorbot.stores import copy
from actorbot.stores.base import RecordStore, Write
from actorbot.testing import ManualClock
from actorbot.testing._expect import make_record, write_all
from tests.handlers import count
from tests.servers import mongo_servers
from tests.servers.proxy import Proxy
from tests.servers.redis_servers import PLACES, QUICK, Server, shared
from tests.tiers import tiers

NEAR = 30.0  # seconds between what a test expects and what a slow machine may make of it
FAR = [600.0, -600.0]  # seconds that the clock here is ahead of the server's

SetClock = Callable[[float], None]


@pytest.fixture
def set_clock(monkeypatch: pytest.MonkeyPatch) -> SetClock:
    """Set the clock of this machine, as all of this process sees it, so many seconds ahead."""
    true = time.time

    def set_it(seconds: float) -> None:
        monkeypatch.setattr(time, "time", lambda: true() + seconds)
        monkeypatch.setattr(SystemClock, "wall", staticmethod(time.time))

    return set_it


@pytest.fixture(params=tiers([QUICK, "mongo", *(kind for kind in PLACES if kind != QUICK)], QUICK, "mongo"))
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], RecordStore]:
    if request.param == "mongo":
        return lambda: mongo_servers.shared_store(tmp_path)
    server = shared(request.param)
    return lambda: RedisSessionStore(server.url, key_prefix=f"{tmp_path.name}:", expires_in=60.0)


@pytest.fixture
def store(make_store: Callable[[], RecordStore]) -> Iterator[RecordStore]:
    opened = make_store()
    yield opened
    opened.close()


def end_of(store: RecordStore) -> float:
    found = store.read_many(["ann"])[0]
    assert found is not None
    assert not isinstance(found, errors.ActorbotError)
    return found.expires_at


@pytest.mark.parametrize("ahead", FAR)
async def test_a_bot_with_a_wrong_clock_goes_on_with_its_sessions_after_a_restart_and_says_that_it_is_wrong(
    ahead: float, make_store: Callable[[], RecordStore], set_clock: SetClock, caplog: pytest.LogCaptureFixture
) -> None:
    set_clock(ahead)
    caplog.set_level(logging.WARNING, "actorbot")
    answers, health = [], []
    for _ in range(3):
        caplog.clear()
        store = make_store()
        store.expires_in = 60.0
        async with SessionManager(store, handler=count) as manager:
            answers.append(await manager.dispatch("ann", "hi"))
            health.append(manager.health())
            assert await manager.peek("ann") == {"n": answers[-1]}
        told = [each.getMessage() for each in caplog.records if "clock" in each.getMessage()]
    set_clock(0.0)
    look = make_store().init()

    assert answers == [1, 2, 3]
    assert end_of(look) == pytest.approx(time.time() + 60.0, abs=NEAR)
    assert len(told) == 1
    assert {each.status for each in health} == {"degraded"}
    assert ("behind" if ahead > 0 else "ahead") in health[0].reason
    assert re.search(r"(599|600)\.", told[0])
    assert "600" in health[0].reason
    look.close()


def test_bots_whose_clocks_differ_agree_when_a_session_ends(
    make_store: Callable[[], RecordStore], set_clock: SetClock
) -> None:
    right = make_store().init()
    set_clock(-600.0)
    slow = make_store().init()
    write_all(slow, [Write(make_record("ann", {"n": 1}, expires_at=time.time() + 60.0), b"")])
    assert end_of(slow) == pytest.approx(time.time() + 60.0, abs=NEAR)
    found = slow.read_many(["ann"])[0]
    set_clock(0.0)

    assert end_of(right) == pytest.approx(time.time() + 60.0, abs=NEAR)
    assert [each.is_expired(time.time()) for each in right.scan()] == [False]  # type: ignore[union-attr]
    assert found.is_expired(time.time() - 600.0 + 120.0)  # type: ignore[union-attr]
    for each in (right, slow):
        each.close()


def test_a_record_comes_back_exactly_from_a_server_whose_clock_differs(store: RecordStore, set_clock: SetClock) -> None:
    set_clock(-1234.567)
    store.init()
    record = make_record("ann", {"n": 1}, expires_at=time.time() + 60.123456)
    write_all(store, [Write(record, b"")])

    assert store.read_many(["ann"]) == [record]


def test_a_clock_that_is_set_while_the_bot_runs_is_noticed(store: RecordStore, set_clock: SetClock) -> None:
    store.init()
    before = store.complaint
    set_clock(-600.0)
    write_all(store, [Write(make_record("ann", {"n": 1}, expires_at=time.time() + 60.0), b"")])
    meanwhile = store.complaint
    set_clock(0.0)
    ends = end_of(store)

    assert ends == pytest.approx(time.time() + 60.0, abs=NEAR)
    assert (before, store.complaint) == ("", "")
    assert "600" in meanwhile


async def test_the_clock_is_looked_at_again_every_ten_minutes(store: RecordStore, set_clock: SetClock) -> None:
    clock = ManualClock()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        assert manager.health().status == "ready"
        set_clock(-90.0)
        await clock.advance(600.0)
        assert manager.health().status == "degraded"
        set_clock(0.0)
        await clock.advance(600.0)
        assert manager.health().status == "ready"


async def test_a_test_s_own_clock_is_left_alone(store: RecordStore) -> None:
    clock = ManualClock()
    async with SessionManager(store, handler=count, clock=clock) as manager:
        assert await manager.dispatch("ann", "hi", durable=True) == 1
        assert end_of(store) == clock.wall() + store.expires_in
        assert manager.health().status == "ready"


def test_a_copy_carries_the_ends_of_sessions_to_a_server_with_another_clock(
    store: RecordStore, set_clock: SetClock, tmp_path: Path
) -> None:
    source = FileSessionStore(tmp_path / "sessions").init()
    set_clock(600.0)
    write_all(source, [Write(make_record("ann", {"n": 1}, expires_at=time.time() + 60.0), b"")])
    store.init()
    report = copy(source, store)
    set_clock(0.0)

    assert report.copied == 1
    assert end_of(store) == pytest.approx(time.time() + 60.0, abs=NEAR)
    source.close()


def test_the_doctor_shows_the_difference(store: RecordStore, set_clock: SetClock) -> None:
    set_clock(-600.0)
    found = {each.what: each for each in store.examine()}["clock"]

    assert found.level == "warning"
    assert found.text.startswith(("599.", "600."))
    assert "ahead" in found.text


def test_a_server_that_is_away_when_it_is_asked_for_the_time_keeps_its_last_difference(
    redis_server: Server, set_clock: SetClock
) -> None:
    with Proxy(redis_server.port) as between:
        store = RedisSessionStore(f"redis://127.0.0.1:{between.port}/0?socket_timeout=0.2")
        set_clock(-600.0)
        store.init()
        between.black_hole = True
        assert list(store.sweep(0.0)) == []
        said: Any = store.complaint
        store.close()

    assert "600" in said
