"""The memory store: whom it forgets to make room, and who is told."""

from __future__ import annotations

import logging
import sys
import threading
from typing import Any

import pytest

from actorbot import MemorySessionStore, SessionManager, errors
from actorbot._state.codec import encode_state
from actorbot._state.record import Record
from actorbot.stores.base import Write


def put(store: MemorySessionStore, session_id: str, expires_at: float = 4e9) -> Record:
    state = encode_state({"id": session_id}, 1000)
    record = Record(session_id, 1, state, b"", b"", 1.5e9, expires_at).next_write()
    assert store.write_many([Write(record, None)]) == [None]
    return record


def kept(store: MemorySessionStore, ids: str) -> str:
    return "".join(each for each in ids if store.read(each) is not None)


def test_the_session_that_was_used_least_recently_makes_room():
    store = MemorySessionStore(2)
    put(store, "a")
    put(store, "b")
    store.read("a")
    put(store, "c")

    assert kept(store, "abc") == "ac"


def test_a_sweep_does_not_change_whose_turn_it_is_to_make_room():
    store = MemorySessionStore(2)
    put(store, "a")
    put(store, "b")
    store.read("a")
    assert list(store.sweep(now=1.0)) == []
    put(store, "c")

    assert kept(store, "abc") == "ac"


def test_what_is_destroyed_takes_no_room_from_what_is_alive():
    store = MemorySessionStore(2)
    put(store, "a")
    put(store, "b")
    store.destroy("b")
    put(store, "c")
    for stranger in "xyz":
        store.destroy(stranger)

    assert kept(store, "abcxyz") == "ac"


def test_a_session_may_begin_again_after_it_was_destroyed():
    store = MemorySessionStore()
    put(store, "a")
    store.destroy("a")
    again = put(store, "a")

    assert store.read_many(["a"]) == [again]


def test_the_author_is_told_of_each_evicted_session_and_its_state(caplog: pytest.LogCaptureFixture):
    told: list[tuple[str, dict[str, Any]]] = []
    store = MemorySessionStore(1, on_evict=lambda session_id, state: told.append((session_id, state)))
    with caplog.at_level(logging.INFO, "actorbot"):
        for session_id in "abc":
            put(store, session_id)

    assert told == [("a", {"id": "a"}), ("b", {"id": "b"})]
    assert [record.session_id for record in caplog.records] == ["a", "b"]  # type: ignore[attr-defined]


def test_on_evict_may_use_the_store():
    store = MemorySessionStore(1, on_evict=lambda session_id, _: seen.append(store.read(session_id)))
    seen: list[Any] = []
    put(store, "a")
    put(store, "b")

    assert seen == [None]


def test_a_failing_on_evict_does_not_fail_the_write(caplog: pytest.LogCaptureFixture):
    def fail(session_id: str, state: dict[str, Any]) -> None:
        raise RuntimeError("author's fault")

    store = MemorySessionStore(1, on_evict=fail)
    put(store, "a")
    put(store, "b")

    assert kept(store, "b") == "b"
    assert "on_evict failed" in caplog.text


def test_a_sweep_drops_what_has_ended_and_speaks_of_sessions_only():
    store = MemorySessionStore()
    old = put(store, "old", expires_at=100.0)
    put(store, "new")
    store.write_many([Write(Record.tombstone("gone", now=-4000.0), None)])

    assert list(store.sweep(now=100.0)) == [old]
    assert store.read_many(["old", "gone"]) == [None, None]
    assert store.read("new") is not None


@pytest.mark.parametrize("max_sessions", [0, -1, 1.5, "10", True, None])
def test_max_sessions_is_a_whole_number_of_at_least_one(max_sessions: Any):
    with pytest.raises(errors.ConfigError, match="max_sessions"):
        MemorySessionStore(max_sessions)


@pytest.mark.parametrize("expires_in", [0, -1, float("nan"), float("inf"), 10**400, "10", True, None])
def test_expires_in_is_a_number_of_seconds(expires_in: Any):
    with pytest.raises(errors.ConfigError, match="expires_in"):
        MemorySessionStore(expires_in=expires_in)


def test_on_evict_is_a_function():
    with pytest.raises(errors.ConfigError, match="on_evict"):
        MemorySessionStore(on_evict="tell me")  # type: ignore[arg-type]


async def test_a_session_is_read_where_its_turn_runs_unless_a_subclass_may_do_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class Mine(MemorySessionStore):
        pass

    class Quick(MemorySessionStore):
        may_block = False

    read_many, threads = MemorySessionStore.read_many, []

    def note(store: MemorySessionStore, session_ids: Any) -> Any:
        threads.append(threading.current_thread().name)
        return read_many(store, session_ids)

    monkeypatch.setattr(MemorySessionStore, "read_many", note)
    for kind in (MemorySessionStore, Mine, Quick):
        async with SessionManager(kind(), handler=lambda context: context.session_id) as manager:
            assert await manager.dispatch("ann", "hi") == "ann"
            assert await manager.peek("bob") is None
            assert manager.stats().store_reads == 2

    here, away = threading.current_thread().name, "actorbot-reads"
    assert threads == [here, here, away, away, here, here]


async def test_what_goes_wrong_in_a_store_that_never_blocks_is_an_error_of_that_store() -> None:
    class Broken(MemorySessionStore):
        may_block = False
        answer: Any = ZeroDivisionError("by nothing")

        def read_many(self, session_ids: Any) -> Any:
            if isinstance(self.answer, Exception):
                raise self.answer
            return self.answer

    store = Broken()
    async with SessionManager(store, handler=lambda context: None) as manager:
        for answer, reason in (
            (store.answer, "ZeroDivisionError: by nothing"),
            (errors.StoreUnavailableError("mine", "closed"), "mine: closed"),
            ([], "not enough values"),
        ):
            store.answer = answer
            with pytest.raises(errors.StoreUnavailableError, match=reason):
                await manager.dispatch("ann", "hi")
        store.answer = [errors.CorruptSessionError("mine", "ann", "half of it")]
        with pytest.raises(errors.CorruptSessionError, match="half of it"):
            await manager.dispatch("bob", "hi")


def test_a_reader_misses_no_session_that_ends_or_begins_again_meanwhile() -> None:
    store = MemorySessionStore(4)
    alive = put(store, "a")
    dead = Record("a", 2, None, b"", b"", 1.5e9, 4e9).next_write()
    missed: list[int] = []
    writing = True

    def read() -> None:
        while writing:
            if store.read_many(["a"]) == [None]:
                missed.append(1)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        readers = [threading.Thread(target=read) for _ in range(4)]
        for reader in readers:
            reader.start()
        for _ in range(2_000):
            assert store.write_many([Write(dead, None)]) == [None]
            assert store.write_many([Write(alive, None)]) == [None]
        writing = False
        for reader in readers:
            reader.join()
    finally:
        writing = False
        sys.setswitchinterval(before)
    assert not missed
