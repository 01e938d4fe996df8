"""The bot that is killed: a server forks it, it sends itself events as platforms would, and writes
to a pipe what was acknowledged.

Each line is one write, short enough for a pipe to take it whole or not at all (PIPE_BUF), of words
between spaces:

    begin                       the manager is about to start
    found SESSION FIRST LAST    numbers without a gap after the recovery; -1 -1: absent
    ready                       all sessions were looked at, and the first events go out
    done SESSION POSITION       the delivery was acknowledged, or known as a duplicate
    reply SESSION NUMBER        `deliver` was handed the reply to event NUMBER
    destroying SESSION NUMBER   the session is about to be destroyed; its next event would be NUMBER
    destroyed SESSION NUMBER    `destroy` returned
    closing                     `close` is about to be called
    closed CLEAN                it returned; CLEAN is 1 if nothing was left over
    refused ERROR               the manager could not start, because the store is down
    fault TEXT                  what must never be was seen
"""

from __future__ import annotations

import asyncio
import gc
import json
import os
import random
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from actorbot import Context, FlushPolicy, SessionManager, errors, store_from_url
from actorbot._journal.ahead import Ahead
from actorbot._journal.journal import Journal
from actorbot._ownership import keeper

AGAIN = 0.01  # seconds before an event that got an error is sent again, as a platform would
REMEMBERED = 64  # event ids that a session remembers


