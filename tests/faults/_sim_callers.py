"""Simulated callers of a cluster, their users, and what each is told."""

from __future__ import annotations

import asyncio
import itertools
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from actorbot import DUPLICATE
from actorbot.cluster import Cluster
from actorbot.errors import (
    ActorbotError,
    ConflictError,
    ManagerClosedError,
    OutcomeUnknownError,
    OverloadedError,
    RemoteHandlerError,
    StoreUnavailableError,
    TurnTimeoutError,
)
from tests.faults._sim_machine import Machine
from tests.faults._sim_shards_model import fails

__all__ = ["CallerProcess", "Events"]

APPENDED = 5.0  # seconds in which a request must be in the log
SLACK = 0.5
CALM = 1.5  # seconds that a call takes at most, where shards only come and go
OPEN = (TurnTimeoutError, OutcomeUnknownError, ManagerClosedError)
"""After these an event may have been handled."""
TROUBLE = (StoreUnavailableError, OverloadedError, ConflictError)
"""These may meet an event when something has gone wrong."""


class Events:
    """What the users have to say; what nobody has answered is sent again, under the same id."""

    def __init__(self, sessions: int, is_old: Callable[[str], bool]) -> None:
        self._is_old = is_old
        self.sessions = [f"s{number}" for number in range(sessions)]
        self._again: dict[str, deque[str]] = {session_id: deque() for session_id in self.sessions}
        self._numbers = itertools.count()
        self.sent: dict[str, int] = {}
        """How often an event was given to a caller."""

    def next(self, session_id: str) -> str:
        again = self._again[session_id]
        while again and self._is_old(again[0]):
            again.popleft()
        event = again.popleft() if again else f"{session_id}-{next(self._numbers)}"
        self.sent[event] = self.sent.get(event, 0) + 1
        return event

    def again(self, session_id: str, event: str) -> None:
        """Have the event sent again, by whoever is next."""
        self._again[session_id].append(event)

    def left(self, session_id: str) -> list[str]:
        """Take all that is to be sent again."""
        left = [event for event in self._again[session_id] if not self._is_old(event)]
        self._again[session_id].clear()
        return left


