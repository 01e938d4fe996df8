"""line-bot-sdk v3 with actorbot: the SDK is real, and LINE's side of it is a server on loopback."""

from __future__ import annotations

import asyncio
import json
import runpy
import sys
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from linebot.v3 import WebhookHandler, WebhookParser
from linebot.v3.messaging import Configuration
from linebot.v3.webhooks import MessageEvent, TextMessageContent

from actorbot import Context, FileSessionStore, SessionManager
from actorbot.errors import InvalidSessionIdError
from actorbot.ext.line import dispatch_all, dispatch_all_sync, listener, session_id_of
from actorbot.ext.webhooks import Line
from actorbot.testing import ManualClock
from tests import ROOT
from tests.ext.deliveries import SECRET, deliver, encode, line_event, serving, sign
from tests.ext.pages import program

EXAMPLE = ROOT / "examples" / "with_line.py"


def signed(*events: dict[str, Any]) -> tuple[str, str]:
    """A body and its signature, as a route gets them."""
    body = encode({"destination": "Ubot", "events": list(events)})
    return body.decode(), sign("line", body)["X-Line-Signature"]


def parsed(*events: dict[str, Any]) -> list[Any]:
    found: list[Any] = WebhookParser(SECRET).parse(*signed(*events))
    return found


async def count(context: Context) -> None:
    n = context.session.get("n", 0)
    await asyncio.sleep(0)
    context.session["n"] = n + 1
    context.session.setdefault("texts", []).append(context.event.message.text)
    if context.event.message.text == "bad":
        raise ValueError("the handler's own")


async def stored(folder: Path, whose: str) -> Any:
    async with SessionManager(FileSessionStore(folder)) as manager:
        return await manager.peek(whose)


@asynccontextmanager
async def line_api() -> AsyncIterator[tuple[str, list[str]]]:
    """LINE's side of a reply: an address, and the texts that arrive there."""
    arrived: list[str] = []

    async def reply(request: web.Request) -> web.Response:
        asked = await request.json()
        arrived.extend(message["text"] for message in asked["messages"])
        return web.json_response({"sentMessages": [{"id": "1", "quoteToken": "q"}]})

    app = web.Application()
    app.router.add_post("/v2/bot/message/reply", reply)
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}", arrived
    finally:
        await runner.cleanup()


async def crowd(client: Any) -> Counter[int]:
    """100 messages of 10 users, 10 each, all at once."""
    posts = [deliver(client, "line", {"events": [line_event(f"U{n % 10}", n)]}, path="/callback") for n in range(100)]
    return Counter(answer.status_code for answer in await asyncio.gather(*posts))


async def test_the_bot_of_the_page_loses_updates_before_and_none_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LINE_CHANNEL_SECRET", SECRET)
    monkeypatch.setenv("LINE_ACCESS_TOKEN", "t")
    monkeypatch.chdir(tmp_path)
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    exec(program("line", "Before"), before)
    exec(program("line", "After"), after)

    stock: list[int] = []
    for page in (before, after):
        async with line_api() as (api, arrived):
            page["configuration"] = Configuration(access_token="t", host=api)
            async with serving(page["app"]) as client:
                assert await crowd(client) == {200: 100}
                if page is after:
                    for user in range(10):
                        await page["manager"].delivered(f"line:U{user}")
                assert len(arrived) == 100
                stock = stock or [before["counts"][f"U{user}"] for user in range(10)]
                body = encode({"events": [line_event("U1", 1)]})
                forged = await client.post("/callback", content=body, headers=sign("line", body, secret="a-guess"))
                assert forged.status_code == 401
                assert (
                    await deliver(client, "line", {"events": [line_event("U0", 0)]}, path="/callback")
                ).status_code == 200
    counted = [(await stored(tmp_path / ".sessions", f"line:U{user}"))["count"] for user in range(10)]

    print(f"stock: {sum(stock)} of 100 ({stock}); with actorbot: {sum(counted)} of 100 ({counted})")
    assert sum(stock) < 100
    assert counted == [10] * 10
    assert sorted(arrived) == sorted(f"That was number {n + 1}" for n in range(10) for _ in range(10))


