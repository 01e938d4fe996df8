"""A turn whose event was cancelled is rolled back, whatever its handler does about that, and the
caller's own cancellation comes before all else. A commit is never interrupted.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine
from contextlib import asynccontextmanager
from contextvars import Context as ContextVars
from pathlib import Path
from typing import Any

import anyio
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from actorbot import DUPLICATE, Context, FlushPolicy, SessionManager, errors
from actorbot.testing import ManualClock
from tests import inside
from tests.homes import both_homes
from tests.waiting import HANGS, Call, soon, until

Wait = Callable[[], Awaitable[object]]


async def reraises(wait: Wait) -> None:
    await wait()


async def returns(wait: Wait) -> str:
    try:
        await wait()
    except asyncio.CancelledError:
        return "swallowed"
    return "waited"


async def cleans_up_and_returns(wait: Wait) -> str:
    try:
        await wait()
    except asyncio.CancelledError:
        await asyncio.sleep(0)
    return "swallowed"


async def fails(wait: Wait) -> None:
    try:
        await wait()
    except asyncio.CancelledError:
        raise ValueError("the connection was closed") from None


async def shields(wait: Wait) -> str:
    inner = asyncio.ensure_future(wait())
    try:
        await asyncio.shield(inner)
    except asyncio.CancelledError:
        inner.cancel()
    return "swallowed"


async def awaits_a_task_that_swallows(wait: Wait) -> str:
    return await asyncio.ensure_future(returns(wait))


async def waits_in_a_group(wait: Wait) -> str:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fails(wait))
    except* ValueError:
        pass
    return "swallowed"


Habit = Callable[[Wait], Coroutine[Any, Any, object]]
HABITS: list[Habit] = [
    reraises, returns, cleans_up_and_returns, fails, shields, awaits_a_task_that_swallows, waits_in_a_group,
]  # fmt: skip


async def for_ever() -> None:
    await asyncio.Event().wait()


def policies(folder: Path) -> dict[str, FlushPolicy]:
    return {
        "write-behind": FlushPolicy.write_behind(),
        "write-through": FlushPolicy.write_through(store_deadline=1_000.0),
        "journaled": FlushPolicy.journaled(folder / "journal", store_deadline=1_000.0),
    }


class Bot:
    """Counts each session's events, and answers each with its count."""

    def __init__(self, habit: Habit = reraises) -> None:
        self.habit = habit
        self.said: list[object] = []
        self.waits = 0

    async def turn(self, context: Context, wait: Wait | None) -> object:
        context.session["n"] = context.session.get("n", 0) + 1
        context.send_text(f"{context.session['n']}")
        if wait is None:
            return context.session["n"]
        self.waits += 1
        return await self.habit(wait)

    async def handle(self, context: Context) -> object:
        return await self.turn(context, for_ever if context.event == "stay" else None)

    async def deliver(self, _: str, message: object) -> None:
        self.said.append(message)

    def manager(self, **options: Any) -> SessionManager:
        return SessionManager(handler=self.handle, deliver=self.deliver, **options)


async def dispatches(bot: Bot, manager: SessionManager) -> object:
    return await manager.dispatch("ann", "stay", event_id="e")


async def borrows(bot: Bot, manager: SessionManager) -> object:
    async with manager.turn("ann", event_id="e") as turn:
        return await bot.turn(turn, for_ever)


async def nests(bot: Bot, manager: SessionManager) -> object:
    async with manager.turn("bob") as turn:
        turn.session["n"] = 7
        return await returns(lambda: manager.dispatch("ann", "stay", event_id="e"))


