"""Several processes on one store, in one thread and virtual time, under everything that may go
wrong between them; all from one seed.

There are some slots for processes, on one machine or on several. In each a process is started,
serves its users, and comes to an end: it is closed, killed, or has lost the store; and another one
is started there. Meanwhile processes are frozen, cut off from the server, or their clocks are set;
the server is away, is restarted and forgets the lease, or has its clock set. At the end the weather
is fine, all are closed, and everything that was acknowledged must be in the store, but for what the
policy says.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from math import inf
from random import Random
from types import SimpleNamespace
from typing import Any

import pytest

from actorbot._manager import parts as _parts
from actorbot._ownership import keeper as _keeper
from actorbot._ownership import stays as _stays
from actorbot._runtime.process import Process
from actorbot._state.record import Record
from tests import inside
from tests.faults._sim_bots import Bot, Events
from tests.faults._sim_machine import Crash, Machine, StuckError, World
from tests.faults._sim_media import Disk, DiskFile, log_of
from tests.faults._sim_owners_model import LEASE, Owner, OwnersModel
from tests.faults._sim_server import Server, Trap
from tests.faults._sim_stacks import Stacks
from tests.faults._simulation import Flushing, Report, SimulationError, Wrong, listening

__all__ = ["Plan", "simulate_owners"]

LONGEST = 4_000.0  # virtual seconds of a simulation
POLL = 0.2  # virtual seconds between two looks of a start that waits: at 0.02 most steps would be these

SCENES = {
    "freeze": 4,
    "freeze in a call": 4,
    "kill": 2,
    "kill in a call": 2,
    "hand over": 3,
    "close": 2,
    "outage": 3,
    "cut off": 3,
    "clock of a machine": 1,
    "clock of the server": 1,
    "restart of the server": 1,
}
REPLACED = {"freeze", "freeze in a call", "cut off"}
"""After these another process may be started, by who sees that one does not answer."""


@dataclass(frozen=True, kw_only=True)
class Plan(Flushing):
    """What a simulation is about: drawn from its seed, but for what a test insists on."""

    seed: int
    ownership: str
    slots: int
    machines: int
    """On how many machines the slots are."""
    standby: bool
    """Whether all slots are always used, so that processes wait for each other's end."""
    sessions: int
    scenes: int
    likes: tuple[str, ...]
    """What befalls them, some of `SCENES`."""
    gap: float
    """Seconds between two of them."""
    pause: float
    """Seconds between two events of a user."""
    forgets: bool
    """Whether the server may forget the lease."""
    clocks: bool
    """Whether clocks are set."""
    tells_up: bool
    faults: float
    idle_timeout: float

    @classmethod
    def draw(cls, seed: int, **fixed: Any) -> Plan:
        random = Random(seed)
        choice = random.choice
        mode = choice(("write-behind", "write-behind", "journaled", "write-through"))
        mode = fixed.get("mode", mode)
        drawn = {
            "mode": mode,
            "ownership": choice(("exclusive", "shared", "shared")) if mode == "write-through" else "exclusive",
            "slots": choice((2, 2, 3)),
            "machines": choice((1, 2, 2)),
            "standby": random.random() < 0.5,
            "sessions": choice((1, 2, 3)),
            "scenes": choice((2, 4, 6)),
            "likes": tuple(SCENES),
            "gap": choice((1.0, 3.0, 10.0)),
            "pause": choice((0.3, 1.0, 4.0)),
            "forgets": random.random() < 0.15,
            "clocks": random.random() < 0.25,
            "tells_up": random.random() < 0.7,
            "faults": choice((0.0, 0.0, 0.0, 0.1)),
            "max_delay": choice((0.05, 0.5, 3.0, 20.0)),
            "max_events": choice((2, 5, 100)),
            "batch_size": choice((1, 2, 100)),
            "deadline": choice((0.2, 1.0, 3.0)),
            "sync": choice(("full", "normal")),
            "idle_timeout": choice((0.5, 5.0, 100.0)),
        }
        return cls(seed=seed, **(drawn | fixed))


