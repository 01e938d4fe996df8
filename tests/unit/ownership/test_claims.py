"""After an owner that went without a word: each session's first turn is stored before it is
acknowledged, so that what the old owner writes late is a conflict of his.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from actorbot import Context, FlushPolicy, SessionManager, errors
from actorbot._ownership.lease import Lease
from tests.handlers import count, count_plainly
from tests.homes import on_a_loop, on_threads
from tests.unit.ownership.owners import holder
from tests.unit.ownership.places import Place, Reached
from tests.unit.ownership.test_taking import LATER, manager_of
from tests.waiting import HANGS, soon, until


@pytest.fixture
def unclean(place: Place) -> Place:
    """A place whose last owner was taken over, and may come back."""
    place.text = Lease(6, {}, {"old": holder(epoch=6, until=place.now())}).to_text()
    return place


def stored(place: Place, session_id: str = "ann") -> Any:
    """Return the session's "n" in the store."""
    data = place.read(session_id)
    return None if data is None else data["n"]


@asynccontextmanager
async def old_owner(place: Place) -> AsyncIterator[tuple[SessionManager, Reached]]:
    """The old owner, who knows of nothing."""
    store = Reached(place)
    manager = manager_of(store, ownership="none", close_timeout=0.2)
    async with manager:
        yield manager, store


async def take_turn(manager: SessionManager, verb: str) -> None:
    if verb == "dispatch":
        await manager.dispatch("ann", "hi", event_id="1")
    elif verb == "submit":
        await (await manager.submit("ann", "hi")).result()
    else:
        async with manager.turn("ann") as turn:
            count_plainly(turn)


@pytest.mark.parametrize("verb", ["dispatch", "submit", "turn"])
@pytest.mark.parametrize("policy", ["write-behind", "journaled"])
async def test_a_sessions_first_turn_is_in_the_store_before_it_is_acknowledged(
    unclean: Place, verb: str, policy: str, tmp_path: Path
) -> None:
    flush = LATER if policy == "write-behind" else FlushPolicy.journaled(tmp_path / "journal", max_delay=3600.0)
    async with manager_of(Reached(unclean), flush=flush) as manager:
        await take_turn(manager, verb)
        assert stored(unclean) == 1
        await take_turn(manager, "turn")
        assert stored(unclean) == 1  # it is ours by now
        await take_turn(manager, "submit")
        assert await manager.dispatch("bob", "hi") == 1
        assert stored(unclean, "bob") == 1
        assert manager.stats().handled == 4
    assert stored(unclean) == 3


async def test_without_an_owner_that_may_come_back_the_first_turn_costs_nothing(place: Place) -> None:
    store = Reached(place)
    async with manager_of(store) as manager:
        assert await manager.dispatch("ann", "hi") == 1
        assert store.write_calls == 0


@pytest.mark.parametrize("home", [on_threads, on_a_loop])
def test_it_is_so_on_threads_too(unclean: Place, home: Any) -> None:
    with home(store=Reached(unclean), handler=count_plainly, flush=LATER) as manager:
        assert manager.dispatch_sync("ann", "hi") == 1
        assert stored(unclean) == 1
        assert manager.dispatch_sync("ann", "hi") == 2
        assert stored(unclean) == 1


async def test_a_session_that_has_ended_or_expired_or_was_destroyed_is_claimed_like_any_other(unclean: Place) -> None:
    async def handle(context: Context) -> int:
        if context.event == "end":
            context.end_session()
        return count_plainly(context)

    async with manager_of(Reached(unclean), ownership="none", handler=handle) as before:
        for session_id in ("ended", "destroyed", "again"):
            await before.dispatch(session_id, "hi")
        await before.dispatch("ended", "end")
        await before.destroy("destroyed")
    async with manager_of(Reached(unclean), handler=handle) as manager:
        for session_id in ("ended", "destroyed"):
            assert await manager.dispatch(session_id, "hi") == 1
            assert stored(unclean, session_id) == 1
        await manager.dispatch("again", "end")  # a first turn that ends it
        assert unclean.read("again") is None
        assert await manager.dispatch("again", "hi") == 1
        assert unclean.read("again") is None  # the end was the claim


async def test_what_the_old_owner_writes_late_is_a_conflict_of_his(unclean: Place) -> None:
    async with old_owner(unclean) as (old, _):
        await old.dispatch("ann", "hi")
        await old.flush()
        assert await old.dispatch("ann", "hi") == 2  # acknowledged, and not flushed
        async with manager_of(Reached(unclean)) as manager:
            assert await manager.dispatch("ann", "hi") == 2
            assert await manager.dispatch("ann", "hi") == 3
            with pytest.raises(errors.ConflictError):
                await old.flush()
            assert manager.conflicts() == []
        assert [each.state for each in old.conflicts()] == [{"n": 2}]
    assert stored(unclean) == 3


@pytest.mark.parametrize("policy", ["write-behind", "journaled"])
async def test_a_turn_that_the_old_owner_comes_before_is_run_again_on_what_he_wrote(
    unclean: Place, policy: str, tmp_path: Path
) -> None:
    runs: list[int] = []
    started, go_on = asyncio.Event(), asyncio.Event()

    async def handle(context: Context) -> int:
        context.send_text("hello")
        runs.append(await count(context))
        started.set()
        await go_on.wait()
        return runs[-1]

    sent: list[str] = []
    flush = LATER if policy == "write-behind" else FlushPolicy.journaled(tmp_path / "journal", max_delay=3600.0)
    async with old_owner(unclean) as (old, _):
        await old.dispatch("ann", "hi")
        await old.flush()
        assert await old.dispatch("ann", "hi") == 2
        async with manager_of(
            Reached(unclean), flush=flush, handler=handle, deliver=lambda _, text: sent.append(text)
        ) as manager:
            waiting = asyncio.create_task(manager.dispatch("ann", "hi", event_id="1"))
            await started.wait()
            await old.flush()
            go_on.set()

            assert await soon(waiting) == 3
            assert runs == [2, 3]
            assert stored(unclean) == 3
            assert manager.conflicts() == []
            assert manager.stats().handled == 1
        assert sent == ["hello"]


