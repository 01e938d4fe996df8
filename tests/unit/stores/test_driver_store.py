"""Your own driver of four methods: what is asked of it, and what becomes of its failures."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from contextlib import closing
from dataclasses import replace
from math import inf, nan
from types import SimpleNamespace
from typing import Any

import pytest

from actorbot import ONE_YEAR, MemorySessionStore, SessionManager, errors
from actorbot._state.codec import decode_state, encode_state
from actorbot._state.record import Record
from actorbot.stores import copy
from actorbot.stores._driver_calls import AT_ONCE
from actorbot.stores.base import Write
from actorbot.stores.driver import DriverStore
from tests.backends import AsyncDictStore, ComparingStore, DictStore
from tests.leased import LeasedStore, Place

Opener = Callable[[Any], DriverStore]


@pytest.fixture
def open_store() -> Iterator[Opener]:
    """Wrap a driver in a store whose awaitables run on one loop of the test's own."""
    with asyncio.Runner() as runner:

        def run(make: Callable[[], Awaitable[Any]]) -> Any:
            async def finish() -> Any:
                return await make()

            return runner.run(finish())

        yield lambda driver: DriverStore(driver, run).init()


def record(session_id: str, n: int = 1) -> Record:
    return Record(session_id, 1, encode_state({"n": n}, 1000), b"", b"", 1.5e9, 4e9).next_write()


def state(found: Any) -> Any:
    return decode_state(found.state)


class Failing(DictStore):
    """Fails for the session "bad"."""

    error: BaseException = RuntimeError("no")

    def read(self, session_id: str) -> dict[str, Any] | None:
        return self._check(session_id) or super().read(session_id)

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        self._check(session_id)
        super().write(session_id, data)

    def _check(self, session_id: str) -> None:
        if session_id == "bad":
            raise self.error


class AsyncFailing(AsyncDictStore):
    def __init__(self) -> None:
        self.inner = Failing()


BREAKS = [RuntimeError("no"), asyncio.CancelledError(), SystemExit(3), KeyboardInterrupt(), TimeoutError()]


@pytest.mark.parametrize("kind", [Failing, AsyncFailing])
@pytest.mark.parametrize("error", BREAKS, ids=lambda error: type(error).__name__)
def test_one_failing_session_does_not_fail_the_others_of_a_batch(open_store: Opener, monkeypatch, kind, error):
    monkeypatch.setattr(Failing, "error", error)
    store = open_store(kind())
    good, bad, fine = map(record, ("good", "bad", "fine"))
    written = store.write_many([Write(each, b"") for each in (good, bad, fine)])
    found = store.read_many(["good", "bad", "fine"])

    assert [type(each) for each in written] == [type(None), errors.OutcomeUnknownError, type(None)]
    assert found[0] == good
    assert found[2] == fine
    assert type(found[1]) is errors.StoreUnavailableError
    assert found[1].session_id == "bad"
    assert written[1].__cause__ is found[1].__cause__ is error


def test_a_refused_connection_is_known_to_have_written_nothing(open_store: Opener, monkeypatch):
    monkeypatch.setattr(Failing, "error", ConnectionRefusedError())
    outcome = open_store(Failing()).write_many([Write(record("bad"), b"")])[0]

    assert type(outcome) is errors.StoreUnavailableError


def test_an_error_of_actorbots_own_arrives_as_it_was_raised(open_store: Opener, monkeypatch):
    error = errors.CorruptSessionError("mine", "bad", "half a record")
    monkeypatch.setattr(Failing, "error", error)

    assert open_store(Failing()).read_many(["bad"])[0] is error


@pytest.mark.parametrize("answer", ["text", 1, [], b"{}"])
def test_an_answer_that_is_no_mapping_is_a_corrupt_session(open_store: Opener, answer):
    driver = DictStore()
    driver.data["ann"] = answer

    assert isinstance(open_store(driver).read_many(["ann"])[0], errors.CorruptSessionError)