class CallerProcess:
    """A process with a `Cluster`: web workers, a poller."""

    def __init__(self, world: Any, machine: Machine, *, last: bool = False) -> None:
        self.world = world
        self._last = last
        self._full = False  # whether there was no room for somebody's event
        self.machine = machine
        self.leaving = asyncio.Event()
        self.ended = asyncio.Event()
        """For the director."""
        self._tasks: set[asyncio.Task[Any]] = set()

    def leave(self) -> None:
        """Have it close. From any machine."""
        self.machine.loop.call_soon(self.leaving.set)

    async def live(self) -> None:
        world = self.world
        try:
            cluster = Cluster(world.url, cluster="bot", timeout=world.plan.timeout)
            while not self.leaving.is_set():
                try:
                    await cluster.start()
                except ActorbotError as error:
                    world.say("no start:", repr(error)[:120])
                    cluster = Cluster(world.url, cluster="bot", timeout=world.plan.timeout)
                    await asyncio.sleep(0.3)
                else:
                    break
            else:
                return
            use = self._end if self._last else self._use
            users = [asyncio.ensure_future(use(cluster, session_id)) for session_id in world.events.sessions]
            await asyncio.gather(*users)
            while self._tasks:
                await asyncio.wait(self._tasks)
            await cluster.close()
            world.say("the caller has closed")
        finally:
            self.machine.killed = True

    def _begin(self, call: Any) -> None:
        task = asyncio.get_running_loop().create_task(call)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and isinstance(task.exception(), Exception):
            self.world.complain(f"a user met {task.exception()!r}")

    async def _use(self, cluster: Cluster, session_id: str) -> None:
        world, random = self.world, self.world.random
        while not self.leaving.is_set():
            drawn = random.random()
            event = world.events.next(session_id)
            if random.random() < world.plan.destroys:
                await self._destroy(cluster, session_id)
            if drawn < 0.2:
                call = self._submit(cluster, session_id, event)
            else:
                call = self._dispatch(cluster, session_id, event, durable=drawn > 0.93)
            if random.random() < 0.4:
                self._begin(call)
            else:
                await call
            if random.random() < 0.05:
                await self._look(cluster, session_id)
            if random.random() < 0.8 or self._full:
                self._full = False
                with suppress(TimeoutError):
                    await asyncio.wait_for(self.leaving.wait(), random.expovariate(1 / world.plan.pause))

    async def _end(self, cluster: Cluster, session_id: str) -> None:
        """All is well: send what is left, and have it done."""
        events = self.world.events
        for event in [*events.left(session_id), events.next(session_id)]:
            for _ in range(30):
                await self._dispatch(cluster, session_id, event)
                if not events.left(session_id):
                    break
                if self.world.plan.max_waiting > 100:
                    self.world.complain(f"all is well, and {event} was not handled")
                await asyncio.sleep(1.0)  # there was no room
            else:
                self.world.complain(f"all is well, and there never was room for {event}")

    async def _dispatch(self, cluster: Cluster, session_id: str, event: str, *, durable: bool = False) -> None:
        world, began = self.world, self.machine.now
        try:
            again = world.random.choice(("duplicate", "duplicate", "result"))
            token = await cluster.dispatch(session_id, event, event_id=event, durable=durable, on_duplicate=again)
        except ActorbotError as error:
            self._refused(session_id, event, error)
        else:
            self._answered(session_id, event, token)
            if durable or world.plan.mode == "write-through":
                self._check_stored(session_id, event, at_once=True)
        self._check_time(began, event)

    async def _submit(self, cluster: Cluster, session_id: str, event: str) -> None:
        world = self.world
        try:
            receipt = await cluster.submit(session_id, event, event_id=event)
        except ActorbotError as error:
            self._refused(session_id, event, error)
            return
        began = self.machine.now
        try:
            token = await receipt.result()
        except TurnTimeoutError:
            world.say("no result yet of", event)
            world.counts["TurnTimeoutError"] += 1
            self._check_time(began, event)
            return  # it goes on
        except ActorbotError as error:
            self._refused(session_id, event, error)
            return
        self._answered(session_id, event, token)
        if world.random.random() < 0.5:
            try:
                await receipt.durable()
            except ActorbotError as error:
                world.say("not durable:", event, repr(error)[:120])
            else:
                self._check_stored(session_id, event)

    async def _destroy(self, cluster: Cluster, session_id: str) -> None:
        try:
            await cluster.destroy(session_id)
        except ActorbotError as error:
            self.world.say("not destroyed:", session_id, repr(error)[:120])
        else:
            self.world.counts["destroyed"] += 1

    async def _look(self, cluster: Cluster, session_id: str) -> None:
        world = self.world
        try:
            if world.random.random() < 0.5:
                state = await cluster.peek(session_id)
                if state is not None:
                    world.judge.check_whole(session_id, tuple(state.get("log", ())), "a peek")
            else:
                await cluster.flush(world.random.choice((session_id, None)))
        except ActorbotError as error:
            world.say("no look at", session_id, repr(error)[:120])

    # --- what they are told ----------------------------------------------------------------------

    def _answered(self, session_id: str, event: str, token: Any) -> None:
        world = self.world
        world.say("got", event, token)
        world.counts["acknowledged"] += 1
        if fails(event):
            world.complain(f"{event} raises, and was answered with {token!r}")
        if token is DUPLICATE:
            world.counts["duplicates"] += 1
            if world.events.sent[event] == 1 and not world.judge.troubled:
                world.complain(f"{event} was sent once, all was well, and the answer is DUPLICATE")
        elif world.judge.runs[session_id][token].event != event:
            world.complain(f"{event} was answered with {token}")

    def _refused(self, session_id: str, event: str, error: ActorbotError) -> None:
        world = self.world
        world.say("failed", event, repr(error)[:160])
        world.counts[type(error).__name__] += 1
        if isinstance(error, RemoteHandlerError):
            if not fails(event) or error.type_name != "MishapError":
                world.complain(f"{event} met {error!r}")
            return
        self._full = self._full or isinstance(error, OverloadedError)
        if not isinstance(error, (*OPEN, *TROUBLE)):
            world.complain(f"{event} met {error!r}")
        full = isinstance(error, OverloadedError) and world.plan.max_waiting < 100
        if not (world.judge.troubled or full or isinstance(error, ManagerClosedError)):
            world.complain(f"all was well, and {event} met {error!r}")
        if self._last or world.random.random() < 0.8:
            world.events.again(session_id, event)

    def _check_stored(self, session_id: str, event: str, *, at_once: bool = False) -> None:
        if not self.world.judge.is_durable(session_id, event, at_once=at_once):
            self.world.complain(f"{event} was called durable before it was stored")

    def _check_time(self, began: float, event: str) -> None:
        world = self.world
        most = world.plan.timeout + SLACK
        if world.plan.is_calm and not world.judge.troubled:
            most = CALM
        if self.machine.now - max(began, self.machine.frozen_until) > most:
            world.complain(f"the call of {event} took {self.machine.now - began:.2f} s")