@dataclass(frozen=True, slots=True, kw_only=True)
class Orders:
    """What a worker shall do."""

    url: str
    policy: str
    seed: int
    start: dict[str, int]
    """The sessions, and the position of the delivery that each goes on from."""
    until: int | None = None
    """The position that each session stops before; `None`: it goes on until the worker is killed.
    """
    in_flight: int = 4
    """How many deliveries of a session are on their way at once, at most."""
    clients: int = 6
    """How many sessions are busy at once; the others are idle, and leave memory."""
    idle_timeout: float = 0.005
    """Seconds after which an idle session leaves memory."""
    close_after: int = 0
    """After so many acknowledgements the manager is closed; 0: only at the end."""
    events: int = 0
    """How many events a session has, each delivered 1 to 3 times; 0: no end of events, each
    delivered once.
    """
    threads: bool = False
    """Whether the manager lives on threads."""
    destroys: bool = False
    """Whether sessions are destroyed now and then."""
    mutant: str = ""
    """The fault that is built in, to see that it is found."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def deliveries(orders: Orders, session: str) -> list[int]:
    """List the number of the event at each position: first deliveries in order, duplicates while
    the session must know them.
    """
    chance = random.Random(f"{orders.seed} {session}")
    most = REMEMBERED - orders.in_flight  # what a kill has cut off is sent again, behind what was counted beside it
    due: dict[int, list[int]] = {}
    order: list[int] = []
    for number in range(orders.events + most):
        if number < orders.events:
            order.append(number)
            for _ in range(chance.choice((0, 1, 2))):
                due.setdefault(number + chance.randrange(most), []).append(number)
        again = due.pop(number, [])
        chance.shuffle(again)
        order += again
    return order


class Threaded:
    """Has the verbs of a manager, whose twins it calls on threads."""

    def __init__(self, manager: SessionManager) -> None:
        self._manager = manager

    def __getattr__(self, verb: str) -> Callable[..., Any]:
        return partial(asyncio.to_thread, getattr(self._manager, f"{verb}_sync"))


class Worker:
    """One life of the bot."""

    def __init__(self, orders: Orders, pipe: int) -> None:
        self._orders = orders
        self._pipe = pipe
        self._next = dict(orders.start)
        self._numbers = {name: deliveries(orders, name) for name in orders.start} if orders.events else None
        self._free = sorted(orders.start)
        self._chance = random.Random(f"{orders.seed} {sorted(orders.start.items())}")
        self._acknowledged = 0
        self._closing = False

    def say(self, *words: object) -> None:
        os.write(self._pipe, (" ".join(map(str, words)) + "\n").encode())

    def number_at(self, session: str, position: int) -> int:
        return position if self._numbers is None else self._numbers[session][position]

    async def handle(self, context: Context) -> None:
        self.count(context, context.event)

    def handle_plainly(self, context: Context) -> None:
        self.count(context, context.event)

    def count(self, context: Context, number: int) -> None:
        context.session.setdefault("numbers", []).append(number)
        context.send(number, gated=self._orders.mutant != "ungated")

    def deliver(self, session: str, number: int) -> None:
        self.say("reply", session, number)

    async def live(self) -> None:
        orders = self._orders
        manager: Any = SessionManager(
            store_from_url(orders.url),
            handler=self.handle_plainly if orders.threads else self.handle,
            deliver=self.deliver,
            flush=FlushPolicy.parse(orders.policy),
            idle_timeout=orders.idle_timeout,
            on_conflict=lambda session, state: self.say("fault", f"conflict: {session} {str(state)[:200]}"),
        )
        if orders.threads:
            manager = Threaded(manager)
        self.say("begin")
        try:
            await manager.start()
        except errors.StoreUnavailableError as error:
            self.say("refused", type(error).__name__)
            return
        for session in self._free:
            first, last = ends_of(await manager.peek(session))
            self.say("found", session, first, last)
            if not (orders.destroys or orders.events) and isinstance(last, int):
                self._next[session] = min(self._next[session], last + 1)  # what the bot has forgotten is sent again
        self.say("ready")
        async with asyncio.TaskGroup() as group:
            for _ in range(orders.clients):
                group.create_task(self._serve(manager))
        self.say("closing")
        report = await manager.close()
        self.say("closed", int(report.clean))

    async def _serve(self, manager: Any) -> None:
        """Again and again: take a session that nobody serves, and send it some events."""
        while self._free and not self._closing:
            session = self._free.pop(self._chance.randrange(len(self._free)))
            try:
                await self._send_some(manager, session)
            except errors.ManagerClosedError:
                return
            except (errors.StoreUnavailableError, errors.OverloadedError):
                await asyncio.sleep(AGAIN)  # nobody was told that it had been counted: it is sent again
            except Exception as error:
                self.say("fault", f"{session}: {error!r}"[:1000])
                raise
            if self._next[session] != self._last(session):
                self._free.append(session)

    def _last(self, session: str) -> int | None:
        until = self._orders.until
        return len(self._numbers[session]) if self._numbers is not None and until is None else until

    async def _send_some(self, manager: Any, session: str) -> None:
        begin, last = self._next[session], self._last(session)
        end = begin + self._chance.randint(1, self._orders.in_flight)
        if last is not None:
            end = min(end, last)
        sent = [self._send(manager, session, position) for position in range(begin, end)]
        for error in await asyncio.gather(*sent, return_exceptions=True):
            if isinstance(error, BaseException):
                raise error
        self._next[session] = end
        if self._orders.destroys and self._chance.random() < 0.02:
            self.say("destroying", session, end)
            await manager.destroy(session)
            self.say("destroyed", session, end)

    async def _send(self, manager: Any, session: str, position: int) -> None:
        number = self.number_at(session, position)
        event_id = f"{session}/{number}"
        verb = "dispatch" if self._orders.threads else ("dispatch", "dispatch", "turn", "submit")[position % 4]
        if verb == "dispatch":
            await manager.dispatch(session, number, event_id=event_id)
        elif verb == "submit":
            await (await manager.submit(session, number, event_id=event_id)).result()
        else:
            try:
                async with manager.turn(session, event_id=event_id) as turn:
                    self.count(turn, number)
            except errors.DuplicateEventError:
                pass
        self.say("done", session, position)
        self._acknowledged += 1
        if self._acknowledged == self._orders.close_after:
            self._closing = True


def ends_of(state: dict[str, Any] | None) -> tuple[object, object]:
    """Return the first and the last of the numbers that a session holds, which must follow each
    other without a gap.
    """
    if state is None:
        return -1, -1
    numbers = state["numbers"]
    if numbers != list(range(numbers[0], numbers[0] + len(numbers))):
        odd = next(at for at in range(1, len(numbers)) if numbers[at] != numbers[at - 1] + 1)
        return "torn", f"...{numbers[max(0, odd - 5) : odd + 5]}...".replace(" ", "")
    return numbers[0], numbers[-1]


# --- the faults that are built in to see that they are found ------------------------------------


def acknowledge_early() -> None:
    """Tell everybody that an entry is committed when it has only been asked for."""
    put = Journal.put

    class Told(Ahead):
        def settle(self, error: errors.ActorbotError | None) -> None:
            pass

    def put_early(self: Journal, ahead: Ahead) -> None:
        self._post(ahead.settle, None)
        put(self, Told(ahead.session_id, ahead.committed, ahead.write_ids, ahead.lineages))

    Journal.put = put_early  # type: ignore[method-assign]


def destroy_later() -> None:
    """Return from `destroy` before anything of it is on the disk."""
    destroy = SessionManager.destroy
    kept = set()

    async def destroy_some_time(self: SessionManager, session_id: str) -> None:
        later = asyncio.ensure_future(destroy(self, session_id))
        kept.add(later)
        later.add_done_callback(kept.discard)

    SessionManager.destroy = destroy_some_time  # type: ignore[method-assign]


def remember_little() -> None:
    """Remember eight event ids of a session."""
    sys.modules["actorbot._turns.session_actor"].EVENT_ID_BYTES = 8 * 8  # type: ignore[attr-defined]


MUTANTS: dict[str, Callable[[], None]] = {
    "": lambda: None,
    "ungated": lambda: None,
    "acknowledges early": acknowledge_early,
    "destroys later": destroy_later,
    "remembers little": remember_little,
}


# --- the server that forks workers --------------------------------------------------------------


def be_worker(request: bytes, pipe: int) -> None:
    orders = Orders(**json.loads(request))
    keeper.WATCHED = 0.0  # type: ignore[misc]  # a server that has just started again had no other bot
    MUTANTS[orders.mutant]()
    worker = Worker(orders, pipe)
    try:
        asyncio.run(worker.live())
    except BaseException as error:
        worker.say("fault", f"the worker ended with {error!r}"[:1000])
        raise


def _signal_or_reap(pid: int, number: int | None = None) -> int:
    if number is None:
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os.kill(pid, number)
    return 0


def serve(connection: socket.socket, be_worker: Callable[[bytes, int], None]) -> None:
    """Fork a worker for each request, which comes with the pipe to write to; reap the one whose pid
    is sent back, or send it the signal that is named behind it.
    """
    # Ctrl-C is for whoever runs the tests, which then closes the connection.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    gc.freeze()  # what is imported need not be looked at by every child
    while True:
        request, pipes, _, _ = socket.recv_fds(connection, 65536, 1)
        if not request:
            return
        if not pipes:
            connection.send(str(_signal_or_reap(*map(int, request.split()))).encode())
            continue
        child = os.fork()
        if child == 0:
            connection.close()
            status = 1
            try:
                be_worker(request, pipes[0])
                status = 0
            finally:
                sys.stderr.flush()
                os._exit(status)
        os.close(pipes[0])
        connection.send(str(child).encode())


if __name__ == "__main__":
    import actorbot.stores.mongo
    import actorbot.stores.redis  # noqa: F401  (so that a worker need not)

    serve(socket.socket(fileno=int(sys.argv[1])), be_worker)
