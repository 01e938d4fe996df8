"""A simulated process that owns a store, or wants to: its life, and what it tells its users."""

from __future__ import annotations

import asyncio
import itertools
from collections import Counter, deque
from contextlib import suppress
from random import Random
from typing import Any, Protocol

from actorbot import DUPLICATE, SessionManager
from actorbot._turns.context import Context
from actorbot.errors import ActorbotError, DuplicateEventError, ManagerClosedError, OwnershipLostError
from tests import inside
from tests.faults._sim_machine import Machine
from tests.faults._sim_owners_model import Owner, OwnersModel, Run
from tests.faults._sim_server import LeasedStore, Server

__all__ = ["Bot", "Events"]

PATIENCE = 10.0  # virtual seconds for calls to end after a close


class MishapError(Exception):
    """What a handler raises."""


class Events:
    """What the users of all processes have to say; what was not acknowledged is sent again."""

    def __init__(self, sessions: int) -> None:
        self.sessions = [f"s{number}" for number in range(sessions)]
        self._again: dict[str, deque[str]] = {session_id: deque() for session_id in self.sessions}
        self._numbers = itertools.count()

    def next(self, session_id: str) -> str:
        again = self._again[session_id]
        return again.popleft() if again else f"{session_id}-{next(self._numbers)}"

    def again(self, session_id: str, event: str) -> None:
        """Have the event sent again, by whoever is next."""
        self._again[session_id].append(event)

    def left(self, session_id: str) -> list[str]:
        """Take all that is to be sent again."""
        left = list(self._again[session_id])
        self._again[session_id].clear()
        return left


class World(Protocol):
    """What a bot sees of the simulation."""

    plan: Any
    random: Random
    model: OwnersModel
    server: Server
    counts: Counter[str]
    events: Events

    def say(self, *words: object) -> None: ...

    def complain(self, problem: str) -> None: ...


