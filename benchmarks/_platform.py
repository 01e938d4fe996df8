"""A chat platform at the webhooks of bots: it posts each event until one of them has taken it."""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from time import perf_counter

from benchmarks._workload import SEED

SECRET = "the-secret"
AGAIN = 0.005  # seconds until it tries again, after nobody has taken an event
IN_FLIGHT = 40  # events that it posts at the same time, as Telegram does
SLOW = 10.0  # seconds for an answer

Connection = tuple[asyncio.StreamReader, asyncio.StreamWriter]


class Webhook:
    """The address of one process."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.first = 0.0
        """When it took its first event, in seconds of `perf_counter`; 0.0: it has taken none."""
        self.last = 0.0
        self.taking = asyncio.Event()
        """Set when it has taken one."""
        self._idle: list[Connection] = []

    async def ask(self, method: str, path: str, body: bytes = b"") -> int:
        """Send a request; return the status. Raises: OSError, EOFError, TimeoutError."""
        async with asyncio.timeout(SLOW):
            connection = self._idle.pop() if self._idle else await asyncio.open_connection("127.0.0.1", self.port)
            try:
                status = await self._exchange(connection, method, path, body)
            except BaseException:
                connection[1].close()
                raise
        return status

    async def _exchange(self, connection: Connection, method: str, path: str, body: bytes) -> int:
        reader, writer = connection
        head = (
            f"{method} {path} HTTP/1.1\r\nHost: bot\r\nContent-Type: application/json\r\n"
            f"X-Telegram-Bot-Api-Secret-Token: {SECRET}\r\nContent-Length: {len(body)}\r\n\r\n"
        )
        writer.write(head.encode() + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).lower().split(b"\r\n")
        length = next((int(line[15:]) for line in lines if line.startswith(b"content-length:")), 0)
        await reader.readexactly(length)
        if b"connection: close" in lines:
            writer.close()
        else:
            self._idle.append(connection)
        return int(lines[0].split()[1])

    def close(self) -> None:
        while self._idle:
            self._idle.pop()[1].close()


class Platform:
    """Posts events of users at a fixed rate, each again and again until it is taken."""

    def __init__(self, users: int, rate: float) -> None:
        self.webhooks: Sequence[Webhook] = ()
        """Where it posts to: to the first, or else to the next."""
        self.sent = Counter[int]()
        """Events of each user."""
        self.again = 0
        """How often one was posted again."""
        self.late: list[tuple[float, float]] = []
        """When each was due, in seconds of `perf_counter`, and how many later it was taken."""
        self._users = users
        self._rate = rate
        self._draw = random.Random(SEED)
        self._in_flight = asyncio.Semaphore(IN_FLIGHT)
        self._posting = set[asyncio.Task[None]]()

    async def post(self, stop: asyncio.Event) -> None:
        """Post events until *stop* is set, and each of them has been taken."""
        began, number = perf_counter(), 0
        while not stop.is_set():
            while number < (perf_counter() - began) * self._rate:
                number += 1
                task = asyncio.create_task(self._post(number, began + number / self._rate))
                self._posting.add(task)
                task.add_done_callback(self._posting.discard)
            with suppress(TimeoutError):
                await asyncio.wait_for(stop.wait(), 0.5 / self._rate)
        await asyncio.gather(*self._posting)

    async def _post(self, number: int, due: float) -> None:
        user = self._draw.randrange(self._users)
        self.sent[user] += 1
        message = {"chat": {"id": user}, "from": {"id": user}, "text": "hi"}
        body = json.dumps({"update_id": number, "message": message}).encode()
        while True:
            async with self._in_flight:
                if await self._is_taken(body):
                    break
            self.again += 1
            await asyncio.sleep(AGAIN)
        self.late.append((due, perf_counter() - due))

    async def _is_taken(self, body: bytes) -> bool:
        for webhook in self.webhooks:
            try:
                status = await webhook.ask("POST", "/telegram", body)
            except (OSError, EOFError):  # TimeoutError is an OSError
                continue
            if status == 200:
                webhook.last = perf_counter()
                webhook.first = webhook.first or webhook.last
                webhook.taking.set()
                return True
        return False
