"""The public API as users write it, for `mypy --strict`; checked, never run."""

from __future__ import annotations

from collections.abc import Awaitable
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Literal, assert_type

from actorbot import (
    DUPLICATE,
    ONE_YEAR,
    Bot,
    ConsoleBot,
    Context,
    Event,
    FileSessionStore,
    FlushPolicy,
    MemorySessionStore,
    Receipt,
    SessionManager,
    SessionStore,
    ShutdownReport,
    errors,
)
from actorbot.cluster import Cluster, ClusterReceipt, ClusterStats, Member
from actorbot.ext.asgi import lifespan, probe_routes, webhook_app, webhook_routes
from actorbot.ext.webhooks import Telegram
from actorbot.stores import LeaseFound, RecordStore

bot = ConsoleBot(session_store=FileSessionStore(".sessions", expires_in=ONE_YEAR), flush=FlushPolicy.write_through())


@bot.on_event
async def greet(context: Context) -> int:
    await context.send_text(context.event.message.text)
    context.session["seen"] = datetime.now().astimezone()
    context.end_session()
    return 1


@bot.on_error
def apologise(context: Context, error: Exception) -> None:
    context.send_text(f"Sorry, {context.session_id}: {error}")


@bot.on_session_start
def welcome(context: Context) -> None:
    context.send({"photo": b""}, gated=False)


@bot.on_session_expire
async def farewell(session_id: str, state: dict[str, Any]) -> None: ...


def plain(context: Context) -> str:
    return context.session_id


async def a_decorator_keeps_the_type_of_what_it_is_given(context: Context) -> None:
    assert_type(await greet(context), int)
    assert_type(apologise(context, ValueError()), None)
    assert_type(Bot().on_event(plain)(context), str)


class DictStore:
    """A driver of plain methods."""

    def init(self) -> None: ...

    def read(self, session_id: str) -> dict[str, Any] | None: ...

    def write(self, session_id: str, data: dict[str, Any]) -> None: ...

    def destroy(self, session_id: str) -> None: ...


class AsyncStore:
    """A driver of coroutines."""

    async def init(self) -> AsyncStore:
        return self

    async def read(self, session_id: str) -> dict[str, Any] | None: ...

    async def write(self, session_id: str, data: dict[str, Any]) -> None: ...

    async def destroy(self, session_id: str) -> None: ...


class LeasedDriver(DictStore):
    """A driver that keeps a lease."""

    def read_lease(self) -> tuple[str | None, float]:
        return None, 1.7e9

    def swap_lease(self, old: str | None, new: str) -> bool:
        return old is None


class LeasedStore(RecordStore):
    """A store of records that keeps a lease."""

    name = "leased"
    keeps_lease = True

    def read_lease(self) -> LeaseFound:
        return LeaseFound("owner", 1.7e9, up=None)

    def swap_lease(self, old: str | None, new: str) -> bool:
        return old is None


stores: list[SessionStore] = [DictStore(), AsyncStore(), LeasedDriver()]


@dataclass
class Profile:
    nickname: str = ""


async def on_a_loop() -> None:
    async with SessionManager(
        MemorySessionStore(),
        handler=greet,
        session_type=Profile,
        flush=FlushPolicy.parse("write-behind"),
        max_replies=1_000,
        ownership="exclusive",
        takeover_timeout=60.0,
    ) as manager:
        assert_type(manager, SessionManager)
        reply = await manager.dispatch("telegram:42", Event.from_text("Hi"), event_id="update-7", durable=True)
        if reply is DUPLICATE:
            return
        await manager.dispatch("telegram:42", "Hi", event_id="update-7", on_duplicate="result")
        async with manager.turn("telegram:42", event_id="update-8") as turn:
            assert_type(turn, Context)
            turn.session.nickname = "Tim"
            turn.send_text("hello")
        receipt = await manager.submit("telegram:42", object())
        assert_type(receipt, Receipt)
        assert_type(receipt.version, int | None)
        await receipt.result(timeout=1.0)
        await receipt.durable(timeout=1.0)
        await manager.flush()
        await manager.flush("telegram:42")
        await manager.flush(session_id for session_id, _ in manager.resident())
        assert_type(await manager.release(["telegram:42"], timeout=5.0), ShutdownReport)
        manager.abandon({"telegram:42"})
        assert_type(await manager.peek("telegram:42"), dict[str, Any] | None)
        await manager.destroy("telegram:42")
        manager.stats().handled.bit_length()
        assert_type(manager.stats().replies_waiting + manager.stats().reply_bytes, int)
        if (ownership := manager.stats().ownership) is not None:
            assert_type(ownership.owner, str)
            assert_type(ownership.mode, Literal["exclusive", "shared"])
            assert_type(ownership.epoch, int)
            assert_type(ownership.remaining, float)
        manager.health().reason.upper()
        for session_id, info in manager.resident():
            print(session_id.upper(), info.bytes + 1)
    assert_type(await manager.close(timeout=1.0), ShutdownReport)


