"""`Shard`: one of several that handle the events of a cluster's sessions."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import uuid
from collections.abc import Callable, Iterator
from dataclasses import asdict
from time import monotonic, time
from typing import Any, Final, Literal, Self

from actorbot._checks import check_count, check_seconds, check_timeout, check_word
from actorbot._manager.embedding import SessionManager, is_open, on_lost, on_wait, run_lost_again
from actorbot._policy import FlushPolicy
from actorbot._reports import Health, SessionInfo, ShutdownReport
from actorbot._running.run import run
from actorbot._runtime.process import this_process
from actorbot.cluster._figures import Progress, ShardStats, SlotInfo
from actorbot.cluster._hand_over import HandOver
from actorbot.cluster._handling import Handling
from actorbot.cluster._held import Work
from actorbot.cluster._holding import Holding
from actorbot.cluster._intake import Intake
from actorbot.cluster._leaving import Leaving
from actorbot.cluster._log import Log, Terms
from actorbot.cluster._membership import Membership
from actorbot.cluster._redis_log import RedisLog
from actorbot.cluster._settling import Settling
from actorbot.errors import ConfigError, ManagerClosedError, OwnershipLostError
from actorbot.stores import FileSessionStore
from actorbot.stores.base import RecordStore

__all__ = ["Shard"]

logger = logging.getLogger("actorbot")

LEASE: Final = (1.0, 60.0)  # seconds
KEEP: Final = ("flushed", "acknowledged")
LAST: Final = 0.2
"""The part of a close's time that is left for the manager's own close."""


class Shard:
    """Handles the events of some of a cluster's sessions: those in the slots that it owns.

    *url* leads to the Redis that all members of the cluster share. *manager_options* are those of
    `SessionManager`; all shards share the store, too. Several shards divide the slots among
    themselves, and take over those of one that has gone.

    - `slots`: into how many parts the sessions are divided; the same for all members.
    - `lease`: seconds (1 to 60) after which the slots of a shard that does not answer are taken.
    - `keep`: with `write_behind`, an event stays in the log until it is *flushed* to the store, so
      that the next owner can run it again; or until it is *acknowledged*, and the policy says what
      a kill may cost.
    - `max_waiting`: events that may wait in one slot; the next one is refused (OverloadedError).
      What the shard has that joined last holds for all.
    - `max_in_hand`: events that this shard has begun or is about to begin; others stay in the log.
    - `drain_timeout`: seconds that a close takes to finish and to give everything back.

    With `keep="flushed"`, `on_conflict` is not called: what a conflict has taken is run again.
    A shard is at home on an event loop. Raises: ConfigError.
    """

    def __init__(
        self,
        url: str,
        *,
        cluster: str,
        store: Any,
        flush: FlushPolicy | None = None,
        slots: int = 256,
        lease: float = 5.0,
        keep: Literal["flushed", "acknowledged"] = "flushed",
        max_waiting: int = 2_000,
        max_in_hand: int = 1_000,
        drain_timeout: float = 30.0,
        ownership: str = "shared",
        on_conflict: Callable[..., Any] | None = None,
        **manager_options: Any,
    ) -> None:
        policy = flush or FlushPolicy.write_behind()
        _check_policy(policy)
        _check_store(store)
        check_word("keep", keep, KEEP)
        check_word("ownership", ownership, ("shared", "none"))  # they share their store
        self._keep = keep
        self._lease = check_seconds("lease", lease, least=LEASE[0], most=LEASE[1])
        self._max_in_hand = check_count("max_in_hand", max_in_hand)
        self._drain_timeout = check_seconds("drain_timeout", drain_timeout)
        self._terms = Terms(check_count("slots", slots, most=16_384), check_count("max_waiting", max_waiting))
        self._keeps = keep == "flushed" and getattr(policy, "mode", None) == "write-behind"
        self._gates = manager_options.get("deliver") is not None
        if self._keeps:
            on_conflict = None
        self._forgets = isinstance(store, RecordStore) and not store.outlives_process
        self._manager = SessionManager(
            store, flush=policy, ownership=ownership, on_conflict=on_conflict, **manager_options
        )
        self._log: Log = RedisLog(url, cluster)
        self._cluster, self._url = cluster, url  # `actorbot cluster run` looks at the second
        self._member = ""
        self._tasks: list[asyncio.Task[None]] = []
        self._closing: asyncio.Task[ShutdownReport] | None = None
        self._report: ShutdownReport | None = None
        self._is_lost = False
        # While it runs: see `Runnable`.
        self._close_time: float | None = None
        self._told: Callable[[], None] | None = None
        self._shows: Callable[[str], None] | None = None

    # --- life ------------------------------------------------------------------------------------

    def run(self) -> None:
        """Start, handle events until SIGINT or SIGTERM or until it is drained, and close.

        As `Bot.run`, with `drain_timeout` in the place of `close_timeout`. Raises: SystemExit(1) if
        sessions were not flushed or slots not given back; SystemExit(2) if it could not start.
        """
        run(self, self._drain_timeout)

    async def start(self) -> Self:
        """Join the cluster, and begin to handle events.

        Raises: ConfigError if the cluster was made with other `slots`, or the server is too old;
        store errors, of the log and of the store.
        """
        if self._member:
            raise ManagerClosedError("a shard can be started once; make a new one")
        process = this_process()
        self._member = f"{''.join(each for each in process.host if each.isalnum() or each in '-.')}"
        self._member += f"-{os.getpid()}-{uuid.uuid4().hex[:8]}"
        self._told_of = {**asdict(process), "since": time()}
        on_lost(self._manager, self._note_lost)
        on_wait(self._manager, self._show)
        try:
            await self._log.open()
            self._terms = await self._log.join(self._member, self._terms)
            await self._manager.start()
            if self._keeps:
                run_lost_again(self._manager)
            self._assemble()
            await self._membership.renew()
        except BaseException:
            if is_open(self._manager):
                await self._manager.close()
            await self._log.close()
            raise
        loop = asyncio.get_running_loop()
        self._tasks = [loop.create_task(self._membership.run()), loop.create_task(self._intake.run())]
        logger.info("%s has joined the cluster %s", self._member, self._cluster)
        if self._forgets:
            logger.warning("%s: its sessions are in this process alone, and begin anew in another shard", self._member)
        return self

    def _assemble(self) -> None:
        self._drained = asyncio.Event()
        holding = self._holding = Holding(self._manager, self._terms)
        self._settling = Settling(self._log, self._member, holding.lose, self._settled)
        membership = self._membership = Membership(
            self._log,
            self._member,
            self._lease,
            holding,
            info=lambda: json.dumps(self._told_of | {"keep": self._keep} | asdict(self._progress())),
            on_excess=self._give_back,
            on_drain=self.leave,
        )
        self._hand_over = HandOver(self._manager, membership, holding)
        self._leaving = Leaving(self._settling, self._hand_over, membership, holding)
        self._handling = Handling(
            self._manager,
            self._settling,
            may_begin=membership.may_begin,
            keeps=self._keeps,
            gates=self._gates,
            on_unflushed=holding.check_room,
        )
        self._intake = Intake(self._log, self._member, holding, self._handling, self._max_in_hand, membership.look)
        holding.on_drop = self._settled

    def _give_back(self, count: int) -> None:
        self._hand_over.begin(count)

    def _settled(self, work: Work) -> None:
        self._intake.settled(work)

    async def receive(self) -> None:
        """Return when somebody has asked this shard to leave, or when it has lost its store."""
        await self._drained.wait()

    def leave(self) -> None:
        """Begin to give all slots back, and take no other. The shard stays open until `close`."""
        if not self._membership.leaving:
            self._membership.leaving = True
            self._membership.look()
            self._hand_over.begin(len(self._holding.slots))
        self._drained.set()

    async def close(self, timeout: float | None = None) -> ShutdownReport:
        """Finish what is in hand, flush, give the slots back, and leave the cluster.

        All this takes *timeout* seconds, or else `drain_timeout`. What was not begun stays in the
        log for the other shards. There is one close: a second call returns its report.
        """
        seconds = self._drain_timeout if timeout is None else check_timeout(timeout)
        if self._told is not None:
            self._told()
        if timeout is None and self._close_time is not None:
            seconds = self._close_time
        if not self._tasks:
            return self._report or ShutdownReport((), 0, 0, 0.0)
        if self._closing is None:
            self._closing = asyncio.get_running_loop().create_task(self._close(seconds))
        return await asyncio.shield(self._closing)

    async def _close(self, seconds: float) -> ShutdownReport:
        began = monotonic()
        self._leaving.shorten(seconds)
        self.leave()
        await self._hand_over.ended((1 - LAST) * seconds)
        await self._hand_over.end()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._membership.end()
        report = await self._manager.close(self._leaving.left())
        await self._leaving.end(self._member, report.unflushed)
        await self._log.close()
        if not self._holding.slots:
            logger.info("%s has left the cluster %s", self._member, self._cluster)
        self._report = ShutdownReport(report.unflushed, report.unfinished, report.undelivered, monotonic() - began)
        return self._report

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    # --- looks -----------------------------------------------------------------------------------

    def stats(self) -> ShardStats:
        """Return counters and gauges. On the shard's loop."""
        self._check_open()
        return ShardStats(
            member=self._member,
            slots={slot.number: slot.epoch for slot in self._holding.slots.values()},
            lease_remaining=max(0.0, self._membership.until - monotonic()),
            manager=self._manager.stats(),
            **asdict(self._progress()),
        )

    def health(self) -> Health:
        """Say whether the shard does its work. On the shard's loop."""
        if not self._tasks or self._report is not None:
            return Health("failing", "the shard is not open")
        if monotonic() >= self._membership.until:
            return Health("failing", f"its lease has run out: {self._membership.trouble or 'it was frozen'}")
        health = self._manager.health()
        if self._membership.trouble is not None and health.status == "ready":
            return Health("degraded", f"its lease cannot be renewed: {self._membership.trouble}")
        return health

    def resident(self) -> Iterator[tuple[str, SessionInfo, SlotInfo | None]]:
        """Iterate over the sessions in memory, each with its slot. On the shard's loop."""
        self._check_open()
        for session_id, info in self._manager.resident():
            slot = self._holding.slots.get(self._holding.slot_of(session_id))
            yield session_id, info, None if slot is None else SlotInfo(slot.number, slot.epoch, len(slot.hand))

    def _check_open(self) -> None:
        if not self._tasks or self._report is not None:
            raise ManagerClosedError("the shard is not open: use `async with`, start() or run()")

    def _progress(self) -> Progress:
        slots = self._holding.slots.values()
        return Progress(
            handled=self._handling.handled,
            in_hand=sum(len(slot.hand) for slot in slots),
            unflushed=sum(slot.unflushed for slot in slots),
            reruns=self._handling.reruns,
            conflicts=self._manager.stats().conflicts if is_open(self._manager) else 0,
            fenced=self._holding.fenced,
        )

    # --- what `run` needs ------------------------------------------------------------------------

    def _note_lost(self, error: OwnershipLostError) -> None:
        """End: another bot, which shares with nobody, has taken the store."""
        logger.critical("%s ends, since its store was lost: %s", self._member, error)
        self._is_lost = True
        self._holding.lose(list(self._holding.slots))
        self._membership.leaving = True
        self._drained.set()

    def _show(self, owner: str) -> None:
        if self._shows is not None:
            self._shows(owner)

    def _hurry(self, seconds: float) -> None:
        self._leaving.shorten(seconds)
        self._hurrying = asyncio.gather(self._hand_over.end(), self._manager.close(seconds))

    def _give_up(self, seconds: float) -> None:
        if self._is_open():
            self._manager._close_without_loop(seconds)

    def _is_open(self) -> bool:
        return bool(self._tasks) and self._report is None

    def _is_flushed(self) -> bool:
        report = self._report
        return report is not None and not report.unflushed and not self._is_lost and not self._holding.slots


def _check_policy(policy: FlushPolicy) -> None:
    if getattr(policy, "mode", None) == "journaled":
        raise ConfigError(
            "flush",
            "journaled",
            "write_through() or write_behind(): a journal stays on the disk of a machine that has gone, and with"
            " keep='flushed' the log does what a journal does",
        )


def _check_store(store: Any) -> None:
    if isinstance(store, FileSessionStore):
        raise ConfigError(
            "store", "FileSessionStore", "one that all shards reach: a folder of files has one process at a time"
        )
