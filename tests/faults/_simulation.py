"""The whole library in one thread and virtual time, under everything that may go wrong, checked
against a model; all from one seed.

A simulation is a few lives of a process that keeps the same sessions: each life is a manager with
its users, in weather (outages, bad disks, other processes, clocks that jump), and ends with a close
or with a crash at some step. The last life has fine weather: at its end everything must be in the
store. What any of this prints depends on the seed alone.
"""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from random import Random
from typing import Any

import pytest

from actorbot import FlushPolicy, SessionManager
from actorbot._flushing.set_back import SKEW
from actorbot._manager import parts as _parts
from actorbot._policy import Retry
from actorbot._state.codec import encode_state
from actorbot._state.record import Record
from actorbot.errors import ActorbotError
from tests import inside
from tests.faults._sim_machine import Crash, Machine, StuckError, World
from tests.faults._sim_media import Disk, DiskFile, Network, NetworkStore, log_of
from tests.faults._sim_model import Model
from tests.faults._sim_users import Users

__all__ = ["Flushing", "Plan", "Report", "SimulationError", "Wrong", "listening", "simulate"]

POLICIES = ("write-through", "write-behind", "journaled")
LONGEST_LIFE = 900.0  # virtual seconds


class SimulationError(AssertionError):
    """Something happened that must not; the message has the seed and the end of the trace."""


@dataclass(frozen=True, kw_only=True)
class Flushing:
    """The part of a plan that says how sessions reach the store."""

    mode: str
    sync: str
    max_delay: float
    max_events: int
    batch_size: int
    deadline: float

    def policy(self) -> FlushPolicy:
        retry = Retry(attempts=3, base=0.05, cap=0.5)
        if self.mode == "write-through":
            return FlushPolicy.write_through(batch_size=self.batch_size, store_deadline=self.deadline, retry=retry)
        behind: dict[str, Any] = {
            "max_delay": self.max_delay,
            "max_events": self.max_events,
            "batch_size": self.batch_size,
            "max_dirty_bytes": 65_536,
            "store_deadline": self.deadline,
            "retry": retry,
        }
        if self.mode == "write-behind":
            return FlushPolicy.write_behind(**behind)
        return FlushPolicy.journaled("journal", sync=self.sync, **behind)  # type: ignore[arg-type]


@dataclass(frozen=True, kw_only=True)
class Plan(Flushing):
    """What a simulation is about: drawn from its seed, but for what a test insists on."""

    seed: int
    lives: int
    sessions: int
    operations: int
    crashes: float
    """How likely a life is to end with one."""
    power: float
    """How likely a crash is to take the power away."""
    faults: float
    """How likely a call to the store or the disk is to go wrong."""
    weather: float
    """Seconds between two changes of the weather."""
    strangers: bool
    set_backs: bool
    jumps: bool
    destroys: float
    expires_in: float
    idle_timeout: float
    max_resident: int
    max_mailbox: int
    padding: int

    @classmethod
    def draw(cls, seed: int, **fixed: Any) -> Plan:
        random = Random(seed)
        choice = random.choice
        drawn = {
            "mode": choice(POLICIES),
            "sync": choice(("full", "full", "normal")),
            "lives": choice((1, 2, 3)),
            "sessions": choice((1, 2, 4)),
            "operations": choice((10, 20)),
            "crashes": choice((0.0, 0.7, 1.0)),
            "power": choice((0.0, 0.5)),
            "faults": choice((0.0, 0.0, 0.1, 0.3)),
            "weather": choice((0.3, 2.0, 100.0)),
            "strangers": random.random() < 0.25,
            "jumps": random.random() < 0.2,
            "destroys": choice((0.02, 0.1)),
            "expires_in": choice((20.0, 3e7, 3e7)),
            "idle_timeout": choice((0.1, 0.5, 5.0)),
            "max_resident": choice((2, 100, 100)),
            "max_mailbox": choice((2, 100)),
            "padding": choice((0, 0, 0, 20_000)),
            "max_delay": choice((0.02, 0.2, 1.0)),
            "max_events": choice((2, 5, 100)),
            "batch_size": choice((1, 2, 100)),
            "deadline": choice((0.2, 1.0)),
            "set_backs": random.random() < 0.25,
        }
        return cls(seed=seed, **(drawn | fixed))


