"""The network between simulated machines and a simulated Redis server: connections that are cut,
lose what they carry, or bring it late; a server that is frozen, restarted, or has its clock set.

What travels are the bytes of the real client. The server is a machine of the world: a connection
keeps its order, different ones do not.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from math import inf
from random import Random
from types import SimpleNamespace
from typing import Any

import hiredis

from tests.faults._sim_machine import Machine, World
from tests.faults._sim_redis import SimRedis, block_of, encode

__all__ = ["Connection", "Cut", "RedisServer", "Trap"]

LATENCY = 0.0006  # virtual seconds of a way, at most
AGAIN = 0.4  # within so many seconds after a cut, what was sent meanwhile comes


_PLUG = SimpleNamespace(setsockopt=lambda *args: None)


@dataclass
class Trap:
    """What befalls a machine amid what it asks."""

    what: str
    """"request": as it is sent; "answer": when it was done."""
    calls: int
    """How many of them go well before."""
    spring: Callable[[Machine], None]


@dataclass
class Cut:
    """A machine that is cut off from the server."""

    until: float
    how: str
    """"both ways", "requests" or "answers"."""


class Connection(asyncio.Transport):
    """A connection: for the client its transport, for the server what is waiting there."""

    def __init__(self, server: RedisServer, machine: Machine, protocol: asyncio.Protocol) -> None:
        super().__init__()
        self.machine = machine
        self.protocol = protocol
        self.server = server
        self.closed = False
        """At the client's end."""
        self.gone = False
        """At the server's end."""
        self.reader = hiredis.Reader()
        self.waiting: deque[list[bytes]] = deque()
        self.blocked: tuple[list[bytes], float] | None = None
        """The command that waits, and until when."""
        self.request_at = self.answer_at = -inf
        """When the last one that was sent arrives."""

    # --- the client's end ------------------------------------------------------------------------

    def write(self, data: Any) -> None:
        if not self.closed and not self.machine.dead:
            self.server.send(self, bytes(data))

    def writelines(self, list_of_data: Any) -> None:
        self.write(b"".join(list_of_data))

    def is_closing(self) -> bool:
        return self.closed

    def close(self) -> None:
        self.lose(None)

    def abort(self) -> None:
        self.lose(None)

    def lose(self, error: Exception | None) -> None:
        """Have the client's end closed; what it has sent is on its way all the same."""
        if self.closed or self.machine.dead:
            return
        self.closed = True
        self.server.hang_up(self)
        self.machine.loop.call_soon(self.protocol.connection_lost, error)

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 6379), "socket": _PLUG}.get(name, default)

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        pass

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self.protocol = protocol  # type: ignore[assignment]

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self.protocol

    def pause_reading(self) -> None:
        raise NotImplementedError

    def receive(self, data: bytes) -> None:
        if not self.closed:
            self.protocol.data_received(data)