def test_a_mapping_that_fails_while_it_is_read_is_a_failed_read(open_store: Opener):
    class Lazy(Mapping[str, Any]):
        def __getitem__(self, key: str) -> Any:
            raise ConnectionResetError

        def __iter__(self) -> Iterator[str]:
            raise ConnectionResetError

        def __len__(self) -> int:
            return 1

    driver = DictStore()
    driver.read = lambda _: Lazy()  # type: ignore[method-assign, assignment, return-value]

    assert isinstance(open_store(driver).read_many(["ann"])[0], errors.StoreUnavailableError)


def test_an_async_driver_is_asked_for_many_sessions_at_a_time_within_bounds(open_store: Opener):
    class Counting(AsyncDictStore):
        now = most = 0

        async def read(self, session_id: str) -> dict[str, Any] | None:
            self.now += 1
            self.most = max(self.most, self.now)
            await asyncio.sleep(0)
            self.now -= 1
            return await super().read(session_id)

    driver = Counting()
    open_store(driver).read_many([str(each) for each in range(3 * AT_ONCE)])

    assert driver.most == AT_ONCE


def test_a_driver_may_mix_plain_and_async_methods(open_store: Opener):
    class Mixed(DictStore):
        async def write(self, session_id: str, data: dict[str, Any]) -> None:  # type: ignore[override]
            super().write(session_id, data)

    store = open_store(Mixed())
    first = record("ann")

    assert store.write_many([Write(first, b"")]) == [None]
    assert store.read_many(["ann"]) == [first]


def test_a_driver_that_can_is_asked_once_per_batch(open_store: Opener):
    class Batching(DictStore):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[Any] = []

        def read_many(self, session_ids: list[str]) -> dict[str, dict[str, Any]]:
            self.calls.append(session_ids)
            return {each: self.data[each] for each in session_ids if each in self.data}

        def write_many(self, items: list[tuple[str, dict[str, Any]]]) -> None:
            self.calls.append([session_id for session_id, _ in items])
            self.data.update(items)

    driver = Batching()
    store = open_store(driver)
    ann, bob = record("ann"), record("bob")

    written = store.write_many([Write(ann, b""), Write(Record.tombstone("eve", now=2e9), None), Write(bob, b"")])
    assert written == [None, None, None]
    assert store.write_many([Write(Record.tombstone("eve", now=2e9), None)]) == [None]
    assert store.read_many(["bob", "eve", "ann"]) == [bob, None, ann]
    assert driver.calls == [["ann", "bob"], ["bob", "eve", "ann"]]


@pytest.mark.parametrize("answer", [None, [], RuntimeError("no")], ids=str)
def test_a_failing_batch_is_an_error_of_the_one_that_is_alone_in_it(open_store: Opener, answer):
    def batch(_: Any) -> Any:
        if isinstance(answer, Exception):
            raise answer
        return answer

    driver = DictStore()
    driver.read_many = batch  # type: ignore[attr-defined]
    store = open_store(driver)

    (found,) = store.read_many(["ann"])
    assert isinstance(found, errors.StoreUnavailableError)
    assert "session 'ann': read_many failed" in str(found)
    with pytest.raises((RuntimeError, AttributeError)):  # whoever asks divides the batch
        store.read_many(["ann", "bob"])


def test_a_failing_write_batch_is_unknown_for_each_and_destroys_all_the_same(open_store: Opener):
    def fail(_: Any) -> None:
        raise TimeoutError

    driver = DictStore()
    driver.data["eve"] = {}
    driver.write_many = fail  # type: ignore[attr-defined]
    written = open_store(driver).write_many(
        [Write(record("ann"), b""), Write(Record.tombstone("eve", now=2e9), None), Write(record("bob"), b"")]
    )

    unknown = errors.OutcomeUnknownError
    assert [type(each) for each in written] == [unknown, type(None), unknown]
    assert driver.data == {}


