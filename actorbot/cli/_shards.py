"""Several shards on this machine: started, watched, started again, and ended together."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from time import monotonic
from typing import Final

import click

__all__ = ["Shards"]

FIRST_PAUSE: Final = 0.5  # seconds before a shard that has ended by mistake is started again
LONGEST_PAUSE: Final = 60.0
LONG: Final = 60.0  # seconds after which a shard has run well, and the next pause is the first again
BEYOND: Final = 10.0  # seconds that a shard has beside its `drain_timeout`, before it is killed
LEFT_BEHIND: Final = 1  # exit statuses, as those of `_running.run`
NOT_STARTED: Final = 2
HANDLED: Final = (signal.SIGINT, signal.SIGTERM)


class Shards:
    """Runs *count* processes of `actorbot cluster run` for *target*."""

    def __init__(self, target: str, count: int, drain_timeout: float) -> None:
        self._target = target
        self._count = count
        self._seconds = drain_timeout + BEYOND
        self._processes: dict[int, asyncio.subprocess.Process] = {}
        self._told = asyncio.Event()

    async def run(self) -> int:
        """Run until all have left, or until a signal; return the exit status."""
        loop = asyncio.get_running_loop()
        for number in HANDLED:
            loop.add_signal_handler(number, self._tell)
        statuses = await asyncio.gather(*(self._keep(number) for number in range(1, self._count + 1)))
        return NOT_STARTED if NOT_STARTED in statuses else LEFT_BEHIND if any(statuses) else 0

    def _tell(self) -> None:
        """Pass a signal on: the second one hurries the shards, as it hurries a single one."""
        if not self._told.is_set():
            self._told.set()
            asyncio.get_running_loop().call_later(self._seconds, self._kill)
        for process in self._processes.values():
            process.terminate()

    def _kill(self) -> None:
        for number, process in self._processes.items():
            _say(f"{self._name(number)} does not end within {self._seconds:g} s, and is killed")
            process.kill()

    async def _keep(self, number: int) -> int:
        """Run one shard, and again if it ends by mistake; return its last exit status."""
        pause, has_started = FIRST_PAUSE, False
        while True:
            began = monotonic()
            status = await self._run(number)
            if self._told.is_set():
                return status
            if status == 0:
                _say(f"{self._name(number)} was drained, and is not started again")
                return status
            if status == NOT_STARTED and not has_started:
                self._tell()  # it would be the same again, and the same for the others
                return status
            has_started = True
            if monotonic() - began > LONG:
                pause = FIRST_PAUSE
            _say(f"{self._name(number)} {_say_end(status)}; it is started again in {pause:g} s")
            try:
                async with asyncio.timeout(pause):
                    await self._told.wait()
                return LEFT_BEHIND
            except TimeoutError:
                pause = min(2 * pause, LONGEST_PAUSE)

    async def _run(self, number: int) -> int:
        if self._told.is_set():
            return 0
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "actorbot", "cluster", "run", self._target, "--of", str(os.getpid()),
            stdin=asyncio.subprocess.DEVNULL,
            process_group=0,  # so that Ctrl-C comes to this process alone, which passes it on
        )  # fmt: skip
        self._processes[number] = process
        if self._told.is_set():
            process.terminate()
        try:
            return await process.wait()
        finally:
            del self._processes[number]

    def _name(self, number: int) -> str:
        return f"shard {number} of {self._count}"


def _say_end(status: int) -> str:
    if status >= 0:
        return f"ended with status {status}"
    try:
        return f"was killed by {signal.Signals(-status).name}"
    except ValueError:
        return f"was killed by signal {-status}"


def _say(text: str) -> None:
    click.echo(f"actorbot: {text}", err=True)