async def test_a_borrowed_turn_that_the_old_owner_comes_before_is_rolled_back_and_says_so(unclean: Place) -> None:
    async with old_owner(unclean) as (old, _), manager_of(Reached(unclean)) as manager:
        await old.dispatch("ann", "hi")
        with pytest.raises(errors.ConflictError):
            async with manager.turn("ann") as turn:
                count_plainly(turn)
                await old.flush()
        async with manager.turn("ann") as turn:
            assert count_plainly(turn) == 2
        assert stored(unclean) == 2


async def test_a_session_that_the_old_owner_writes_again_and_again_is_an_error_at_last(unclean: Place) -> None:
    async with old_owner(unclean) as (old, _):

        async def handle(context: Context) -> int:
            await old.dispatch("ann", "hi")
            await old.flush()
            return count_plainly(context)

        async with manager_of(Reached(unclean), handler=handle) as manager:
            with pytest.raises(errors.ConflictError, match="'ann'"):
                await soon(manager.dispatch("ann", "hi"))
            assert manager.conflicts() == []
        assert stored(unclean) == 4  # the first run, and three again


async def test_while_the_store_takes_no_writes_a_session_that_is_not_claimed_is_not_acknowledged(
    unclean: Place,
) -> None:
    store = Reached(unclean)
    async with manager_of(store) as manager:
        assert await manager.dispatch("ann", "hi") == 1
        store.fail_writes(10**6)
        assert await manager.dispatch("ann", "hi") == 2  # hers was
        with pytest.raises(errors.StoreUnavailableError, match="memory"):
            await soon(manager.dispatch("bob", "hi"))
        assert unclean.read("bob") is None
        store.fail_writes(0)
        assert await soon(manager.dispatch("bob", "hi")) == 1
        assert stored(unclean, "bob") == 1
    assert stored(unclean) == 2


async def test_a_claim_whose_answer_was_lost_is_looked_at_before_the_next_turn(unclean: Place) -> None:
    store = Reached(unclean)
    async with manager_of(store) as manager:
        store.lose_replies(1)
        value = None
        try:
            value = await soon(manager.dispatch("ann", "hi", event_id="1"))
        except errors.OutcomeUnknownError:
            await manager.dispatch("ann", "hi", event_id="1")  # as a platform does
        assert value in (None, 1)
        assert await manager.dispatch("ann", "hi", event_id="2") == 2
    assert stored(unclean) == 2


@dataclass
class Counter:
    n: int = 0


async def test_a_session_of_a_type_of_its_own_is_claimed_too(unclean: Place) -> None:
    async def handle(context: Context) -> int:
        context.session.n += 1
        return int(context.session.n)

    async with manager_of(Reached(unclean), handler=handle, session_type=Counter) as manager:
        assert await manager.dispatch("ann", "hi") == 1
        assert stored(unclean) == 1
        assert await manager.dispatch("ann", "hi") == 2
        assert stored(unclean) == 1


async def test_a_session_that_comes_back_into_memory_is_claimed_once(unclean: Place) -> None:
    store = Reached(unclean)
    async with manager_of(store, max_resident=1) as manager:
        await manager.dispatch("ann", "hi")
        await manager.dispatch("bob", "hi")  # for whom she has left memory
        assert [each for each, _ in manager.resident()] == ["bob"]
        writes = store.write_calls
        assert await manager.dispatch("ann", "hi") == 2
        assert store.write_calls == writes
        assert stored(unclean) == 1


async def test_a_destroy_is_a_claim(unclean: Place) -> None:
    async with old_owner(unclean) as (old, _), manager_of(Reached(unclean)) as manager:
        await old.dispatch("ann", "hi")
        await old.flush()
        assert await old.dispatch("ann", "hi") == 2
        await manager.destroy("ann")
        assert unclean.read("ann") is None
        with pytest.raises(errors.ConflictError):
            await old.flush()
        assert unclean.read("ann") is None
        assert await manager.dispatch("ann", "hi") == 1


async def test_what_a_journal_has_of_a_session_is_in_the_store_with_its_claim(place: Place, tmp_path: Path) -> None:
    policy = FlushPolicy.journaled(tmp_path / "journal", max_delay=3600.0)
    store = Reached(place)
    first = await manager_of(store, flush=policy, close_timeout=0.2).start()
    assert await first.dispatch("ann", "hi") == 1
    assert await first.dispatch("ann", "hi") == 2
    store.fail_writes(10**6)
    await first.close()
    store = Reached(place)
    store.hold()
    manager = manager_of(store, flush=policy)
    starting = asyncio.create_task(manager.start())
    store.release()
    await soon(starting)
    assert place.holder is not None
    assert place.holder.claims

    assert await manager.dispatch("ann", "hi") == 3
    assert stored(place) in (2, 3)  # what the journal had is the claim, if it came first
    await manager.close()
    assert stored(place) == 3


async def test_a_first_turn_whose_caller_goes_while_it_is_stored_is_committed(unclean: Place) -> None:
    store = Reached(unclean)
    async with manager_of(store) as manager:
        writing = store.pause("write")
        waiting = asyncio.create_task(manager.dispatch("ann", "hi"))
        await until(writing.reached.is_set)
        waiting.cancel()
        writing.open()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(waiting, HANGS)
        assert await soon(manager.dispatch("ann", "hi")) == 2
        assert stored(unclean) == 1