def test_a_destroy_that_fails_is_called_one(open_store: Opener, monkeypatch):
    driver = DictStore()
    monkeypatch.setattr(driver, "destroy", lambda _: (_ for _ in ()).throw(TimeoutError()))
    outcome = open_store(driver).write_many([Write(Record.tombstone("eve", now=2e9), None)])[0]

    assert "session 'eve': destroying failed: TimeoutError" in str(outcome)


def test_a_destroy_is_the_drivers_destroy(open_store: Opener):
    driver = DictStore()
    store = open_store(driver)
    store.write_many([Write(record("ann"), b"")])
    store.destroy("ann")
    store.destroy("nobody")

    assert driver.data == {}


def test_a_write_whose_reply_was_lost_is_found_to_be_done(open_store: Opener):
    driver = ComparingStore()
    store = open_store(driver)
    first = record("ann")
    store.write_many([Write(first, b"")])
    second = first.next_write()
    store.write_many([Write(second, first.write_id)])

    assert store.write_many([Write(second, first.write_id)]) == [None]


def test_a_conflict_is_told_and_writes_nothing(open_store: Opener):
    store = open_store(ComparingStore())
    mine, theirs = record("ann", 1), record("ann", 2)
    store.write_many([Write(theirs, b"")])

    assert isinstance(store.write_many([Write(mine, b"")])[0], errors.ConflictError)
    assert state(store.read_many(["ann"])[0]) == {"n": 2}


def test_a_record_that_the_driver_dropped_is_written_again_by_who_holds_its_base(open_store: Opener):
    driver = ComparingStore()
    store = open_store(driver)
    first = record("ann")
    store.write_many([Write(first, b"")])
    driver.data.clear()
    second = first.next_write()

    assert store.write_many([Write(second, first.write_id)]) == [None]
    assert store.read_many(["ann"]) == [second]


async def test_a_session_begins_again_after_it_was_destroyed_in_a_driver_that_compares():
    driver, conflicts = ComparingStore(), []
    manager = SessionManager(
        driver, handler=lambda context: context.session.setdefault("n", 1), on_conflict=lambda *each: conflicts.append(each)
    )  # fmt: skip
    async with manager:
        await manager.dispatch("ann", "hi")
        await manager.destroy("ann")
        assert driver.data == {}
        await manager.dispatch("ann", "hi again")

    assert conflicts == []
    assert driver.data["ann"]["n"] == 1


def test_a_session_that_somebody_else_has_written_is_not_ended(open_store: Opener):
    driver = ComparingStore()
    store = open_store(driver)
    first = record("ann")
    store.write_many([Write(first, b"")])
    newer = first.next_write()
    store.write_many([Write(newer, first.write_id)])
    end = replace(Record.tombstone("ann", now=2e9), write_ids=b"endofann" + first.write_ids)

    assert isinstance(store.write_many([Write(end, first.write_id)])[0], errors.ConflictError)
    assert store.read_many(["ann"]) == [newer]
    assert store.write_many([Write(end, newer.write_id)]) == [None]
    assert driver.data == {}


def test_the_end_of_a_session_that_failed_half_way_is_finished_when_it_is_sent_again(open_store: Opener, monkeypatch):
    driver = ComparingStore()
    store = open_store(driver)
    first = record("ann")
    store.write_many([Write(first, b"")])
    end = replace(Record.tombstone("ann", now=2e9), write_ids=b"endofann" + first.write_ids)
    with monkeypatch.context() as patch:
        patch.setattr(driver, "destroy", lambda _: (_ for _ in ()).throw(TimeoutError()))
        assert isinstance(store.write_many([Write(end, first.write_id)])[0], errors.OutcomeUnknownError)

    assert store.write_many([Write(end, first.write_id)]) == [None]
    assert driver.data == {}


