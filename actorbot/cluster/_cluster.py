"""`Cluster`: what sends events to the shards, and has their answers. It has no session itself."""

from __future__ import annotations

import asyncio
from typing import Any, Final, Literal, Self

from actorbot._checks import check_seconds, check_timeout, check_word
from actorbot._manager.verbs import ON_DUPLICATE
from actorbot._reports import Health
from actorbot._runtime.home import new_future
from actorbot._state.session_id import check_session_id
from actorbot.cluster._access import Life
from actorbot.cluster._asking import Asking
from actorbot.cluster._caller import Caller
from actorbot.cluster._log import Log, Terms
from actorbot.cluster._packing import pack_value
from actorbot.cluster._receipt import ClusterReceipt
from actorbot.cluster._reports import ClusterStats, Member, members_of
from actorbot.errors import ConfigError, NotEncodableError, SessionTooLargeError

try:
    from actorbot.cluster._redis_log import RedisLog
except ImportError as error:
    raise ImportError("actorbot.cluster needs redis-py: pip install '.[redis]' in a clone of actorbot") from error

__all__ = ["Cluster"]

LOOK: Final = 0.2  # seconds between two looks for a cluster that no shard has made yet
SILENT: Final = 5.0  # seconds without an answer of the log after which this caller is failing


class Cluster(Asking):
    """Sends events to the shards of a cluster, wherever they run. It has no sessions itself.

    *url* is the Redis that the shards use, and *cluster* the name that they have given it. A verb
    waits *timeout* seconds for its answer. What is accepted is in that Redis: it is handled, also
    if this process, or the shard, ends before.

    Started by `async with` or `start()`, it is at home on the running loop. Started by `with` or
    `start_sync()`, it has a loop of its own in a thread. The `_sync` verbs work in both, on any
    thread but that of the loop.

    There is no `turn()`: a turn cannot leave its process. Send an event, and branch on it in the
    handler. Events and what handlers return are what a session may hold, `Event` and
    `WebhookEvent`. A handler that awaits an answer of its own session waits for itself, until the
    time is up: it may `submit` to it.
    """

    def __init__(self, url: str | Log, *, cluster: str = "mybot", timeout: float = 30.0) -> None:
        super().__init__()
        self._name = cluster
        self._timeout = check_seconds("timeout", timeout)
        self._log: Log = url if isinstance(url, Log) else RedisLog(url, cluster)

    def __repr__(self) -> str:
        return f"Cluster(cluster={self._name!r})"  # no URL, which may have a password

    # --- life ------------------------------------------------------------------------------------

    async def start(self) -> Self:
        """Connect, on the running loop. Wait up to `timeout` seconds for a first shard.

        Raises: StoreUnavailableError; ConfigError if no shard has ever been started, or if the
        server is too old.
        """
        await self._start_here()
        return self

    def start_sync(self) -> Self:
        """Connect, on a loop in a thread of its own. Raises: as `start`."""
        self._start_away()
        return self

    async def close(self) -> None:
        """Disconnect. It waits for no answer: who still does gets ManagerClosedError.

        What the log has accepted is handled all the same.
        """
        await self._close_here()

    def close_sync(self) -> None:
        """The same as `close`, for threads."""
        self._close_away()

    async def __aenter__(self) -> Self:
        return await self.start()

    async def __aexit__(self, *_: object) -> None:
        if self._life is not Life.FORKED:
            await self.close()

    def __enter__(self) -> Self:
        return self.start_sync()

    def __exit__(self, *_: object) -> None:
        if self._life is not Life.FORKED:
            self.close_sync()

    async def _open(self) -> None:
        try:
            self._caller = Caller(self._log, self._name, await self._terms())
        except BaseException:
            await self._log.close()
            raise

    async def _terms(self) -> Terms:
        """Wait for a first shard, which makes the cluster."""
        loop = asyncio.get_running_loop()
        end = loop.time() + self._timeout
        while (terms := await self._log.open()) is None:
            self._wait_for(f"a first shard of cluster {self._name!r}: actorbot cluster run")
            if loop.time() >= end:
                raise ConfigError(
                    "cluster", self._name, "a cluster that has had a shard: start one by `actorbot cluster run`"
                )
            await asyncio.sleep(LOOK)
        return terms

    async def _end(self) -> None:
        await self._caller.close()
        await self._log.close()

    # --- verbs -----------------------------------------------------------------------------------

    async def dispatch(
        self,
        session_id: str,
        event: Any,
        *,
        event_id: str | None = None,
        durable: bool = False,
        on_duplicate: Literal["duplicate", "result"] = "duplicate",
        timeout: float | None = None,
    ) -> Any:
        """Have *event* handled in its session's turn; return what the handler returned.

        As `SessionManager.dispatch`. Raises: RemoteHandlerError for what the handler raised,
        actorbot's errors as themselves; TurnTimeoutError after *timeout* seconds; OverloadedError;
        StoreUnavailableError. If the outcome is open, send it again with the same *event_id*. To
        cancel it takes nothing back: an event that the log has is handled.
        """
        self._check_here()
        seconds = self._seconds(timeout)
        session_id, data = self._packed(session_id, event, on_duplicate)
        return await self._ask("dispatch", session_id, seconds, data, event_id, durable, on_duplicate == "result")

    def dispatch_sync(
        self,
        session_id: str,
        event: Any,
        *,
        event_id: str | None = None,
        durable: bool = False,
        on_duplicate: Literal["duplicate", "result"] = "duplicate",
        timeout: float | None = None,
    ) -> Any:
        """The same as `dispatch`, for threads."""
        self._check_away()
        seconds = self._seconds(timeout)
        session_id, data = self._packed(session_id, event, on_duplicate)
        return self._ask_sync("dispatch", session_id, seconds, data, event_id, durable, on_duplicate == "result")

    async def submit(self, session_id: str, event: Any, *, event_id: str | None = None) -> ClusterReceipt:
        """Return when the log has *event*: from then on it is not lost with a process.

        Raises: OverloadedError, StoreUnavailableError, OutcomeUnknownError.
        """
        self._check_here()
        session_id, data = self._packed(session_id, event)
        outcome, accepted = new_future(), self._loop.create_future()
        asked = self._caller.make("submit", session_id, self._timeout, outcome, data, event_id)
        asked.accepted = accepted
        self._caller.ask(asked)
        await accepted
        return ClusterReceipt(self, asked, outcome)

    def submit_sync(self, session_id: str, event: Any, *, event_id: str | None = None) -> ClusterReceipt:
        """The same as `submit`, for threads."""
        self._check_away()
        session_id, data = self._packed(session_id, event)
        outcome, accepted = new_future(), new_future()
        asked = self._caller.make("submit", session_id, self._timeout, outcome, data, event_id)
        asked.accepted = accepted
        self._post(asked)
        self._wait(asked, accepted, self._timeout)
        return ClusterReceipt(self, asked, outcome)

    async def peek(self, session_id: str) -> dict[str, Any] | None:
        """Return a copy of the session's values, or `None`. It takes no turn."""
        self._check_here()
        return await self._ask("peek", check_session_id(session_id), self._timeout)  # type: ignore[no-any-return]

    def peek_sync(self, session_id: str) -> dict[str, Any] | None:
        """The same as `peek`, for threads."""
        self._check_away()
        return self._ask_sync("peek", check_session_id(session_id), self._timeout)  # type: ignore[no-any-return]

    async def destroy(self, session_id: str) -> None:
        """Remove the session for every reader. No older write brings it back."""
        self._check_here()
        await self._ask("destroy", check_session_id(session_id), self._timeout)

    def destroy_sync(self, session_id: str) -> None:
        """The same as `destroy`, for threads."""
        self._check_away()
        self._ask_sync("destroy", check_session_id(session_id), self._timeout)

    async def flush(self, session_id: str | None = None) -> None:
        """Return when the store has what was committed: of one session, or of all.

        For all, each slot must have an owner. It waits for what a new owner runs again.
        Raises: StoreUnavailableError, TurnTimeoutError.
        """
        self._check_here()
        if session_id is not None:
            await self._ask("flush", check_session_id(session_id), self._timeout)
            return
        await self._flush_all()

    def flush_sync(self, session_id: str | None = None) -> None:
        """The same as `flush`, for threads."""
        self._check_away()
        if session_id is not None:
            self._ask_sync("flush", check_session_id(session_id), self._timeout)
            return
        self._call(self._flush_all(), self._timeout)

    async def _flush_all(self) -> None:
        requests = (self._ask("flush all", "", self._timeout, slot=slot) for slot in range(self._caller.slots))
        for outcome in await asyncio.gather(*requests, return_exceptions=True):
            if isinstance(outcome, BaseException):
                raise outcome

    def _packed(self, session_id: str, event: Any, on_duplicate: str = "duplicate") -> tuple[str, bytes]:
        """Check what was given, and pack the event, before anything is sent."""
        session_id = check_session_id(session_id)
        check_word("on_duplicate", on_duplicate, ON_DUPLICATE)
        try:
            return session_id, pack_value(event, "event")
        except (NotEncodableError, SessionTooLargeError) as error:
            error.session_id = session_id
            raise

    def _seconds(self, timeout: float | None) -> float:
        return self._timeout if timeout is None else check_timeout(timeout)

    # --- what it shows ---------------------------------------------------------------------------

    def stats(self) -> ClusterStats:
        """Return counters and gauges of this caller. Any thread."""
        self._check_life()
        caller = self._caller
        return ClusterStats(
            self._name, caller.slots, caller.waiting.accepted, caller.answered, len(caller.waiting), caller.unsent, caller.refused,
            caller.waiting.timed_out, caller.appends, caller.repeated, caller.silent_for(),
        )  # fmt: skip

    async def members(self) -> list[Member]:
        """List the shards. Raises: StoreUnavailableError."""
        self._check_here()
        return await self._members()

    def members_sync(self) -> list[Member]:
        """The same as `members`, for threads."""
        self._check_away()
        return self._call(self._members(), self._timeout)

    async def _members(self) -> list[Member]:
        return members_of(await self._log.members(), await self._log.slots())

    def health(self) -> Health:
        """Say whether this caller reaches the log. Any thread."""
        if self._life is Life.STARTING and self._waits_for is not None:
            return Health("failing", f"the cluster is starting, and waits for {self._waits_for}")
        if self._life is not Life.OPEN:
            return Health("failing", f"the cluster is {self._life.value}")
        silent = self._caller.silent_for()
        if self._loop.is_closed():
            return Health("failing", "the event loop of the cluster has ended")
        if silent > SILENT:
            return Health("failing", f"{self._caller.store} has not answered for {silent:.0f} s")
        if (refusal := self._caller.refusal()) is not None:
            return Health("degraded", f"{self._caller.store} did not take what was sent last: {refusal}")
        return Health("ready", f"{self._caller.store} answers")
