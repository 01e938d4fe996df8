"""Kills bots and keeps account: what was acknowledged, what is there after a restart, and what must
not differ.
"""

from __future__ import annotations

import os
import random
import select
import signal
import socket
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from time import monotonic
from typing import Any

from actorbot import FlushPolicy, store_from_url
from tests.faults._worker import Orders, deliveries, ends_of

PATIENCE = 30.0  # seconds for a worker to say something
DELAYS = (0.005, 0.05, 1.0)  # seconds from an event to its flush
WORK, START, CLOSE = 0.060, 0.015, 0.010  # seconds within which a kill comes, from the moment that its kind names


class ForkServer:
    """A process that has imported actorbot and forks a worker on request: a kill then costs 50 ms,
    and 300 with a new Python.
    """

    def __init__(self, module: str = "tests.faults._worker", *, under: Sequence[str] = ()) -> None:
        """*under* is a command that runs it, as `unshare` does in a namespace of its own."""
        self._connection, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._connection.settimeout(PATIENCE)
        self._lock = threading.Lock()  # guards the connection: a request and its answer
        with theirs:
            self._process = subprocess.Popen(
                [*under, sys.executable, "-m", module, str(theirs.fileno())], pass_fds=[theirs.fileno()]
            )

    def fork(self, orders: Any) -> Life:
        """Fork a worker with *orders*, which have `to_json`."""
        ours, theirs = os.pipe()
        try:
            with self._lock:
                socket.send_fds(self._connection, [orders.to_json()], [theirs])
                pid = int(self._connection.recv(64))
        finally:
            os.close(theirs)
        return Life(self, pid, ours)

    def reap(self, pid: int) -> int:
        """Return the exit status of *pid*, a negative signal if it was killed; only then may its
        pid be another process's.
        """
        with self._lock:
            self._connection.send(str(pid).encode())
            return int(self._connection.recv(64))

    def signal(self, pid: int, number: int) -> None:
        """Send a signal to the worker *pid*, which may be in another namespace of process ids."""
        with self._lock:
            self._connection.send(f"{pid} {number}".encode())
            self._connection.recv(64)

    def close(self) -> None:
        self._connection.close()
        try:
            self._process.wait(PATIENCE)
        finally:
            self._process.kill()


class Life:
    """One worker, from its fork to its end, and the lines that it writes."""

    def __init__(self, server: ForkServer, pid: int, pipe: int) -> None:
        self._server = server
        self.pid = pid
        self._pipe = pipe
        self._rest = b""
        self._said: deque[list[str]] = deque()
        self.status: int | None = None

    def lines(self, until: float) -> Iterator[list[str]]:
        """Yield what it says, until the monotonic second *until*, or its end (then `status` is
        set).
        """
        while True:
            while self._said:
                yield self._said.popleft()
            left = until - monotonic()
            if self.status is not None or left <= 0 or not select.select([self._pipe], [], [], left)[0]:
                return
            self._read()

    def _read(self) -> None:
        data = os.read(self._pipe, 65536)
        if not data:
            self._end()
        *lines, self._rest = (self._rest + data).split(b"\n")
        self._said += [line.decode().split(" ") for line in lines]

    def kill(self) -> Iterator[list[str]]:
        """Kill it, and yield what it had said before."""
        if self.status is None:
            os.kill(self.pid, signal.SIGKILL)
        yield from self.lines(monotonic() + PATIENCE)
        assert self.status is not None, "the pipe of a killed worker does not end"

    def signal(self, number: int) -> None:
        if self.status is None:
            self._server.signal(self.pid, number)

    def _end(self) -> None:
        os.close(self._pipe)
        self.status = self._server.reap(self.pid)


@dataclass(slots=True)
class Account:
    """What is known of one session."""

    next: int = 0
    """Every delivery before this position was acknowledged."""
    done: dict[int, float] = field(default_factory=dict)
    """When each was acknowledged: position → monotonic second."""
    counted: int = 0
    """Every event below this number was acknowledged, or was seen after a recovery."""
    since: int = 0
    """Its first event since it was last destroyed."""
    destroying: int | None = None
    """What `since` will be if a `destroy` has taken place that has not returned."""
    replied: int = -1
    """The event that the newest reply belongs to."""


