"""What a simulated process works with and what outlives it: a store at the other end of a network,
and the journal's disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from random import Random
from typing import ClassVar, Self

from actorbot._journal.entry import Entry
from actorbot._state.codec import decode_state
from actorbot.errors import ActorbotError, OutcomeUnknownError, StoreUnavailableError
from actorbot.stores.base import Record, RecordStore, Verdict, Write, judge
from tests.faults._sim_machine import Machine

__all__ = ["Disk", "DiskFile", "Network", "NetworkStore", "log_of"]


def log_of(state: bytes | None) -> tuple[str, ...]:
    """Return the events that an encoded session has counted, in order."""
    return () if state is None else tuple(decode_state(state).get("log", ()))


@dataclass
class Network:
    """The store's server and the way to it: what outlives every process, and what may go wrong."""

    random: Random
    say: Callable[..., None]
    on_stored: Callable[[Record], None]
    expires_in: float
    deadline: float
    faults: float = 0.0
    """How likely a call is to go wrong by itself."""
    down_until: float = 0.0
    freezes: bool = False
    """Whether it does not answer while it is down, rather than refuse."""
    troubled: float = -1e9
    """When a call last went wrong or was slow."""
    records: dict[str, Record] = field(default_factory=dict)
    history: dict[str, list[Record | None]] = field(default_factory=dict)
    """What it has had of each session until now, oldest first."""

    def go_back(self, session_id: str, random: Random) -> Record | None:
        """Have again what was there at some time before, as after a restart from a snapshot."""
        past = self.history.setdefault(session_id, [None])
        del past[random.randint(1, len(past)) :]
        record = past[-1]
        if record is None:
            self.records.pop(session_id, None)
        else:
            self.records[session_id] = record
        return record

    def mood(self, now: float) -> str:
        """Draw what becomes of a call."""
        if now < self.down_until:
            mood = "freeze" if self.freezes else "refuse"
        elif self.random.random() >= self.faults:
            return "well"
        else:
            mood = self.random.choice(("refuse", "lose the answer", "lose the request", "some fail", "hang", "break"))
        self.troubled = now
        return mood

    def apply(self, write: Write) -> ActorbotError | None:
        stored = self.records.get(write.record.session_id)
        verdict = judge(write, None if stored is None else stored.write_ids)
        if verdict is Verdict.CONFLICT:
            return write.conflict("network")
        if verdict is Verdict.WRITE:
            self.records[write.record.session_id] = write.record
            self.history.setdefault(write.record.session_id, [None]).append(write.record)
            self.on_stored(write.record)
        return None


class NetworkStore(RecordStore):
    """One process's client of the network."""

    name: ClassVar[str] = "network"

    def __init__(self, network: Network, machine: Machine) -> None:
        self.expires_in = network.expires_in
        self._network = network
        self._machine = machine

    def init(self) -> Self:
        self._begin("init")
        return self

    def read_many(self, session_ids: Sequence[str]) -> Sequence[Record | ActorbotError | None]:
        mood = self._begin("read", *session_ids)
        network = self._network
        found: list[Record | ActorbotError | None] = [network.records.get(each) for each in session_ids]
        self._pass(0.004)  # the answer is on its way: it may be old when it comes
        if mood == "some fail":
            found = [
                StoreUnavailableError(self.name, "not this one", session_id=session_id)
                if network.random.random() < 0.5
                else each
                for session_id, each in zip(session_ids, found, strict=True)
            ]
        elif mood != "well":
            raise StoreUnavailableError(self.name, "no answer")
        return found

    def write_many(self, writes: Sequence[Write]) -> Sequence[ActorbotError | None]:
        mood = self._begin("write", *(f"{write.record.session_id}@{write.record.version}" for write in writes))
        network = self._network
        results: list[ActorbotError | None] = []
        for write in writes:
            outcome = self._fault() if mood == "some fail" and network.random.random() < 0.5 else None
            if isinstance(outcome, OutcomeUnknownError) and network.random.random() < 0.5:
                network.apply(write)
            results.append(network.apply(write) if outcome is None else outcome)
            if network.random.random() < 0.2:
                self._pass(0.002)
            if mood == "lose the answer" and network.random.random() < 0.2:
                break
        self._pass(0.004)
        if mood not in {"well", "some fail"}:
            self._network.say("the store's answer is lost")
            raise OutcomeUnknownError(self.name, "no answer")
        return results

    def sweep(self, now: float) -> Iterable[Record]:
        self._begin("sweep")
        ended = [record for record in self._network.records.values() if record.is_expired(now)]
        for record in ended:
            del self._network.records[record.session_id]
        return [record for record in ended if record.state is not None]

    def close(self) -> None:
        self._machine.die_if_dead()

    def _begin(self, *what: str) -> str:
        """Send a request: it has reached the store when this returns."""
        network, machine = self._network, self._machine
        machine.die_if_dead()
        mood = network.mood(machine.now)
        network.say("store", *what, mood)
        if mood == "freeze":
            self._pass(max(network.down_until - machine.now, 0.01))
            raise OutcomeUnknownError(self.name, "the connection was cut")
        self._pass(0.01)
        if mood == "refuse":
            raise StoreUnavailableError(self.name, "refused")
        if mood == "lose the request":
            raise OutcomeUnknownError(self.name, "the connection was cut")
        if mood == "break":
            raise RuntimeError("a driver's own error")
        if mood == "hang":  # longer than its callers wait, and then it is done all the same
            machine.pause(network.deadline * network.random.uniform(0.5, 2.5))
        return mood

    def _pass(self, seconds: float) -> None:
        self._machine.pause(self._network.random.random() * seconds)

    def _fault(self) -> ActorbotError:
        kind = self._network.random.choice((StoreUnavailableError, OutcomeUnknownError))
        return kind(self.name, "not this one")


