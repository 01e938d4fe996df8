"""Several shards of a cluster and their callers, in one thread and virtual time, under everything
that may go wrong between them; all from one seed.

There are some places for shards. In each a shard is started, handles events, and comes to an end:
it is closed, drained or killed; and another one is started there. Meanwhile shards and callers are
frozen and cut off, the Redis is frozen, restarted, or has its clock set, and the store is away. At
the end the weather is fine, all are closed, and everything that was acknowledged must be in the
store once and in order, but for what the policy says.

The Redis executes the real scripts, the clients are the real ones: what is simulated begins at the
bytes that they send.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from actorbot._manager import parts as _parts
from actorbot._ownership import keeper as _keeper
from actorbot._ownership import stays as _stays
from actorbot._runtime.process import Process
from actorbot._state.record import Record
from actorbot.cluster import Shard, _leaving, _membership, _receipt, _shard
from actorbot.errors import StoreUnavailableError
from tests import inside
from tests.faults._sim_callers import CallerProcess, Events
from tests.faults._sim_machine import Crash, Machine, StuckError, World
from tests.faults._sim_media import log_of
from tests.faults._sim_network import RedisServer, Trap
from tests.faults._sim_server import LeasedStore, Server
from tests.faults._sim_server import Trap as StoreTrap
from tests.faults._sim_shards_model import Judge, fails
from tests.faults._sim_stacks import Stacks
from tests.faults._simulation import Flushing, Report, SimulationError, Wrong, listening

__all__ = ["Plan", "simulate_shards"]

LONGEST = 600.0  # virtual seconds of a simulation
URL = "redis://simulated/0"

SCENES = {
    "freeze": 4,
    "freeze amid a call": 5,
    "kill": 3,
    "kill amid a call": 3,
    "close": 3,
    "join": 3,
    "drain": 1,
    "cut off": 4,
    "freeze the redis": 3,
    "restart the redis": 2,
    "clock of the redis": 1,
    "cut off a caller": 2,
    "kill a caller": 1,
    "freeze a caller": 1,
    "store away": 3,
}
CALM = {"close", "join", "drain"}
"""These cost nobody an answer."""


class MishapError(Exception):
    """What a handler raises."""


@dataclass(frozen=True, kw_only=True)
class Plan(Flushing):
    """What a simulation is about: drawn from its seed, but for what a test insists on."""

    seed: int
    keep: str
    places: int
    """For shards."""
    callers: int
    slots: int
    lease: float
    max_waiting: int
    max_in_hand: int
    drain_timeout: float
    timeout: float
    """Of callers."""
    sessions: int
    scenes: int
    likes: tuple[str, ...]
    """What befalls them, some of `SCENES`."""
    gap: float
    """Seconds between two of them."""
    pause: float
    """Seconds between two events of a user."""
    forgets: bool
    """Whether the Redis may lose its last second."""
    clocks: bool
    """Whether its clock is set."""
    faults: float
    """How likely what is sent to the Redis is lost or late."""
    store_faults: float
    destroys: float
    """How likely an event comes after the end of its session."""
    slow: float
    """How likely a handler takes seconds."""
    idle_timeout: float
    computers: int
    """On how many the places are: who is on the same one sees that a process has ended."""

    @classmethod
    def draw(cls, seed: int, **fixed: Any) -> Plan:
        random = Random(seed)
        choice = random.choice
        drawn = {
            "mode": choice(("write-behind", "write-behind", "write-through")),
            "keep": choice(("flushed", "flushed", "acknowledged")),
            "places": choice((2, 2, 3, 4)),
            "callers": choice((1, 2, 3)),
            "slots": choice((1, 2, 4, 8)),
            "lease": choice((1.0, 2.0, 5.0)),
            "max_waiting": choice((5, 2_000, 2_000)),
            "max_in_hand": choice((1, 5, 1_000, 1_000)),
            "drain_timeout": choice((1.0, 10.0, 30.0)),
            "timeout": choice((2.0, 10.0, 30.0)),
            "sessions": choice((1, 2, 4)),
            "scenes": choice((2, 4, 6)),
            "likes": tuple(SCENES) if random.random() < 0.85 else tuple(sorted(CALM)),
            "gap": choice((0.3, 1.0, 3.0)),
            "pause": choice((0.2, 0.7, 2.0)),
            "forgets": random.random() < 0.15,
            "clocks": random.random() < 0.25,
            "faults": choice((0.0, 0.0, 0.0, 0.01, 0.05)),
            "store_faults": choice((0.0, 0.0, 0.0, 0.1)),
            "destroys": choice((0.0, 0.0, 0.05)),
            "slow": choice((0.0, 0.0, 0.03)),
            "max_delay": choice((0.05, 0.5, 3.0, 20.0)),
            "max_events": choice((2, 5, 100)),
            "batch_size": choice((1, 2, 100)),
            "deadline": choice((0.2, 1.0)),
            "sync": "full",
            "idle_timeout": choice((0.5, 5.0, 100.0)),
            "computers": choice((1, 2, 4)),
        }
        return cls(seed=seed, **(drawn | fixed))

    @property
    def is_calm(self) -> bool:
        """Whether nothing befalls anybody that costs an answer."""
        return not (self.faults or self.store_faults or self.slow or set(self.likes) - CALM)


class ShardProcess:
    """A process with a shard."""

    def __init__(self, world: Simulation, machine: Machine, place: Place, *, last: bool = False) -> None:
        self.world = world
        self.machine = machine
        self.place = place
        self.started = False
        self.drains = False
        self.shard: Shard | None = None
        self.ended = asyncio.Event()
        """For the director."""
        self.leaving = asyncio.Event()
        self._last = last

    def leave(self) -> None:
        """Have it close. From any machine."""
        self.machine.loop.call_soon(self.leaving.set)

    async def live(self) -> None:
        world = self.world
        try:
            while not self.leaving.is_set():
                try:
                    await self._start()
                except StoreUnavailableError as error:
                    world.say("no start:", repr(error)[:160])
                    world.counts["no start"] += 1
                    await asyncio.sleep(0.5)  # its supervisor starts it again
                else:
                    break
            else:
                return
            world.say("the shard has started")
            self.started = True
            world.counts["started"] += 1
            shard = self.shard
            assert shard is not None
            drained = asyncio.ensure_future(shard.receive())
            await asyncio.wait(
                {drained, asyncio.ensure_future(self.leaving.wait())}, return_when=asyncio.FIRST_COMPLETED
            )
            world.say("close", "drained" if drained.done() else "")
            began = self.machine.now
            world.judge.closing.add(self.machine.name)
            report = await shard.close()
            world.say("closed", report)
            world.counts["closed"] += 1
            most = world.plan.drain_timeout + 2.0 + 6 * world.plan.deadline + 6.0  # the log's own patience
            if self.machine.now - max(began, self.machine.frozen_until) > most:
                world.complain(f"the close of {self.machine.name} took {self.machine.now - began:.2f} s")
            if self._last and not report.clean:
                world.complain(f"the last shard leaves {report}")
        finally:
            world.say("the process ends")
            self.machine.killed = True
            world.judge.killed.setdefault(self.machine.name, self.machine.now)

    async def _start(self) -> None:
        world, plan = self.world, self.world.plan
        shard = self.shard = Shard(
            URL,
            cluster="bot",
            store=LeasedStore(world.server, self.machine, lambda machine: None),
            handler=self._handle,
            deliver=self._deliver,
            on_conflict=self._on_conflict,
            flush=plan.policy(),
            slots=plan.slots,
            lease=plan.lease,
            keep=plan.keep,  # type: ignore[arg-type]
            max_waiting=plan.max_waiting,
            max_in_hand=plan.max_in_hand,
            drain_timeout=plan.drain_timeout,
            idle_timeout=plan.idle_timeout,
            handler_timeout=60.0,
            clock=self.machine.clock,
        )
        await shard.start()

    @property
    def serves(self) -> bool:
        """Whether it can do the work of another one."""
        return self.started and not self.drains and not self.leaving.is_set() and not self.machine.killed

    async def _handle(self, context: Any) -> str:
        world, random, event = self.world, self.world.random, context.event
        log = tuple(context.session.get("log", ()))
        run = world.judge.begin(self.machine.name, context.session_id, event, log)
        world.say("runs", run.token, len(log))
        world.counts["runs"] += 1
        drawn = random.random()
        if drawn < world.plan.slow and not world.over:
            await asyncio.sleep(random.choice((1.0, 5.0)))
        elif drawn < 0.3:
            await asyncio.sleep(random.expovariate(1 / 0.01))
        context.send_text(run.token)
        if fails(event):
            raise MishapError
        context.session["log"] = [*log, run.token]
        run.returned = True
        return run.token

    async def _deliver(self, session_id: str, message: str) -> None:
        self.world.say("reply", message)
        self.world.counts["replies"] += 1
        self.world.judge.deliver(self.machine.name, session_id, str(message))

    async def _on_conflict(self, session_id: str, state: Any) -> None:
        self.world.say("conflict", session_id)
        self.world.judge.told |= {token.partition(".")[0] for token in (state or {}).get("log", ())}
        self.world.counts["conflicts"] += 1


@dataclass(eq=False)
class Place:
    """A place for a shard."""

    number: int
    wanted: bool = False
    process: ShardProcess | None = None


class Simulation:
    """One of them."""

    url = URL

    def __init__(self, plan: Plan, stacks: Stacks) -> None:
        self.plan = plan
        self.random = Random(plan.seed * 2 + 1)
        self.trace: list[str] = []
        self.counts: Counter[str] = Counter()
        self.wrong: str | None = None
        self.world = World(self.random, 1_000.0, stacks=stacks)
        self.world.actors_pause = False
        self.director = Machine(self.world, 0.0, self.complain, "director")
        self.judge = Judge(plan, lambda: self.world.now, self.say, self.complain)
        self.judge.troubled = not plan.is_calm
        self.redis = RedisServer(self.world, self.random, self.say, self.complain)
        self.redis.faults = plan.faults
        self.redis.data.on_write = self.judge.wrote
        self.redis.on_call = self.judge.end_of_call
        self.server = Server(
            self.random, self.say, self._stored, expires_in=3e7, deadline=plan.deadline, faults=plan.store_faults
        )
        self.places = [Place(number) for number in range(plan.places)]
        self.processes: dict[str, Any] = {}
        self.callers: list[CallerProcess] = []
        self.events = Events(plan.sessions, self.judge.is_old)
        self.over = False
        self._changed = asyncio.Event()

    # --- what is said ----------------------------------------------------------------------------

    def say(self, *words: object) -> None:
        self.trace.append(f"{self.world.now:11.5f} {Machine.running.name}: {' '.join(map(str, words))}")

    def complain(self, problem: str) -> None:
        if self.wrong is None:
            self.wrong = problem
            self.say("WRONG:", problem)
        self.world.over = True
        raise Wrong

    def _stored(self, record: Record) -> None:
        log = log_of(record.state)
        self.say("stored", f"{record.session_id}@{record.version}", len(log))
        if record.state is None:
            self.judge.destroy(record.session_id)
        else:
            self.judge.store(record.session_id, log, Machine.running.name)

    # --- the director ----------------------------------------------------------------------------

    def run(self) -> Report:
        with self._processes_told_apart():
            self.world.run(self.director, self._direct(), self.world.now + LONGEST)
        self.counts += self.judge.counts
        return Report(sha256("\n".join(self.trace).encode()).hexdigest(), self.counts)

    async def _direct(self) -> None:
        random, plan = self.random, self.plan
        loop = asyncio.get_running_loop()
        keepers = [loop.create_task(self._keep(place)) for place in self.places]
        keepers += [loop.create_task(self._keep_caller(number)) for number in range(plan.callers)]
        self._want(self.places[0])
        if random.random() < 0.8:
            self._want(self.places[1])
        scenes = [scene for scene in plan.likes for _ in range(SCENES[scene])]
        for _ in range(plan.scenes):
            await asyncio.sleep(random.expovariate(1 / plan.gap))
            self._play(random.choice(scenes))
        await self._fine_weather()
        self.over = True
        self._changed.set()
        for caller in self.callers:
            caller.leave()
        for caller in self.callers:
            await caller.ended.wait()
        await self._last_events()
        for place in self.places:
            self._unwant(place)
        await asyncio.gather(*keepers)
        await self._last_shard()
        self.judge.check_end(self.events.sessions)

    async def _fine_weather(self) -> None:
        """Let all go well from now on, and wait until everybody has noticed."""
        plan, now = self.plan, self.world.now
        await asyncio.sleep(self.random.choice((0.0, 1.0, 10.0)))
        self.say("fine weather")
        self.redis.faults = self.server.faults = 0.0
        self.redis.traps.clear()
        self.server.traps.clear()
        for cut in self.redis.cuts.values():
            cut.until = min(cut.until, self.world.now)
        over = max(self.server.down_until, self.redis.down_until, *(each.frozen_until for each in self.world.machines))
        await asyncio.sleep(max(0.0, over - now) + self.random.choice((0.0, 2.0, 3 * plan.lease)))
        for place in self.places:
            if place.process is not None and place.process.drains:
                place.process.leave()  # a Redis that has lost a second may have forgotten that it was asked
        for place in self.places[:1]:
            self._want(place)

    async def _last_events(self) -> None:
        """All is well: whatever is asked now must be done."""
        while not any(place.process is not None and place.process.serves for place in self.places):
            await asyncio.sleep(0.5)
        await self._until(lambda: self._is_served() and self._is_divided() and not self._left(), self._most())
        if left := self._left():
            self.complain(f"all is well, and these slots have entries: {left}")
        if not self._is_divided():
            self.complain(f"all is well, and the slots are divided as {self._division()}")
        await asyncio.sleep(3.0)
        self.judge.troubled = True  # that is over: what was sent before may have been handled
        caller = self._begin_caller("last", last=True)
        await caller.ended.wait()

    async def _last_shard(self) -> None:
        """One that finds what all others have left."""
        process = self._begin(self.places[0], last=True)
        await self._until(lambda: process.started and self._is_served() and not self._left(), self._most())
        if left := self._left():
            self.complain(f"all is well and flushed, and these slots have entries: {left}")
        process.leave()
        await process.ended.wait()

    def _most(self) -> float:
        """Return the seconds in which all must be well again, and flushed."""
        return 4 * self.plan.lease + 12.0 + self.plan.max_delay + 5 * self.plan.deadline

    async def _until(self, condition: Callable[[], bool], most: float) -> None:
        end = self.world.now + most
        while self.world.now < end and not condition():
            await asyncio.sleep(0.5)

    def _is_served(self) -> bool:
        """Tell whether each slot has an owner that goes on."""
        serving = {place.process.machine.name for place in self.places if place.process and place.process.serves}
        owners = [self.judge.members.get(owner) for _, owner in self.judge.owners.values()]
        return len(owners) == self.plan.slots and serving.issuperset(owners)

    def _division(self) -> list[int]:
        """Return how many slots each shard has that goes on."""
        names = [place.process.machine.name for place in self.places if place.process and place.process.serves]
        owners = [self.judge.members.get(owner, "") for _, owner in self.judge.owners.values()]
        return sorted(owners.count(name) for name in names)

    def _is_divided(self) -> bool:
        """Tell whether all have as many, but for one."""
        division = self._division()
        return division[-1] - division[0] <= 1

    def _left(self) -> dict[int, int]:
        """Return how many entries slots have."""
        keys = [(re.fullmatch(rb".*:log:(\d+)", key), value) for key, value in self.redis.data.keys.items()]
        return {int(match[1]): len(value.ids) for match, value in keys if match is not None and value.ids}

    def _want(self, place: Place) -> None:
        place.wanted = True
        self._changed.set()

    def _unwant(self, place: Place) -> None:
        place.wanted = False
        if place.process is not None:
            place.process.leave()

    async def _keep(self, place: Place) -> None:
        """Have a shard in the place whenever one is wanted."""
        while True:
            if not place.wanted:
                if self.over and not any(each.wanted or each.process for each in self.places):
                    return
                await asyncio.sleep(0.5)
                continue
            process = self._begin(place)
            await process.ended.wait()
            place.process = None
            if place.wanted:
                await asyncio.sleep(self.random.expovariate(1 / self.random.choice((0.05, 2.0, 10.0))))

    async def _keep_caller(self, number: int) -> None:
        while not self.over:
            caller = self._begin_caller(f"c{number}")
            await caller.ended.wait()
            self.callers.remove(caller)
            if not self.over:
                await asyncio.sleep(self.random.expovariate(1 / 0.3))

    def _machine(self, name: str, process: Callable[[Machine], Any]) -> Any:
        machine = Machine(self.world, 1_700_000_000.0, self.complain, name)
        machine.connect = lambda make: self.redis.connect(machine, make)
        made = self.processes[name] = process(machine)
        self.judge.machines[name] = machine

        def end() -> None:
            self.redis.end(machine)
            made.ended.set()

        machine.on_end = end
        running, Machine.running = Machine.running, machine
        machine.loop.create_task(made.live())
        Machine.running = running
        return made

    def _begin(self, place: Place, *, last: bool = False) -> ShardProcess:
        name = f"p{sum(name.startswith('p') for name in self.processes) + 1}"
        self.say("begin", name, "in place", place.number)
        self.counts["shards"] += 1
        process: ShardProcess = self._machine(name, lambda machine: ShardProcess(self, machine, place, last=last))
        place.process = process
        return process

    def _begin_caller(self, kind: str, *, last: bool = False) -> CallerProcess:
        name = f"{kind}.{len(self.processes)}"
        caller: CallerProcess = self._machine(name, lambda machine: CallerProcess(self, machine, last=last))
        self.callers.append(caller)
        return caller

    # --- what goes wrong -------------------------------------------------------------------------

    def _play(self, scene: str) -> None:
        random, plan = self.random, self.plan
        places = [place for place in self.places if place.process is not None]
        if not places:
            return
        place = random.choice(places)
        assert place.process is not None
        machine = place.process.machine
        caller = random.choice(self.callers) if self.callers else None
        seconds = plan.lease * random.uniform(0.3, 3.0)
        if random.random() < 0.2:
            seconds = random.choice((0.1, 1.0))
        self.counts[scene] += 1
        self.say("scene:", scene, machine.name)
        match scene:
            case "freeze":
                self._freeze(machine, seconds)
            case "kill":
                self._kill(machine)
            case "freeze amid a call" | "kill amid a call":
                spring = self._kill if scene.startswith("kill") else lambda machine: self._freeze(machine, seconds)
                what = random.choice(("request", "answer", "write"))
                if what == "write":
                    self.server.traps[machine.name] = StoreTrap("write", random.randrange(8), spring)
                else:
                    self.redis.traps[machine.name] = Trap(what, random.randrange(16), spring)
            case "close" if self._can_spare(place):
                place.process.leave()  # and another one is started there
            case "join":
                others = [other for other in self.places if not other.wanted]
                if others:
                    self._want(random.choice(others))
                elif self._can_spare(place):
                    self._unwant(place)
            case "drain" if self._can_spare(place):
                place.process.drains = self._drain(machine)
            case "cut off":
                self.judge.cut[machine.name].append((self.world.now, self.world.now + seconds))
                self.redis.cut(machine, seconds, random.choice(("both ways", "requests", "answers")))
            case "freeze the redis":
                self.redis.machine.freeze(seconds)
            case "restart the redis":
                forgets = random.choice((0.0, 0.1, 1.0)) if plan.forgets else 0.0
                self.judge.forget(forgets)
                self.redis.restart(random.choice((0.1, 1.0, seconds)), forgets)
                self.judge.know(self.redis.data.keys)
            case "clock of the redis" if plan.clocks:
                self.redis.offset += random.choice((-7200.0, -30.0, -1.0, 1.0, 30.0, 7200.0))
            case "store away":
                until = self.world.now + seconds
                self.judge.store_troubles.append((self.world.now, until))
                self.server.down_until = max(self.server.down_until, until)
                self.server.freezes = random.random() < 0.5
            case "cut off a caller" if caller is not None:
                self.redis.cut(caller.machine, seconds, random.choice(("both ways", "requests", "answers")))
            case "kill a caller" if caller is not None:
                caller.machine.killed = True
            case "freeze a caller" if caller is not None:
                caller.machine.freeze(seconds)

    def _can_spare(self, place: Place) -> bool:
        others = [each.process for each in self.places if each.process is not None and each is not place]
        return not self.plan.is_calm or any(other.serves for other in others)

    def _drain(self, machine: Machine) -> bool:
        """Ask a shard to leave, if it has ever had a slot."""
        base = next((key[:-5] for key in self.redis.data.keys if key.endswith(b"}:meta")), None)
        members = [member for member, name in self.judge.members.items() if name == machine.name]
        for member in members if base is not None else ():
            command = [b"SADD", base + b":drains", member.encode()]
            self.redis.data.call(self.world.now, self.world.now + self.redis.offset, command)
        return bool(members)

    def _freeze(self, machine: Machine, seconds: float) -> None:
        self.say("freeze", machine.name, seconds)
        self.counts["frozen"] += 1
        machine.freeze(seconds)
        self.judge.frozen.setdefault(machine.name, []).append((self.world.now, machine.frozen_until))

    def _kill(self, machine: Machine) -> None:
        self.say("kill", machine.name)
        self.counts["killed"] += 1
        machine.killed = True
        self.judge.killed[machine.name] = self.world.now

    # --- processes -------------------------------------------------------------------------------

    @contextmanager
    def _processes_told_apart(self) -> Iterator[None]:
        """Have the library see processes as the world has them, and its time."""

        def this_process() -> Process:
            name = Machine.running.name
            process = self.processes[name]
            computer = f"computer-{process.place.number % self.plan.computers}"
            return Process(computer, int(name[1:]), "bot.py", started=name, namespace="pids", kernel=computer)

        def is_gone(process: Process) -> bool:
            return process.kernel == this_process().kernel and self.judge.machines[process.started].killed

        def random_text(count: int) -> str:
            return self.random.randbytes(count).hex()

        def now() -> float:
            return self.world.now

        known = _stays.Stays()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(_parts, "real_clock", lambda clock: clock)
            patch.setattr(_keeper, "this_process", this_process)
            patch.setattr(_shard, "this_process", this_process)
            patch.setattr(_stays, "is_gone", is_gone)
            patch.setattr(_membership, "is_gone", is_gone)
            patch.setattr(_shard, "os", SimpleNamespace(getpid=lambda: 1))
            patch.setattr(_shard, "time", now)
            patch.setattr(_stays, "secrets", SimpleNamespace(token_hex=random_text))
            for module in (_keeper, _stays):
                patch.setattr(module, "stays", known)
            for module in (_shard, _membership, _leaving):
                patch.setattr(module, "monotonic", now)
            patch.setattr(_receipt, "time", SimpleNamespace(monotonic=now))
            try:
                yield
            finally:
                for process in self.processes.values():
                    if isinstance(process, ShardProcess) and process.shard is not None:
                        inside.forget(inside.manager_of(process.shard))


def simulate_shards(seed: int, **fixed: Any) -> Report:
    """Run the simulation of *seed*, with a plan drawn from it but for what is *fixed*.

    Raises: SimulationError.
    """
    stacks = Stacks()
    simulation = Simulation(Plan.draw(seed, **fixed), stacks)
    problem: object = None
    report = None
    with listening() as errors:
        try:
            report = simulation.run()
        except (Crash, Wrong):
            problem = simulation.wrong
        except (StuckError, AssertionError) as error:
            problem = error
        finally:
            stacks.close()
    problem = simulation.wrong or problem or (errors[0] if errors else None)
    if problem is not None or report is None:
        last = "\n".join(simulation.trace[-int(__import__("os").environ.get("LAST", "120")) :])
        raise SimulationError(f"seed {seed}, {fixed}: {problem}\n{simulation.plan}\n{last}")
    return report