@dataclass(slots=True)
class Tally:
    """What a campaign has come to."""

    kills: int = 0
    acknowledged: int = 0
    duplicates: int = 0
    destroyed: int = 0
    replies: int = 0
    lost: int = 0
    most_lost: int = 0
    """Events of one session in one kill."""
    oldest_lost: float = 0.0
    """Seconds from an acknowledgement to the kill that made it void."""
    faults: list[str] = field(default_factory=list)
    """What must never be, whatever the policy."""


class Ledger:
    """Accounts for all that the lives of one bot say, and for what is found at the end."""

    def __init__(self, orders: Orders, tally: Tally) -> None:
        self._orders = orders
        self.tally = tally
        self.accounts = {session: Account() for session in orders.start}
        self._numbers = {name: deliveries(orders, name) for name in orders.start} if orders.events else None
        self._killed = 0.0
        self._gated = FlushPolicy.parse(orders.policy).mode != "write-behind"

    def positions(self) -> dict[str, int]:
        return {session: account.next for session, account in self.accounts.items()}

    def note_kill(self) -> None:
        self._killed = monotonic()

    def take(self, words: list[str]) -> None:
        """Account for one line of a worker's."""
        match words:
            case ["done", session, position]:
                self._note_done(session, int(position))
            case ["reply", session, number]:
                self._note_reply(session, int(number))
            case ["destroying", session, number]:
                self.accounts[session].destroying = int(number)
            case ["destroyed", session, number]:
                self._begin_anew(self.accounts[session], int(number))
                self.tally.destroyed += 1
            case ["found", session, first, last]:
                self.compare(session, first, last)
            case ["fault", *text]:
                self._fault(" ".join(text))

    def _fault(self, text: str) -> None:
        self.tally.faults.append(text)

    def _number_at(self, session: str, position: int) -> int:
        return position if self._numbers is None else self._numbers[session][position]

    def _note_done(self, session: str, position: int) -> None:
        account = self.accounts[session]
        account.done[position] = monotonic()
        self.tally.acknowledged += 1
        while account.next in account.done:
            number = self._number_at(session, account.next)
            if number < account.counted:
                self.tally.duplicates += 1
            account.counted = max(account.counted, number + 1)
            account.next += 1

    def _begin_anew(self, account: Account, number: int) -> None:
        """Expect nothing from before a destroy: not even the event after it, if that had been
        counted, unacknowledged, before a kill.
        """
        account.since, account.destroying = number, None
        account.counted = min(account.counted, number)
        account.replied = min(account.replied, number - 1)

    def _note_reply(self, session: str, number: int) -> None:
        account = self.accounts[session]
        self.tally.replies += 1
        if number <= account.replied:
            self._fault(f"{session}: the reply to {number} came after that to {account.replied}")
        account.replied = max(account.replied, number)

    def compare(self, session: str, first: object, last: object) -> None:
        """Compare what a recovered session holds with what it must."""
        account = self.accounts[session]
        if first == "torn":
            self._fault(f"{session} is torn: {last}")
            return
        begins, ends = int(str(first)), int(str(last)) + 1
        if account.destroying is not None and (begins == account.destroying or ends == 0):
            self._begin_anew(account, account.destroying)
        account.destroying = None  # one that was killed has taken place by now, or never will
        if ends == 0:
            ends = begins = account.since
        if begins != account.since:
            self._fault(f"{session} begins with {begins}; since it was destroyed its first event was {account.since}")
        if ends < account.counted:
            self._note_loss(session, account, ends)
        if self._gated and account.replied >= max(ends, account.since):
            self._fault(f"{session} ends before {ends}, and the reply to {account.replied} has left")
        sent = account.counted + self._orders.in_flight
        if ends > sent:
            self._fault(f"{session} ends before {ends}, and nothing from {sent} on was ever sent")
        account.counted = ends
        account.replied = min(account.replied, ends - 1)

    def _note_loss(self, session: str, account: Account, ends: int) -> None:
        lost = account.counted - ends
        self.tally.lost += lost
        self.tally.most_lost = max(self.tally.most_lost, lost)
        if self._numbers is None:
            if (acknowledged := account.done.get(ends)) is not None:
                self.tally.oldest_lost = max(self.tally.oldest_lost, self._killed - acknowledged)
            account.next = ends  # it is sent again, so that the next comparison finds a list without a gap
            account.done = {at: when for at, when in account.done.items() if at < ends}

    def compare_store(self) -> None:
        """Compare what is in the store now, read without a manager."""
        store = store_from_url(self._orders.url)
        store.init()
        try:
            for session, account in self.accounts.items():
                account.destroying = None
                self.compare(session, *ends_of(state_in(store, session)))
                if self._numbers is not None and account.counted != self._orders.events:
                    self._fault(f"{session} has counted {account.counted} of {self._orders.events} events")
        finally:
            store.close()


