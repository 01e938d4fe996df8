"""What a cluster promises, as a judge beside its simulation: it sees what the server and the store
were told, what callers and users were told, and compares.

A session is a list of the events that it has counted. Each run of a handler appends a token of its
own, so a state tells which runs it has come from.
"""

from __future__ import annotations

import itertools
import re
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from math import inf
from typing import Any

from actorbot.cluster._packing import Request, unpack_answers, unpack_outcome, unpack_request
from actorbot.errors import ActorbotError, RemoteHandlerError
from tests.faults._sim_machine import Machine

__all__ = ["Judge", "Run", "fails"]

Log = tuple[str, ...]

REMEMBERED = 64  # events of a session, so that none is counted twice
PATIENCE = 12.0  # seconds after which whoever was cut off is well again
SLACK = 1.0  # seconds beyond a flush's delay and its call
KEY = re.compile(rb"[\w-]+:\{[^}]*\}:(\w+)(?::(.*))?")


def fails(event: str) -> bool:
    """Tell whether a handler raises at *event*: always, or never."""
    return int(event.rpartition("-")[2]) % 23 == 7


@dataclass(eq=False)
class Run:
    """One run of a handler on one event."""

    token: str
    event: str
    base: Log
    shard: str
    returned: bool = False


@dataclass(eq=False)
class Entry:
    """An event in the log."""

    slot: int
    id: str
    request: Request
    at: float
    order: int
    nth: int
    """Which of its session it is."""
    doubtful: bool = False
    """Whether the server has forgotten what it was told about then."""
    acknowledged: float = inf
    """When its caller was first answered with a value."""
    by: str = ""
    """The shard that did it."""
    epoch: int = 0
    failed: bool = False
    """Whether its caller was answered with an error that says it is not counted."""
    answers: list[str] = field(default_factory=list)


