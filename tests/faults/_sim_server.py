"""A simulated store that keeps a lease: its own clock, its ways to each machine, and what it may
forget.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from math import inf

from actorbot.errors import ActorbotError, OutcomeUnknownError, StoreUnavailableError
from actorbot.stores.base import LeaseFound, Record, Write
from tests.faults._sim_machine import Machine
from tests.faults._sim_media import Network, NetworkStore

__all__ = ["LeasedStore", "Server", "Trap"]


@dataclass
class Trap:
    """What befalls a machine amid a call."""

    what: str
    """The call: "lease" or "write"."""
    calls: int
    """How many of them go well before."""
    spring: Callable[[Machine], None]


@dataclass
class Server(Network):
    """The store's server, for several machines."""

    offset: float = 1_700_000_000.0
    """What its clock is ahead of the time of the world."""
    lease: str | None = None
    leases: list[str | None] = field(default_factory=lambda: [None])
    """All that there have been."""
    up_since: float = -inf
    tells_up: bool = True
    cut_until: dict[str, float] = field(default_factory=dict)
    """By machine: until when it is cut off."""
    cut: dict[str, str] = field(default_factory=dict)
    """How: "both ways", "answers" or "lease" (which cannot be asked for, while all else can)."""
    doing: dict[str, str] = field(default_factory=dict)
    """What each machine has last called: "lease", "read" or "write"."""
    traps: dict[str, Trap] = field(default_factory=dict)
    on_swap: Callable[[Machine, str | None, str], None] = lambda machine, old, new: None
    on_asked: Callable[[Machine, float], None] = lambda machine, sent: None
    """Is told when a machine asks for the lease, or changes it."""
    on_answered: Callable[[Machine, float, str | bool | None], None] = lambda machine, sent, outcome: None
    """Is told when such a call comes back: when it was sent, and what it has brought; `False`:
    nothing.
    """

    def mood(self, now: float) -> str:
        machine = Machine.running
        how = self.cut[machine.name] if now < self.cut_until.get(machine.name, -inf) else ""
        if how == "both ways" or (how == "lease" and self.doing.get(machine.name) == "lease"):
            self.troubled = now
            return self.random.choice(("refuse", "lose the request"))
        mood = super().mood(now)
        return "lose the answer" if how == "answers" and mood == "well" else mood

    def clock(self, now: float) -> float:
        return now + self.offset

    def swap(self, machine: Machine, old: str | None, new: str) -> bool:
        if self.lease != old:
            return False
        self.on_swap(machine, old, new)
        self.lease = new
        self.leases.append(new)
        return True

    def forget_leases(self, now: float, back: int | None) -> None:
        """Be restarted: without a lease, or with the one of so many changes ago."""
        self.lease = None if back is None else self.leases[max(0, len(self.leases) - 1 - back)]
        self.leases.append(self.lease)
        self.up_since = now


class LeasedStore(NetworkStore):
    """One process's client of the server."""

    keeps_lease = True

    def __init__(self, server: Server, machine: Machine, on_write: Callable[[Machine], None]) -> None:
        super().__init__(server, machine)
        self._server = server
        self._on_write = on_write
        self._asked = -inf

    def read_lease(self) -> LeaseFound:
        sent = self._asked = self._machine.now
        self._server.on_asked(self._machine, sent)
        try:
            mood = self._ask("lease", "read")
            server, now = self._server, self._machine.now
            found = LeaseFound(server.lease, server.clock(now), now - server.up_since if server.tells_up else None)
            self._pass(0.004)
            if mood not in ("well", "some fail", "hang"):
                raise StoreUnavailableError(self.name, "no answer")
        except Exception:
            self._server.on_answered(self._machine, sent, False)
            raise
        self._server.on_answered(self._machine, sent, found.text)
        return found

    def swap_lease(self, old: str | None, new: str) -> bool:
        sent = self._asked  # one exchange with what was read for it
        self._server.on_asked(self._machine, sent)
        try:
            mood = self._ask("lease", "swap")
            done = self._server.swap(self._machine, old, new)
            self._server.say("lease", "swapped" if done else "refused", new)
            self._pass(0.004)
            if mood not in ("well", "some fail", "hang"):
                raise OutcomeUnknownError(self.name, "no answer")
        except Exception:
            self._server.on_answered(self._machine, sent, False)
            raise
        self._server.on_answered(self._machine, sent, new if done else self._server.lease)
        return done

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        self._server.doing[self._machine.name] = "read"
        return super().read_many(session_ids)

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        self._server.doing[self._machine.name] = "write"
        self._on_write(self._machine)
        return super().write_many(writes)

    def _ask(self, doing: str, *what: str) -> str:
        self._server.doing[self._machine.name] = doing
        return self._begin(doing, *what)

    def _pass(self, seconds: float) -> None:
        machine = self._machine
        trap = self._server.traps.get(machine.name)
        if trap is not None and trap.what == self._server.doing.get(machine.name):
            trap.calls -= 1
            if trap.calls < 0:
                del self._server.traps[machine.name]
                trap.spring(machine)
        super()._pass(seconds)
