"""G12: a close finishes what was accepted, flushes it, and says what it could not do, within its
time.
"""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest

from actorbot import (
    Context,
    FileSessionStore,
    FlushPolicy,
    MemorySessionStore,
    SessionManager,
    errors,
)
from actorbot._manager import closing
from actorbot.testing import FaultyStore
from tests import inside
from tests.handlers import count, count_plainly
from tests.homes import both_homes, on_a_loop
from tests.programs import run_program
from tests.waiting import HANGS, Call, breathe, soon, until, until_sync


async def test_a_closed_manager_says_so_and_its_report_says_what_was_left() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count, close_timeout=0.2).start()
    await manager.dispatch("ann", "hi")
    store.outage()
    report = await manager.close()

    assert report.unflushed == ("ann",)
    assert not report.clean
    with pytest.raises(errors.ManagerClosedError):
        await manager.dispatch("ann", "hi")
    with pytest.raises(errors.ManagerClosedError):
        await SessionManager(handler=count).dispatch("ann", "hi")


def test_a_receipt_gives_its_result_to_threads_after_the_close() -> None:
    with SessionManager(handler=count_plainly) as manager:
        receipt = manager.submit_sync("ann", "hi")
    assert receipt.result_sync(timeout=10.0) == 1
    with pytest.raises(errors.ManagerClosedError):
        receipt.durable_sync(timeout=10.0)


async def test_a_close_logs_every_session_that_it_could_not_flush(caplog: pytest.LogCaptureFixture) -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count).start()
    for user in range(30):
        await manager.dispatch(f"user:{user}", "hi")
    store.outage()
    report = await manager.close(timeout=0.1)

    assert len(report.unflushed) == 30
    assert all(repr(session_id) in caplog.text for session_id in report.unflushed)


async def test_closing_finishes_events_that_were_accepted_in_the_same_breath(tmp_path: Any) -> None:
    store = FileSessionStore(tmp_path / "s")
    manager = await SessionManager(store, handler=count).start()
    for user in range(20):
        await manager.submit(f"user:{user}", "hi")
    report = await manager.close()

    assert report.clean
    store.init()
    assert all((store.read(f"user:{user}") or {}).get("n") == 1 for user in range(20))
    store.close()


async def test_closing_finishes_what_waits_in_a_full_mailbox() -> None:
    store = MemorySessionStore()

    async def handle(context: Context) -> int:
        await asyncio.sleep(0)
        return await count(context)

    manager = await SessionManager(store, handler=handle, max_mailbox=5).start()
    tasks = [asyncio.create_task(manager.dispatch("ann", number)) for number in range(6)]
    await until(lambda: tasks[0].done() or sum(info.waiting for _, info in manager.resident()) == 5)
    report = await manager.close()

    assert report.clean
    assert sorted(await asyncio.gather(*tasks)) == [1, 2, 3, 4, 5, 6]


async def test_nobody_waits_for_a_flush_that_a_close_has_overtaken() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count, close_timeout=0.2).start()
    await manager.dispatch("ann", "hi")
    store.hold()
    destroying = asyncio.create_task(manager.destroy("ann"))
    await asyncio.sleep(0)
    closing = asyncio.create_task(manager.close())
    with pytest.raises(errors.ActorbotError):
        await asyncio.wait_for(destroying, 10)
    store.release()
    await closing


async def test_a_close_waits_for_a_borrowed_turn_and_refuses_new_events() -> None:
    store = MemorySessionStore()
    manager = await SessionManager(store, handler=count).start()
    async with manager.turn("ann") as turn:
        closing = asyncio.create_task(manager.close())
        await breathe()
        assert not closing.done()
        with pytest.raises(errors.ManagerClosedError):
            await manager.dispatch("bob", "hi")
        turn.session["n"] = 7
    assert (await soon(closing)).clean
    assert (store.read("ann") or {})["n"] == 7


