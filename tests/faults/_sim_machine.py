"""One thread in the place of many: the loop, the lanes and the clock take their steps in an order
that is drawn from a seed.

A `Machine` is a process: it has an event loop, and the lanes that the library makes for its stores.
Time is virtual. A call of the store or of the disk lasts by having the others take steps until its
time is over (`pause`), one inside the other; so what calls at the same time must come back in the
reverse order, which is the one thing that real threads can do and these cannot.
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
from contextlib import contextmanager
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

__all__ = ["Crash", "Machine", "StuckError"]

Task = Callable[[], None]

MOST_STEPS = 400_000  # of one process
STEP = 60e-6  # seconds that a step takes at most


class Crash(BaseException):
    """The process was killed: nothing of it goes on."""


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

    def step(self) -> None:
        task = self.tasks.popleft()
        if task is None:
            self.machine.lanes.remove(self)
            return
        self.busy = True
        try:
            task()
        finally:
            self.busy = False


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
        heapq.heappush(self.timers, (when, next(self._machine.order), timer))
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

    def __init__(
        self, random: Random, now: float, wall_offset: float, crash_after: float, complain: Callable[[str], None]
    ) -> None:
        self.random = random
        self.now = now
        self.wall_offset = wall_offset
        self.complain = complain
        self.dead = False
        self.order = itertools.count()
        self.here: Any = (
            None  # whose step it is: a lane, the clock or an actor's; `None` for the loop, which is the main thread
        )
        self.lanes: list[Any] = []
        self.clock = _Clock(self)
        self.loop = _Loop(self)
        self.steps = 0
        self._crash_after = crash_after  # steps
        self._liked = {name: random.choice((0.1, 1.0, 1.0, 1.0, 5.0)) for name in ("loop", "clock")}

    # --- steps -----------------------------------------------------------------------------------

    def run(self, main: Coroutine[Any, Any, Any], until: float) -> Any:
        """Run *main* to its end and return its value.

        Raises: Crash, and StuckError where it does not end before the instant *until*.
        """
        with _threads_replaced(self):
            try:
                task = self.loop.create_task(main)
                self._go_on(task.done, inf, until)
                return task.result()
            finally:
                self.dead = True
                self._bury()

    def pause(self, seconds: float) -> None:
        """Have the others take steps for so long. Raises: Crash."""
        me = self.here
        until = self.now + seconds
        self._go_on(lambda: self.now >= until, until, inf)
        self.here = me

    def die_if_dead(self) -> None:
        """Keep what is left of a process that was killed, and comes to its end only in Python, from
        touching the world.
        """
        if self.dead:
            raise Crash

    def _go_on(self, done: Callable[[], bool], wake: float, limit: float) -> None:
        random, loop, clock = self.random.random, self.loop, self.clock
        while not done():
            self.die_if_dead()
            self.steps += 1
            if self.steps > self._crash_after:
                self.dead = True
                raise Crash
            if self.steps > MOST_STEPS or self.now > limit:
                self.dead = True
                raise StuckError(f"not over after {self.steps} steps, at {self.now:.3f}")
            while loop.due() <= self.now:
                loop.ready.append(heapq.heappop(loop.timers)[2])
            able = [lane for lane in self.lanes if lane.tasks and not lane.busy]
            if loop.ready:
                able.append(loop)
            if clock.due() <= self.now:
                able.append(clock)
            if not able:
                instant = min(loop.due(), clock.due(), wake)
                if instant == inf:
                    self.dead = True
                    raise StuckError("nobody has anything left to do")
                self.now = max(self.now, instant)
                continue
            self._step(able[0] if len(able) == 1 else self._choose(able))
            self.now += random() * STEP

    def _choose(self, able: list[Any]) -> Any:
        return self.random.choices(able, [self._like(each.name) for each in able])[0]

    def _like(self, name: str) -> float:
        liked = self._liked.get(name)
        if liked is None:
            liked = self._liked[name] = self.random.choice((0.1, 1.0, 1.0, 1.0, 5.0))
        return liked

    def _step(self, chosen: Any) -> None:
        outer, self.here = self.here, None if chosen is self.loop else chosen
        try:
            chosen.step()
        except Exception as error:
            self.complain(f"a step of {chosen.name} raised {error!r}")
        finally:
            self.here = outer

    def _bury(self) -> None:
        """End what still waits, in the order in which it began; it reaches nothing any more."""
        for task in sorted(asyncio.all_tasks(self.loop), key=lambda task: int(task.get_name())):
            task._log_destroy_pending = False  # type: ignore[attr-defined]
            for _ in range(10):
                try:
                    task.get_coro().close()  # type: ignore[union-attr]
                except RuntimeError:
                    continue  # it waits for something on its way out
                break
        self.loop.ready.clear()

    def ident(self) -> int:
        """What `threading.get_ident` says here."""
        return get_ident() if self.here is None else id(self.here)


# --- what is put in the place of threads --------------------------------------------------------


def _begin(actor: Any) -> None:
    actor.lane = Lane(type(actor).__name__.lower())


def _notify(actor: Any, message: Any) -> bool:
    if actor.lane.closed:
        return False
    actor.lane.submit(lambda: actor.on_receive(message))
    return True


def _end(actor: Any) -> None:
    if not actor.lane.closed:
        actor.lane.close()


@contextmanager
def _threads_replaced(machine: Machine) -> Iterator[None]:
    """Have the library make its lanes and service actors on *machine*, and draw its random bytes
    from the seed.
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
        patch.setattr(_closing, "monotonic", machine.clock.monotonic)
        patch.setattr(_commits, "perf_counter", machine.clock.monotonic)
        patch.setattr(_loop_home, "threading", types.SimpleNamespace(get_ident=machine.ident))
        # Threads that starve are not simulated, and how busy a thread is would be the machine's,
        # not the seed's.
        patch.setattr(_loop_home.LoopHome, "_look_in", lambda home, seconds: None)
        patch.setattr(os, "urandom", machine.random.randbytes)
        try:
            yield
        finally:
            sys.set_asyncgen_hooks(*hooks)
