"""One thread in the place of many: the loop, the lanes and the clock take their steps in an order
that is drawn from a seed.

A `Machine` is a process: it has an event loop, and the lanes that the library makes for its stores.
The machines of a `World` share its time, which is virtual. A call of the store or of the disk lasts
by having the others take steps until its time is over (`pause`), one inside the other; so what
calls at the same time must come back in the reverse order. A world of several machines cannot live
with that: one would wait for another that is frozen. There each task of a lane has a stack of its
own, a thread that stands still while it is not its turn (`stacks`).
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import sys
import types
from asyncio.events import _set_running_loop
from collections import deque
from collections.abc import Callable, Coroutine, Iterable, Iterator
from contextlib import contextmanager, suppress
from contextvars import Context as ContextVars
from math import inf
from random import Random
from threading import get_ident
from typing import Any, ClassVar

import pytest

from actorbot._journal import commits as _commits
from actorbot._journal import untold as _untold
from actorbot._manager import closing as _closing
from actorbot._runtime import actor as _actor
from actorbot._runtime import deadline_thread as _deadline_thread
from actorbot._runtime import loop_home as _loop_home
from actorbot._runtime.clock import Action, Clock, Timer
from tests.faults._sim_stacks import Stack, Stacks

__all__ = ["Crash", "Machine", "StuckError", "World"]

Task = Callable[[], None]

MOST_STEPS = 400_000  # of one world
STEP = 60e-6  # seconds that a step takes at most


class Crash(BaseException):
    """The process was killed, or its world is over: nothing of it goes on."""


class StuckError(AssertionError):
    """Somebody waits, and would wait for ever."""


class Lane:
    """Stands in for `actorbot._runtime.threads.Lane`: tasks in their order, one at a time, by steps
    of the machine that is running.
    """

    def __init__(self, name: str, number: int = 0, tasks: Iterable[Task] = ()) -> None:
        self.name = name
        self.number = number
        self.closed = False
        self.busy = False
        self.pauses = True  # whether a task of it ever does
        self.wake = inf  # the instant until which its task pauses
        self._stack: Stack | None = None  # where that stands
        self.tasks: deque[Task | None] = deque(tasks)
        self.machine = Machine.running
        self.machine.lanes.append(self)

    @staticmethod
    def here() -> Any:
        return Machine.running.here

    def submit(self, task: Task) -> None:
        self.tasks.append(task)

    def give_up(self) -> list[Task]:
        tasks = [task for task in self.tasks if task is not None]
        self.tasks.clear()
        return tasks

    def close(self) -> None:
        self.closed = True
        self.tasks.append(None)

    def able(self) -> bool:
        return self.wake <= self.machine.now if self.busy else bool(self.tasks)

    def step(self) -> None:
        if self.busy:
            self._go_on()
            return
        task = self.tasks.popleft()
        if task is None:
            self.machine.lanes.remove(self)
            return
        self.busy = True
        if self.pauses and (stacks := self.machine.world.stacks) is not None:
            self._stack = stacks.take(task)
            self._go_on()
            return
        try:
            task()
        finally:
            self.busy = False

    def end(self) -> None:
        """Have the task that pauses come to its end: its machine is dead."""
        while self._stack is not None:
            with suppress(BaseException):
                self._go_on()

    def _go_on(self) -> None:
        stack, stacks = self._stack, self.machine.world.stacks
        assert stack is not None
        assert stacks is not None
        self.wake = inf
        if not stacks.step(stack):
            return
        self._stack, self.busy = None, False
        stacks.give_back(stack)
        if stack.error is not None and not (isinstance(stack.error, Crash) and self.machine.dead):
            raise stack.error


class _Clock(Clock):
    """The clock of a machine. What is due is called by a thread of its own, one timer at a time."""

    name = "clock"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.timers: list[tuple[float, int, Timer]] = []

    def monotonic(self) -> float:
        return self._machine.now

    def wall(self) -> float:
        return self._machine.now + self._machine.wall_offset

    def call_at(self, when: float, action: Action) -> Timer:
        timer = Timer(when, action)
        heapq.heappush(self.timers, (when, next(self._machine.world.order), timer))
        return timer

    def due(self) -> float:
        timers = self.timers
        while timers and timers[0][2].action is None:
            heapq.heappop(timers)
        return timers[0][0] if timers else inf

    def step(self) -> None:
        timer = heapq.heappop(self.timers)[2]
        action, timer.action = timer.action, None
        if action is not None:
            action()


class _Loop(asyncio.AbstractEventLoop):
    """An event loop without a selector: what is called soon is called in order, and time is the
    machine's.
    """

    name = "loop"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self.ready: deque[asyncio.Handle] = deque()
        self.timers: list[tuple[float, int, asyncio.TimerHandle]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self._machine.now

    def call_soon(
        self, callback: Callable[..., object], *args: Any, context: ContextVars | None = None
    ) -> asyncio.Handle:
        handle = asyncio.Handle(callback, args, self, context)
        if not self._machine.dead:
            self.ready.append(handle)
        return handle

    call_soon_threadsafe = call_soon

    def call_later(  # type: ignore[override]
        self, delay: float, callback: Callable[..., object], *args: Any, context: ContextVars | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self.time() + delay, callback, *args, context=context)

    def call_at(  # type: ignore[override]
        self, when: float, callback: Callable[..., object], *args: Any, context: ContextVars | None = None
    ) -> asyncio.TimerHandle:
        handle = asyncio.TimerHandle(when, callback, args, self, context)
        heapq.heappush(self.timers, (when, next(self._numbers), handle))
        return handle

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        """Nothing to do: `due` passes over it."""

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def create_task(self, coro: Any, **options: Any) -> asyncio.Task[Any]:  # type: ignore[override]
        if self._machine.dead:
            coro.close()
            return self.create_future()  # type: ignore[return-value]  # which nobody will wait for
        options["name"] = str(next(self._numbers))  # which tells their order
        return asyncio.Task(coro, loop=self, **options)

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Callable[[], Any], host: Any = None, port: Any = None, **options: Any
    ) -> Any:
        return await self._machine.connect(protocol_factory)

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        if not self._machine.dead:
            self._machine.complain(f"the loop was told: {context.get('message')}: {context.get('exception')!r}")

    def due(self) -> float:
        timers = self.timers
        while timers and timers[0][2].cancelled():
            heapq.heappop(timers)
        return timers[0][0] if timers else inf

    def step(self) -> None:
        handle = self.ready.popleft()
        if handle.cancelled():
            return
        _set_running_loop(self)
        try:
            handle._run()
        finally:
            _set_running_loop(None)


class Machine:
    """A process. *complain* is told what should never happen."""

    running: ClassVar[Machine]

    def __init__(self, world: World, wall_offset: float, complain: Callable[[str], None], name: str = "") -> None:
        self.world = world
        self.wall_offset = wall_offset
        self.complain = complain
        self.name = name
        self.killed = False
        self.on_end: Callable[[], object] = lambda: None
        """Is called when it is killed, after all that it did has ended."""
        self.connect: Callable[[Callable[[], Any]], Any] = _refuse
        """Connects its loop with a server."""
        self.frozen_until = -inf
        """The instant at which it goes on: it was stopped, with all that it does."""
        self.here: Any = (
            None  # whose step it is: a lane, the clock or an actor's; `None` for the loop, which is the main thread
        )
        self.lanes: list[Any] = []
        self.clock = _Clock(self)
        self.loop = _Loop(self)
        self._liked = {name: world.random.choice((0.1, 1.0, 1.0, 1.0, 5.0)) for name in ("loop", "clock")}
        world.machines.append(self)

    @property
    def now(self) -> float:
        return self.world.now

    @property
    def dead(self) -> bool:
        return self.killed or self.world.over

    def die_if_dead(self) -> None:
        """Keep what is left of a process that was killed, and comes to its end only in Python, from
        touching the world.
        """
        if self.dead:
            raise Crash

    def pause(self, seconds: float) -> None:
        """Have the others take steps for so long. Raises: Crash."""
        self.world.pause(self, seconds)

    def freeze(self, seconds: float) -> None:
        """Stop it where it is, for so long."""
        self.frozen_until = max(self.frozen_until, self.now + seconds)

    def ident(self) -> int:
        """What `threading.get_ident` says here."""
        return get_ident() if self.here is None else id(self.here)

    # --- for the world ---------------------------------------------------------------------------

    def able(self) -> list[Any]:
        """Return what can take a step now."""
        loop, now = self.loop, self.world.now
        if now < self.frozen_until:
            return []
        while loop.timers and loop.timers[0][0] <= now:
            if loop.due() <= now:
                loop.ready.append(heapq.heappop(loop.timers)[2])
        able = [lane for lane in self.lanes if lane.able()] if self.lanes else []
        if loop.ready:
            able.append(loop)
        if self.clock.timers and self.clock.due() <= now:
            able.append(self.clock)
        return able

    def due(self) -> float:
        """Return the instant of its next step, if it has none now."""
        instant = min(self.loop.due(), self.clock.due(), *(lane.wake for lane in self.lanes if lane.busy), inf)
        return max(instant, self.frozen_until)

    def like(self, name: str) -> float:
        """Tell how often this is chosen: some threads are quicker than others."""
        liked = self._liked.get(name)
        if liked is None:
            liked = self._liked[name] = self.world.random.choice((0.1, 1.0, 1.0, 1.0, 5.0))
        return liked

    def step(self, chosen: Any) -> None:
        outer, self.here = self.here, None if chosen is self.loop else chosen
        running, Machine.running = Machine.running, self
        try:
            chosen.step()
        except Exception as error:
            self.complain(f"a step of {chosen.name} raised {error!r}")
        finally:
            Machine.running, self.here = running, outer

    def bury(self) -> None:
        """End what still waits, in the order in which it began; it reaches nothing any more."""
        running, Machine.running = Machine.running, self
        for lane in list(self.lanes):
            lane.end()
        Machine.running = running
        for task in sorted(asyncio.all_tasks(self.loop), key=lambda task: int(task.get_name())):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            for _ in range(10):
                try:
                    task.get_coro().close()  # type: ignore[union-attr]
                except RuntimeError:
                    continue  # it waits for something on its way out
                except Exception:
                    pass  # what it does on its way out needs a loop
                break
        self.loop.ready.clear()


class World:
    """The machines that there are, and the time that they share.

    It is over with a crash after so many steps, *crash_after*. *stacks* are threads for the tasks
    of lanes: without them a task that pauses has the others take their steps on top of it.
    """

    def __init__(self, random: Random, now: float, *, crash_after: float = inf, stacks: Stacks | None = None) -> None:
        self.random = random
        self.now = now
        self.over = False
        self.order = itertools.count()
        self.machines: list[Machine] = []
        self.stacks = stacks
        self.steps = 0
        self.actors_pause = True
        """Whether service actors call what lasts: a journal does."""
        self._crash_after = crash_after

    def run(self, machine: Machine, main: Coroutine[Any, Any, Any], until: float) -> Any:
        """Run *main*, which is *machine*'s, to its end and return its value.

        Raises: Crash, and StuckError where it does not end before the instant *until*.
        """
        with _threads_replaced(self, machine):
            try:
                task = machine.loop.create_task(main)
                self._go_on(task.done, inf, until)
                return task.result()
            finally:
                self.over = True
                for each in self.machines:
                    each.bury()

    def pause(self, machine: Machine, seconds: float) -> None:
        """Have the others take steps for so long, while *machine* stands where it is."""
        me, until = machine.here, self.now + seconds
        if self.stacks is None:
            self._go_on(lambda: self.now >= until, until, inf)
            machine.here = me
            return
        me.wake = until
        machine.die_if_dead()
        self.stacks.pause()
        machine.die_if_dead()

    def _go_on(self, done: Callable[[], bool], wake: float, limit: float) -> None:
        random = self.random.random
        while not done():
            if self.over:
                raise Crash
            self.steps += 1
            if self.steps > self._crash_after:
                self.over = True
                raise Crash
            if self.steps > MOST_STEPS or self.now > limit:
                self.over = True
                raise StuckError(f"not over after {self.steps} steps, at {self.now:.3f}")
            able = [(machine, each) for machine in self.machines for each in machine.able()]
            if not able:
                instant = min(wake, *(machine.due() for machine in self.machines))
                if instant == inf:
                    self.over = True
                    raise StuckError("nobody has anything left to do")
                self.now = max(self.now, instant)
                continue
            machine, chosen = able[0] if len(able) == 1 else self._choose(able)
            machine.step(chosen)
            self.now += random() * STEP
            for each in [machine for machine in self.machines if machine.killed]:
                self.machines.remove(each)
                each.bury()
                each.on_end()

    def _choose(self, able: list[tuple[Machine, Any]]) -> tuple[Machine, Any]:
        return self.random.choices(able, [machine.like(each.name) for machine, each in able])[0]


async def _refuse(make: Callable[[], Any]) -> Any:
    raise ConnectionRefusedError


# --- what is put in the place of threads --------------------------------------------------------


def _begin(actor: Any) -> None:
    actor.lane = Lane(type(actor).__name__.lower())
    actor.lane.pauses = Machine.running.world.actors_pause


def _notify(actor: Any, message: Any) -> bool:
    if actor.lane.closed:
        return False
    actor.lane.submit(lambda: actor.on_receive(message))
    return True


def _end(actor: Any) -> None:
    if not actor.lane.closed:
        actor.lane.close()


def _ident() -> int:
    return Machine.running.ident()


@contextmanager
def _threads_replaced(world: World, machine: Machine) -> Iterator[None]:
    """Have the library make its lanes and service actors on the machine whose step it is, first
    *machine*, and draw its random bytes from the seed.
    """
    Machine.running = machine
    hooks = sys.get_asyncgen_hooks()
    sys.set_asyncgen_hooks(finalizer=lambda generator: None)  # what a crash leaves behind is not brought to its end
    with pytest.MonkeyPatch.context() as patch:
        for module in (_deadline_thread, _untold):
            patch.setattr(module, "Lane", Lane)
        patch.setattr(_actor.ServiceActor, "begin", _begin)
        patch.setattr(_actor.ServiceActor, "notify", _notify)
        patch.setattr(_actor.ServiceActor, "end", _end)
        patch.setattr(_actor.ServiceActor, "is_running", lambda actor: not actor.lane.closed)
        patch.setattr(_closing, "monotonic", lambda: world.now)
        patch.setattr(_commits, "perf_counter", lambda: world.now)
        patch.setattr(_loop_home, "threading", types.SimpleNamespace(get_ident=_ident))
        # Threads that starve are not simulated, and how busy a thread is would be the machine's,
        # not the seed's.
        patch.setattr(_loop_home.LoopHome, "_look_in", lambda home, seconds: None)
        patch.setattr(os, "urandom", world.random.randbytes)
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(*hooks)