async def test_a_close_in_an_outage_keeps_to_its_time_and_names_who_was_left() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count, close_timeout=600.0).start()
    for user in ("ann", "bob"):
        await manager.dispatch(user, "hi")
    store.hold()
    report = await soon(manager.close(timeout=0.2))
    store.release()
    assert set(report.unflushed) == {"ann", "bob"}


async def test_a_handler_may_close_its_manager() -> None:
    reports: list[Any] = []

    async def handle(context: Context) -> None:
        reports.append(await manager.close(timeout=0.2))

    manager = await SessionManager(handler=handle).start()
    outcome = await soon(asyncio.gather(manager.dispatch("ann", "/shutdown"), return_exceptions=True))
    report = await soon(manager.close())
    assert reports == [report], outcome


def test_a_process_that_forgets_to_close_ends() -> None:
    done = run_program("""
        import asyncio
        from actorbot import SessionManager

        async def handle(context):
            context.session["n"] = 1

        async def main():
            manager = await SessionManager(handler=handle).start()
            await manager.dispatch("ann", "hi")

        asyncio.run(main())
    """)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""


async def test_two_closes_at_once_both_return_the_report() -> None:
    go_on = asyncio.Event()

    async def handle(context: Context) -> int:
        await go_on.wait()
        return await count(context)

    manager = await SessionManager(handler=handle).start()
    await manager.submit("ann", "hi")
    closes = [asyncio.create_task(manager.close()) for _ in range(2)]
    await asyncio.sleep(0)
    go_on.set()
    first, second = await soon(asyncio.gather(*closes, return_exceptions=True))
    assert first.clean
    assert second == first


async def test_a_close_that_was_cancelled_can_be_made_again() -> None:
    go_on = asyncio.Event()

    async def handle(context: Context) -> int:
        await go_on.wait()
        return await count(context)

    manager = await SessionManager(handler=handle).start()
    await manager.submit("ann", "hi")
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(manager.close(), 0.05)
    go_on.set()
    report = await soon(manager.close())
    assert report.unflushed == ()


async def test_a_close_goes_on_trying_until_its_time_is_up() -> None:
    store = FaultyStore()
    policy = FlushPolicy.parse("write-behind:retry.attempts=2,retry.base=0.05,retry.cap=0.05")
    manager = await SessionManager(store, handler=count, flush=policy).start()
    await manager.dispatch("ann", "hi")
    store.outage()
    closing = asyncio.create_task(manager.close(timeout=5.0))
    await until(lambda: store.write_calls == 2)
    await breathe()
    store.restore()
    report = await soon(closing)
    assert report.unflushed == ()
    assert (store.read("ann") or {}).get("n") == 1


async def test_one_conflict_at_a_close_keeps_no_other_session_from_being_flushed() -> None:
    store = MemorySessionStore()
    policy = FlushPolicy.write_behind(batch_size=1, max_delay=60)
    theirs = await SessionManager(store, handler=count).start()
    ours = await SessionManager(store, handler=count, flush=policy).start()
    for user in range(200):
        await ours.dispatch(f"user:{user}", "hi")
    await theirs.dispatch("user:0", "hi")
    await theirs.flush()
    report = await soon(ours.close())
    await theirs.close()
    assert [session_id for session_id in report.unflushed if session_id != "user:0"] == []
    assert sum(store.read(f"user:{user}") is not None for user in range(200)) == 200


@pytest.mark.parametrize("what", ["apology", "ungated"])
async def test_a_close_waits_for_every_reply_that_is_on_its_way(what: str) -> None:
    said: list[str] = []

    async def deliver(_: str, text: str) -> None:
        await breathe()
        said.append(text)

    async def apologise(context: Context, _: BaseException) -> None:
        context.send_text("apology")

    async def handle(context: Context) -> None:
        if context.event == "apology":
            raise ValueError("no")
        context.send_text("ungated", gated=False)

    manager = await SessionManager(handler=handle, deliver=deliver, on_error=apologise).start()
    await asyncio.gather(manager.dispatch("ann", what), return_exceptions=True)
    report = await manager.close()
    assert said == [what]
    assert report.clean