async def test_of_several_events_in_a_delivery_only_what_failed_runs_again(tmp_path: Path) -> None:
    failing = True

    async def handle(context: Context) -> str:
        text: str = context.event.message.text
        context.session.setdefault("texts", []).append(text)
        await asyncio.sleep(0)
        if failing and text == "b":
            raise ValueError("the handler's own")
        return text

    events = parsed(*(line_event(user, n, text) for n, (user, text) in enumerate(["Aa", "Bb", "Cc", "Ad", "Ae"])))
    async with SessionManager(FileSessionStore(tmp_path), handler=handle) as manager:
        with pytest.raises(ExceptionGroup, match="1 of 5 events failed") as caught:
            await dispatch_all(manager, events)
        assert [str(error) for error in caught.value.exceptions] == ["the handler's own"]
        assert await manager.peek("line:B") is None

        failing = False
        first, *others = await dispatch_all(manager, events)  # delivered again
        assert not first
        assert [end or None for end in others] == ["b", None, None, None]

    assert [(await stored(tmp_path, f"line:{user}"))["texts"] for user in "ABC"] == [["a", "d", "e"], ["b"], ["c"]]


USER = {"type": "user", "userId": "U"}
GROUP = {"type": "group", "groupId": "G", "userId": "U"}
ROOM = {"type": "room", "roomId": "R", "userId": "U"}
OF_A_KIND: dict[str, tuple[Any, dict[str, Any], str | None]] = {
    "message": (USER, {"message": {"type": "text", "id": "1", "quoteToken": "q", "text": "hi"}}, "line:U"),
    "message in a group": (GROUP, {"type": "message"}, "line:G"),
    "message in a room": (ROOM, {"type": "message"}, "line:R"),
    "message of nobody in a group": ({"type": "group", "groupId": "G"}, {"type": "message"}, "line:G"),
    "taken back": (GROUP, {"type": "unsend", "unsend": {"messageId": "1"}}, "line:G"),
    "follow": (USER, {"type": "follow", "follow": {"isUnblocked": False}}, "line:U"),
    "unfollow": (USER, {"type": "unfollow"}, "line:U"),
    "join": ({"type": "group", "groupId": "G"}, {"type": "join"}, "line:G"),
    "leave": ({"type": "room", "roomId": "R"}, {"type": "leave"}, "line:R"),
    "members join": (GROUP, {"type": "memberJoined", "joined": {"members": [USER]}}, "line:G"),
    "members leave": (GROUP, {"type": "memberLeft", "left": {"members": [USER]}}, "line:G"),
    "postback": (USER, {"type": "postback", "postback": {"data": "d"}}, "line:U"),
    "video seen": (USER, {"type": "videoPlayComplete", "videoPlayComplete": {"trackingId": "t"}}, "line:U"),
    "beacon": (USER, {"type": "beacon", "beacon": {"hwid": "h", "type": "enter"}}, "line:U"),
    "account linked": (USER, {"type": "accountLink", "link": {"result": "ok", "nonce": "n"}}, "line:U"),
    "activated": (USER, {"type": "activated", "chatControl": {"expireAt": 1}}, "line:U"),
    "deactivated": (USER, {"type": "deactivated"}, "line:U"),
    "bot suspended": (None, {"type": "botSuspended"}, None),
    "bot resumed": (None, {"type": "botResumed"}, None),
    "module": (None, {"type": "module", "module": {"type": "attached", "botId": "B", "scopes": []}}, None),
}  # fmt: skip


@pytest.mark.parametrize("mode", ["active", "standby"])
@pytest.mark.parametrize("again", [False, True], ids=["first", "delivered again"])
@pytest.mark.parametrize(("source", "fields", "expected"), OF_A_KIND.values(), ids=OF_A_KIND)
def test_an_event_belongs_to_the_same_session_with_the_sdk_as_by_webhooks(
    source: Any, fields: dict[str, Any], expected: str | None, again: bool, mode: str
) -> None:
    event = line_event("U", 1) | fields | {"mode": mode, "deliveryContext": {"isRedelivery": again}}
    event = {name: value for name, value in event.items() if name != "source"} | (
        {} if source is None else {"source": source}
    )

    (by_sdk,) = parsed(event)
    by_webhooks = Line(SECRET).incoming({"destination": "Ubot", "events": [event]})

    assert session_id_of(by_sdk) == expected
    assert [each.session_id for each in by_webhooks] == ([] if expected is None else [expected])
    assert by_sdk.mode == mode  # both tell the handler the same, by the same name
    assert by_sdk.delivery_context.is_redelivery is again
    for each in by_webhooks:
        assert (each.event_id, each.event.mode) == (by_sdk.webhook_event_id, mode)
        assert each.event.raw["deliveryContext"] == {"isRedelivery": again}