def state_in(store: Any, session: str) -> dict[str, Any] | None:
    found: dict[str, Any] | None = store.read(session)
    return found


class Campaign:
    """A bot that is killed again and again, at moments that follow from a seed."""

    def __init__(self, server: ForkServer, orders: Orders, tally: Tally | None = None) -> None:
        self._server = server
        self._orders = orders
        self._policy = FlushPolicy.parse(orders.policy)
        self.ledger = Ledger(orders, Tally() if tally is None else tally)
        self.tally = self.ledger.tally
        self.chance = random.Random(orders.seed)

    def live(self, **changes: Any) -> Life:
        """Begin a life that goes on where the last one ended; with a journal, how soon that goes to
        the store is a matter of chance.
        """
        changes = {"start": self.ledger.positions()} | changes
        if self._policy.mode == "journaled":
            changes["policy"] = str(replace(self._policy, max_delay=self.chance.choice(DELAYS)))
        return self._server.fork(replace(self._orders, **changes))

    def follow(self, life: Life, word: str, seconds: float = PATIENCE, count: int = 1) -> bool:
        """Account for what *life* says until it has said *word* so many times; `False` if it ends
        or falls silent before.
        """
        for words in life.lines(monotonic() + seconds):
            self.ledger.take(words)
            if words[0] == word:
                count -= 1
                if count == 0:
                    return True
        return False

    def kill(self, life: Life) -> None:
        self.ledger.note_kill()
        for words in life.kill():
            self.ledger.take(words)
        self.tally.kills += life.status == -signal.SIGKILL

    def kill_at_random(self) -> None:
        """Begin a life and kill it: mostly at work, also while it starts or closes."""
        kind = self.chance.choices(("done", "begin", "closing"), (70, 20, 10))[0]
        life = self.live(close_after=self.chance.randint(1, 300) if kind == "closing" else 0)
        within = {"done": WORK, "begin": START, "closing": CLOSE}[kind]
        if self.follow(life, kind):
            self.follow(life, "", self.chance.uniform(0.0, within))
        self.kill(life)

    def finish(self) -> None:
        """Let the bot go on to an orderly end, and compare the store."""
        ends = max(account.next for account in self.ledger.accounts.values()) + 5
        life = self.live(until=None if self._orders.events else ends)
        for words in life.lines(monotonic() + PATIENCE):
            self.ledger.take(words)
            if words[0] == "closed" and words[1] != "1":
                self.tally.faults.append("the last close left something over")
        if life.status != 0:
            self.tally.faults.append(f"the last life ended with status {life.status}")
            self.kill(life)
        self.ledger.compare_store()


def kill_again_and_again(server: ForkServer, orders: Orders, kills: int) -> Tally:
    """Kill a bot so many times, with new sessions after every 50, so that theirs stay short."""
    tally = Tally()
    while tally.kills < kills:
        number, before = tally.kills, tally.kills
        start = {f"{name}.{number}": 0 for name in orders.start}
        campaign = Campaign(server, replace(orders, seed=orders.seed + number, start=start), tally)
        while tally.kills < min(before + 50, kills):
            campaign.kill_at_random()
        campaign.finish()
    print(tally)
    return tally