async def test_a_reply_that_a_close_did_not_wait_for_is_cancelled() -> None:
    entered, cancelled = asyncio.Event(), asyncio.Event()

    async def deliver(_: str, __: str) -> None:
        entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    async def handle(context: Context) -> None:
        context.send_text("hello")

    manager = await SessionManager(handler=handle, deliver=deliver).start()
    await manager.dispatch("ann", "hi")
    await entered.wait()
    report = await manager.close(timeout=0.05)
    assert report.undelivered == 1
    await soon(cancelled.wait())


async def test_a_handler_that_is_ended_by_a_close_is_not_told_that_it_took_too_long() -> None:
    async def handle(context: Context) -> None:
        await asyncio.Event().wait()

    manager = await SessionManager(handler=handle, handler_timeout=300.0).start()
    dispatching = asyncio.create_task(manager.dispatch("ann", "hi"))
    await until(lambda: manager.stats().running == 1)
    report = await manager.close(timeout=0.05)
    assert report.unfinished == 1
    with pytest.raises(errors.ManagerClosedError):
        await soon(dispatching)


async def test_a_receipt_can_be_awaited_while_the_manager_closes() -> None:
    go_on = asyncio.Event()

    async def handle(context: Context) -> int:
        await go_on.wait()
        return await count(context)

    manager = await SessionManager(handler=handle).start()
    receipt = await manager.submit("ann", "hi")
    closing = asyncio.create_task(manager.close())
    await asyncio.sleep(0)
    waiting = asyncio.create_task(receipt.result())
    await asyncio.sleep(0)
    go_on.set()
    assert await soon(waiting) == 1
    await closing


async def test_a_receipt_gives_its_result_also_after_the_close() -> None:
    manager = await SessionManager(handler=count).start()
    receipt = await manager.submit("ann", "hi")
    await manager.close()
    assert await soon(receipt.result()) == 1
    assert receipt.version == 1


async def test_an_event_that_waits_for_room_at_a_close_is_refused_or_reaches_the_store() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count, max_resident=1).start()
    await manager.dispatch("ann", "hi")
    store.hold()
    waiting = asyncio.create_task(manager.dispatch("bob", "hi"))
    await breathe()
    closing = asyncio.create_task(manager.close(timeout=2.0))
    await breathe()
    store.release()
    await soon(closing)
    (outcome,) = await soon(asyncio.gather(waiting, return_exceptions=True))
    assert isinstance(outcome, errors.ActorbotError) or store.read("bob") is not None


async def test_an_event_whose_session_is_being_read_at_a_close_ends_within_its_time() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count).start()
    store.hold()
    waiting = asyncio.create_task(manager.dispatch("bob", "hi"))
    peeking = asyncio.create_task(manager.peek("ann"))
    await breathe()
    await soon(manager.close(timeout=0.1))
    try:
        outcomes = await soon(asyncio.gather(waiting, peeking, return_exceptions=True))
    finally:
        store.release()
    assert all(isinstance(outcome, errors.ActorbotError) for outcome in outcomes)


async def test_a_durable_dispatch_or_a_flush_that_waits_at_a_close_ends_within_its_time() -> None:
    store = FaultyStore()
    manager = await SessionManager(store, handler=count).start()
    await manager.dispatch("ann", "hi")
    store.hold()
    calls = [manager.dispatch("ann", "hi", durable=True), manager.flush(), manager.destroy("ann")]
    waiting = [asyncio.create_task(call) for call in calls]
    await breathe()
    await soon(manager.close(timeout=0.1))
    try:
        outcomes = await soon(asyncio.gather(*waiting, return_exceptions=True))
    finally:
        store.release()
    assert all(isinstance(outcome, errors.ActorbotError) for outcome in outcomes)


async def test_a_bad_time_out_of_a_close_changes_nothing() -> None:
    manager = await SessionManager(handler=count).start()
    try:
        with pytest.raises(errors.ConfigError):
            await manager.close(timeout="soon")  # type: ignore[arg-type]
        assert await manager.dispatch("ann", "hi") == 1
    finally:
        await manager.close()