@dataclass
class Disk:
    """The journal's disk, with what is in one file on it."""

    random: Random
    say: Callable[..., None]
    on_kept: Callable[[Record], None]
    deadline: float
    faults: float = 0.0
    bad_until: float = 0.0
    synced: dict[int, bytes] = field(default_factory=dict)
    """What survives a power loss."""
    loose: list[dict[int, bytes]] = field(default_factory=list)
    """What the kernel has beyond that, and survives a kill: one transaction each."""
    aside: list[bytes] = field(default_factory=list)
    """The conflicts; nothing here depends on how durable they are."""

    def content(self) -> dict[int, bytes]:
        rows = dict(self.synced)
        for transaction in self.loose:
            rows |= transaction
        return rows

    def sync(self) -> None:
        self.synced, self.loose = self.content(), []

    def lose_power(self) -> None:
        """Forget what was not synced, or the end of it."""
        self.loose = self.loose[: self.random.randint(0, len(self.loose))]
        self.sync()

    def entries(self) -> dict[str, Record]:
        records = (Entry.from_bytes(data).record for data in self.content().values() if data)
        return {record.session_id: record for record in records}

    def mood(self, now: float) -> str:
        if now < self.bad_until:
            return self.random.choice(("fail", "fail late"))
        if self.random.random() >= self.faults:
            return "well"
        return self.random.choice(("fail", "fail late", "hang"))


class DiskFile:
    """Stands in for `actorbot._journal.file.JournalFile`."""

    def __init__(self, disk: Disk, machine: Machine, path: str, sync: str) -> None:
        self.path = path
        self._disk = disk
        self._machine = machine
        self._full = sync == "full"
        self._rows: dict[int, bytes] = {}  # as this process sees them
        self._failed = False

    def open(self) -> None:
        self._pass()
        self._rows = {number: data for number, data in self._disk.content().items() if data}
        self._disk.synced, self._disk.loose = dict(self._rows), []
        self._note(list(self._rows.items()))  # among them may be what an earlier process took for failed

    def close(self) -> None:
        self._machine.die_if_dead()
        if not self._failed:
            self._disk.sync()

    def rows(self) -> Iterator[tuple[int, bytes]]:
        self._machine.die_if_dead()
        return iter([(number, data) for number, data in sorted(self._rows.items()) if data])

    def read(self, number: int) -> bytes:
        self._pass()
        return self._rows[number]

    def conflicts(self) -> Iterator[bytes]:
        self._machine.die_if_dead()
        return iter(list(self._disk.aside))

    def commit(self, rows: Sequence[tuple[int, bytes]], conflicts: Sequence[bytes] = ()) -> None:
        disk = self._disk
        self._machine.die_if_dead()
        if self._failed:
            self._machine.complain("a failed file was written again")
        mood = disk.mood(self._machine.now)
        disk.say("disk commits", len(rows), mood)
        self._pass()
        if mood == "hang":
            self._machine.pause(disk.deadline * disk.random.uniform(0.5, 2.5))
        if mood == "fail":
            self._fail()
        disk.loose.append(dict(rows))
        disk.aside += conflicts
        if not self._full:
            self._note(rows)
        self._pass()  # the sync
        if mood == "fail late":
            self._fail()
        self._rows.update(rows)
        if self._full or disk.random.random() < 0.05:
            disk.sync()
        if self._full:
            self._note(rows)

    def renew(self) -> None:
        self._pass()
        if self._disk.mood(self._machine.now) != "well":
            raise OSError(28, "no space left on the device")
        self._disk.say("disk renewed")
        self._disk.synced = {number: data for number, data in self._rows.items() if data}
        self._disk.loose = []
        self._note(list(self._rows.items()))
        self._failed = False
        self._pass()

    def _fail(self) -> None:
        self._failed = True
        raise sqlite3.OperationalError("disk I/O error")

    def _note(self, rows: Sequence[tuple[int, bytes]]) -> None:
        for _, data in rows:
            if data:
                self._disk.on_kept(Entry.from_bytes(data).record)

    def _pass(self) -> None:
        self._machine.die_if_dead()
        self._machine.pause(self._disk.random.random() * 0.003)
