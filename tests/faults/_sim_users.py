"""The users of a simulated bot, and its author's functions: what is sent, what handlers do, and
what each is told.
"""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from actorbot import DUPLICATE, SessionManager
from actorbot._turns.context import Context
from actorbot.errors import (
    ActorbotError,
    ConflictError,
    DeadlockError,
    DuplicateEventError,
    HandlerTimeoutError,
    ManagerClosedError,
    OutcomeUnknownError,
    OverloadedError,
    StoreUnavailableError,
)
from tests import inside
from tests.faults._sim_model import Model, Run

__all__ = ["Users"]

PATIENCE = 60.0  # virtual seconds that a call may take
SLACK = 0.3  # seconds for what a flush takes besides its delay and its call


class MishapError(Exception):
    """What a handler raises."""


@dataclass(eq=False)
class Sending:
    """An event on one of its ways to its session."""

    event: str
    order: int = -1
    runs: list[Run] = field(default_factory=list)
    dead_letters: int = 0


class World(Protocol):
    """What the users see of the simulation."""

    plan: Any
    random: Any
    model: Model
    machine: Any
    network: Any
    counts: Counter[str]
    manager: SessionManager | None

    def say(self, *words: object) -> None: ...

    def complain(self, problem: str) -> None: ...


class Users:
    """All of them, over all lives; each sends again what was not acknowledged."""

    def __init__(self, world: World) -> None:
        self._world = world
        self.sessions = [f"s{number}" for number in range(world.plan.sessions)]
        self._again: dict[str, deque[str]] = {session_id: deque() for session_id in self.sessions}
        self._numbers = itertools.count()
        self._orders = itertools.count()
        self._told: list[Sending] = []
        self._tasks: set[asyncio.Task[Any]] = set()
        self._over = False

    # --- lives -----------------------------------------------------------------------------------

    def begin(self) -> asyncio.Future[Any]:
        """Let the users in; the future is done when all have gone."""
        self._over = False
        return asyncio.gather(*(self._start(self._use(session_id)) for session_id in self.sessions))

    def crash(self) -> None:
        self._told.clear()
        self._tasks.clear()

    async def settle(self) -> None:
        """After a close: wait for all calls that are under way, each of which must end now."""
        self._over = True
        world = self._world
        while self._tasks:
            done, _ = await asyncio.wait(self._tasks, timeout=10.0)
            if not done:
                world.complain(f"{len(self._tasks)} calls do not end after the close")
        for sending in self._told:
            handled = bool(sending.runs) and sending.runs[-1].returned
            if not handled and sending.dead_letters != 1:
                world.complain(f"{sending.event} was accepted and had {sending.dead_letters} dead letters")
        self._told.clear()

    async def end(self) -> None:
        """Wait for the users, whose manager was closed."""
        await self.settle()

    def check_loss(self) -> None:
        """After a crash with write-behind: check that no more was lost than its policy says."""
        world, plan = self._world, self._world.plan
        now = world.machine.now
        for story in world.model.stories.values():
            if story.doubtful:
                continue
            required = set().union(*(branch.required for branch in story.branches))
            lost = [token for token in required - story.stored if not story.runs[token].durable]
            told = {token: story.runs[token].told for token in lost}
            quiet = [token for token in lost if world.network.troubled < told[token] - 3 * plan.deadline - 2.0]
            late = [token for token in quiet if now > told[token] + plan.max_delay + plan.deadline + SLACK]
            if late or len(quiet) > plan.max_events:
                world.complain(f"{story.session_id}: a crash has cost {sorted(quiet)}, too late: {sorted(late)}")

    # --- what users do ---------------------------------------------------------------------------

    def _start(self, call: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), Exception):
            self._world.complain(f"a user met {task.exception()!r}")

    async def _use(self, session_id: str) -> None:
        world, random = self._world, self._world.random
        for _ in range(world.plan.operations):
            if self._over:
                return
            call = self._start(self._within_patience(session_id, self._draw(session_id)))
            if random.random() < 0.5:
                await call
            if random.random() < 0.4:
                await asyncio.sleep(random.expovariate(1 / random.choice((0.002, 0.05, 1.0))))

    async def _within_patience(self, session_id: str, call: Callable[[], Coroutine[Any, Any, Any]]) -> None:
        machine = self._world.machine
        began = machine.now
        try:
            await call()
        except ManagerClosedError:
            self._over = True
        else:
            self._count_risk()
        if machine.now > began + PATIENCE:
            self._world.complain(f"a call for {session_id} took {machine.now - began:.1f} s")

    def _draw(self, session_id: str) -> Callable[[], Coroutine[Any, Any, Any]]:
        random = self._world.random
        drawn = random.random()
        if drawn < self._world.plan.destroys:
            return partial(self._destroy, session_id)
        if drawn > 0.95:
            return partial(self._flush, session_id)
        if drawn > 0.88:
            return partial(self.look, session_id)
        sending = Sending(self._next_event(session_id))
        if drawn > 0.78:
            return partial(self._submit, session_id, sending)
        if drawn > 0.70:
            return partial(self._borrow, session_id, sending)
        if drawn > 0.65:
            return partial(self._dispatch_and_cancel, session_id, sending)
        if drawn > 0.60:
            return partial(self._dispatch_twice, session_id, sending)
        return partial(self._dispatch, session_id, sending, durable=random.random() < 0.1)

    def _next_event(self, session_id: str) -> str:
        again = self._again[session_id]
        return again.popleft() if again else f"{session_id}-{next(self._numbers)}"

    async def send_once_more(self, session_id: str) -> None:
        """Send all that was not acknowledged."""
        again = self._again[session_id]
        for _ in range(len(again)):
            await self._dispatch(session_id, Sending(again.popleft()), durable=False)

    async def _dispatch(self, session_id: str, sending: Sending, *, durable: bool) -> None:
        world = self._world
        sending.order = next(self._orders)
        assert world.manager is not None
        try:
            value = await world.manager.dispatch(session_id, sending, event_id=sending.event, durable=durable)
        except (ActorbotError, MishapError) as error:
            self._refused(session_id, sending, error, durable=durable)
        else:
            self._answered(session_id, sending, value, durable=durable)

    async def _dispatch_twice(self, session_id: str, sending: Sending) -> None:
        again = partial(self._dispatch, session_id, Sending(sending.event), durable=False)
        twin = self._start(self._within_patience(session_id, again))
        await self._dispatch(session_id, sending, durable=False)
        await twin

    async def _dispatch_and_cancel(self, session_id: str, sending: Sending) -> None:
        task = self._start(self._dispatch(session_id, sending, durable=False))
        await asyncio.wait([task], timeout=self._world.random.expovariate(1 / 0.01))
        if task.cancel():
            self._world.say("cancelled", sending.event)
            self._again[session_id].append(sending.event)
            self._may_come_late(session_id)
            await asyncio.wait([task])

    async def _submit(self, session_id: str, sending: Sending) -> None:
        world = self._world
        random = world.random
        sending.order = next(self._orders)
        assert world.manager is not None
        heard = random.random() < 0.6
        if not heard:
            sending.event = f"{session_id}-told-{next(self._numbers)}"
        try:
            receipt = await world.manager.submit(session_id, sending, event_id=sending.event)
            if not heard:
                self._told.append(sending)
                return
            value = await receipt.result()
            if durable := value is not DUPLICATE and random.random() < 0.5:
                await receipt.durable()
        except (ActorbotError, MishapError) as error:
            self._refused(session_id, sending, error, durable=True)
        else:
            self._answered(session_id, sending, value, durable=durable)

    async def _borrow(self, session_id: str, sending: Sending) -> None:
        world = self._world
        sending.order = next(self._orders)
        assert world.manager is not None
        try:
            async with world.manager.turn(session_id, event_id=sending.event) as turn:
                token = await self._work(turn, sending, borrowed=True)
        except DuplicateEventError:
            self._answered(session_id, sending, DUPLICATE, durable=False)
        except (ActorbotError, MishapError) as error:
            self._refused(session_id, sending, error, durable=False)
        else:
            self._answered(session_id, sending, token, durable=False)

    async def _destroy(self, session_id: str) -> None:
        world = self._world
        assert world.manager is not None
        world.say("destroy", session_id)
        branch = world.model.begin_destroy(session_id)
        done: bool | None = None
        try:
            await world.manager.destroy(session_id)
        except (OutcomeUnknownError, ManagerClosedError) as error:
            world.say("destroy in doubt:", session_id, error)
        except (StoreUnavailableError, OverloadedError) as error:
            world.say("destroy refused:", session_id, error)
            done = False
        else:
            world.say("destroyed", session_id)
            world.counts["destroyed"] += 1
            done = True
        world.model.end_destroy(session_id, branch, done=done)

    async def _flush(self, session_id: str) -> None:
        world = self._world
        story = world.model.story(session_id)
        before = set.intersection(*(branch.required for branch in story.branches))
        assert world.manager is not None
        try:
            await world.manager.flush(session_id)
        except (
            StoreUnavailableError,
            ConflictError,
            OverloadedError,
        ):  # the last: no room for what only the journal has
            return
        missing = [token for token in before - story.stored if not story.runs[token].durable]
        if missing and not story.doubtful:
            world.complain(f"{session_id} was flushed, and the store has never had {sorted(missing)}")

    async def look(self, session_id: str) -> None:
        """Look at a session."""
        world = self._world
        before = world.model.photograph(session_id)
        assert world.manager is not None
        try:
            state = await world.manager.peek(session_id)
        except StoreUnavailableError:
            return
        log = () if state is None else tuple(state["log"])
        world.say("seen", session_id, len(log))
        world.model.observe_since(session_id, before, log, "a peek")

    def _count_risk(self) -> None:
        """Compare what the manager says to be at risk with what its sessions say."""
        world = self._world
        if world.manager is None or not inside.is_open(world.manager):
            return
        if inside.has_journal(world.manager):
            return  # which has it all
        counted, summed = inside.events_at_risk(world.manager)
        if counted != summed:
            world.complain(f"{counted} events are said to be at risk, and it is {summed}")

    # --- what users are told ---------------------------------------------------------------------

    def _answered(self, session_id: str, sending: Sending, value: Any, *, durable: bool) -> None:
        world = self._world
        world.say("acknowledged", sending.event, value)
        if value is DUPLICATE:
            world.counts["duplicates"] += 1
            world.model.duplicate(session_id, sending.event)
            return
        if not sending.runs or sending.runs[-1].token != value:
            world.complain(f"{sending.event} was answered {value!r}, its runs: {sending.runs}")
        world.counts["acknowledged"] += 1
        world.model.acknowledge(session_id, sending.runs[-1], durable=durable)

    def _refused(self, session_id: str, sending: Sending, error: Exception, *, durable: bool) -> None:
        world = self._world
        world.say("failed", sending.event, repr(error)[:90])
        world.counts[type(error).__name__] += 1
        self._again[session_id].append(sending.event)
        if isinstance(error, OutcomeUnknownError):
            self._may_come_late(session_id)
        if isinstance(error, ConflictError) and not world.model.story(session_id).doubtful:
            world.complain(f"{session_id}: a conflict with nobody")
        certain = type(error) in {
            StoreUnavailableError,
            OverloadedError,
            HandlerTimeoutError,
            DeadlockError,
            MishapError,
        }
        if certain and not (durable and world.plan.mode == "write-behind") and sending.runs:
            world.model.refuse(session_id, sending.runs[-1])
        if isinstance(error, ManagerClosedError):
            self._over = True

    def _may_come_late(self, session_id: str) -> None:
        """Note that a write which hangs may arrive when the session has been read again."""
        if self._world.plan.mode == "write-through":
            self._world.model.story(session_id).doubtful = True

    # --- what the author of the bot has written --------------------------------------------------

    async def handle(self, context: Context) -> str:
        return await self._work(context, context.event, borrowed=False)

    async def _work(self, context: Context, sending: Sending, *, borrowed: bool) -> str:
        world = self._world
        session_id = context.session_id
        log = tuple(context.session.get("log", ()))
        if sending.runs and sending.runs[-1].returned:
            world.model.refuse(session_id, sending.runs[-1])  # a conflict has let it run again
        ends_at = None if context.last_activity is None else context.last_activity + world.plan.expires_in
        if log and ends_at is not None and world.machine.clock.wall() >= ends_at:
            world.complain(f"{session_id}: a handler was given a session that has ended")
        ordered = world.plan.max_resident > len(self.sessions)
        order = sending.order if ordered else -1
        run = world.model.begin(session_id, sending.event, order, log, borrowed=borrowed)
        sending.runs.append(run)
        world.say("runs", run.token, len(log))
        failed = True
        try:
            await self._do_something(context, run)
            context.session["log"] = [*log, run.token]
            failed = False
        finally:
            world.model.end(session_id, run, failed=failed)
        world.counts["replies"] += len(context._replies or ())
        return run.token

    async def _do_something(self, context: Context, run: Run) -> None:
        world, random = self._world, self._world.random
        drawn = random.random()
        if drawn < 0.4:
            await asyncio.sleep(random.expovariate(1 / 0.01))
        elif drawn < 0.42:
            await asyncio.sleep(5.0)
        for number in range(random.choice((0, 1, 1, 2))):
            context.send_text(f"{run.token}/{number}")
        if world.plan.padding:
            context.session["padding"] = "x" * world.plan.padding
        if random.random() < 0.08:
            raise MishapError
        if random.random() < world.plan.destroys / 2:
            world.counts["ended"] += 1
            context.end_session()
            run.ends = True

    async def deliver(self, session_id: str, message: str) -> None:
        world = self._world
        token, number = message.split("/")
        world.say("reply", message)
        world.counts["delivered"] += 1
        world.model.reply(session_id, token, int(number))
        await asyncio.sleep(world.random.expovariate(1 / 0.005))
        if world.random.random() < 0.02:
            raise MishapError

    async def on_dead_letter(self, session_id: str, sending: Sending, reason: str) -> None:
        world = self._world
        world.say("dead letter", sending.event, reason[:60])
        world.counts["dead letters"] += 1
        sending.dead_letters += 1
        if reason.startswith(OutcomeUnknownError.__name__):
            self._may_come_late(session_id)
        if sending not in self._told or sending.dead_letters > 1:
            world.complain(f"{sending.event} of {session_id} was no dead letter: {reason}")

    async def on_conflict(self, session_id: str, state: dict[str, Any] | None) -> None:
        world = self._world
        world.say("conflict", session_id)
        world.counts["conflicts"] += 1
        story = world.model.story(session_id)
        world.model.check_whole(story, () if state is None else tuple(state["log"]), "on_conflict", set())
        if not story.doubtful:
            world.complain(f"{session_id}: a conflict with nobody")
        world.model.lose(session_id)

    async def on_session_expire(self, session_id: str, state: dict[str, Any]) -> None:
        world = self._world
        world.say("expired", session_id)
        world.counts["expired"] += 1
        world.model.check_whole(world.model.story(session_id), tuple(state["log"]), "on_session_expire", set())