class RedisServer:
    """The server, and all ways to it."""

    def __init__(self, world: World, random: Random, say: Callable[..., None], complain: Callable[[str], None]) -> None:
        self.machine = Machine(world, 0.0, complain, "redis")
        self.data = SimRedis()
        self.offset = 1_700_000_000.0
        """What its clock is ahead of the time of the world."""
        self.faults = 0.0
        """How likely it is that what is sent is lost, or late."""
        self.patience = 2.0
        """Seconds for which what is late is late, at most."""
        self.down_until = -inf
        self.cuts: dict[str, Cut] = {}
        """By the name of the machine."""
        self.traps: dict[str, Trap] = {}
        """By the name of the machine."""
        self.on_call: Callable[[str], None] = lambda machine: None
        """Is told when a command of a machine was done."""
        self.connections: list[Connection] = []
        self._world = world
        self._random = random
        self._say = say

    # --- what goes wrong -------------------------------------------------------------------------

    def restart(self, seconds: float, forgets: float) -> None:
        """Be away for so long, and come back without the last *forgets* seconds."""
        now = self._world.now
        self.down_until = max(self.down_until, now + seconds)
        on_write = self.data.on_write
        self.data = self.data.again(now - forgets)
        self.data.on_write = on_write
        for connection in list(self.connections):
            self._reset(connection)

    def cut(self, machine: Machine, seconds: float, how: str) -> None:
        self.cuts[machine.name] = Cut(self._world.now + seconds, how)

    def end(self, machine: Machine) -> None:
        """*machine* is dead: the server hears of it, if its system goes on."""
        for connection in [each for each in self.connections if each.machine is machine]:
            connection.closed = True
            self.hang_up(connection)

    # --- ways ------------------------------------------------------------------------------------

    async def connect(
        self, machine: Machine, make: Callable[[], asyncio.Protocol]
    ) -> tuple[Connection, asyncio.Protocol]:
        """Connect a client that runs on *machine*."""
        loop = machine.loop
        arrives = self._way(machine, "requests")
        back = self._way(machine, "answers", arrives)
        await asyncio.sleep(max(0.0, back - loop.time()))
        if loop.time() < self.down_until or self._world.now < self.down_until:
            raise ConnectionRefusedError(111, "Connection refused")
        protocol = make()
        connection = Connection(self, machine, protocol)
        self.connections.append(connection)
        loop.call_soon(protocol.connection_made, connection)
        await asyncio.sleep(0)
        return connection, protocol

    def send(self, connection: Connection, data: bytes) -> None:
        """Bring *data* to the server."""
        if connection.gone:
            self._reset(connection)
            return
        fate, random = self._draw(connection), self._random
        if fate == "lose the request":
            self._reset(connection)
            return
        when = max(self._way(connection.machine, "requests"), connection.request_at)
        if fate == "late request":
            when += random.random() * self.patience
        connection.request_at = when
        self._soon(when, self._arrive, connection, data, fate)
        self._spring("request", connection.machine)

    def hang_up(self, connection: Connection) -> None:
        """The client's end is closed."""
        if connection.gone or connection not in self.connections:
            return
        when = max(self._way(connection.machine, "requests"), connection.request_at)
        self._soon(when, self._forget, connection)

    def _draw(self, connection: Connection) -> str:
        random = self._random
        if not self.faults or random.random() >= self.faults:
            return "well"
        fate = random.choice(("lose the request", "lose the answer", "late request", "late answer"))
        self._say("on the way of", connection.machine.name, fate)
        return fate

    def _way(self, machine: Machine, direction: str, start: float | None = None) -> float:
        """Return when what is sent now comes in."""
        now, cut = self._world.now if start is None else start, self.cuts.get(machine.name)
        if cut is not None and now < cut.until and cut.how in ("both ways", direction):
            now = cut.until + self._random.random() * AGAIN
        return now + self._random.random() * LATENCY

    def _soon(self, when: float, call: Callable[..., None], *args: Any) -> None:
        self.machine.loop.call_at(when, call, *args)

    def _reset(self, connection: Connection) -> None:
        """Have both ends closed; what is on the way to the server does not come in."""
        self._forget(connection)
        connection.reader = hiredis.Reader()
        when = self._way(connection.machine, "answers")
        connection.machine.loop.call_at(when, connection.lose, ConnectionResetError(104, "Connection reset by peer"))

    def _forget(self, connection: Connection) -> None:
        connection.gone = True
        connection.waiting.clear()
        connection.blocked = None
        if connection in self.connections:
            self.connections.remove(connection)

    # --- on the server's machine -----------------------------------------------------------------

    def _arrive(self, connection: Connection, data: bytes, fate: str) -> None:
        if connection.gone:
            return
        connection.reader.feed(data)
        while (args := connection.reader.gets()) is not False:
            connection.waiting.append(args)
        self._serve(connection, fate)
        self._wake()

    def _serve(self, connection: Connection, fate: str = "well") -> None:
        """Do what *connection* asks, as far as it comes."""
        answers = []
        while connection.waiting and connection.blocked is None:
            args = connection.waiting[0]
            block = block_of(args)
            if block is not None:
                reply = self._try(connection, args)
                if reply is None:
                    until = self._world.now + block[1]
                    connection.blocked = args, until
                    self._soon(until, self._time_is_up, connection)
                    break
            else:
                reply = self._do(connection, args)
            connection.waiting.popleft()
            answers.append(encode(reply))
        if answers:
            self._answer(connection, b"".join(answers), fate)

    def _do(self, connection: Connection, args: list[bytes]) -> Any:
        now = self._world.now
        reply = self.data.call(now, now + self.offset, args)
        self.on_call(connection.machine.name)
        return reply

    def _spring(self, what: str, machine: Machine) -> None:
        trap = self.traps.get(machine.name)
        if trap is not None and trap.what == what:
            trap.calls -= 1
            if trap.calls < 0:
                del self.traps[machine.name]
                trap.spring(machine)

    def _try(self, connection: Connection, args: list[bytes]) -> Any:
        """Do what may block; `None`: there is nothing yet."""
        if args[0].upper() != b"BLPOP":
            return self._do(connection, args)
        for key in args[1:-1]:
            if key in self.data.keys and (found := self._do(connection, [b"LPOP", key])) is not None:
                return [key, found]
        return None

    def _wake(self) -> None:
        """Let those go on for whom there is something now."""
        for connection in list(self.connections):
            if connection.blocked is None:
                continue
            reply = self._try(connection, connection.blocked[0])
            if reply is not None:
                self._unblock(connection, reply)

    def _time_is_up(self, connection: Connection) -> None:
        if connection.blocked is not None and connection.blocked[1] <= self._world.now:
            self._unblock(connection, None)
            self._wake()

    def _unblock(self, connection: Connection, reply: Any) -> None:
        connection.blocked = None
        connection.waiting.popleft()
        data = b"*-1\r\n" if reply is None else encode(reply)
        self._answer(connection, data, "well")
        self._serve(connection)

    def _answer(self, connection: Connection, data: bytes, fate: str) -> None:
        self._spring("answer", connection.machine)
        if fate == "well":
            fate = self._draw(connection) if self.faults and self._random.random() < 0.3 else "well"
        if fate == "lose the answer":
            self._reset(connection)
            return
        when = max(self._way(connection.machine, "answers"), connection.answer_at)
        if fate == "late answer":
            when += self._random.random() * self.patience
        connection.answer_at = when
        connection.machine.loop.call_at(when, connection.receive, data)