VERBS = [dispatches, borrows, nests]


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("habit", HABITS)
@pytest.mark.parametrize("mode", ["write-behind", "write-through", "journaled"])
async def test_a_cancelled_event_is_rolled_back_whatever_its_handler_does(
    verb: Any, habit: Habit, mode: str, tmp_path: Path
) -> None:
    bot = Bot(habit)
    async with bot.manager(flush=policies(tmp_path)[mode]) as manager:
        await manager.dispatch("ann", "hi")
        calling = asyncio.create_task(verb(bot, manager))
        await until(lambda: bot.waits)
        calling.cancel()

        with pytest.raises(asyncio.CancelledError):
            await soon(calling)
        assert (calling.cancelled(), calling.cancelling()) == (True, 1)
        assert await manager.peek("ann") == {"n": 1}
        assert await manager.peek("bob") is None
        assert await soon(manager.dispatch("ann", "hi", event_id="e")) == 2
    assert bot.said == ["1", "2"]


@pytest.mark.parametrize("habit", HABITS)
async def test_a_cancelled_event_that_had_waited_in_line_is_rolled_back_too(habit: Habit) -> None:
    bot = Bot(habit)
    async with bot.manager() as manager:
        async with manager.turn("ann"):
            calling = asyncio.create_task(dispatches(bot, manager), context=ContextVars())  # not the turn's
            await until(lambda: dict(manager.resident())["ann"].waiting)
        await until(lambda: bot.waits)
        calling.cancel()

        with pytest.raises(asyncio.CancelledError):
            await soon(calling)
        assert await soon(manager.dispatch("ann", "hi", event_id="e")) == 1


async def test_an_event_that_a_cancelled_task_sends_last_is_handled() -> None:
    bot = Bot(returns)

    async def say_good_bye() -> object:
        try:
            await asyncio.Event().wait()
        finally:
            return await manager.dispatch("ann", "bye")  # noqa: B012  # as the last words of a task

    async with bot.manager() as manager:
        task = asyncio.create_task(say_good_bye())
        await asyncio.sleep(0)
        task.cancel()
        assert await soon(task) == 1


@both_homes
@pytest.mark.parametrize("habit", HABITS)
def test_an_event_that_ran_out_of_time_is_rolled_back_whatever_its_handler_does(home: Any, habit: Habit) -> None:
    bot = Bot(habit)
    with home(handler=bot.handle, deliver=bot.deliver) as manager:
        manager.dispatch_sync("ann", "hi")
        error = Call(manager.dispatch_sync, "ann", "stay", event_id="e", timeout=0.1).error()

        assert isinstance(error, errors.TurnTimeoutError)
        assert Call(manager.dispatch_sync, "ann", "hi", event_id="e").result() == 2
    assert bot.said == ["1", "2"]


async def test_an_event_that_ran_out_of_time_before_the_loop_took_it_never_runs() -> None:
    bot = Bot()
    async with bot.manager() as manager:
        call = Call(manager.dispatch_sync, "ann", "hi", timeout=0.05)
        assert isinstance(call.error(), errors.TurnTimeoutError)  # the loop stands still meanwhile
        await asyncio.sleep(0)
        await manager.flush()

        assert await manager.peek("ann") is None


def test_a_thread_that_is_interrupted_stops_the_coroutine_that_it_waits_for(monkeypatch: pytest.MonkeyPatch) -> None:
    started, stopped = threading.Event(), threading.Event()

    async def handle(_: Context) -> None:
        started.set()
        try:
            await for_ever()
        finally:
            stopped.set()

    def interrupted() -> None:
        started.wait(HANGS)
        raise KeyboardInterrupt

    with SessionManager(handler=handle) as manager:
        with monkeypatch.context() as patch:
            patch.setattr(inside.home(manager).pool, "blocking", interrupted)
            with pytest.raises(errors.HandlerExitError):
                manager.dispatch_sync("ann", "hi")
        assert stopped.wait(HANGS)


# --- a time-out and a cancellation at once --------------------------------------------------------


async def cancels(calling: Callable[[], Coroutine[Any, Any, object]], time: asyncio.Event) -> None:
    task = asyncio.create_task(calling())
    await time.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert task.cancelling() == 1