async def test_a_handler_tells_standby_from_active_the_same_way_with_the_sdk() -> None:
    async def handle(context: Context) -> None:
        if context.event.mode != "standby":
            context.session["n"] = context.session.get("n", 0) + 1

    events = [line_event("U", 1), line_event("U", 2) | {"mode": "standby"}]
    async with SessionManager(handler=handle) as manager:
        await dispatch_all(manager, parsed(*events))
        for each in Line(SECRET).incoming({"events": [line_event("V", 3), line_event("V", 4) | {"mode": "standby"}]}):
            await manager.dispatch(each.session_id or "", each.event)
        assert [await manager.peek(f"line:{user}") for user in "UV"] == [{"n": 1}, {"n": 1}]


async def test_a_message_that_the_sdk_does_not_know_is_a_warning_and_has_its_session_by_webhooks(
    caplog: pytest.LogCaptureFixture,
) -> None:
    hologram = line_event("U", 1) | {"message": {"type": "hologram", "id": "1"}}
    async with SessionManager(handler=count) as manager:
        assert await dispatch_all(manager, parsed(hologram)) == [None]

    (record,) = caplog.records
    assert (record.name, record.levelname) == ("actorbot", "WARNING")
    assert "no session for an event of type 'message'" in record.getMessage()
    assert [each.session_id for each in Line(SECRET).incoming({"events": [hologram]})] == ["line:U"]


async def test_an_event_of_nobody_is_passed_over() -> None:
    module = {"type": "module", "module": {"type": "attached", "botId": "B", "scopes": []}}
    nobody = {key: value for key, value in line_event("U", 1).items() if key not in {"source", "message"}} | module
    unknown = line_event("U", 2) | {"type": "of tomorrow"}

    async with SessionManager(handler=count) as manager:
        assert [session_id_of(event) for event in parsed(nobody, unknown)] == [None, None]
        assert await dispatch_all(manager, parsed(nobody, unknown)) == [None, None]
        assert manager.stats().handled == 0


def test_a_group_and_a_room_have_a_session_of_their_own() -> None:
    sources = [
        ({"type": "user", "userId": "U"}, "line:U"),
        ({"type": "group", "groupId": "G", "userId": "U"}, "line:G"),
        ({"type": "group", "groupId": "G"}, "line:G"),
        ({"type": "room", "roomId": "R", "userId": "U"}, "line:R"),
    ]
    for source, expected in sources:
        (event,) = parsed(line_event("U", 1) | {"source": source})
        assert session_id_of(event) == expected


async def test_a_slow_user_delays_nobody_else_and_cancelling_the_request_holds_no_session() -> None:
    clock, begun = ManualClock(), asyncio.Event()

    async def handle(context: Context) -> None:
        if context.event.message.text == "slow":
            loop = asyncio.get_running_loop()
            done = asyncio.Event()
            clock.call_at(clock.monotonic() + 30.0, lambda: loop.call_soon_threadsafe(done.set) and None)
            begun.set()
            await done.wait()
        await count(context)

    async with SessionManager(handler=handle, clock=clock) as manager:
        slow = asyncio.create_task(dispatch_all(manager, parsed(line_event("A", 1, "slow"), line_event("B", 2))))
        await begun.wait()
        await dispatch_all(manager, parsed(line_event("C", 3)))
        for _ in range(50):
            await asyncio.sleep(0)
        assert await manager.peek("line:B") == {"n": 1, "texts": ["hi"]}  # of the same delivery, and done
        slow.cancel()
        await asyncio.wait([slow])
        assert await manager.peek("line:A") is None
        assert not any(info.busy or info.waiting for _, info in manager.resident())

        again = asyncio.create_task(dispatch_all(manager, parsed(line_event("A", 1, "slow"), line_event("B", 2))))
        begun.clear()
        await begun.wait()
        await clock.advance(30.0)
        await again
        assert (await manager.peek("line:A") or {})["n"] == (await manager.peek("line:B") or {})["n"] == 1


# --- on threads ---------------------------------------------------------------------------------


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads that take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def read_and_write(session: Any) -> None:
    n = session.get("n", 0)
    for _ in range(200):
        json.loads("{}")
    session["n"] = n + 1