@dataclass(eq=False)
class Slot:
    """A place for a process."""

    number: int
    machine: int
    disk: Disk
    wall_offset: float
    wanted: bool = False
    bot: Bot | None = None
    """The one that is there now."""
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class Simulation:
    """One of them."""

    def __init__(self, plan: Plan, stacks: Stacks) -> None:
        self.plan = plan
        self.random = Random(plan.seed * 2 + 1)
        self.trace: list[str] = []
        self.counts: Counter[str] = Counter()
        self.wrong: str | None = None
        self.world = World(self.random, 1_000.0, stacks=stacks)
        self.director = Machine(self.world, 0.0, self.complain, "director")
        self.model = OwnersModel(plan.mode, plan.ownership == "shared", plan.clocks, self.complain)
        self.model.out_of_reach = self._out_of_reach
        self.model.tells_up = plan.tells_up
        self.server = Server(
            self.random, self.say, self._stored, expires_in=3e7, deadline=plan.deadline, faults=plan.faults,
            tells_up=plan.tells_up, on_swap=self._swapped, on_asked=self._asked, on_answered=self._answered,
        )  # fmt: skip
        self.bots: dict[str, Bot] = {}
        self.slots = [self._make_slot(number) for number in range(plan.slots)]
        self.events = Events(plan.sessions)
        self.over = False

    def _make_slot(self, number: int) -> Slot:
        disk = Disk(self.random, self.say, lambda record: self._kept(record, number), self.plan.deadline)
        machine = number % self.plan.machines
        offset = 1_700_000_000.0 + (self.random.choice((0.0, 90.0, -90.0)) if machine and self.plan.clocks else 0.0)
        return Slot(number, machine, disk, offset)

    # --- what is said ----------------------------------------------------------------------------

    def say(self, *words: object) -> None:
        name = Machine.running.name
        self.trace.append(f"{self.world.now:11.5f} {name}: {' '.join(map(str, words))}")

    def complain(self, problem: str) -> None:
        if self.wrong is None:
            self.wrong = problem
            self.say("WRONG:", problem)
        self.world.over = True
        raise Wrong

    def _stored(self, record: Record) -> None:
        log = log_of(record.state)
        self.say("stored", f"{record.session_id}@{record.version}", len(log))
        self.model.store(record.session_id, log, self._here())

    def _kept(self, record: Record, slot: int) -> None:
        self.model.keep(record.session_id, log_of(record.state), slot)

    def _here(self) -> Owner:
        return self.bots[Machine.running.name].owner

    def _swapped(self, machine: Machine, old: str | None, new: str) -> None:
        owner = self.bots[machine.name].owner
        taken = [other for other in self.model.owners if other.taken < inf]
        self.model.swap(owner, old, new, self.world.now)
        self.counts["takeovers"] += sum(other.taken < inf for other in self.model.owners) - len(taken)
        self.counts["claims"] += owner.claims and owner.holder not in (old or "")

    def _asked(self, machine: Machine, sent: float) -> None:
        self.bots[machine.name].owner.asking.add(sent)

    def _answered(self, machine: Machine, sent: float, outcome: str | bool | None) -> None:
        owner = self.bots[machine.name].owner
        owner.asking.discard(sent)
        if outcome is False:
            owner.refused = self.world.now
        if outcome is False or self.world.now > sent + owner.deadline:
            owner.failed = max(owner.failed, min(self.world.now, sent + owner.deadline))
        elif not owner.holder or owner.holder in (outcome or ""):
            owner.asked = sent

    def _out_of_reach(self, owner: Owner) -> float:
        """Return the last instant at which *owner* could not reach the server."""
        server = self.server
        return max(server.cut_until.get(owner.name, -inf), server.down_until, owner.failed)

    # --- the director ----------------------------------------------------------------------------

    def run(self) -> Report:
        with self._processes_told_apart():
            self.world.run(self.director, self._direct(), self.world.now + LONGEST)
        return Report(sha256("\n".join(self.trace).encode()).hexdigest(), self.counts)

    async def _direct(self) -> None:
        random, plan = self.random, self.plan
        loop = asyncio.get_running_loop()
        keepers = [loop.create_task(self._keep(slot)) for slot in self.slots]
        for slot in self.slots if plan.standby or plan.ownership == "shared" else self.slots[:1]:
            self._want(slot)
        scenes = [scene for scene in plan.likes for _ in range(SCENES[scene])]
        for _ in range(plan.scenes):
            await asyncio.sleep(random.expovariate(1 / plan.gap))
            self._play(random.choice(scenes))
        await self._fine_weather()
        self.over = True
        for slot in self.slots:
            self._unwant(slot)
        await asyncio.gather(*keepers)
        for slot in self.slots if plan.mode == "journaled" else self.slots[:1]:
            await self._last(slot)
        self.model.check_end()

    async def _fine_weather(self) -> None:
        """Let all go well from now on, and wait until everybody has noticed."""
        server = self.server
        await asyncio.sleep(self.random.choice((0.0, 1.0, 20.0)))
        self.say("fine weather")
        server.faults = 0.0
        server.traps.clear()
        server.cut_until = dict.fromkeys(server.cut_until, self.world.now)
        over = max(server.down_until, *(machine.frozen_until for machine in self.world.machines))
        await asyncio.sleep(max(0.0, over - self.world.now) + self.random.choice((0.0, 5.0, 3 * LEASE)))

    def _want(self, slot: Slot) -> None:
        slot.wanted = True
        slot.changed.set()

    def _unwant(self, slot: Slot) -> None:
        slot.wanted = False
        slot.changed.set()
        if slot.bot is not None:
            slot.bot.leave()

    async def _keep(self, slot: Slot) -> None:
        """Have a process in the slot whenever one is wanted."""
        while not self.over:
            if not slot.wanted:
                slot.changed.clear()
                await slot.changed.wait()
                continue
            await self._live(self._begin(slot))
            if slot.wanted and not self.over:
                await asyncio.sleep(self.random.expovariate(1 / self.random.choice((0.05, 2.0, 10.0))))

    async def _last(self, slot: Slot) -> None:
        """A process to which nothing happens: it must do whatever is asked of it."""
        bot = self._begin(slot, last=True)
        await self._live(bot)
        if not bot.started:
            self.complain(f"the last process has not got the store: {bot.reason}")

    def _begin(self, slot: Slot, *, last: bool = False) -> Bot:
        name = f"p{len(self.bots) + 1}"
        self.say("begin", name, "in slot", slot.number)
        self.counts["processes"] += 1
        machine = Machine(self.world, slot.wall_offset, self.complain, name)
        owner = Owner(name, slot.number, slot.machine, machine, self.plan.deadline, self.world.now)
        bot = slot.bot = self.bots[name] = Bot(self, slot, owner, last=last)
        self.model.owners.append(owner)
        machine.on_end = bot.ended.set
        running, Machine.running = Machine.running, machine
        machine.loop.create_task(bot.live())
        Machine.running = running
        return bot

    async def _live(self, bot: Bot) -> None:
        await bot.ended.wait()
        bot.slot.bot = None
        if bot.manager is not None:
            inside.forget(bot.manager)

    # --- what goes wrong -------------------------------------------------------------------------

    def _play(self, scene: str) -> None:
        random, now = self.random, self.world.now
        slots = [slot for slot in self.slots if slot.bot is not None]
        if not slots:
            return
        slot = random.choice(slots)
        bot = slot.bot
        assert bot is not None
        seconds = LEASE * random.uniform(0.5, 3.0)
        if random.random() < 0.2:
            seconds = random.choice((0.1, 1.0, 3.0))
        self.counts[scene] += 1
        self.say("scene:", scene, bot.owner.name)
        if scene in REPLACED and random.random() < 0.5:
            self._replace(slot)
        match scene:
            case "freeze":
                self._freeze(bot.machine, seconds)
            case "kill":
                self._kill(bot.machine)
            case "freeze in a call" | "kill in a call":
                spring = self._kill if scene.startswith("kill") else lambda machine: self._freeze(machine, seconds)
                what = random.choice(("lease", "lease", "write"))
                self.server.traps[bot.owner.name] = Trap(what, random.randrange(8), spring)
            case "hand over":
                self._replace(slot)
                asyncio.get_running_loop().call_later(random.choice((0.1, 3.0)), self._unwant, slot)
            case "close":
                bot.leave()  # and another one is started there
            case "outage":
                self.server.down_until = max(self.server.down_until, now + seconds)
                self.server.freezes = random.random() < 0.5
            case "cut off":
                self.server.cut_until[bot.owner.name] = now + seconds
                self.server.cut[bot.owner.name] = random.choice(("both ways", "both ways", "answers", "lease"))
            case "clock of a machine" if self.plan.clocks:
                bot.machine.wall_offset += random.choice((-7200.0, -30.0, 30.0, 7200.0))
            case "clock of the server" if self.plan.clocks:
                self.server.offset += random.choice((-7200.0, -30.0, -5.0, 5.0, 30.0, 7200.0))
                self.model.disturbed = now
            case "restart of the server" if self.plan.forgets:
                self.server.forget_leases(now, random.choice((None, 1, 3)))
                self.model.disturbed = self.model.forgot = now
                self.say("the lease is", self.server.lease)

    def _replace(self, slot: Slot) -> None:
        """Have a process in a slot that is not used yet."""
        others = [other for other in self.slots if other is not slot and not other.wanted]
        if others:
            self._want(self.random.choice(others))

    def _freeze(self, machine: Machine, seconds: float) -> None:
        self.say("freeze", machine.name, seconds)
        self.counts["frozen"] += 1
        machine.freeze(seconds)
        self.bots[machine.name].owner.thawed = machine.frozen_until

    def _kill(self, machine: Machine) -> None:
        self.say("kill", machine.name)
        self.counts["killed"] += 1
        machine.killed = True
        self.bots[machine.name].owner.ended = self.world.now

    # --- processes -------------------------------------------------------------------------------

    @contextmanager
    def _processes_told_apart(self) -> Iterator[None]:
        """Have the library see processes and their disks as the world has them."""

        def here() -> Bot:
            return self.bots[Machine.running.name]

        def this_process() -> Process:
            bot, number = here(), Machine.running.name[1:]
            machine = f"machine-{bot.slot.machine}"
            return Process(machine, int(number), "bot.py", started=number, namespace="pids", kernel=machine)

        def is_gone(process: Process) -> bool:
            if process.kernel != this_process().kernel:
                return False
            return self.bots[f"p{process.pid}"].machine.killed

        def random_text(count: int) -> str:
            return self.random.randbytes(count).hex()

        known = _stays.Stays()
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                _parts, "JournalFile", lambda path, sync: DiskFile(here().slot.disk, here().machine, path, sync)
            )
            patch.setattr(_parts, "real_clock", lambda clock: clock)
            patch.setattr(_keeper, "this_process", this_process)
            patch.setattr(_stays, "is_gone", is_gone)
            patch.setattr(_stays, "secrets", SimpleNamespace(token_hex=random_text))
            for module in (_keeper, _stays):
                patch.setattr(module, "stays", known)
            patch.setattr(_keeper, "POLL", POLL)
            try:
                yield
            finally:
                for bot in self.bots.values():
                    if bot.manager is not None:
                        inside.forget(bot.manager)


def simulate_owners(seed: int, **fixed: Any) -> Report:
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
        last = "\n".join(simulation.trace[-80:])
        raise SimulationError(f"seed {seed}, {fixed}: {problem}\n{simulation.plan}\n{last}")
    return report