class Bot:
    """A process with a manager. The *last* one sends again what is left, and ends by itself."""

    def __init__(self, world: World, slot: Any, owner: Owner, *, last: bool = False) -> None:
        self.world = world
        self.slot = slot
        self.owner = owner
        self.machine: Machine = owner.machine
        self.manager: SessionManager | None = None
        self.started = False
        self.reason: object = None
        """Why it has not."""
        self.ended = asyncio.Event()
        """For the director."""
        self._last = last
        self._leaving = asyncio.Event()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._runs: dict[str, list[Run]] = {}

    def leave(self) -> None:
        """Have it close. From any machine."""
        self.machine.loop.call_soon(self._leaving.set)

    # --- its life --------------------------------------------------------------------------------

    async def live(self) -> None:
        world = self.world
        try:
            if await self._start():
                await self._serve()
                await self._close()
                await asyncio.sleep(world.random.choice((0.0, 0.0, 0.0, 10.0)))  # what it still does is no event
        finally:
            world.say("the process ends")
            self.machine.killed = True
            self.owner.ended = min(self.owner.ended, self.machine.now)

    async def _start(self) -> bool:
        world, plan = self.world, self.world.plan
        manager = self.manager = SessionManager(
            LeasedStore(world.server, self.machine, self._writes),
            handler=self._handle,
            deliver=self._deliver,
            on_conflict=self._on_conflict,
            flush=plan.policy(),
            ownership=plan.ownership,
            idle_timeout=plan.idle_timeout,
            handler_timeout=60.0,
            clock=self.machine.clock,
        )
        try:
            await manager.start()
        except ActorbotError as error:
            world.say("no start:", error)
            world.counts[type(error).__name__] += 1
            self.reason = error
            self.owner.closed = True
            if isinstance(error, OwnershipLostError):
                world.model.lose(self.owner, self.machine.now)
            return False
        world.say("started, epoch", self.owner.epoch, "claims" if self.owner.claims else "")
        world.counts["started"] += 1
        self.started = True
        return True

    async def _serve(self) -> None:
        events = self.world.events
        if not self._last:
            for session_id in events.sessions:
                self._begin(self._use(session_id))
            await self._leaving.wait()
            return
        for session_id in events.sessions:
            for event in [*events.left(session_id), events.next(session_id)]:
                await self._dispatch(session_id, event)
            if events.left(session_id):
                self.world.complain(f"the last process has failed an event of {session_id}")

    async def _close(self) -> None:
        world, model, manager = self.world, self.world.model, self.manager
        assert manager is not None
        self._leaving.set()
        for conflict in manager.conflicts():
            self._tell(conflict.session_id, conflict.state)
        world.say("close")
        report = await manager.close(world.random.choice((1.0, 20.0)))
        world.say("closed", report)
        world.counts["closed"] += 1
        patience = 2  # frozen, it wakes with its own time up, and that of its calls
        while self._tasks:
            done, _ = await asyncio.wait(self._tasks, timeout=PATIENCE)
            patience = 2 if done else patience - 1
            if not patience:
                world.complain(f"{len(self._tasks)} calls of {self.owner.name} do not end after the close")
        if self._last and not report.clean:
            world.complain(f"the last process leaves {report}")
        model.close(self.owner, report.unflushed)

    # --- its users -------------------------------------------------------------------------------

    def _begin(self, call: Any) -> None:
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), Exception):
            self.world.complain(f"a user met {task.exception()!r}")

    async def _use(self, session_id: str) -> None:
        world, random = self.world, self.world.random
        while not self._leaving.is_set():
            drawn = random.random()
            event = world.events.next(session_id)
            if drawn < 0.1:
                call = self._submit(session_id, event)
            elif drawn < 0.2:
                call = self._borrow(session_id, event)
            else:
                call = self._dispatch(session_id, event, durable=drawn > 0.93)
            if random.random() < 0.3:
                self._begin(call)
            else:
                await call
            if random.random() < 0.8:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._leaving.wait(), random.expovariate(1 / world.plan.pause))

    async def _dispatch(self, session_id: str, event: str, *, durable: bool = False) -> None:
        assert self.manager is not None
        try:
            token = await self.manager.dispatch(session_id, event, event_id=event, durable=durable)
        except (ActorbotError, MishapError) as error:
            self._refused(session_id, event, error)
        else:
            self._answered(session_id, event, token, durable=durable)

    async def _submit(self, session_id: str, event: str) -> None:
        assert self.manager is not None
        try:
            receipt = await self.manager.submit(session_id, event, event_id=event)
            answered: list[float] = []  # it may be frozen before this code goes on
            inside.outcome(receipt).add_done_callback(lambda _: answered.append(self.machine.now))
            token = await receipt.result()
        except (ActorbotError, MishapError) as error:
            self._refused(session_id, event, error)
            return
        self._answered(session_id, event, token, durable=False, at=answered[0])
        if token is not DUPLICATE and self.world.random.random() < 0.5:
            try:
                await receipt.durable()
            except ActorbotError as error:
                self.world.say("not durable:", event, repr(error)[:120])
            else:
                self.world.say("durable:", event)
                self.world.model.make_durable(self.owner, session_id, token)

    async def _borrow(self, session_id: str, event: str) -> None:
        assert self.manager is not None
        try:
            async with self.manager.turn(session_id, event_id=event) as turn:
                token = await self._work(turn, event)
        except DuplicateEventError:
            self._answered(session_id, event, DUPLICATE, durable=False)
        except (ActorbotError, MishapError) as error:
            self._refused(session_id, event, error)
        else:
            self._answered(session_id, event, token, durable=False)

    def _answered(self, session_id: str, event: str, token: Any, *, durable: bool, at: float | None = None) -> None:
        world, now = self.world, self.machine.now if at is None else at
        world.say("acknowledged", event, token)
        world.counts["acknowledged"] += 1
        if token is DUPLICATE:
            world.counts["duplicates"] += 1
            world.model.duplicate(self.owner, session_id, event, now)
        else:
            world.model.acknowledge(self.owner, session_id, token, now, durable=durable)

    def _refused(self, session_id: str, event: str, error: Exception) -> None:
        world = self.world
        world.say("failed", event, repr(error)[:120])
        world.counts[type(error).__name__] += 1
        world.events.again(session_id, event)
        if isinstance(error, OwnershipLostError):
            world.model.lose(self.owner, self.machine.now)
        if isinstance(error, ManagerClosedError | OwnershipLostError):
            self._leaving.set()

    # --- what its author has written -------------------------------------------------------------

    async def _handle(self, context: Context) -> str:
        return await self._work(context, context.event)

    async def _work(self, context: Context, event: str) -> str:
        world, random = self.world, self.world.random
        log = tuple(context.session.get("log", ()))
        run = world.model.begin(self.owner, context.session_id, event, log)
        world.say("runs", run.token, len(log))
        drawn = random.random()
        if drawn < 0.3:
            await asyncio.sleep(random.expovariate(1 / 0.01))
        elif drawn < 0.33:
            await asyncio.sleep(5.0)
        if random.random() < 0.5:
            context.send_text(run.token)
        if random.random() < 0.03 and not self._last:
            run.failed = True
            raise MishapError
        context.session["log"] = [*log, run.token]
        run.returned = True
        return run.token

    async def _deliver(self, session_id: str, message: str) -> None:
        self.world.say("reply", message)
        self.world.model.check_may_answer(self.owner, self.machine.now, f"a reply of {message} was sent")

    async def _on_conflict(self, session_id: str, state: dict[str, Any] | None) -> None:
        self._tell(session_id, state)

    def _tell(self, session_id: str, state: dict[str, Any] | None) -> None:
        self.world.say("conflict", session_id)
        self.world.counts["conflicts"] += 1
        self.world.model.conflict(self.owner, session_id, () if state is None else tuple(state["log"]))

    def _writes(self, machine: Machine) -> None:
        assert self.manager is not None
        self.world.model.write(self.owner, machine.now)
