"""Events whose replies are held from outside, or not sent: for who runs a manager for others."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest

from actorbot import DUPLICATE, Context, FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot._manager.embedding import committed, dispatch_with, flushed, is_flushed
from actorbot.testing import FaultyStore
from tests.handlers import count, count_plainly
from tests.waiting import breathe, soon, until

POLICIES = {
    "write-behind": lambda _: FlushPolicy.write_behind(max_delay=3600.0),
    "write-through": lambda _: FlushPolicy.write_through(),
    "journaled": lambda folder: FlushPolicy.journaled(folder / "journal"),
}
each_policy = pytest.mark.parametrize("policy", POLICIES)


class Users:
    """A handler that replies, or fails if it is told to, and what users have got."""

    def __init__(self) -> None:
        self.got: list[str] = []
        self.gone = False

    async def handle(self, context: Context) -> int:
        n = count_plainly(context)
        context.send_text(f"{context.event} {n}")
        if context.event == "now":
            context.send_text("ungated", gated=False)
        if context.event == "fail":
            raise ValueError("told to fail")
        return n

    async def deliver(self, _: str, text: str) -> None:
        if self.gone:
            raise ConnectionError("gone")
        self.got.append(text)

    async def sorry(self, context: Context, _: BaseException) -> None:
        context.send_text("sorry")


def make_manager(users: Users, **options: Any) -> SessionManager:
    return SessionManager(handler=users.handle, deliver=users.deliver, on_error=users.sorry, **options)


@each_policy
async def test_replies_wait_for_the_confirmation_and_later_ones_of_the_session_for_them(
    policy: str, tmp_path: Path
) -> None:
    users, confirmation = Users(), Future[None]()
    async with make_manager(users, flush=POLICIES[policy](tmp_path)) as manager:
        assert await dispatch_with(manager, "ann", "held", confirmation=confirmation, event_id="e1") == 1
        assert await dispatch_with(manager, "ann", "held", confirmation=confirmation, event_id="e1") is DUPLICATE
        assert await manager.dispatch("ann", "then") == 2
        assert await manager.dispatch("bob", "hi") == 1
        await until(lambda: users.got == ["hi 1"])
        await breathe()
        assert users.got == ["hi 1"]
        assert manager.stats().replies_waiting == 2
        confirmation.set_result(None)
        await soon(manager.delivered("ann"))
        assert users.got == ["hi 1", "held 1", "then 2"]
        confirmed = Future[None]()
        confirmed.set_result(None)
        await dispatch_with(manager, "ann", "held", confirmation=confirmed)
        await soon(manager.delivered("ann"))
        assert users.got[3:] == ["held 3"]


@each_policy
@pytest.mark.parametrize("how", ["fails", "fails with an error of ours", "is cancelled"])
async def test_replies_whose_confirmation_fails_are_never_sent_and_keep_no_room(
    policy: str, how: str, tmp_path: Path
) -> None:
    users, confirmation = Users(), Future[None]()
    async with make_manager(users, flush=POLICIES[policy](tmp_path)) as manager:
        assert await dispatch_with(manager, "ann", "held", confirmation=confirmation) == 1
        await manager.dispatch("ann", "then")
        if how == "is cancelled":
            confirmation.cancel()
        else:
            confirmation.set_exception(
                RuntimeError("no") if how == "fails" else errors.OwnershipLostError("memory", "no")
            )
        await soon(manager.delivered("ann"))
        assert users.got == ["then 2"]  # the state stands
        assert manager.stats().replies_waiting == 0


async def test_a_confirmation_is_waited_for_besides_the_acknowledgement() -> None:
    users, store, confirmation = Users(), FaultyStore(), Future[None]()
    async with make_manager(users, store=store, flush=FlushPolicy.write_behind(max_delay=3600.0)) as manager:
        await manager.dispatch("ann", "hi")
        await soon(manager.delivered("ann"))
        store.hold()
        running = asyncio.create_task(dispatch_with(manager, "ann", "held", durable=True, confirmation=confirmation))
        await until(lambda: store.write_calls)
        confirmation.set_result(None)
        await breathe()
        assert users.got == ["hi 1"]
        store.release()
        assert await soon(running) == 2
        await soon(manager.delivered("ann"))
        assert users.got == ["hi 1", "held 2"]


@each_policy
async def test_a_silent_event_changes_its_session_and_answers_its_caller_and_nobody_else(
    policy: str, tmp_path: Path
) -> None:
    users = Users()
    async with make_manager(users, flush=POLICIES[policy](tmp_path), max_replies=1) as manager:
        for n in (1, 2, 3):
            assert await dispatch_with(manager, "ann", "quiet", silent=True, event_id=f"{n}") == n
        assert await dispatch_with(manager, "ann", "now", silent=True) == 4
        await until(lambda: not manager.stats().replies_waiting)
        with pytest.raises(ValueError):
            await dispatch_with(manager, "ann", "fail", silent=True)
        assert await manager.dispatch("ann", "hi") == 5
        await soon(manager.delivered("ann"))
        assert users.got == ["ungated", "hi 5"]
        assert manager.stats().replies_waiting == 0


async def test_what_on_error_replies_waits_for_the_confirmation_too() -> None:
    users, confirmations = Users(), [Future[None]() for _ in range(3)]
    async with make_manager(users) as manager:
        for confirmation in confirmations[:2]:
            with pytest.raises(ValueError):
                await dispatch_with(manager, "ann", "fail", confirmation=confirmation)
        await breathe()
        assert users.got == []
        confirmations[0].set_result(None)
        confirmations[1].set_exception(RuntimeError("no"))
        await soon(manager.delivered("ann"))
        assert users.got == ["sorry"]


async def test_a_silent_event_that_meets_a_conflict_runs_again_silently() -> None:
    users, store = Users(), MemorySessionStore()
    policy = FlushPolicy.write_through()
    async with (
        make_manager(users, store=store, flush=policy) as manager,
        SessionManager(store, handler=count, flush=policy) as other,
    ):
        await manager.dispatch("ann", "hi")
        await other.dispatch("ann", "hi")
        assert await dispatch_with(manager, "ann", "quiet", silent=True) == 3
        await soon(manager.delivered("ann"))
    assert users.got == ["hi 1"]


async def test_a_close_does_not_wait_for_ever_and_a_late_confirmation_sends_nothing() -> None:
    users, confirmation = Users(), Future[None]()
    manager = await make_manager(users).start()
    await dispatch_with(manager, "ann", "held", confirmation=confirmation)
    assert (await manager.release("ann", timeout=0.05)).undelivered == 1
    report = await soon(manager.close(timeout=0.2))
    assert report.undelivered == 1
    confirmation.set_result(None)
    await breathe()
    assert users.got == []


async def test_a_thousand_sessions_may_wait_for_confirmations_without_a_task_for_each() -> None:
    users, confirmation = Users(), Future[None]()
    async with make_manager(users) as manager:
        before = len(asyncio.all_tasks())
        for number in range(1000):
            await dispatch_with(manager, f"user:{number}", "held", confirmation=confirmation)
        assert len(asyncio.all_tasks()) == before
        confirmation.set_result(None)
        await until(lambda: len(users.got) == 1000)


async def test_an_event_that_comes_after_what_a_conflict_has_taken_is_not_handled() -> None:
    store, users = MemorySessionStore(), Users()
    async with make_manager(users, store=store, flush=POLICIES["write-behind"](Path())) as manager:
        await manager.dispatch("ann", "hi")
        before = committed(manager, "ann")
        assert before is not None
        waiting = flushed(manager, before)
        async with make_manager(users, store=store) as other:
            await other.dispatch("ann", "of somebody else")
        assert not is_flushed(before)
        with pytest.raises(errors.ConflictError):
            await manager.flush("ann")
        with pytest.raises(errors.ConflictError):
            await soon(asyncio.wrap_future(waiting))
        with pytest.raises(errors.ConflictError):
            await dispatch_with(manager, "ann", "after it", after=before)
        assert await manager.peek("ann") == {"n": 1}
        assert await manager.dispatch("ann", "whatever came") == 2


async def test_to_wait_until_something_is_flushed_hurries_nobody() -> None:
    async with make_manager(Users(), flush=POLICIES["write-behind"](Path())) as manager:
        await manager.dispatch("ann", "hi")
        goal = committed(manager, "ann")
        assert goal is not None
        waiting = flushed(manager, goal)
        await breathe()
        assert not waiting.done()
        await manager.flush("ann")
        await soon(asyncio.wrap_future(waiting))
        assert is_flushed(goal)


async def test_a_claim_is_in_the_store_before_it_is_acknowledged_whatever_the_policy_says() -> None:
    store = MemorySessionStore()
    async with make_manager(Users(), store=store, flush=POLICIES["write-behind"](Path())) as manager:
        assert await dispatch_with(manager, "ann", "hi", claim=True) == 1
        assert await manager.dispatch("ann", "hi") == 2
        async with SessionManager(store) as reader:
            assert await reader.peek("ann") == {"n": 1}