@pytest.mark.usefixtures("eager_threads")
def test_listeners_on_threads_count_ten_of_ten(tmp_path: Path) -> None:
    stock: dict[str, dict[str, int]] = {f"U{user}": {} for user in range(10)}
    bare, handler = WebhookHandler(SECRET), WebhookHandler(SECRET)
    bodies = [signed(line_event(f"U{n % 10}", n)) for n in range(100)]

    @bare.add(MessageEvent, message=TextMessageContent)
    def on_message_before(event: Any) -> None:
        read_and_write(stock[event.source.user_id])

    with SessionManager(FileSessionStore(tmp_path)) as manager:

        @handler.add(MessageEvent, message=TextMessageContent)
        @listener(manager)
        def on_message(event: Any, turn: Context) -> None:
            read_and_write(turn.session)

        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda each: bare.handle(*each), bodies))
            list(pool.map(lambda each: handler.handle(*each), bodies))
            list(pool.map(lambda each: handler.handle(*each), bodies[:20]))  # delivered again

    counted = [asyncio.run(stored(tmp_path, f"line:U{user}"))["n"] for user in range(10)]
    total = sum(session.get("n", 0) for session in stock.values())
    print(f"stock, on threads: {total} of 100; with actorbot: {sum(counted)} of 100")
    assert counted == [10] * 10


def test_a_listener_that_fails_is_rolled_back_and_what_it_raises_is_the_handlers() -> None:
    handler = WebhookHandler(SECRET)
    failing = True
    body = signed(line_event("A", 1), line_event("B", 2), line_event("C", 3))

    with SessionManager() as manager:

        @handler.add(MessageEvent)
        @listener(manager)
        def on_message(event: Any, turn: Context) -> None:
            turn.session["n"] = turn.session.get("n", 0) + 1
            if failing and turn.session_id == "line:B":
                raise ValueError("the listener's own")

        with pytest.raises(ValueError, match="the listener's own"):
            handler.handle(*body)
        assert [manager.peek_sync(f"line:{user}") for user in "ABC"] == [{"n": 1}, None, None]  # the SDK stops at B
        failing = False
        handler.handle(*body)
        assert [manager.peek_sync(f"line:{user}") for user in "ABC"] == [{"n": 1}] * 3
        with pytest.raises(InvalidSessionIdError):
            on_message(parsed(line_event("U", 2) | {"type": "of tomorrow"})[0])


def test_on_threads_one_failure_hides_no_other_event_either() -> None:
    events = parsed(line_event("A", 1), line_event("B", 2, "bad"), line_event("C", 3))
    with SessionManager(handler=count) as manager:
        with pytest.raises(ExceptionGroup, match="1 of 3"):
            dispatch_all_sync(manager, events)
        assert [manager.peek_sync(f"line:{user}") is None for user in "ABC"] == [False, True, False]
        with pytest.raises(ExceptionGroup, match="1 of 3"):
            dispatch_all_sync(manager, events)
        assert (manager.peek_sync("line:A") or {})["n"] == 1


def test_the_program_of_the_page_for_threads_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LINE_CHANNEL_SECRET", SECRET)
    monkeypatch.chdir(tmp_path)
    page: dict[str, Any] = {}
    exec(program("line", "With WebhookHandler, on threads"), page)
    try:
        for number in (1, 2, 2):
            page["handler"].handle(*signed(line_event("U", number)))
        assert page["manager"].peek_sync("line:U") == {"count": 2}
    finally:
        page["manager"].close_sync()


# --- the example --------------------------------------------------------------------------------


async def test_the_example_asks_for_a_name_and_remembers_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LINE_CHANNEL_SECRET", SECRET)
    monkeypatch.setenv("LINE_ACCESS_TOKEN", "t")
    async with line_api() as (api, arrived):
        monkeypatch.setenv("LINE_API", api)
        for number, text in enumerate(["Hi", "Tim", "It rains"]):
            example = runpy.run_path(str(EXAMPLE))  # started anew for each
            async with serving(example["app"]) as client:
                event = {"events": [line_event("U", number, text)]}
                assert (await deliver(client, "line", event, path="/callback")).status_code == 200
                standby = line_event("U", number + 10, "to another bot of the channel") | {"mode": "standby"}
                del standby["replyToken"]
                assert (await deliver(client, "line", {"events": [standby]}, path="/callback")).status_code == 200
        assert arrived == ["Hi, what's your nickname?", "Hello Tim", "You said 'It rains', Tim"]