class Judge:
    """All sessions, shards and callers. *complain* is told what must not be."""

    def __init__(self, plan: Any, now: Callable[[], float], say: Callable[..., None], complain: Callable[[str], None]):
        self.plan = plan
        self._now = now
        self._say = say
        self._complain = complain
        self._numbers = itertools.count()
        self.counts: Counter[str] = Counter()
        self.machines: dict[str, Machine] = {}
        self.frozen: dict[str, list[tuple[float, float]]] = {}
        """By shard: when it was frozen."""
        self.cut: defaultdict[str, list[tuple[float, float]]] = defaultdict(list)
        """By shard: when it was cut off."""
        self.closing: set[str] = set()
        """Shards that have begun to close."""
        self.killed: dict[str, float] = {}
        self.store_troubles: list[tuple[float, float]] = []
        self.runs: dict[str, dict[str, Run]] = {}
        self.stored: dict[str, Log] = {}
        self.entries: dict[tuple[int, str], Entry] = {}
        self.asked: dict[tuple[str, int], list[Entry]] = {}
        """By caller and number: more than one where it was sent again."""
        self.by_event: dict[str, list[Entry]] = {}
        self.destroys: defaultdict[str, list[Entry]] = defaultdict(list)
        """By session: what was asked to end it."""
        self.accepted: Counter[str] = Counter()
        """Entries by session."""
        self.owners: dict[int, tuple[int, str]] = {}
        """By slot: epoch and owner."""
        self.settlers: dict[tuple[int, int], set[str]] = {}
        self.members: dict[str, str] = {}
        """By member: its machine."""
        self.ends: list[tuple[float, int, int, str, bool]] = []
        """When a slot changed hands: instant, slot, epoch, the machine that had it, and whether it
        gave it back.
        """
        self.told: set[str] = set()
        """Events of states that `on_conflict` was handed, which may be lost after a takeover."""
        self.replies: Counter[str] = Counter()
        self.forgot: list[tuple[float, float]] = []
        """Spans of which the server remembers nothing."""
        self.troubled = False
        """Whether anything has happened that may cost anybody an answer."""
        self._call: list[tuple[list[bytes], Any]] = []

    # --- runs ------------------------------------------------------------------------------------

    def begin(self, shard: str, session_id: str, event: str, log: Log) -> Run:
        self.check_whole(session_id, log, f"a handler of {shard}")
        run = Run(f"{event}.{shard}.{next(self._numbers)}", event, log, shard)
        self.runs.setdefault(session_id, {})[run.token] = run
        return run

    def check_whole(self, session_id: str, log: Log, where: str) -> None:
        """Check that it is a state that the session has had."""
        if not log:
            return
        runs = self.runs[session_id]
        run = runs.get(log[-1])
        if run is None or run.base != log[:-1] or not run.returned:
            self._complain(f"{where}: {session_id} is {log}, which it never was")
            return
        events = [runs[token].event for token in log[-REMEMBERED:]]
        if len(set(events)) < len(events):
            self._complain(f"{where}: {session_id} has counted an event twice: {log}")

    def store(self, session_id: str, log: Log, shard: str) -> None:
        """The store has this state now."""
        self.check_whole(session_id, log, "the store")
        before = self.stored.get(session_id, ())
        if log[: len(before)] != before:
            self._complain(f"{shard} has written {session_id} over: it was {before}, and is {log}")
        self.stored[session_id] = log

    def destroy(self, session_id: str) -> None:
        """The store has no state any more."""
        self.stored[session_id] = ()
        if not self.destroys[session_id]:
            self._complain(f"{session_id} has ended, and nobody has asked for that")

    def may_be_destroyed(self, entry: Entry) -> bool:
        """Tell whether its session may have ended after it."""
        return any(each.order > entry.order for each in self.destroys[entry.request.session_id])

    def _must_be_destroyed(self, entry: Entry) -> bool:
        after = [each for each in self.destroys[entry.request.session_id] if each.order > entry.order]
        return any("None" in each.answers and not each.doubtful for each in after)

    def events_of(self, session_id: str) -> list[str]:
        """Return the events that the store has counted, in order."""
        return [self.runs[session_id][token].event for token in self.stored.get(session_id, ())]

    def is_durable(self, session_id: str, event: str, *, at_once: bool) -> bool:
        """Tell whether an event that was called durable is so.

        If that was not said *at_once* with its answer, its shard may have been killed before the
        flush was asked for: the next one has nothing to flush. Or a late destroy has taken it.
        """
        if event in self.events_of(session_id) or any(map(self.may_be_destroyed, self.by_event[event])):
            return True
        return not at_once and (event in self.told or any(map(self._may_be_lost, self.by_event[event])))

    def deliver(self, shard: str, session_id: str, token: str) -> None:
        """*shard* sends the reply of a run."""
        run = self.runs[session_id][token]
        self.replies[run.event] += 1
        entries = self.by_event.get(run.event, [])
        if not any(each.doubtful or (each.by == shard and each.acknowledged <= self._now()) for each in entries):
            self._complain(f"{shard} has sent the reply of {token}, and the log knows nothing of it: {entries}")
        again = any(each.doubtful or self._may_be_lost(each) for each in entries) or self._is_forgotten(entries)
        if self.replies[run.event] > 1 and not again:
            self._complain(f"the reply of {run.event} was sent twice: now that of {token}")

    def is_old(self, event: str) -> bool:
        """Tell whether so much has happened since that a session may soon forget the event."""
        entries = self.by_event.get(event)
        return entries is not None and self.accepted[entries[0].request.session_id] - entries[0].nth > REMEMBERED // 2

    def _is_forgotten(self, entries: list[Entry]) -> bool:
        """Tell whether one that came again was too late for its session to know it."""
        numbers = [each.nth for each in entries]
        return max(numbers) - min(numbers) >= REMEMBERED or self.may_be_destroyed(
            min(entries, key=lambda each: each.nth)
        )

    # --- the server ------------------------------------------------------------------------------

    def wrote(self, args: list[bytes], reply: Any) -> None:
        """A command, also one of a script, has changed the server."""
        self._call.append((args, reply))

    def end_of_call(self, machine: str) -> None:
        """What *machine* has asked is done."""
        call, self._call = self._call, []
        done: list[tuple[int, str]] = []
        acknowledged: list[tuple[int, str]] = []
        answers: list[tuple[str, bytes]] = []
        for args, reply in call:
            name, found = args[0].upper(), KEY.fullmatch(args[1]) if len(args) > 1 else None
            if found is None:
                continue
            kind, rest = found[1], (found[2] or b"").decode()
            if name == b"XADD" and kind == b"log":
                self._append(int(rest), reply.decode(), args[-1])
            elif name == b"XADD" and kind == b"answers":
                answers.append((rest, args[-1]))
            elif name == b"XDEL" and kind == b"log":
                done += [(int(rest), each.decode()) for each in args[2:]]
            elif name == b"SADD" and kind == b"acked":
                acknowledged += [(int(rest), each.decode()) for each in args[2:]]
            elif name in (b"HSET", b"HMSET") and kind == b"leases":
                for slot, text in zip(args[2::2], args[3::2], strict=True):
                    if slot:  # or else it is not meant to stay
                        self._own(int(slot), text.decode(), machine)
        self._settle(machine, done, acknowledged, answers)

    def _append(self, slot: int, entry_id: str, payload: bytes) -> None:
        request = unpack_request(payload)
        self.accepted[request.session_id] += 1
        nth = self.accepted[request.session_id]
        entry = Entry(slot, entry_id, request, self._now(), next(self._numbers), nth)
        self._say("accepted", slot, entry_id, request.kind, request.session_id, request.event_id)
        self.entries[slot, entry_id] = entry
        self.asked.setdefault((request.caller, request.number), []).append(entry)
        if request.kind in ("dispatch", "submit"):
            self.by_event.setdefault(request.event_id, []).append(entry)
        elif request.kind == "destroy":
            self.destroys[request.session_id].append(entry)

    def _own(self, slot: int, text: str, machine: str) -> None:
        epoch, _, owner = text.split("|", 2)
        before = self.owners.get(slot, (0, ""))
        after = (int(epoch), owner)
        if before == after:
            return
        self._say("slot", slot, "epoch", epoch, "owner", owner or "nobody")
        self.owners[slot] = after
        if owner and self.members.setdefault(owner, machine) != machine:
            self._complain(f"{machine} made {owner} the owner of slot {slot}, which is {self.members[owner]}")
        if before[1] and before[1] != owner:
            self.ends.append((self._now(), slot, before[0], self.members.get(before[1], "?"), not owner))
            self.counts["given back" if not owner else "taken over"] += 1
            if owner:
                self._check_taken(slot, self.members.get(before[1], "?"), machine)
        if after[0] < before[0] and not self.forgot:
            self._complain(f"the epoch of slot {slot} was {before[0]}, and is {after[0]}")
        if owner and owner != before[1] and after[0] <= before[0] and not self.forgot:
            self._complain(f"slot {slot} has a new owner in its old epoch: {before}, {after}")

    def _check_taken(self, slot: int, machine: str, taker: str) -> None:
        """Check that *taker* may take a slot from *machine*, which has not given it back."""
        if self.forgot or self.plan.clocks or self.plan.faults or machine in self.killed:
            return
        plan = self.plan
        hindered = plan.slow or plan.drain_timeout < 5.0 or plan.store_faults or self.store_troubles
        if machine in self.closing and hindered:
            return  # it could not finish in time
        since = self._now() - 2 * self.plan.lease - PATIENCE
        if not any(until >= since for _, until in self.cut[machine] + self.frozen.get(machine, [])):
            self._complain(f"{taker} has taken slot {slot} from {machine}, which was well")

    def know(self, keys: dict[bytes, Any]) -> None:
        """The server is restarted with these keys."""
        leases = next((value for key, value in keys.items() if key.endswith(b"}:leases")), {})
        records = {int(slot): record.decode().split("|") for slot, record in leases.items()}
        self.owners = {slot: (int(epoch), owner) for slot, (epoch, _, owner) in records.items()}

    def _settle(
        self, machine: str, done: list[tuple[int, str]], acknowledged: list[tuple[int, str]], answers: list[Any]
    ) -> None:
        if not (done or acknowledged or answers):
            return
        for slot in {slot for slot, _ in done + acknowledged}:
            epoch, owner = self.owners.get(slot, (0, ""))
            if self.members.get(owner) != machine and not self.forgot:
                self._complain(f"{machine} settles in slot {slot}, which {owner} owns: {self.members.get(owner)}")
            settlers = self.settlers.setdefault((slot, epoch), set())
            settlers.add(machine)
            if len(settlers) > 1 and not self.forgot:
                self._complain(f"{sorted(settlers)} settle in slot {slot} under epoch {epoch}")
        settled = {*done, *acknowledged}
        for caller, payload in answers:
            for number, outcome in unpack_answers(payload):
                self._answer(machine, caller, number, outcome, settled)

    def _answer(self, machine: str, caller: str, number: int, outcome: bytes, settled: set[tuple[int, str]]) -> None:
        entries = self.asked.get((caller, number), [])
        mine = [each for each in entries if (each.slot, each.id) in settled]
        entry = min(mine, key=lambda each: len(each.answers), default=None)  # others leave the log, answered before
        if entry is None:
            if not self.forgot:
                self._complain(f"{machine} answers request {number} of {caller}, and settles no entry of it")
            return
        settled.remove((entry.slot, entry.id))
        try:
            value = unpack_outcome(outcome, entry.request.session_id)
        except ActorbotError as error:
            value = error
        text = f"{type(value).__name__}" if isinstance(value, Exception) else repr(value)
        entry.answers.append(text)
        self._say("answered", entry.slot, entry.id, entry.request.event_id, text)
        if entry.request.kind not in ("dispatch", "submit"):
            return
        if isinstance(value, Exception):
            entry.failed = isinstance(value, RemoteHandlerError)
            return
        if self.plan.mode == "write-through" and not self.is_durable(
            entry.request.session_id, entry.request.event_id, at_once=True
        ):
            self._complain(f"{entry.request.event_id} was answered before it was stored")
        if entry.acknowledged == inf:
            entry.acknowledged, entry.by, entry.epoch = self._now(), machine, self.owners.get(entry.slot, (0, ""))[0]
        elif not self.forgot and len(set(entry.answers)) > 1:
            self._complain(f"{entry.request.event_id} was answered twice: {entry.answers}")

    def forget(self, seconds: float) -> None:
        """The server has lost the last *seconds*."""
        now = self._now()
        self.forgot.append((now - seconds, now))
        for entry in self.entries.values():
            if entry.at >= now - seconds or now - seconds <= entry.acknowledged <= now:
                entry.doubtful = True

    # --- the end ---------------------------------------------------------------------------------

    def check_end(self, sessions: list[str]) -> None:
        """All has settled, and everything that was acknowledged must be in the store."""
        counted = {session_id: self.events_of(session_id) for session_id in sessions}
        for event, entries in self.by_event.items():
            session_id = entries[0].request.session_id
            is_in, sure = event in counted[session_id], [each for each in entries if not each.doubtful]
            if counted[session_id].count(event) > 1 and not self._is_forgotten(entries):
                self._complain(f"{event} is counted twice: {counted[session_id]}")
            told = [each for each in sure if each.acknowledged < inf and not self.may_be_destroyed(each)]
            if told and not is_in and not any(map(self._may_be_lost, told)):
                self._complain(f"{event} was acknowledged, and is lost: {told}")
            if len(sure) == len(entries) and is_in and all(map(self._must_be_destroyed, entries)):
                self._complain(f"{event} is counted, and its session was destroyed after it: {entries}")
            if len(sure) == len(entries) and all(each.failed for each in entries) and is_in:
                self._complain(f"{event} has failed, and is counted: {entries}")
            for each in sure:
                if not each.answers and not self.forgot:
                    self._complain(f"{event} was accepted, and was never answered: {each}")
        for session_id, events in counted.items():
            for event in events:
                if event not in self.by_event:
                    self._complain(f"{event} is counted, and was never accepted")
            self._check_order(session_id, events)

    def _check_order(self, session_id: str, events: list[str]) -> None:
        last = -1
        for event in events:
            entries = self.by_event.get(event, [])
            if any(each.doubtful for each in entries):
                continue
            orders = [each.order for each in entries if each.order > last]
            if not orders:
                self._complain(f"{session_id} has counted {event} out of the order in which it was accepted: {events}")
                return
            last = min(orders)

    def _may_be_lost(self, entry: Entry) -> bool:
        """Tell whether the policy allows that this acknowledged event is not in the store."""
        if self.plan.mode == "write-through" or self.plan.keep == "flushed":
            return False
        end = min(
            (at for at, slot, epoch, _, clean in self.ends if (slot, epoch) == (entry.slot, entry.epoch) and not clean),
            default=inf,
        )
        if end < inf and entry.request.event_id in self.told:
            return True
        if end == inf and not self.forgot:
            return False
        end = min(end, self.killed.get(entry.by, inf))
        awake = end - entry.acknowledged
        for since, until in self.frozen.get(entry.by, ()):
            awake -= max(0.0, min(until, end) - max(since, entry.acknowledged))
        for since, until in self.store_troubles:
            if since <= end and until + self.plan.deadline * 4 >= entry.acknowledged:
                return True
        return awake <= self.plan.max_delay + 2 * self.plan.deadline + SLACK
