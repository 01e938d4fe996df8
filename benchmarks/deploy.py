"""For how long nobody answers while a new process takes over from the old one, as in a deploy."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter

import actorbot
from actorbot import store_from_url
from actorbot.errors import ActorbotError
from actorbot.stores.base import RecordStore
from benchmarks import _report
from benchmarks._own_servers import free_port
from benchmarks._platform import SECRET, Platform, Webhook
from benchmarks._report import Figure, Result, Table, figures_of, options_of
from benchmarks._servers import DATABASE, URLS, Place

EXAMPLE = Path(__file__).parent.parent / "examples" / "webhook.py"
LOOK = 0.01  # seconds between two looks at what a process answers
PATIENCE = 60.0  # seconds for a process to begin to serve, to answer, or to end


@dataclass(frozen=True, slots=True)
class Deploy:
    """What one deploy measured."""

    gap: float
    """Seconds from the last event that the old process took to the first of the new one."""
    change: float
    """Seconds from the signal that ends the old one to the first event that the new one took."""
    longest: float
    """Seconds after which an event was taken that was due meanwhile, at most."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add, count = parser.add_argument, _report.positive
    add("--store", choices=list(URLS), default="redis", help="(%(default)s)")
    add("--url", help="the server's URL (this machine, the usual port)")
    add("--users", type=count, default=200, metavar="N", help="(%(default)s)")
    add("--rate", type=count, default=300, metavar="N", help="events a second (%(default)s)")
    add("--deploys", type=count, default=10, metavar="N", help="one after the other (%(default)s)")
    add("--around", type=float, default=1.0, metavar="SECONDS", help="before each, and after the last (%(default)s)")


def main(args: argparse.Namespace) -> int:
    """Measure, print, and return the exit status: 1 if the store has a wrong count."""
    with _report.progress(args.deploys) as begin:
        deploys, platform, wrong = asyncio.run(measure(args, begin))
    title = f"{args.store}, {args.users:,} users, {args.rate:,} events/s, {args.deploys} deploys"
    return Result(
        question="deploy",
        options=options_of(args),
        tables=(Table(title, tuple(figures(deploys, platform, wrong))),),
        wrong=len(wrong),
        details={"deploys": [asdict(each) for each in deploys], "events": platform.sent.total(), "wrong": wrong},
    ).conclude(args.json)


async def measure(
    args: argparse.Namespace, begin: Callable[[str], None]
) -> tuple[list[Deploy], Platform, Mapping[str, int]]:
    """Deploy again and again while a platform posts events; return what the store has wrong."""
    place = Place(args.store, args.url or URLS[args.store])
    url = url_of(place)
    platform, deploys, stop = Platform(args.users, args.rate), list[Deploy](), asyncio.Event()
    try:
        async with AsyncExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="actorbot-benchmark-"))
            old = await stack.enter_async_context(serving(url, Path(folder)))
            await old.answers("/readyz")
            platform.webhooks = [old.webhook]
            posting = asyncio.create_task(platform.post(stop))
            for number in range(args.deploys):
                begin(f"deploy {number + 1}")
                await asyncio.sleep(args.around)
                new = await stack.enter_async_context(serving(url, Path(folder)))
                await new.answers("/healthz")
                deploys.append(await replace(old, new, platform))
                old = new
            await asyncio.sleep(args.around)
            stop.set()
            await posting
            await old.end()
        return deploys, platform, wrong_counts(store_from_url(url), platform.sent)
    finally:
        place.clear()


async def replace(old: Serving, new: Serving, platform: Platform) -> Deploy:
    """End the *old* process, and wait until the *new* one takes events."""
    platform.webhooks = [old.webhook, new.webhook]
    signalled = perf_counter()
    ended = asyncio.create_task(old.end())
    async with asyncio.timeout(PATIENCE):
        await new.webhook.taking.wait()
    await ended
    platform.webhooks = [new.webhook]
    first = new.webhook.first
    await asyncio.sleep(10 * LOOK)  # until what was due meanwhile has been taken, too
    longest = max((late for due, late in platform.late if signalled <= due + late and due <= first), default=0.0)
    return Deploy(first - old.webhook.last, first - signalled, longest)


class Serving:
    """A process that serves the example."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, log: Path) -> None:
        self.webhook = Webhook(port)
        self._process = process
        self._log = log

    async def answers(self, path: str) -> None:
        """Wait until it answers 200."""
        async with asyncio.timeout(PATIENCE):
            while True:
                if self._process.returncode is not None:
                    raise RuntimeError(f"{EXAMPLE.name} has ended: {self._log.read_text()[-2000:]}")
                try:
                    if await self.webhook.ask("GET", path) == 200:
                        return
                except (OSError, EOFError):
                    pass
                await asyncio.sleep(LOOK)

    async def end(self) -> None:
        """End it as a supervisor does. Raises: RuntimeError if that was not orderly."""
        self._process.send_signal(signal.SIGTERM)
        status = await asyncio.wait_for(self._process.wait(), PATIENCE)
        self.webhook.close()
        if status not in (0, -signal.SIGTERM):
            raise RuntimeError(f"{EXAMPLE.name} ended with status {status}: {self._log.read_text()[-2000:]}")


@asynccontextmanager
async def serving(url: str, folder: Path) -> AsyncIterator[Serving]:
    """Run the example on a free port."""
    port = free_port()
    log = folder / f"{port}.log"
    environment = {"PORT": str(port), "STORE": url, "TELEGRAM_SECRET_TOKEN": SECRET, "TELEGRAM_TOKEN": ""}
    here = str(Path(actorbot.__file__).parent.parent)  # what is measured, wherever it is installed
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH"))))
    with log.open("w") as output:
        process = await asyncio.create_subprocess_exec(
            sys.executable, str(EXAMPLE), cwd=folder, env=os.environ | environment, stdout=output, stderr=output
        )
    try:
        yield Serving(process, port, log)
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


def wrong_counts(store: RecordStore, sent: Mapping[int, int]) -> dict[str, int]:
    """Return the sessions whose count in *store* is wrong, and by how many events."""
    ids = {f"telegram:{user}": count for user, count in sent.items()}
    store.init()
    try:
        found = store.read_many(list(ids))
    finally:
        store.close()
    wrong = {}
    for (session_id, count), record in zip(ids.items(), found, strict=True):
        if isinstance(record, ActorbotError):
            raise record
        counted = 0 if record is None else int(record.to_document()["count"])
        if counted != count:
            wrong[session_id] = counted - count
    return wrong


def figures(deploys: Sequence[Deploy], platform: Platform, wrong: Mapping[str, int]) -> list[Figure]:
    return [
        *figures_of(
            "actorbot",
            deploys,
            ("nobody answers", "ms", "lower", lambda each: each.gap * 1e3),
            ("from the signal to the new process's first answer", "ms", "lower", lambda each: each.change * 1e3),
            ("longest wait of an event meanwhile", "ms", "lower", lambda each: each.longest * 1e3),
        ),
        Figure("events", (platform.sent.total(),)),
        Figure("posted again", (platform.again,), better="lower"),
        Figure("users with a wrong count", (len(wrong),), better="lower"),
    ]


def url_of(place: Place) -> str:
    """Return the URL of a store whose sessions are in *place*."""
    option = f"key_prefix={place.name}:"
    if place.store == "mongo":
        option = f"database={DATABASE}&collection_name={place.name}"
    return f"{place.url}{'&' if '?' in place.url else '?'}{option}"