def test_a_refused_write_that_cannot_be_looked_up_is_an_error_and_no_conflict(open_store: Opener, monkeypatch):
    driver = ComparingStore()
    store = open_store(driver)
    store.write_many([Write(record("ann"), b"")])
    error = TimeoutError()
    monkeypatch.setattr(driver, "read", lambda _: (_ for _ in ()).throw(error))
    outcome = store.write_many([Write(record("ann"), b"")])[0]

    assert isinstance(outcome, errors.StoreUnavailableError)
    assert outcome.__cause__ is error


def test_sessions_that_were_there_before_actorbot_are_adopted_and_written(open_store: Opener):
    driver = ComparingStore()
    driver.data["ann"] = {"nickname": "Ann"}
    store = open_store(driver)
    adopted = store.read_many(["ann"])[0]
    assert isinstance(adopted, Record)
    assert state(adopted) == {"nickname": "Ann"}

    written = adopted.next_write()
    assert store.write_many([Write(written, adopted.write_id)]) == [None]
    assert store.read_many(["ann"]) == [written]


def test_a_driver_says_how_long_its_sessions_last(open_store: Opener):
    driver = DictStore()
    assert open_store(driver).expires_in == ONE_YEAR

    driver.expires_in = 10  # type: ignore[attr-defined]
    assert open_store(driver).expires_in == 10.0

    driver.expires_in = -1  # type: ignore[attr-defined]
    with pytest.raises(errors.ConfigError, match="expires_in"):
        open_store(driver)


def test_errors_call_the_store_by_the_drivers_class(open_store: Opener):
    assert open_store(DictStore()).name == "DictStore"


def test_what_a_driver_lacks_is_named(open_store: Opener):
    with pytest.raises(errors.ConfigError, match="lacks write, destroy"):
        open_store(SimpleNamespace(init=print, read=print))


def test_a_class_in_place_of_a_driver_is_noticed(open_store: Opener):
    with pytest.raises(errors.ConfigError, match="the class itself"):
        open_store(DictStore)


def test_a_url_in_place_of_a_driver_does_not_get_its_password_printed(open_store: Opener):
    with pytest.raises(errors.ConfigError) as caught:
        open_store("redis://:secret@localhost/0")

    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("verb", ["init", "close"])
@pytest.mark.parametrize("error", BREAKS, ids=lambda error: type(error).__name__)
def test_a_driver_that_fails_to_open_or_close_is_an_unavailable_store(open_store: Opener, verb, error):
    def fail() -> None:
        raise error

    driver = DictStore()
    setattr(driver, verb, fail)

    with pytest.raises(errors.StoreUnavailableError) as caught:
        open_store(driver).close()
    assert caught.value.__cause__ is error


def test_a_driver_need_not_have_a_close(open_store: Opener):
    store = open_store(DictStore())
    store.close()
    store.close()


# --- a driver that lists its sessions -----------------------------------------------------------


class Listing(DictStore):
    """Has the sessions *data*, and gives *listed* as their ids."""

    def __init__(self, listed: Any, data: tuple[str, ...] = ("ann", "bob")) -> None:
        super().__init__()
        self.data = {session_id: {"n": 1} for session_id in data}
        self.listed = listed

    def ids(self) -> Any:
        return self.listed


def rows(*ids: str) -> list[sqlite3.Row]:
    with closing(sqlite3.connect(":memory:")) as connection:
        connection.row_factory = sqlite3.Row
        return [connection.execute("SELECT ? AS session_id", (each,)).fetchone() for each in ids]