@dataclass(frozen=True)
class Report:
    """What happened in a simulation."""

    trace: str
    """A hash of it."""
    counts: Counter[str] = field(default_factory=Counter)


class Simulation:
    """One of them."""

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.random = Random(plan.seed * 2 + 1)
        self.trace: list[str] = []
        self.counts: Counter[str] = Counter()
        self.now, self.wall_offset = 1_000.0, 1_700_000_000.0
        self.machine: Machine | None = None
        self.model = Model(plan.mode, plan.expires_in, self.complain, self.wall, self.monotonic)
        self.network = Network(self.random, self.say, self._stored, plan.expires_in, plan.deadline, plan.faults)
        self.disk = Disk(self.random, self.say, self._kept, plan.deadline, plan.faults / 2)
        self.manager: SessionManager | None = None
        self.users = Users(self)
        self.began = 0.0
        self.wrong: str | None = None

    # --- what is said ----------------------------------------------------------------------------

    def say(self, *words: object) -> None:
        self.trace.append(f"{self.monotonic():11.5f} {' '.join(map(str, words))}")

    def complain(self, problem: str) -> None:
        if self.wrong is None:
            self.wrong = problem
            self.say("WRONG:", problem)
        if self.machine is not None:
            self.machine.world.over = True
        raise Wrong

    def wall(self) -> float:
        machine = self.machine
        return self.now + self.wall_offset if machine is None else machine.now + machine.wall_offset

    def monotonic(self) -> float:
        return self.now if self.machine is None else self.machine.now

    def _stored(self, record: Record) -> None:
        log = log_of(record.state)
        self.say("stored", f"{record.session_id}@{record.version}", "-" if record.state is None else len(log))
        self.model.note(record.session_id, log, stored=True)

    def _kept(self, record: Record) -> None:
        self.model.note(record.session_id, log_of(record.state), stored=False)

    # --- lives -----------------------------------------------------------------------------------

    def run(self) -> Report:
        for number in range(self.plan.lives):
            crash_after = (
                self.random.expovariate(1 / 1500) if self.random.random() < self.plan.crashes else float("inf")
            )
            self._live(self._life(number), crash_after)
        self.network.faults = self.disk.faults = self.network.down_until = self.disk.bad_until = 0.0
        self._live(self._last_life(), float("inf"))
        return Report(sha256("\n".join(self.trace).encode()).hexdigest(), self.counts)

    def _live(self, life: Any, crash_after: float) -> None:
        world = World(self.random, self.now, crash_after=crash_after)
        machine = self.machine = Machine(world, self.wall_offset, self.complain)
        try:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(_parts, "JournalFile", lambda path, sync: DiskFile(self.disk, machine, path, sync))
                world.run(machine, life, world.now + LONGEST_LIFE)
        except Crash:
            if self.wrong is None:
                self._crash()
        finally:
            self.now, self.wall_offset, self.machine = machine.now, machine.wall_offset, None
            self._forget_manager()
        if self.wrong is not None:
            raise Wrong

    def _forget_manager(self) -> None:
        if self.manager is not None:
            inside.forget(self.manager)
            self.manager = None

    async def _life(self, number: int) -> None:
        self.say("life", number)
        self.began = self.wall()
        if not await self._start():
            return
        weather = [asyncio.get_running_loop().create_task(self._weather())]
        if self.plan.set_backs and not self.plan.jumps:  # after a jump nobody can tell who wrote first
            weather.append(asyncio.get_running_loop().create_task(self._go_back()))
        if self.random.random() < 0.3:
            await asyncio.wait([self.users.begin()], timeout=self.random.random())  # it is closed amid its users
        else:
            await self.users.begin()
        for each in weather:
            each.cancel()
        await self._close(self.random.choice((1.0, 20.0)))
        await self.users.end()

    async def _last_life(self) -> None:
        self.say("the last life")
        assert await self._start()
        manager = self.manager
        assert manager is not None
        for session_id in self.model.stories:
            await self.users.look(session_id)
        for session_id in self.model.stories:
            await self.users.send_once_more(session_id)
        await self._close(30.0)
        for session_id, story in self.model.stories.items():
            log = self._in_store(session_id)
            self.model.observe(session_id, log, "the store at the end")
            if (lost := story.strangers - set(log)) and not self.counts["jumps"]:  # with which it may have ended
                self.complain(f"{session_id}: the store has lost what another process wrote: {sorted(lost)}")

    async def _start(self) -> bool:
        plan, users, machine = self.plan, self.users, self.machine
        assert machine is not None
        for _ in range(20):
            manager = SessionManager(
                NetworkStore(self.network, machine),
                handler=users.handle,
                deliver=users.deliver,
                on_dead_letter=users.on_dead_letter,
                on_conflict=users.on_conflict,
                on_session_expire=users.on_session_expire,
                flush=plan.policy(),
                idle_timeout=plan.idle_timeout,
                handler_timeout=2.0,
                max_resident=plan.max_resident,
                max_mailbox=plan.max_mailbox,
                clock=machine.clock,
            )
            try:
                self.manager = await manager.start()
            except ActorbotError as error:
                self.say("no start:", error)
                await asyncio.sleep(1.0)
            else:
                self.say("started")
                return True
        return False

    async def _close(self, seconds: float) -> None:
        assert self.manager is not None
        machine = self.machine
        assert machine is not None
        self.say("close")
        began = machine.now
        report = await self.manager.close(seconds)
        self.say("closed", report.unflushed, report.unfinished, report.undelivered)
        self.counts["closed"] += 1
        if machine.now > began + seconds + 3.0:
            self.complain(f"the close took {machine.now - began} s of {seconds}")
        await self.users.settle()
        for session_id in self.model.stories:
            if session_id not in report.unflushed:
                self.model.observe(session_id, self._in_store(session_id), "the store after a close")
            elif self.plan.mode == "write-behind":
                self.model.lose(session_id)

    def _in_store(self, session_id: str) -> tuple[str, ...]:
        record = self.network.records.get(session_id)
        return () if record is None or self.wall() >= record.expires_at else log_of(record.state)

    # --- what goes wrong -------------------------------------------------------------------------

    def _crash(self) -> None:
        power = self.random.random() < self.plan.power
        self.say("CRASH", "without power" if power else "")
        self.counts["crashes"] += 1
        self.model.crash()
        self.users.crash()
        if self.plan.mode == "write-behind":
            self.users.check_loss()
            for session_id in self.model.stories:
                record = self.network.records.get(session_id)
                stored = () if record is None else log_of(record.state)
                self.model.restart_from(session_id, dict.fromkeys((stored, self._in_store(session_id))))
        elif power:
            self.disk.lose_power()
            if self.plan.mode == "journaled" and self.plan.sync == "normal":
                entries = self.disk.entries()
                for session_id, story in self.model.stories.items():
                    logs = [self._in_store(session_id)]
                    if session_id in entries:
                        logs.append(log_of(entries[session_id].state))
                    # The power takes destroys of the last moments too; and the store may be ahead
                    # of the journal then, and what comes on top of what that has, before it is
                    # compared with the store, is lost as to another process.
                    story.gone -= story.destroyed | story.ended
                    story.destroyed.clear()
                    story.doubtful = True
                    self.model.restart_from(session_id, logs)

    async def _weather(self) -> None:
        random, plan, machine = self.random, self.plan, self.machine
        assert machine is not None
        while True:
            await asyncio.sleep(random.expovariate(1 / plan.weather))
            change = random.randrange(4)
            if change == 0:
                self.network.down_until = machine.now + random.choice((0.1, 1.0, 5.0))
                self.network.freezes = random.random() < 0.5
                self.say("the store is down until", self.network.down_until, self.network.freezes)
                self.counts["outages"] += 1
            elif change == 1 and plan.mode == "journaled":
                self.disk.bad_until = machine.now + random.choice((0.1, 2.0))
                self.say("the disk is bad until", self.disk.bad_until)
                self.counts["bad disks"] += 1
            elif change == 2 and plan.jumps:
                seconds = random.choice((-7200.0, -30.0, -1.0, 1.0, 30.0, 7200.0))
                self.model.latest = max(self.model.latest, self.wall())
                machine.wall_offset += seconds
                self.say("the wall clock jumps by", seconds)
                self.counts["jumps"] += 1
            elif change == 3 and plan.strangers:
                self._write_as_stranger(random.choice(sorted(self.users.sessions)))

    async def _go_back(self) -> None:
        random = self.random
        while True:
            await asyncio.sleep(random.expovariate(2.0))
            assert self.manager is not None
            for session_id in self.users.sessions:
                busy = inside.is_busy(self.manager, session_id)
                if random.random() < 0.5 and not busy and self.model.may_go_back(session_id):
                    before = self.network.records.get(session_id)
                    record = self.network.go_back(session_id, random)
                    if record is not None and before is not None and self._is_unknown(record, before):
                        self.model.story(session_id).doubtful = True
                    log = () if record is None or self.wall() >= record.expires_at else log_of(record.state)
                    self.say("the store goes back", session_id, None if record is None else record.version, len(log))
                    self.counts["set back"] += 1
                    self.model.set_back(session_id, log)

    def _is_unknown(self, record: Record, newer: Record) -> bool:
        """Tell whether *record*, of an earlier process, may be taken for that of another one."""
        by_heir = record.last_activity >= self.began
        hidden = record.state is None or record.last_activity >= self.began - SKEW
        # Who has not read a session that he destroys lets its versions begin anew.
        return not by_heir and (hidden or newer.version <= record.version)

    def _write_as_stranger(self, session_id: str) -> None:
        record = self.network.records.get(session_id)
        if record is None or record.state is None or self.wall() >= record.expires_at:
            return
        log = log_of(record.state)
        if self.model.story(session_id).gone & set(log):
            return  # the journal has its end
        token = self.model.stranger(session_id, log)
        self.say("another process writes", session_id, token)
        self.counts["strangers"] += 1
        state = encode_state({"log": [*log, token]}, 1 << 20)
        wall = self.wall()
        ends = wall + self.plan.expires_in
        self.network.records[session_id] = Record(
            session_id,
            record.version + 1,
            state,
            (self.random.randbytes(8) + record.write_ids)[:128],
            record.event_ids,
            wall,
            ends,
        )


