"""One connection to a Redis: commands go out at once, answers come in their order.

A protocol of asyncio's, so that an answer needs no task and no stream: the bytes that have come are
parsed by hiredis, and each answer ends the future of its command. Who asks gets a value in any
case: a server's refusal and a lost answer are values too, since nobody may be waiting for them.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from contextlib import suppress
from typing import Any, Final, cast

try:
    import hiredis

    from actorbot.stores._redis_address import Address
except ImportError as error:
    raise ImportError("actorbot.cluster needs redis-py and hiredis: pip install '.[redis]' in a clone") from error

__all__ = ["LostError", "RefusedError", "Wire", "connect"]

TICK: Final = 0.25  # seconds after which it is looked whether an answer is overdue

_STRANGE: Final = "it answers something else than a Redis would"

Part = str | bytes | int


class RefusedError(Exception):
    """What a server says when it has not done what it was asked."""


class LostError(Exception):
    """No answer will come. *sent* says whether the command may have been carried out."""

    def __init__(self, reason: str, *, sent: bool = True) -> None:
        super().__init__(reason)
        self.sent = sent


class Wire(asyncio.Protocol):
    """A connection that is open, or was."""

    def __init__(self, patience: float) -> None:
        self._patience = patience
        self._loop = asyncio.get_running_loop()
        self._reader: Any = hiredis.Reader(protocolError=ValueError, replyError=RefusedError)
        self._waiting: deque[tuple[asyncio.Future[Any], float]] = deque()  # with the end of patience
        self._heard = 0.0  # when the last bytes came
        self._was_late = self._retires = False
        self._transport: asyncio.Transport | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._reason = "it is not open"  # why it is not, when it is not

    @property
    def is_open(self) -> bool:
        return self._transport is not None

    def call(self, *command: Part, blocks: float = 0.0) -> asyncio.Future[Any]:
        """Send *command*; the future's result is the answer, a RefusedError or a LostError.

        The server may wait for *blocks* seconds before it answers this command, or one before it.
        """
        return self.call_all(command, blocks=blocks)[0]

    def call_all(self, *commands: tuple[Part, ...], blocks: float = 0.0) -> list[asyncio.Future[Any]]:
        """Send *commands* in one write, as `call` does each."""
        futures = [self._loop.create_future() for _ in commands]
        if self._transport is None:
            for future in futures:
                future.set_result(LostError(self._reason, sent=False))
            return futures
        packed = [hiredis.pack_command(command) for command in commands]  # type: ignore[arg-type]  # typed as of one part
        self._transport.write(b"".join(packed))
        end = self._loop.time() + self._patience + blocks
        self._waiting.extend([(future, end) for future in futures])
        if self._timer is None:
            self._timer = self._loop.call_later(TICK, self._look)
        return futures

    def close(self, reason: str = "the connection was closed") -> None:
        """Give the connection up, and all answers that have not come."""
        transport, self._transport = self._transport, None
        if transport is not None:
            self._reason = reason
            transport.abort()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            future, _ = self._waiting.popleft()
            if not future.done():
                future.set_result(LostError(self._reason))

    def retire(self) -> None:
        """Close it as soon as all that was asked is answered."""
        if self._waiting:
            self._retires = True
        else:
            self.close()

    def _look(self) -> None:
        """Close a connection on which an answer is overdue."""
        self._timer = None
        if not self._waiting:
            return
        late = self._loop.time() > max(self._waiting[0][1], self._heard + self._patience)
        if late and self._was_late:
            self.close(f"no answer within {self._patience:g} s")
            return
        # A process that was frozen comes here before it reads what has come meanwhile.
        self._was_late = late
        self._timer = self._loop.call_later(TICK / 10 if late else TICK, self._look)

    # --- called by asyncio -----------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # those of uvloop are of another class

    def data_received(self, data: bytes) -> None:
        self._heard = self._loop.time()
        reader, waiting = self._reader, self._waiting
        try:
            reader.feed(data)
            while (answer := reader.gets()) is not False:
                if not waiting:  # a server that has no room says so without being asked
                    return self.close(str(answer) if isinstance(answer, RefusedError) else _STRANGE)
                future, _ = waiting.popleft()
                if not future.done():  # else who asked was cancelled
                    future.set_result(answer)
        except ValueError:
            self.close(_STRANGE)
        if self._retires and not waiting:
            self.close()
        return None

    def connection_lost(self, error: Exception | None) -> None:
        said = "the server has closed the connection" if error is None else f"{type(error).__name__}: {error}"
        self.close(said)


async def connect(address: Address) -> Wire:
    """Connect to the server at *address*, and log in. Raises: OSError, RefusedError, LostError."""
    try:
        async with asyncio.timeout(address.connect_timeout):
            wire = await _open(address)
    except TimeoutError:
        raise OSError(f"no connection within {address.connect_timeout:g} s") from None
    try:
        await _log_in(wire, address)
    except BaseException:
        wire.close()
        raise
    return wire


async def _open(address: Address) -> Wire:
    loop = asyncio.get_running_loop()
    if address.path:
        _, wire = await loop.create_unix_connection(lambda: Wire(address.read_timeout), address.path)
        return wire
    _, wire = await loop.create_connection(
        lambda: Wire(address.read_timeout),
        address.host,
        address.port,
        ssl=address.tls,
        server_hostname=address.host if address.tls else None,
    )
    assert wire._transport is not None
    plug = wire._transport.get_extra_info("socket")
    with suppress(OSError):  # a system that does not know one of them
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for option, value in address.keepalive.items():
            plug.setsockopt(socket.IPPROTO_TCP, option, value)
    return wire


async def _log_in(wire: Wire, address: Address) -> None:
    answers = []
    if address.password is not None or address.username:
        user = (address.username,) if address.username else ()
        answers.append(wire.call("AUTH", *user, address.password or ""))
    if address.database:
        answers.append(wire.call("SELECT", address.database))
    for answer in await asyncio.gather(*answers):
        if isinstance(answer, RefusedError | LostError):
            raise answer