async def test_a_handler_that_takes_all_the_time_of_a_close_keeps_no_other_session_from_the_store() -> None:
    store = MemorySessionStore()

    async def handle(context: Context) -> int:
        if context.event == "hang":
            await asyncio.Event().wait()
        return await count(context)

    manager = await SessionManager(store, handler=handle, flush=FlushPolicy.write_behind(max_delay=60)).start()
    await manager.dispatch("ann", "hi")
    hanging = asyncio.create_task(manager.dispatch("bob", "hang"))
    await until(lambda: manager.stats().running == 1)
    report = await soon(manager.close(timeout=0.2))
    await asyncio.gather(hanging, return_exceptions=True)
    assert (report.unflushed, report.unfinished) == ((), 1)
    assert store.read("ann") is not None


# --- its time, and who asks for it ---------------------------------------------------------------


class Hours:
    """Real time as a close sees it, in which every wait for what does not come is over at once."""

    def __init__(self, manager: SessionManager, monkeypatch: pytest.MonkeyPatch) -> None:
        self._now, self._wait = 0.0, inside.home(manager).wait
        monkeypatch.setattr(closing, "monotonic", lambda: self._now)
        monkeypatch.setattr(inside.home(manager), "wait", self.wait)

    async def wait(self, future: Any, timeout: float | None = None) -> Any:
        if timeout is None or future.done():
            return await self._wait(future, timeout)
        self._now += timeout
        raise TimeoutError


HANGING = ["write", "close", "deliver", "on_error", "journal and write", "write-through"]


def hanging(what: str, folder: Path, ends: threading.Event) -> SessionManager:
    """A manager that cannot close: where *what* says, its author's code waits for *ends*."""

    class Store(MemorySessionStore):
        def close(self) -> None:
            if what == "close":
                ends.wait(HANGS)

    def handle(context: Context) -> None:
        if what == "on_error":
            context.send_text("hello", gated=False)
        else:
            context.session["n"] = 1
            context.send_text("hello")

    def deliver(_: str, __: str) -> None:
        if what == "deliver":
            ends.wait(HANGS)
        if what == "on_error":
            raise ValueError

    def apologise(_: Context, __: BaseException) -> None:
        ends.wait(HANGS)

    class Hung(FaultyStore):
        def write(self, *_: Any) -> None:
            ends.wait(HANGS)

    store = Hung() if "write" in what else Store()
    policy = FlushPolicy.write_through() if what == "write-through" else FlushPolicy.write_behind()
    if "journal" in what:
        policy = FlushPolicy.journaled(folder / "journal")
    return SessionManager(store, handler=handle, deliver=deliver, on_error=apologise, flush=policy)