async def waits_no_longer(calling: Callable[[], Coroutine[Any, Any, object]], time: asyncio.Event) -> None:
    async def be_called() -> int:
        with pytest.raises(TimeoutError) as raised:
            async with asyncio.timeout(None) as limit:
                limits.append(limit)
                await calling()
        assert type(raised.value) is TimeoutError  # not the handler's
        return asyncio.current_task().cancelling()  # type: ignore[union-attr]

    limits: list[asyncio.Timeout] = []
    task = asyncio.create_task(be_called())
    await time.wait()
    limits[0].reschedule(0.0)
    assert await task == 0


async def has_a_sibling_that_fails(calling: Callable[[], Coroutine[Any, Any, object]], time: asyncio.Event) -> None:
    async def fail() -> None:
        await time.wait()
        raise LookupError

    with pytest.raises(ExceptionGroup) as raised:
        async with asyncio.TaskGroup() as group:
            group.create_task(calling())
            group.create_task(fail())
    assert [type(each) for each in raised.value.exceptions] == [LookupError]


async def leaves_an_anyio_scope(calling: Callable[[], Coroutine[Any, Any, object]], time: asyncio.Event) -> None:
    async def be_called() -> tuple[bool, int]:
        with anyio.CancelScope() as scope:
            scopes.append(scope)
            await calling()
        return scope.cancelled_caught, asyncio.current_task().cancelling()  # type: ignore[union-attr]

    scopes: list[anyio.CancelScope] = []
    task = asyncio.create_task(be_called())
    await time.wait()
    scopes[0].cancel()
    assert await task == (True, 0)


CANCELLERS = [cancels, waits_no_longer, has_a_sibling_that_fails, leaves_an_anyio_scope]


@pytest.mark.parametrize("canceller", CANCELLERS)
@pytest.mark.parametrize("verb", [dispatches, borrows])
@pytest.mark.parametrize("ending", ["reraises", "returns", "fails"])
async def test_a_caller_is_cancelled_even_while_its_handler_cleans_up_after_its_time_out(
    canceller: Any, verb: Any, ending: str
) -> None:
    clock, cleaning = ManualClock(), asyncio.Event()

    async def clean_up(wait: Wait) -> object:
        try:
            await (wait() if verb is dispatches else asyncio.sleep(0))  # a borrower is not cancelled by it
        except asyncio.CancelledError:
            if ending == "reraises":
                await clean()
                raise
        await clean()
        return "swallowed"

    async def clean() -> None:
        await until(lambda: not inside.shared(manager).running.deadlines)
        cleaning.set()
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            if ending == "reraises":
                raise
            if ending == "fails":
                raise ValueError from None

    async def work() -> None:
        while True:  # as the loop of many a bot
            with pytest.raises(errors.ActorbotError):
                await verb(bot, manager)

    bot = Bot(clean_up)
    async with bot.manager(handler_timeout=5.0, clock=clock) as manager:
        running = asyncio.create_task(canceller(work, cleaning))
        await until(lambda: bot.waits)
        await clock.advance(5.1)
        await soon(running)

        assert await soon(manager.dispatch("ann", "hi", event_id="e")) == 1
        assert bot.waits == 1
    assert bot.said == ["1"]


async def test_a_time_out_alone_is_still_the_callers_error_and_leaves_no_mark_on_its_task() -> None:
    clock, bot = ManualClock(), Bot(cleans_up_and_returns)

    async def call() -> int:
        async with asyncio.timeout(HANGS):
            with pytest.raises(errors.HandlerTimeoutError):
                await dispatches(bot, manager)
        return asyncio.current_task().cancelling()  # type: ignore[union-attr]

    async with bot.manager(handler_timeout=5.0, clock=clock) as manager:
        calling = asyncio.create_task(call())
        await until(lambda: bot.waits)
        await clock.advance(5.1)
        assert await soon(calling) == 0


