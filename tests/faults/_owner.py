"""A bot that wants to own its store: it sends itself events, and says what it acknowledged, and
when.

A server forks it (`_worker.serve`). Each event adds its tag to the list in its session, so that an
event which is missing in the store, or there twice, can be told. It writes lines of words:

    begin                       the manager is about to start
    waits TEXT                  the start waits for the owner that the text names
    locked OWNER                the start gave up, because of that owner
    started EPOCH MODE CLAIMS SECOND  the manager is open; when it had taken the lease
    ack SESSION TAG SECOND      the event was acknowledged; wall-clock seconds
    reply SESSION TAG SECOND    `deliver` was handed its reply
    lost SECOND                 a verb raised OwnershipLostError
    error TEXT                  a verb raised something else
    report JSON                 asked for by SIGUSR1: what it says of itself, and how its verbs fail
    kept SESSION TAG …          `on_conflict` was handed the session with these
    closed CLEAN                asked for by SIGTERM: `close` has returned
    fault TEXT                  what must never be was seen
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import random
import signal
import socket
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from actorbot import Context, FlushPolicy, SessionManager, errors, store_from_url
from actorbot._journal.file import JournalFile
from actorbot._ownership import keeper
from actorbot.stores.file import FileSessionStore
from actorbot.stores.mongo import MongoSessionStore
from actorbot.stores.redis import RedisSessionStore
from tests.faults._worker import serve

VERBS = ("dispatch", "turn", "submit")
AGAIN = 0.01  # seconds until an event that failed is followed by the next


@dataclass(frozen=True, slots=True, kw_only=True)
class Owning:
    """What an owner shall do."""

    name: str
    """It begins each of its tags."""
    url: str
    policy: str = "write-behind"
    ownership: str | None = None
    takeover_timeout: float = 60.0
    lease: float = 10.0
    old_server: bool = False
    """Whether it takes the server for one that has run for long."""
    namespace: str = ""
    """The namespace of process ids that it says it is in, as on another machine; empty: its own."""
    sessions: int = 20
    clients: int = 4
    """How many sessions are busy at once."""
    pause: float = 0.002
    """Seconds from an acknowledgement to the client's next event."""
    thinks: float = 0.0
    """Seconds that a handler waits for something."""
    slow_commit: float = 0.0
    """Seconds that the journal takes for a commit besides."""
    slow_write: float = 0.0
    """Seconds that the store takes for a batch besides."""
    verbs: tuple[str, ...] = VERBS
    threads: bool = False
    """Whether the manager lives on threads."""

    def to_json(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class Owner:
    """One life of the bot."""

    def __init__(self, owning: Owning, pipe: int) -> None:
        self._owning = owning
        self._pipe = pipe
        self._chance = random.Random(owning.name)
        self._number = 0
        self._lost = False
        self._taken = 0.0  # the wall-clock second at which it had the lease
        self._closing = asyncio.Event()

    def say(self, *words: object) -> None:
        os.write(self._pipe, (" ".join(map(str, words)).replace("\n", " ")[:4000] + "\n").encode())

    async def live(self) -> None:
        owning = self._owning
        manager = self._manager = SessionManager(
            store_from_url(owning.url),
            handler=self._handle_plainly if owning.threads else self._handle,
            deliver=self._deliver,
            on_conflict=self._keep,
            flush=FlushPolicy.parse(owning.policy),
            ownership=owning.ownership,
            takeover_timeout=owning.takeover_timeout,
        )
        self._tell_of_waiting()
        self._note_when_it_is_taken()
        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGTERM, self._closing.set)
        loop.add_signal_handler(signal.SIGUSR1, lambda: tasks.append(loop.create_task(self._report())))
        tasks: list[asyncio.Task[None]] = []
        self.say("begin")
        try:
            await self._call("start")
        except errors.StoreLockedError as error:
            self.say("locked", error.owner, "|", error)
            return
        found = manager.stats().ownership
        owned = (0, "none") if found is None else (found.epoch, found.mode)
        self.say("started", *owned, int(self._claims()), self._taken)
        async with asyncio.TaskGroup() as group:
            for client in range(owning.clients):
                group.create_task(self._serve(client))
            await self._closing.wait()
        report = await self._call("close")
        self.say("closed", int(report.clean))

    def _claims(self) -> bool:
        kept = self._manager._parts.keeper
        return kept is not None and kept.claims

    def _tell_of_waiting(self) -> None:
        owner = self

        class Told(logging.Handler):
            def emit(self, record: logging.LogRecord) -> None:
                if "waits for its owner" in record.msg:
                    owner.say("waits", record.getMessage())

        logging.getLogger("actorbot").addHandler(Told())
        logging.getLogger("actorbot").setLevel(logging.INFO)

    def _note_when_it_is_taken(self) -> None:
        note, owner = keeper.Keeper._renewed, self

        def note_first(kept: keeper.Keeper, *args: Any) -> None:
            owner._taken = owner._taken or time.time()
            note(kept, *args)

        keeper.Keeper._renewed = note_first  # type: ignore[method-assign]

    def _call(self, verb: str, *args: Any, **options: Any) -> Coroutine[Any, Any, Any]:
        """Call a verb in the manager's home."""
        if self._owning.threads:
            return asyncio.to_thread(getattr(self._manager, f"{verb}_sync"), *args, **options)
        return getattr(self._manager, verb)(*args, **options)  # type: ignore[no-any-return]

    # --- events ----------------------------------------------------------------------------------

    async def _handle(self, context: Context) -> None:
        if self._owning.thinks:
            await asyncio.sleep(self._owning.thinks)
        self._add(context, context.event)

    def _handle_plainly(self, context: Context) -> None:
        time.sleep(self._owning.thinks)
        self._add(context, context.event)

    def _add(self, context: Context, tag: str) -> None:
        context.session.setdefault("tags", []).append(tag)
        context.send(tag)

    def _deliver(self, session: str, tag: str) -> None:
        self.say("reply", session, tag, time.time())

    async def _serve(self, client: int) -> None:
        """Send one event after the other to sessions that no other client uses."""
        mine = [f"user:{number}" for number in range(client, self._owning.sessions, self._owning.clients)]
        while not self._closing.is_set():
            session = self._chance.choice(mine)
            self._number += 1
            tag = f"{self._owning.name}:{self._number}"
            verb = self._chance.choice(self._owning.verbs)
            try:
                await self._send(verb, session, tag)
            except errors.OwnershipLostError:
                if not self._lost:
                    self._lost = True
                    self.say("lost", time.time())
                await asyncio.sleep(AGAIN)
            except errors.ActorbotError as error:
                self.say("error", repr(error))
                await asyncio.sleep(AGAIN)
            if self._owning.pause:
                await asyncio.sleep(self._owning.pause)

    async def _send(self, verb: str, session: str, tag: str) -> None:
        if self._owning.threads:  # where the thread that is told says so, at once
            await asyncio.to_thread(self._send_on_thread, verb, session, tag)
            return
        if verb == "turn":
            async with self._manager.turn(session) as turn:
                self._add(turn, tag)
        elif verb == "submit":
            await (await self._manager.submit(session, tag)).result()
        else:
            await self._manager.dispatch(session, tag)
        self.say("ack", session, tag, time.time())

    def _send_on_thread(self, verb: str, session: str, tag: str) -> None:
        if verb == "turn":
            with self._manager.turn_sync(session) as turn:
                self._add(turn, tag)
        elif verb == "submit":
            self._manager.submit_sync(session, tag).result_sync()
        else:
            self._manager.dispatch_sync(session, tag)
        self.say("ack", session, tag, time.time())

    # --- what it says of itself ------------------------------------------------------------------

    async def _report(self) -> None:
        manager = self._manager
        health = manager.health()
        verbs: dict[str, Callable[[], Coroutine[Any, Any, Any]]] = {
            "dispatch": partial(self._call, "dispatch", "user:0", "late"),
            "submit": partial(self._call, "submit", "user:0", "late"),
            "turn": partial(self._send, "turn", "user:0", "late"),
            "flush": partial(self._call, "flush"),
            "peek": partial(self._call, "peek", "user:0"),
            "destroy": partial(self._call, "destroy", "user:0"),
        }
        raised = {}
        if self._lost:  # or else some of them would do something
            for name, verb in verbs.items():
                try:
                    await verb()
                    raised[name] = "nothing"
                except Exception as error:
                    raised[name] = type(error).__name__
        said = {"health": health.status, "reason": health.reason, "verbs": raised, "pid": os.getpid()}
        said["ownership"] = asdict(owned) if (owned := manager.stats().ownership) is not None else None
        self.say("report", json.dumps(said))

    def _keep(self, session: str, state: dict[str, Any] | None) -> None:
        tags = (state or {}).get("tags", [])
        for at in range(0, len(tags), 50):  # a pipe takes a short line in one piece
            self.say("kept", session, *tags[at : at + 50])