@pytest.mark.parametrize("what", HANGING)
async def test_a_close_keeps_to_its_time_whatever_hangs(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = threading.Event()
    manager = await hanging(what, tmp_path, ends).start()
    try:
        await manager.submit("ann", "hi")
        await breathe()
        Hours(manager, monkeypatch)
        report = await soon(manager.close(timeout=3600.0))
        assert report.seconds <= 3600.2
    finally:
        ends.set()


@pytest.mark.parametrize("what", HANGING)
def test_a_close_of_threads_keeps_to_its_time_whatever_hangs(
    what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ends = threading.Event()
    manager = hanging(what, tmp_path, ends).start_sync()
    try:
        manager.submit_sync("ann", "hi")
        until_sync(lambda: manager.stats().running or manager.stats().handled)
        Hours(manager, monkeypatch)
        report = Call(manager.close_sync, timeout=3600.0).result()
        assert report.seconds <= 3600.2
    finally:
        ends.set()


async def test_a_later_close_with_less_time_hurries_the_first() -> None:
    async def handle(context: Context) -> None:
        await asyncio.Event().wait()

    manager = await SessionManager(handler=handle).start()
    await manager.submit("ann", "hi")
    await until(lambda: manager.stats().running == 1)
    first = asyncio.create_task(manager.close(timeout=3600.0))
    await breathe()
    assert not first.done()

    assert await soon(manager.close(timeout=0.0)) is await soon(first)
    assert first.result().unfinished == 1


@pytest.mark.parametrize("verb", ["dispatch", "submit"])
async def test_a_handler_that_closes_its_manager_is_not_waited_for(verb: str) -> None:
    store = MemorySessionStore()
    reports: list[Any] = []

    async def handle(context: Context) -> None:
        context.session["n"] = 1
        if context.event == "shut down":
            reports.append(await manager.close())

    manager = await SessionManager(store, handler=handle, close_timeout=3600.0).start()
    await manager.dispatch("bob", "hi")
    told = asyncio.ensure_future(getattr(manager, verb)("ann", "shut down"))
    (outcome,) = await soon(asyncio.gather(told, return_exceptions=True))
    await until(lambda: reports)

    assert reports[0].unfinished == 1
    assert isinstance(outcome, errors.ManagerClosedError) == (verb == "dispatch")
    assert (store.read("ann"), store.read("bob") is not None) == (None, True)


@both_homes
def test_a_plain_handler_that_closes_its_manager_is_not_waited_for(home: Any) -> None:
    reports: list[Any] = []

    def handle(context: Context) -> None:
        reports.append(manager.close_sync())

    with home(handler=handle, close_timeout=3600.0) as manager:
        dispatching = Call(manager.dispatch_sync, "ann", "shut down")
        until_sync(lambda: reports)
        assert isinstance(dispatching.error(), errors.ManagerClosedError)
    assert reports[0].unfinished == 1


@both_homes
def test_a_close_waits_for_an_on_error_that_has_begun(home: Any) -> None:
    began, go_on, ended = threading.Event(), threading.Event(), []

    def handle(_: Context) -> None:
        raise ValueError

    def apologise(_: Context, __: BaseException) -> None:
        began.set()
        go_on.wait(HANGS)
        ended.append("on_error")

    def close() -> None:
        manager.close_sync()
        ended.append("close")

    with home(handler=handle, on_error=apologise) as manager:
        manager.submit_sync("ann", "hi")
        assert began.wait(HANGS)
        closing_ = Call(close)
        until_sync(lambda: not inside.is_open(manager))
        threading.Event().wait(0.05)  # to show what does not happen
        go_on.set()
        closing_.result()
        assert ended == ["on_error", "close"]


@pytest.mark.parametrize("who", ["deliver", "on_error", "on_dead_letter", "on_session_start"])
async def test_a_hook_that_closes_its_manager_is_not_waited_for(who: str) -> None:
    reports: list[Any] = []

    async def close(*_: Any) -> None:
        if not reports:
            reports.append(await manager.close())

    async def handle(context: Context) -> None:
        context.send_text("hello")
        if who in ("on_error", "on_dead_letter"):
            raise ValueError

    hooks: dict[str, Any] = {"deliver": count} | {who: close}
    manager = await SessionManager(handler=handle, close_timeout=3600.0, **hooks).start()
    await manager.submit("ann", "hi")
    await until(lambda: reports)

    assert await soon(manager.close()) is reports[0]


def test_a_close_from_a_thread_ends_though_the_loop_is_blocked() -> None:
    store, go_on = MemorySessionStore(), threading.Event()

    async def handle(context: Context) -> None:
        context.session["n"] = 1
        if context.event == "block":
            go_on.wait(HANGS)

    behind = FlushPolicy.write_behind(max_delay=600.0)
    with on_a_loop(store=store, handler=handle, flush=behind) as manager:
        try:
            manager.dispatch_sync("ann", "hi")
            blocking = Call(manager.dispatch_sync, "bob", "block")
            until_sync(lambda: manager.stats().running == 1)
            report = Call(manager.close_sync, timeout=2.0).result()
        finally:
            go_on.set()
        assert isinstance(blocking.error(), errors.ManagerClosedError)

    assert (report.unflushed, report.unfinished) == ((), 1)
    assert store.read("ann") is not None
    assert store.read("bob") is None