async def test_the_time_out_of_a_handler_cancels_what_it_waits_for_in_another_session() -> None:
    clock, bot = ManualClock(), Bot(returns)
    inner: list[BaseException] = []

    async def handle(context: Context) -> object:
        if context.session_id != "outer":
            return await bot.handle(context)
        try:
            return await manager.dispatch("ann", "stay")
        except BaseException as error:
            inner.append(error)
            raise

    async with SessionManager(handler=handle, deliver=bot.deliver, handler_timeout=5.0, clock=clock) as manager:
        calling = asyncio.create_task(manager.dispatch("outer", "hi"))
        await until(lambda: bot.waits)
        await clock.advance(5.1)
        with pytest.raises(errors.HandlerTimeoutError, match="outer"):
            await soon(calling)
        assert isinstance(inner[0], asyncio.CancelledError)
        assert await manager.peek("ann") is None


async def test_a_cancellation_that_on_error_swallows_is_not_lost() -> None:
    within = asyncio.Event()

    async def fail(_: Context) -> None:
        raise ValueError("no")

    async def apologize(_: Context, __: BaseException) -> None:
        within.set()
        await returns(for_ever)

    async with SessionManager(handler=fail, on_error=apologize) as manager:
        calling = asyncio.create_task(manager.dispatch("ann", "hi"))
        await soon(within.wait())
        calling.cancel()
        with pytest.raises(asyncio.CancelledError):
            await soon(calling)


async def test_a_cancellation_while_a_manager_is_closed_in_the_handler_is_not_lost() -> None:
    closing = asyncio.Event()

    async def handle(_: Context) -> object:
        closing.set()
        return await returns(manager.close)

    manager = await SessionManager(handler=handle, close_timeout=HANGS).start()
    calling = asyncio.create_task(manager.dispatch("ann", "hi"))
    await soon(closing.wait())
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(calling)
    await soon(manager.close())


async def test_a_cancellation_is_not_lost_though_a_close_could_not_wait_for_the_loop() -> None:
    bot = Bot(returns)
    manager = await bot.manager().start()
    calling = asyncio.create_task(dispatches(bot, manager))
    await until(lambda: bot.waits)
    inside.shared(manager).running.refuse_all()
    calling.cancel()
    with pytest.raises(asyncio.CancelledError):
        await soon(calling)
    await soon(manager.close())


# --- what is no cancellation ----------------------------------------------------------------------


async def fail_soon() -> None:
    await asyncio.sleep(0)
    raise ValueError("no")


async def has_a_limit_of_its_own() -> None:
    try:
        async with asyncio.timeout(0):
            await for_ever()
    except TimeoutError:
        pass


async def has_a_group_that_fails_at_its_end() -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail_soon())
    except* ValueError:
        pass


async def has_a_group_that_fails_before_its_end() -> None:
    try:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail_soon())
            await for_ever()
    except* ValueError:
        pass


async def has_an_anyio_scope_of_its_own() -> None:
    with anyio.move_on_after(0):
        await for_ever()


async def has_a_task_that_it_cancels() -> None:
    task = asyncio.create_task(for_ever())
    await asyncio.sleep(0)
    task.cancel()
    await returns(lambda: task)


OWN = [
    has_a_limit_of_its_own,
    has_a_group_that_fails_at_its_end,
    has_a_group_that_fails_before_its_end,
    has_an_anyio_scope_of_its_own,
    has_a_task_that_it_cancels,
]


@pytest.mark.parametrize("own", OWN)
async def test_what_a_handler_cancels_in_itself_is_no_cancellation_of_its_event(own: Any) -> None:
    async def handle(context: Context) -> int:
        context.session["n"] = context.session.get("n", 0) + 1
        await own()
        return int(context.session["n"])

    async def call() -> int:
        assert await manager.dispatch("ann", "hi") == 1
        assert await manager.dispatch("ann", "hi") == 2
        async with manager.turn("ann") as turn:
            await handle(turn)
        return asyncio.current_task().cancelling()  # type: ignore[union-attr]

    async with SessionManager(handler=handle) as manager:
        assert await soon(asyncio.create_task(call())) == 0
        assert await manager.peek("ann") == {"n": 3}


