"""A shard that a test may kill: a server forks it, and it says what becomes of it.

It writes lines of words:

    started PID          the shard takes part
    reply SESSION TAG    `deliver` was handed the reply to the event
    conflict SESSION     `on_conflict` was handed the session
    closed CLEAN         `close` has returned; CLEAN is 1 if nothing was left over
    fault TEXT           what must never be was seen
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import socket
import sys
import time
import traceback
from dataclasses import asdict, dataclass
from typing import Any

from actorbot import Context, FlushPolicy, store_from_url
from actorbot._event import WebhookEvent
from actorbot._ownership import keeper
from actorbot.cluster import Shard, _membership
from actorbot.stores.redis import RedisSessionStore
from tests.cluster._fences import FENCES
from tests.faults._owner import slow_down
from tests.faults._worker import serve


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """What a shard shall be."""

    url: str
    """Where it finds the log."""
    store: str
    """The URL of its store."""
    policy: str = "write-behind:max_delay=0.5"
    keep: str = "flushed"
    lease: float = 1.0
    slots: int = 64
    max_waiting: int = 2_000
    max_in_hand: int = 1_000
    drain_timeout: float = 20.0
    idle_timeout: float = 900.0
    thinks: float = 0.0
    """Seconds that its handler waits for something."""
    burns: float = 0.0
    """Seconds that its handler computes."""
    elsewhere: bool = False
    """Whether it cannot see the processes of the others, as on a machine of its own."""
    slow_write: float = 0.0
    """Seconds that the store takes for a batch besides."""
    without: str = ""
    """The fence that is taken out of it."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


def make_shard(shape: Shape, say: Any) -> Shard:
    """Make a shard that appends the tag of each event to its session, and answers with its pid."""
    pid = os.getpid()

    async def handle(context: Context) -> int:
        if shape.thinks:
            await asyncio.sleep(shape.thinks)
        until = time.perf_counter() + shape.burns
        while time.perf_counter() < until:
            pass
        event = context.event
        tag = int(event.message.text) if isinstance(event, WebhookEvent) else event
        context.session.setdefault("tags", []).append(tag)
        context.send(tag)
        return pid

    class Told(Shard):
        async def start(self) -> Any:
            started = await super().start()
            say("started", pid)
            return started

        async def close(self, *args: Any, **options: Any) -> Any:
            report = await super().close(*args, **options)
            say("closed", int(report.clean))
            return report

    return Told(
        shape.url,
        cluster="bot",
        store=store_from_url(shape.store),
        handler=handle,
        deliver=lambda session_id, tag: say("reply", session_id, tag),
        on_conflict=lambda session_id, state: say("conflict", session_id),
        flush=FlushPolicy.parse(shape.policy),
        keep=shape.keep,
        lease=shape.lease,
        slots=shape.slots,
        max_waiting=shape.max_waiting,
        max_in_hand=shape.max_in_hand,
        drain_timeout=shape.drain_timeout,
        idle_timeout=shape.idle_timeout,
        max_session_bytes=4_000_000,
    )


def be_shard(request: bytes, pipe: int) -> None:
    shape = Shape(**json.loads(request))

    def say(*words: object) -> None:
        os.write(pipe, (" ".join(map(str, words)).replace("\n", " ")[:4000] + "\n").encode())

    keeper.WATCHED = 0.0  # type: ignore[misc]  # as `young_servers_will_do`
    if shape.elsewhere:
        _membership.is_gone = lambda process: False  # type: ignore[attr-defined]
    slow_down(RedisSessionStore, "write_many", shape.slow_write)
    FENCES[shape.without]()

    class Faults(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.exc_info:  # an error of our own
                say("fault", record.getMessage(), traceback.format_exc())

    logger = logging.getLogger("actorbot")
    logger.propagate = False  # what else it says is what these tests are about
    logger.addHandler(Faults())
    try:
        make_shard(shape, say).run()
    except SystemExit as end:
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)
    except BaseException as error:
        say("fault", f"the shard ended with {error!r}")
        raise


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), be_shard)
