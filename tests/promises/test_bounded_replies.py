"""G8: replies that wait for `deliver` are bounded in number and bytes. An event that would exceed a
bound is refused at once, before its commit.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from actorbot import DUPLICATE, Context, FlushPolicy, SessionManager, errors
from actorbot.testing import FaultyStore
from tests.homes import both_homes
from tests.waiting import HANGS, soon, until, until_sync

SMALL = 64 * 1024  # bytes: the least that `max_dirty_bytes` may be; one session has a quarter of it


class Platform:
    """Takes no message until it is there."""

    def __init__(self) -> None:
        self.taken: list[Any] = []
        self._there = threading.Event()

    def come(self) -> None:
        self._there.set()

    def deliver(self, _: str, message: Any) -> None:
        assert self._there.wait(HANGS)
        self.taken.append(message)

    async def deliver_on_loop(self, session_id: str, message: Any) -> None:
        await until(self._there.is_set)
        self.taken.append(message)


async def answer(context: Context) -> int:
    """Send what the event says, or as many replies as it says; count the events."""
    context.session["n"] = context.session.get("n", 0) + 1
    messages = range(context.event) if isinstance(context.event, int) else [context.event]
    for message in messages:
        context.send(message)
    return int(context.session["n"])


@both_homes
def test_a_session_whose_replies_are_not_taken_is_refused_at_once_and_no_other(home: Any) -> None:
    platform = Platform()
    with home(handler=answer, deliver=platform.deliver, max_replies=3) as manager:
        try:
            for number in range(3):
                assert manager.dispatch_sync("ann", f"{number}", event_id=f"{number}") == number + 1
            for _ in range(20):
                with pytest.raises(errors.OverloadedError, match=r"'ann'.*max_replies=3"):
                    manager.dispatch_sync("ann", "refused", event_id="3")
            assert manager.peek_sync("ann") == {"n": 3}
            assert (manager.stats().replies_waiting, manager.stats().reply_bytes) == (3, 3)
            assert manager.health().status == "degraded"
            assert "'ann'" in manager.health().reason
            assert manager.dispatch_sync("bob", "hello") == 1
        finally:
            platform.come()
        until_sync(lambda: not manager.stats().replies_waiting)

        assert manager.health().status == "ready"
        assert manager.dispatch_sync("ann", "3", event_id="3") == 4
        assert manager.dispatch_sync("ann", "again", event_id="3") is DUPLICATE
        until_sync(lambda: not manager.stats().replies_waiting)
    assert sorted(platform.taken) == ["0", "1", "2", "3", "hello"]


async def test_the_replies_of_all_sessions_are_bounded_too() -> None:
    platform = Platform()
    async with SessionManager(handler=answer, deliver=platform.deliver_on_loop, max_replies=2) as manager:
        for user in range(100):
            await manager.dispatch(f"user:{user}", 2)
        with pytest.raises(errors.OverloadedError, match="all sessions: 200 replies"):
            await manager.dispatch("user:100", "hi")
        assert manager.stats().replies_waiting == 200
        assert "replies wait for deliver" in manager.health().reason
        assert await manager.peek("user:100") is None
        platform.come()
        await until(lambda: not manager.stats().replies_waiting)
        assert await manager.dispatch("user:100", "hi") == 1


@pytest.mark.parametrize("catches", [False, True])
@pytest.mark.parametrize("most", [3, 1_500])
async def test_a_turn_that_alone_has_too_many_replies_is_refused(catches: bool, most: int) -> None:
    platform = Platform()

    async def handle(context: Context) -> None:
        context.session["n"] = 1
        for number in range(context.event):
            try:
                context.send(number)
            except errors.OverloadedError:
                if not catches:
                    raise

    async with SessionManager(handler=handle, deliver=platform.deliver_on_loop, max_replies=most) as manager:
        with pytest.raises(errors.OverloadedError, match=f"'ann': its handler sends more .*max_replies={most}.* fewer"):
            await manager.dispatch("ann", most + 100)
        assert await manager.peek("ann") is None
        await manager.dispatch("ann", most)
        assert manager.stats().replies_waiting == most
        platform.come()


@pytest.mark.parametrize("kind", [str, bytes])
async def test_the_bytes_of_waiting_replies_are_bounded(kind: type) -> None:
    platform, policy = Platform(), FlushPolicy.write_behind(max_dirty_bytes=SMALL)

    def text(size: int) -> Any:
        return "x" * size if kind is str else b"x" * size

    async def handle(context: Context) -> None:
        context.session["n"] = 1
        for size in context.event:
            context.send(text(size))

    async with SessionManager(handler=handle, deliver=platform.deliver_on_loop, flush=policy) as manager:
        with pytest.raises(errors.OverloadedError, match="a quarter of max_dirty_bytes"):
            await manager.dispatch("ann", [SMALL // 8, SMALL // 8, 1])
        assert await manager.peek("ann") is None
        await manager.dispatch("ann", [10 * SMALL])  # one reply has room, however large it is
        with pytest.raises(errors.OverloadedError, match=r"'ann'.*bytes of replies"):
            await manager.dispatch("ann", [1])
        with pytest.raises(errors.OverloadedError, match=r"all sessions.*\(max_dirty_bytes"):
            await manager.dispatch("bob", [1])
        assert manager.stats().reply_bytes == 10 * SMALL
        assert "bytes" in manager.health().reason
        platform.come()
        await until(lambda: not manager.stats().reply_bytes)
        await manager.dispatch("bob", [1])


async def test_ungated_replies_and_apologies_are_bounded_as_well() -> None:
    platform = Platform()
    refused: list[BaseException] = []

    async def handle(context: Context) -> None:
        if context.event == "fail":
            raise ValueError
        context.send_text("now", gated=False)

    async def apologize(context: Context, _: BaseException) -> None:
        try:
            context.send_text("sorry")
        except errors.OverloadedError as error:
            refused.append(error)

    async with SessionManager(
        handler=handle, deliver=platform.deliver_on_loop, on_error=apologize, max_replies=2
    ) as manager:
        await manager.dispatch("ann", "hi")
        with pytest.raises(ValueError):
            await manager.dispatch("ann", "fail")
        assert refused == []
        for _ in range(10):
            with pytest.raises(errors.OverloadedError):
                await manager.dispatch("ann", "hi")
            with pytest.raises(ValueError):
                await manager.dispatch("ann", "fail")
        assert len(refused) == 20
        assert manager.stats().replies_waiting == 2
        platform.come()
        await until(lambda: not manager.stats().replies_waiting)
    assert sorted(platform.taken) == ["now", "sorry"]


@pytest.mark.parametrize("mode", ["write-behind", "write-through", "journaled"])
async def test_a_turn_that_failed_gives_its_room_back(mode: str, tmp_path: Path) -> None:
    platform, store = Platform(), FaultyStore()
    policy = {
        "write-behind": FlushPolicy.write_behind(),
        "write-through": FlushPolicy.parse("write-through:retry.base=0.01"),
        "journaled": FlushPolicy.journaled(tmp_path / "journal"),
    }[mode]

    async def handle(context: Context) -> None:
        context.send_text("hello")
        if context.event == "fail":
            raise ValueError
        if context.event == "odd":
            context.session["odd"] = object()

    async with SessionManager(
        store, handler=handle, deliver=platform.deliver_on_loop, flush=policy, max_replies=2
    ) as manager:
        await manager.dispatch("ann", "hi")
        for _ in range(5):
            with pytest.raises(ValueError):
                await manager.dispatch("ann", "fail")
            with pytest.raises(errors.NotEncodableError):
                await manager.dispatch("ann", "odd")
            with pytest.raises(ValueError):
                async with manager.turn("ann") as turn:
                    turn.send_text("hello")
                    raise ValueError
            if mode == "write-through":
                store.outage()
                with pytest.raises(errors.StoreUnavailableError):
                    await manager.dispatch("ann", "hi")
                store.restore()
        assert manager.stats().replies_waiting == 1
        async with manager.turn("ann") as turn:
            turn.send_text("hello")
        with pytest.raises(errors.OverloadedError):
            async with manager.turn("ann") as turn:
                turn.session["n"] = 1
                turn.send_text("hello")
        assert await manager.peek("ann") == {}
        platform.come()
        await until(lambda: not manager.stats().replies_waiting)
    assert platform.taken == ["hello"] * 2


async def test_the_replies_of_a_commit_whose_caller_has_gone_are_counted_in_and_out() -> None:
    platform, store = Platform(), FaultyStore()
    async with SessionManager(
        store, handler=answer, deliver=platform.deliver_on_loop, flush=FlushPolicy.write_through()
    ) as manager:
        await manager.dispatch("ann", "1")
        store.hold()
        calls = store.write_calls
        calling = asyncio.create_task(manager.dispatch("ann", "2"))
        await until(lambda: store.write_calls > calls)
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(calling)
        assert manager.stats().replies_waiting == 1
        store.release()
        await until(lambda: manager.stats().replies_waiting == 2)
        platform.come()
        await until(lambda: not manager.stats().replies_waiting)
    assert platform.taken == ["1", "2"]


async def test_replies_that_their_gate_drops_are_counted_out() -> None:
    store, policy = FaultyStore(), FlushPolicy.parse("write-behind:retry.base=0.01")
    platform = Platform()
    async with SessionManager(
        store, handler=answer, deliver=platform.deliver_on_loop, flush=policy, close_timeout=0.2
    ) as manager:
        await manager.dispatch("ann", "1", durable=True)
        store.outage()
        with pytest.raises(errors.StoreUnavailableError):
            await soon(manager.dispatch("ann", "2", durable=True))
        platform.come()
        await until(lambda: not manager.stats().replies_waiting)
        store.restore()
    assert platform.taken == ["1"]