class Wrong(BaseException):
    """Something happened that must not. Nothing on the way to the end catches it."""


class _Told(logging.Handler):
    """Takes what the library logs as an error of its own for a failure."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.errors: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        # What happens to the author's own code and events is no error of the library.
        if record.exc_info and not record.getMessage().startswith(("dead letter", "a reply")):
            self.errors.append(f"{record.getMessage()}: {record.exc_info[1]!r}")


@contextmanager
def listening() -> Iterator[list[str]]:
    logger, told = logging.getLogger("actorbot"), _Told()
    level, propagate = logger.level, logger.propagate
    logger.addHandler(told)
    logger.setLevel(logging.ERROR)
    logger.propagate = False
    try:
        yield told.errors
    finally:
        logger.removeHandler(told)
        logger.setLevel(level)
        logger.propagate = propagate


def simulate(seed: int, **fixed: Any) -> Report:
    """Run the simulation of *seed*, with a plan drawn from it but for what is *fixed*.

    Raises: SimulationError.
    """
    simulation = Simulation(Plan.draw(seed, **fixed))
    problem: object = None
    report = None
    with listening() as errors:
        try:
            report = simulation.run()
        except Wrong:
            problem = simulation.wrong
        except (StuckError, AssertionError) as error:
            problem = error
    problem = simulation.wrong or problem or (errors[0] if errors else None)
    if problem is not None or report is None:
        last = "\n".join(simulation.trace[-60:])
        raise SimulationError(f"seed {seed}, {fixed}: {problem}\n{simulation.plan}\n{last}")
    return report
