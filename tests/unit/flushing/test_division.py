"""One session that cannot be written or read holds up no other that shares its call."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Sequence
from math import log2
from pathlib import Path
from typing import Any

import pytest

from actorbot import Context, FlushPolicy, MemorySessionStore, MongoSessionStore, SessionManager, errors
from actorbot._state.record import Record
from actorbot.stores import mongo
from actorbot.stores._batches import ask_in_parts
from actorbot.stores.base import Write
from actorbot.testing import FaultyStore, ManualClock
from tests.backends import ComparingStore, DictStore, each_store
from tests.journals import advancing
from tests.waiting import soon, until

USERS = [f"user:{n}" for n in range(63)]
BAD = "user:7"
NUL = "\0"  # PostgreSQL's jsonb does not take it


def say(context: Context) -> None:
    context.session["said"] = context.event


def refuse(ids_and_texts: Iterable[tuple[str, Any]]) -> None:
    for session_id, text in ids_and_texts:
        if text == NUL:
            raise ValueError(f"\\u0000 cannot be stored, says the database; it does not say that of {session_id[:4]}")


class Picky(DictStore):
    """A driver that writes a batch in one transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.batches: list[list[str]] = []

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        self.write_many([(session_id, data)])

    def write_many(self, items: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self.batches.append([session_id for session_id, _ in items])
        refuse((session_id, data.get("said")) for session_id, data in items)
        self.data.update(items)


class AsyncPicky:
    """The same, `async def`."""

    def __init__(self) -> None:
        self.inner = Picky()
        self.data = self.inner.data
        self.batches = self.inner.batches

    async def init(self) -> None:
        pass

    async def read(self, session_id: str) -> Any:
        return self.inner.read(session_id)

    async def write(self, session_id: str, data: dict[str, Any]) -> None:
        self.inner.write(session_id, data)

    async def write_many(self, items: Sequence[tuple[str, dict[str, Any]]]) -> None:
        self.inner.write_many(items)

    async def destroy(self, session_id: str) -> None:
        self.inner.destroy(session_id)


class PickyComparing(ComparingStore):
    """One that compares, and writes one session at a time."""

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        refuse([(session_id, data.get("said"))])
        super().write(session_id, data)


class PickyRecords(MemorySessionStore):
    """A store of records that writes a batch in one transaction."""

    def __init__(self) -> None:
        super().__init__()
        self.outlives_process = True
        self.batches: list[list[str]] = []

    def write_many(self, writes: Sequence[Write]) -> Sequence[errors.ActorbotError | None]:
        self.batches.append([write.record.session_id for write in writes])
        documents = [(each.record.session_id, each.record) for each in writes]
        refuse((session_id, record.to_document().get("said")) for session_id, record in documents)
        return super().write_many(writes)


POLICIES = {
    "write-behind": lambda _: FlushPolicy.parse("write-behind:max_delay=60,retry.attempts=2,retry.base=0.01"),
    "write-through": lambda _: FlushPolicy.parse("write-through:retry.attempts=2,retry.base=0.01"),
    "journaled": lambda folder: FlushPolicy.parse(
        f"journaled:path={folder}/journal,max_delay=60,retry.attempts=2,retry.base=0.01"
    ),
}
each_policy = pytest.mark.parametrize("policy", POLICIES.values(), ids=POLICIES)
each_picky = pytest.mark.parametrize("kind", [Picky, AsyncPicky, PickyRecords, PickyComparing])


async def all_say(manager: SessionManager, text: str, bad: str) -> list[str]:
    """Have all users say *text*, and the bad one *bad*; return who has got an error."""
    said = [manager.dispatch(user, bad if user == BAD else text) for user in USERS]
    answers = await soon(asyncio.gather(*said, return_exceptions=True))
    return [user for user, answer in zip(USERS, answers, strict=True) if isinstance(answer, Exception)]


@each_picky
@each_policy
async def test_a_session_that_cannot_be_stored_holds_up_no_other(kind: Any, policy: Any, tmp_path: Path) -> None:
    store = kind()
    manager = SessionManager(store, handler=say, flush=policy(tmp_path), close_timeout=0.1)
    async with manager:
        failed = await all_say(manager, "hi", NUL)
        through = manager.stats().dirty_bytes == 0
        assert failed == ([BAD] if through else [])
        if not through:
            with pytest.raises(errors.StoreUnavailableError, match=BAD):
                await soon(manager.flush())
        assert manager.health().status == "degraded"
        assert repr(BAD) in manager.health().reason
        report = await manager.close()
    assert report.unflushed == (() if through else (BAD,))
    async with SessionManager(store, handler=say) as manager:
        for user in USERS:
            assert await manager.peek(user) == (None if user == BAD else {"said": "hi"})


@each_picky
async def test_a_session_is_stored_when_it_can_be_stored_again(kind: Any) -> None:
    store = kind()
    async with SessionManager(store, handler=say, flush=POLICIES["write-behind"](None)) as manager:
        await all_say(manager, "hi", NUL)
        with pytest.raises(errors.StoreUnavailableError):
            await soon(manager.flush())
        await manager.dispatch(BAD, "hi")
        await soon(manager.flush())
        assert manager.health().status == "ready"
        assert (await manager.close()).clean


class Cut(PickyComparing):
    """One whose first answer is lost."""

    is_cut = True

    def write(self, session_id: str, data: dict[str, Any]) -> None:
        if self.is_cut:
            self.is_cut = False
            raise ConnectionError("cut")
        super().write(session_id, data)


async def test_a_session_that_could_not_be_stored_after_a_lost_answer_is_stored_when_it_can_be_again() -> None:
    async with SessionManager(Cut(), handler=say, flush=POLICIES["write-behind"](None)) as manager:
        await manager.dispatch(BAD, NUL)
        with pytest.raises(errors.StoreUnavailableError):
            await soon(manager.flush())
        await manager.dispatch(BAD, "hi")
        await soon(manager.flush())

        assert manager.health().status == "ready"
        assert (await manager.close()).clean


def broken(session_id: str) -> Callable[..., Any]:
    """Make a `to_bytes` or `to_document` that fails for *session_id*."""
    to_bytes, to_document = Record.to_bytes, Record.to_document

    def fail(form: Callable[[Record], Any]) -> Callable[[Record], Any]:
        def encode(self: Record) -> Any:
            if self.session_id == session_id:
                raise ValueError("this record cannot be encoded")
            return form(self)

        return encode

    return lambda patch: (
        patch.setattr(Record, "to_bytes", fail(to_bytes)),
        patch.setattr(Record, "to_document", fail(to_document)),
    )


@each_store
@each_policy
async def test_a_record_that_cannot_be_encoded_holds_up_no_other(
    make_store: Any, policy: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = make_store(tmp_path)
    encodes = not isinstance(store, MemorySessionStore)
    if isinstance(store, MongoSessionStore):
        encode = mongo.encode_record
        monkeypatch.setattr(
            mongo,
            "encode_record",
            lambda record, store: encode(record, store=store) if record.session_id != BAD else 1 / 0,
        )
    broken(BAD)(monkeypatch)
    manager = SessionManager(store, handler=say, flush=policy(tmp_path), close_timeout=0.1)
    async with manager:
        failed = await all_say(manager, "hi", "hi")
        if manager.stats().dirty_bytes and encodes:
            with pytest.raises(errors.StoreUnavailableError, match=BAD):
                await soon(manager.flush())
            report = await manager.close()
            assert report.unflushed == (BAD,)
        else:
            assert failed == ([BAD] if encodes else [])
    monkeypatch.undo()
    async with SessionManager(store, handler=say) as manager:
        for user in USERS:
            assert await manager.peek(user) == (None if user == BAD and encodes else {"said": "hi"})


@pytest.mark.parametrize("kind", [Picky, AsyncPicky, PickyRecords])
async def test_the_bad_one_is_found_in_two_log_n_calls_and_goes_alone_from_then_on(kind: Any) -> None:
    clock, store = ManualClock(), kind()
    policy = FlushPolicy.write_behind(max_delay=60)
    async with SessionManager(store, handler=say, flush=policy, clock=clock, close_timeout=0.1) as manager:
        await all_say(manager, "hi", NUL)
        await clock.advance(60)
        found = len(store.batches)
        assert found <= 1 + 2 * log2(len(USERS) + 1)
        assert [BAD] in store.batches
        await all_say(manager, "hi again", NUL)
        await clock.advance(60)
        assert all(each == [BAD] or BAD not in each for each in store.batches[found:])
        assert sum("user:8" in each for each in store.batches[found:]) == 1


@pytest.mark.parametrize("kind", [Picky, PickyRecords])
async def test_a_store_that_takes_nothing_is_not_asked_for_each_session(
    kind: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock, store = ManualClock(), kind()
    policy = FlushPolicy.write_behind(max_delay=1)
    manager = SessionManager(store, handler=say, flush=policy, clock=clock, close_timeout=0.1)
    async with manager:
        await all_say(manager, NUL, NUL)
        await clock.advance(1)
        await until(lambda: manager.stats().store_retries)
        assert len(store.batches) <= 3 + 2 * log2(len(USERS) + 1) + 4  # and a call after each pause of this second
        assert "has not taken writes" in manager.health().reason
        monkeypatch.setattr(f"{__name__}.refuse", lambda _: None)  # somebody has mended the database
        await advancing(clock, manager.flush())
        assert (await manager.close()).clean


@pytest.mark.parametrize("many", [3, 20, 40])
async def test_many_bad_sessions_side_by_side_hold_up_no_other(many: int) -> None:
    clock, store = ManualClock(), Picky()
    policy = FlushPolicy.write_behind(max_delay=1)
    async with SessionManager(store, handler=say, flush=policy, clock=clock, close_timeout=0.1) as manager:
        for n, user in enumerate(USERS):
            await manager.dispatch(user, NUL if n < many else "hi")
        async with asyncio.timeout(20):
            while len(store.data) < len(USERS) - many:
                await clock.advance(0.5)
        assert set(store.data) == set(USERS[many:])


OUTAGES = [
    errors.StoreUnavailableError("server", "told to fail"),
    errors.OutcomeUnknownError("server", "told to fail"),
    ConnectionResetError(),
    TimeoutError(),
]


@pytest.mark.parametrize("kind", [Picky, PickyRecords])
@pytest.mark.parametrize("error", OUTAGES, ids=lambda error: type(error).__name__)
async def test_the_batches_of_an_outage_are_not_divided(kind: Any, error: Exception, monkeypatch) -> None:
    clock, store = ManualClock(), kind()
    policy = FlushPolicy.write_behind(max_delay=1)
    async with SessionManager(store, handler=say, flush=policy, clock=clock, close_timeout=0.1) as manager:
        await all_say(manager, "hi", "hi")
        with monkeypatch.context() as patch:
            patch.setattr(f"{__name__}.refuse", lambda _: (_ for _ in ()).throw(error))
            await clock.advance(5)
            assert len(store.batches) > 1
            assert {len(batch) for batch in store.batches} == {len(USERS)}
        await advancing(clock, manager.flush())


@pytest.mark.parametrize("mode", ["write-behind", "write-through"])
async def test_a_conflict_that_is_raised_for_a_whole_batch_is_that_of_one_session(mode: str) -> None:
    class Raising(MemorySessionStore):
        def write_many(self, writes: Sequence[Write]) -> Sequence[errors.ActorbotError | None]:
            for write in writes:
                stored = self.read_many([write.record.session_id])[0]
                if isinstance(stored, Record) and write.base is not None and stored.write_id != write.base:
                    raise write.conflict(self.name)
            return super().write_many(writes)

    store, conflicts = Raising(), []
    manager = SessionManager(
        store, handler=say, flush=POLICIES[mode](None), on_conflict=lambda *each: conflicts.append(each[0])
    )
    async with manager:
        await all_say(manager, "hi", "hi")
        await manager.flush()
        store.write(BAD, {"said": "something else"})
        assert await all_say(manager, "hi again", "lost") == []
        if mode == "write-behind":
            with pytest.raises(errors.ConflictError):
                await soon(manager.flush())
            await until(lambda: conflicts == [BAD])
        assert store.read("user:8") is not None
        assert store.read("user:8")["said"] == "hi again"  # type: ignore[index]
        assert manager.health().status == "ready"
        assert (await manager.close()).clean


async def test_a_destroy_beside_a_session_that_cannot_be_stored_is_done() -> None:
    store = Picky()
    async with SessionManager(store, handler=say, flush=POLICIES["write-behind"](None), close_timeout=0.1) as manager:
        await all_say(manager, "hi", "hi")
        await manager.flush()
        await all_say(manager, "hi again", NUL)
        flushing = asyncio.gather(manager.flush(), return_exceptions=True)
        await soon(asyncio.gather(*map(manager.destroy, USERS[10:20])))
        await soon(flushing)
        assert not set(USERS[10:20]) & set(store.data)
        assert store.data["user:8"]["said"] == "hi again"


async def test_what_the_journal_has_is_brought_to_the_store_but_for_the_bad_one(tmp_path: Path) -> None:
    down = FaultyStore()
    down.outlives_process = True
    async with SessionManager(down, handler=say, flush=POLICIES["journaled"](tmp_path), close_timeout=0.1) as manager:
        await all_say(manager, "hi", NUL)
        down.outage()
    store = PickyRecords()
    async with SessionManager(store, handler=say, flush=POLICIES["journaled"](tmp_path), close_timeout=0.1) as manager:
        await until(lambda: store.count() == len(USERS) - 1)
        await until(lambda: repr(BAD) in manager.health().reason)
        assert await manager.peek(BAD) == {"said": NUL}
        assert (await manager.close()).unflushed == (BAD,)


# --- reading -------------------------------------------------------------------------------------


class PickyReader(Picky):
    def read_many(self, session_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        self.batches.append(list(session_ids))
        if BAD in session_ids:
            raise ValueError("a row is no JSON")
        return {each: self.data[each] for each in session_ids if each in self.data}


class AsyncPickyReader(AsyncPicky):
    async def read_many(self, session_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
        return PickyReader.read_many(self, session_ids)  # type: ignore[arg-type]


class PickyRecordReader(PickyRecords):
    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | errors.ActorbotError | None]:
        self.batches.append(list(session_ids))
        if BAD in session_ids:
            raise ValueError("a row is no record")
        return super().read_many(session_ids)


@pytest.mark.parametrize("kind", [PickyReader, AsyncPickyReader, PickyRecordReader])
async def test_a_session_that_cannot_be_read_holds_up_no_other(kind: Any) -> None:
    store = kind()
    async with SessionManager(store, handler=say) as manager:
        assert await all_say(manager, "hi", "hi") == [BAD]
        with pytest.raises(errors.StoreUnavailableError, match=f"{BAD}.*ValueError: a row is no"):
            await soon(manager.dispatch(BAD, "hi"))
        assert len(store.batches) <= 5 + 2 * log2(len(USERS) + 1)
        assert await manager.dispatch("user:8", "hi again") is None


async def test_a_store_that_can_read_nothing_is_not_asked_for_each_session() -> None:
    class Mute(PickyReader):
        def read_many(self, session_ids: Sequence[str]) -> dict[str, dict[str, Any]]:
            self.batches.append(list(session_ids))
            raise ValueError("no")

    store = Mute()
    async with SessionManager(store, handler=say) as manager:
        assert await all_say(manager, "hi", "hi") == USERS
        assert len(store.batches) < len(USERS)  # under load they come in more than one batch


def test_a_call_that_is_refused_whatever_its_part_is_given_up_after_few_calls() -> None:
    parts: list[Sequence[str]] = []

    def refuse_all(part: Sequence[str]) -> Sequence[None]:
        parts.append(part)
        raise ValueError("no")

    with pytest.raises(errors.StoreUnavailableError):
        ask_in_parts(errors.StoreUnavailableError, "mute", refuse_all, USERS)
    assert len(parts) <= 3 + 2 * log2(len(USERS) + 1)