async def test_the_error_of_a_task_group_arrives_unchanged() -> None:
    async def handle(_: Context) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(fail_soon())

    async with SessionManager(handler=handle) as manager:
        with pytest.raises(ExceptionGroup):
            await manager.dispatch("ann", "hi")
        with pytest.raises(ExceptionGroup):
            async with manager.turn("ann") as turn:
                await handle(turn)


# --- at any point ---------------------------------------------------------------------------------


@st.composite
def plans(draw: st.DrawFn) -> list[tuple[int, Habit, int, int | None, int | None]]:
    moment = st.none() | st.integers(0, 6)
    one = st.tuples(st.integers(0, 2), st.sampled_from(HABITS), st.integers(0, 4), moment, moment)
    return draw(st.lists(one, min_size=1, max_size=8))


@asynccontextmanager
async def started(bot: Bot, policy: FlushPolicy, clock: ManualClock, handler: Any) -> AsyncIterator[SessionManager]:
    async with SessionManager(
        handler=handler, deliver=bot.deliver, flush=policy, clock=clock, handler_timeout=5.0
    ) as manager:
        yield manager


@pytest.mark.parametrize("mode", ["write-behind", "write-through", "journaled"])
@given(plan=plans())
@settings(max_examples=60)
def test_whenever_an_event_is_cancelled_it_is_committed_with_its_value_or_rolled_back(
    mode: str, plan: list[Any], tmp_path_factory: pytest.TempPathFactory
) -> None:
    asyncio.run(_act(plan, policies(tmp_path_factory.mktemp("plan"))[mode]))


async def _act(plan: list[Any], policy: FlushPolicy) -> None:
    bot, clock = Bot(), ManualClock()
    interrupted: set[int] = set()

    async def handle(context: Context) -> object:
        number, habit, passes = context.event
        context.session.setdefault("seen", []).append(number)
        context.send(number)

        async def wait() -> None:
            try:
                for _ in range(passes):
                    await asyncio.sleep(0)
            except asyncio.CancelledError:
                interrupted.add(number)
                raise

        await habit(wait)
        return number

    async def call(number: int, user: int, habit: Habit, passes: int, cancel: int | None, late: int | None) -> object:
        calling = asyncio.create_task(manager.dispatch(f"user:{user}", (number, habit, passes), event_id=f"{number}"))
        for moment in range(7):
            if moment == cancel:
                calling.cancel()
            if moment == late:
                await clock.advance(5.1)
            await asyncio.sleep(0)
        try:
            return await soon(calling)
        except BaseException as error:
            assert not calling.cancelled() or cancel is not None
            return error

    async with started(bot, policy, clock, handle) as manager:
        outcomes = await asyncio.gather(*(call(number, *each) for number, each in enumerate(plan)))
        for user in range(3):
            async with manager.turn(f"user:{user}"):  # after a commit that was on its way
                pass
        states = [(await manager.peek(f"user:{user}") or {}).get("seen", []) for user in range(3)]
        kept = [number for state in states for number in state]
        for number, (user, *_) in enumerate(plan):
            done = number in states[user]
            assert done == (outcomes[number] == number) or (
                # cancelled while its commit was on its way, which is never interrupted
                isinstance(outcomes[number], asyncio.CancelledError) and policy.mode != "write-behind"
            )
            assert not (done and number in interrupted)
            again = await manager.dispatch(f"user:{user}", (number, reraises, 0), event_id=f"{number}")
            assert (again is DUPLICATE) == done
            await manager.delivered(f"user:{user}")
        assert sorted(bot.said) == list(range(len(plan)))  # type: ignore[type-var]
        assert sorted(kept) == sorted(set(kept))