@pytest.mark.parametrize(
    "listed",
    [
        ["ann", "bob"],
        iter(["ann", "bob"]),
        {"ann": 1, "bob": 2},
        [b"ann", bytearray(b"bob")],
        [("ann",), ("bob",)],
        [["ann"], (b"bob",)],
        [{"session_id": "ann"}, {"session_id": "bob"}],
        rows("ann", "bob"),
    ],
    ids=["text", "iterator", "dict", "bytes", "tuples", "lists", "dicts", "rows of SQLite"],
)
def test_ids_are_understood_as_cursors_and_clients_give_them(listed: Any, open_store: Opener) -> None:
    found = open_store(Listing(listed)).scan()

    assert [each.session_id for each in found if isinstance(each, Record)] == ["ann", "bob"]


def test_rows_of_an_async_cursor_are_understood(open_store: Opener) -> None:
    async def listed() -> AsyncIterator[tuple[str]]:
        yield ("ann",)

    assert [type(each) for each in open_store(Listing(listed())).scan()] == [Record]


@pytest.mark.parametrize("odd", [42, None, ("ann", 1), b"\xff", "", "a\nb", (), ("",), 1.5, "\ud800"], ids=repr)
def test_what_is_no_id_is_named_and_counted_and_the_others_are_copied(odd: Any) -> None:
    report = copy(Listing(["ann", odd, "bob"]), MemorySessionStore())

    assert report.copied == 2
    assert [
        str(each) for each in report.failed if f"ids() gives {odd!r}, which is no session id" not in str(each)
    ] == []
    assert len(report.failed) == 1


def test_ids_in_one_text_are_not_taken_letter_by_letter(open_store: Opener) -> None:
    assert [type(each) for each in open_store(Listing("ann")).scan()] == [Record]
    assert [str(each) for each in open_store(Listing("ann,bob")).scan()] == [
        "Listing: read() has nothing for 1 of the 1 ids that ids() gives; do both mean the same ids?"
    ]


def test_ids_that_read_does_not_know_are_told_of(open_store: Opener, caplog: pytest.LogCaptureFixture) -> None:
    """A driver may list keys with a prefix that it adds itself when it reads."""
    none = [*open_store(Listing(["bot:ann", "bot:bob"])).scan()]
    some = [*open_store(Listing(["ann", "gone"])).scan()]

    assert [str(each) for each in none] == [
        "Listing: read() has nothing for 2 of the 2 ids that ids() gives; do both mean the same ids?"
    ]
    assert [type(each) for each in some] == [Record]
    assert "read() has nothing for 1 of the 2 ids that ids() gives" in caplog.text


def test_beside_comparing_no_batch_is_written_that_compares_nothing_and_the_doctor_says_so(open_store: Opener):
    class Both(ComparingStore):
        def write_many(self, items: Any) -> None:
            raise AssertionError("it would overwrite what somebody else has written")

    store = open_store(Both())
    first, theirs = record("ann"), record("ann", 2)

    assert store.write_many([Write(first, b""), Write(record("bob"), b"")]) == [None, None]
    assert isinstance(store.write_many([Write(theirs, b"")])[0], errors.ConflictError)
    assert any(finding.level == "warning" and "write_many" in finding.text for finding in store.examine())


@pytest.mark.parametrize(
    "given",
    [("text", None), ("text", "2.0"), ("text", nan), ("text", inf), ("text", -1.0), ("text", 1.7e12), (b"", 1.7e9)],
)
def test_a_lease_that_is_no_text_or_not_told_with_seconds_is_refused(given: Any, open_store: Opener) -> None:
    driver = LeasedStore(Place())
    driver.read_lease = lambda: given  # type: ignore[method-assign]

    with pytest.raises(errors.StoreError, match=r"read_lease must return .* wall-clock seconds"):
        open_store(driver).read_lease()


def test_a_driver_that_does_not_say_whether_it_has_put_a_lease_is_refused(open_store: Opener) -> None:
    driver = LeasedStore(Place())
    driver.swap_lease = lambda old, new: None  # type: ignore[method-assign, assignment, return-value]

    with pytest.raises(errors.StoreError, match="swap_lease must return whether it was done, not NoneType"):
        open_store(driver).swap_lease(None, "text")