def on_threads() -> None:
    with SessionManager(DictStore(), handler=plain) as manager:
        manager.dispatch_sync("line:7", "hi", timeout=5.0, event_id="1", on_duplicate="duplicate")
        with manager.turn_sync("line:7") as turn:
            turn.session["n"] = 1
        manager.submit_sync("line:7", "hi").result_sync(timeout=1.0)
        manager.flush_sync(("line:7", "line:8"))
        assert_type(manager.release_sync("line:7").unflushed, tuple[str, ...])
    for session_id in manager.close_sync().unflushed:
        print(session_id.upper())


class MyBot(Bot):
    """A platform of one's own."""

    async def deliver(self, session_id: str, message: str) -> None: ...

    async def receive(self) -> None:
        try:
            await self.dispatch("mine:1", "hi", event_id="1")
        except errors.NotEncodableError as error:
            print(error.path)


class ListBot(Bot):
    """As the README has it, with names of one's own."""

    def deliver(self, user: str, text: str) -> int:
        return len(user + text)

    async def receive(self) -> None:
        for user, text in [("ann", "hi"), ("bob", "ho")]:
            await self.manager.submit(f"list:{user}", Event.from_text(text))


def may_be_called(any_bot: Bot) -> Any:
    return any_bot.deliver("ann", "hi")


class LoudBot(ConsoleBot):
    """A bot that adds to what its base does."""

    async def deliver(self, session_id: str, message: str) -> None:
        await super().deliver(session_id, message.upper())

    async def receive(self) -> None:
        await super().receive()


def sent(context: Context) -> Awaitable[Any]:
    return context.send_text("may be awaited, or not")


async def start_or_say_who_is_in_the_way(manager: SessionManager) -> None:
    try:
        await manager.start()
        await manager.dispatch("ann", "hi")
    except errors.StoreLockedError as error:
        assert_type(error.owner, str | None)
    except errors.OwnershipLostError as error:
        assert_type(error.store, str)


async def send_to_the_shards() -> None:
    async with Cluster("redis://localhost/0", cluster="mybot", timeout=30.0) as cluster:
        assert_type(cluster, Cluster)
        reply = await cluster.dispatch("ann", {"n": 1}, event_id="7", durable=True, on_duplicate="result", timeout=5.0)
        if reply is DUPLICATE:
            return
        receipt = await cluster.submit("ann", Event.from_text("hi"), event_id="8")
        assert_type(receipt, ClusterReceipt)
        print(receipt.session_id.upper(), await receipt.result(timeout=1.0))
        await receipt.durable()
        assert_type(await cluster.peek("ann"), dict[str, Any] | None)
        await cluster.flush()
        await cluster.flush("ann")
        await cluster.destroy("ann")
        assert_type(cluster.stats(), ClusterStats)
        assert_type(await cluster.members(), list[Member])
        assert_type(cluster.health().status, Literal["ready", "degraded", "failing"])


def send_to_the_shards_from_threads() -> None:
    with Cluster("redis://localhost/0") as cluster:
        cluster.dispatch_sync("ann", {"n": 1}, event_id="7", durable=True, on_duplicate="duplicate", timeout=5.0)
        receipt = cluster.submit_sync("ann", Event.from_text("hi"), event_id="8")
        receipt.result_sync(timeout=1.0)
        receipt.durable_sync()
        assert_type(cluster.peek_sync("ann"), dict[str, Any] | None)
        cluster.flush_sync("ann")
        cluster.destroy_sync("ann")
        print(cluster.members_sync()[0].remaining + 1.0)


def serve(here: SessionManager, there: Cluster) -> None:
    for app in (webhook_app(here, {"/telegram": Telegram("secret")}), webhook_app(there, {})):
        print(app.routes)
    print(webhook_routes(there, {}), probe_routes(there), lifespan(there))