def slow_down(kind: type, method: str, seconds: float) -> None:
    """Let calls of *method* take *seconds* longer: half of them before, half of them after it."""
    inner = getattr(kind, method)

    def slowly(*args: Any) -> Any:
        time.sleep(seconds / 2)
        value = inner(*args)
        time.sleep(seconds / 2)
        return value

    if seconds:
        setattr(kind, method, slowly)


def be_owner(request: bytes, pipe: int) -> None:
    orders = json.loads(request)
    owning = Owning(**orders | {"verbs": tuple(orders["verbs"])})
    keeper.LEASE = owning.lease  # type: ignore[misc]
    if owning.old_server:
        keeper.WATCHED = 0.0  # type: ignore[misc]
    if owning.namespace:
        here = keeper.this_process
        keeper.this_process = lambda: replace(here(), namespace=owning.namespace)  # type: ignore[attr-defined]
        sys.modules["actorbot._runtime.process"]._namespace = lambda: owning.namespace  # type: ignore[attr-defined]
    slow_down(JournalFile, "commit", owning.slow_commit)
    for kind in (FileSessionStore, RedisSessionStore, MongoSessionStore):
        slow_down(kind, "write_many", owning.slow_write)

    async def live() -> None:
        owner = Owner(owning, pipe)
        try:
            await owner.live()
        except BaseException as error:
            owner.say("fault", f"the owner ended with {error!r}")
            raise

    asyncio.run(live())


if __name__ == "__main__":
    serve(socket.socket(fileno=int(sys.argv[1])), be_owner)
