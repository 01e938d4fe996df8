"""Slack's Bolt, asynchronous and threaded, with the listeners in turns: only Slack's own side of
the network is made up.
"""

from __future__ import annotations

import asyncio
import json
import runpy
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from aiohttp.test_utils import TestClient, TestServer
from slack_bolt import App, BoltRequest
from slack_bolt.async_app import AsyncApp, AsyncBoltRequest
from slack_sdk import WebClient
from slack_sdk.web.async_client import AsyncWebClient

from actorbot import FileSessionStore, MemorySessionStore, SessionManager
from actorbot.ext.slack import in_turn, session_id_of
from actorbot.testing import ManualClock
from tests import ROOT
from tests.ext.pages import program
from tests.ext.slack_api import SECRET, SlackApi, again, command, message, slack_api, submission

EXAMPLE = ROOT / "examples" / "with_slack_bolt.py"
CHANNELS = [f"C{number}" for number in range(10)]
TEN_OF_TEN = dict.fromkeys(CHANNELS, 10)


@pytest.fixture
def slack() -> Iterator[SlackApi]:
    with slack_api() as api:
        yield api


def make_app(slack: SlackApi, **options: Any) -> AsyncApp:
    return AsyncApp(client=AsyncWebClient("xoxb-1", base_url=slack.url), signing_secret=SECRET, **options)


def make_threaded(slack: SlackApi, executor: ThreadPoolExecutor, **options: Any) -> App:
    client = WebClient("xoxb-1", base_url=slack.url)
    return App(client=client, signing_secret=SECRET, listener_executor=executor, **options)


async def send(app: AsyncApp, request: dict[str, Any]) -> int:
    return (await app.async_dispatch(AsyncBoltRequest(**request))).status


async def background(before: set[Any]) -> None:
    """Wait for the listeners that Bolt has left running."""
    while late := asyncio.all_tasks() - before:
        await asyncio.wait(late, timeout=10)


async def stored(store: Any, channels: list[str] = CHANNELS, user: str = "U1") -> dict[str, Any]:
    """Return the counters of a store, read by a manager that has seen none of its sessions."""
    async with SessionManager(store) as manager:
        states = {channel: await manager.peek(f"slack:T1:{channel}:{user}") for channel in channels}
    return {channel: state["n"] for channel, state in states.items() if state is not None}


# --- the page -----------------------------------------------------------------------------------


async def say_ten_times_in_ten_channels(heading: str, slack: SlackApi) -> None:
    """Run a program of the page and post to its web server what Slack would: a hundred messages,
    all at once.
    """
    names: dict[str, Any] = {"__name__": "bot"}
    exec(compile(program("slack-bolt", heading), heading, "exec"), names)
    names["app"].client.base_url = slack.url
    web_app = names["server"].web_app
    async with TestClient(TestServer(web_app)) as client:

        async def post(request: dict[str, Any]) -> None:
            async with client.post("/slack/events", data=request["body"], headers=request["headers"]) as response:
                assert response.status == 200

        await asyncio.gather(*(post(message("count", channel=channel)) for _ in range(10) for channel in CHANNELS))
        await asyncio.to_thread(slack.wait_for, 100)


async def test_the_bot_of_the_page_loses_updates_before_and_counts_ten_of_ten_after(
    slack: SlackApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("SLACK_BOT_TOKEN", "xoxb-1")
    monkeypatch.setenv("SLACK_SIGNING_SECRET", SECRET)

    await say_ten_times_in_ten_channels("Before", slack)
    stock = {c: max(int(text.split()[-1]) for at, text in slack.posted if at == c) for c in CHANNELS}
    slack.posted.clear()
    await say_ten_times_in_ten_channels("After", slack)
    kept = await stored(FileSessionStore(".sessions"))

    print(f"of 10 per channel: stock {sorted(stock.values())}, actorbot {sorted(kept.values())}")
    assert sum(stock.values()) < 100
    assert kept == TEN_OF_TEN
    for channel in CHANNELS:  # each was answered once, and in order
        assert [text for at, text in slack.posted if at == channel] == [f"That was number {n}" for n in range(1, 11)]


async def test_the_example_counts_what_it_is_told_in_socket_mode(
    slack: SlackApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    app, manager = runpy.run_path(str(EXAMPLE))["make_bot"]("xoxb-1")
    app.client.base_url = slack.url
    async with manager:
        for _ in range(2):
            request = AsyncBoltRequest(mode="socket_mode", body=json.loads(message("hi")["body"]))
            assert (await app.async_dispatch(request)).status == 200
        await asyncio.to_thread(slack.wait_for, 2)

    assert slack.posted == [("C1", "That was number 1"), ("C1", "That was number 2")]


def test_a_missing_library_is_named_with_the_command_that_installs_it() -> None:
    code = "import sys; sys.modules['slack_bolt'] = None; import actorbot; import actorbot.ext.slack"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=False)

    assert done.stderr.splitlines()[-1] == (
        "ImportError: actorbot.ext.slack needs slack-bolt: pip install '.[slack]' in a clone of actorbot"
    )


# --- ordered, atomic, durable -------------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True], ids=["acknowledged before", "processed before the response"])
async def test_no_update_is_lost_chats_are_parallel_and_each_stays_in_order(
    waits: bool, slack: SlackApi, tmp_path: Path
) -> None:
    app = make_app(slack, process_before_response=waits)
    inside, most = Counter[str](), Counter[str]()
    seen: dict[str, list[str]] = {}
    everybody = asyncio.Barrier(10)

    async with SessionManager(FileSessionStore(tmp_path)) as manager:
        before = asyncio.all_tasks()

        @app.event("message")
        @in_turn(manager)
        async def count(event: dict[str, Any], session: Any) -> None:
            channel = event["channel"]
            inside[channel] += 1
            most[channel] = max(most[channel], inside[channel])
            n = session.get("n", 0)
            if event["text"] == "0":
                await asyncio.wait_for(everybody.wait(), 10)  # all ten chats are inside at once, or this fails
            for _ in range(3):
                await asyncio.sleep(0)
            session["n"] = n + 1
            seen.setdefault(channel, []).append(event["text"])
            inside[channel] -= 1

        await send(
            app, message("hi", channel="C")
        )  # Bolt asks Slack who it is once, and the first events overtake each other
        answers = await asyncio.gather(
            *(send(app, message(str(n), channel=channel)) for n in range(10) for channel in CHANNELS)
        )
        await background(before)

    assert set(answers) == {200}
    assert await stored(FileSessionStore(tmp_path)) == TEN_OF_TEN
    assert set(most.values()) == {1}
    assert seen.pop("C") == ["hi"]
    assert seen == {channel: [str(n) for n in range(10)] for channel in CHANNELS}


def test_a_threaded_app_counts_ten_of_ten(slack: SlackApi, tmp_path: Path) -> None:
    def run(decorated: Any, count: Any) -> None:
        with ThreadPoolExecutor(5) as listeners:  # as many as Bolt makes by itself
            app = make_threaded(slack, listeners)
            app.event("message")(decorated(count))
            with ThreadPoolExecutor(10) as web:
                requests = [BoltRequest(**message("hi", channel=channel)) for channel in CHANNELS for _ in range(10)]
                assert {answer.status for answer in web.map(app.dispatch, requests)} == {200}

    counts: dict[str, int] = {}

    def stock(event: dict[str, Any], client: WebClient) -> None:
        n = counts.get(event["channel"], 0)
        client.users_info(user=event["user"])
        counts[event["channel"]] = n + 1

    def count(event: dict[str, Any], client: WebClient, session: Any) -> None:
        n = session.get("n", 0)
        client.users_info(user=event["user"])
        session["n"] = n + 1

    run(lambda listener: listener, stock)
    with SessionManager(FileSessionStore(tmp_path)) as manager:
        run(in_turn(manager), count)

    kept = asyncio.run(stored(FileSessionStore(tmp_path)))
    print(f"of 10 per channel, threads: stock {sorted(counts.values())}, actorbot {sorted(kept.values())}")
    assert sum(counts.values()) < 100
    assert kept == TEN_OF_TEN


async def test_a_listener_that_raises_leaves_no_trace_and_bolts_error_handler_gets_its_error(slack: SlackApi) -> None:
    app = make_app(slack, process_before_response=True)
    errors: list[Exception] = []
    sent: list[str] = []

    async def deliver(session_id: str, text: str) -> None:
        sent.append(text)

    @app.error
    async def note(error: Exception) -> None:
        errors.append(error)

    async with SessionManager(MemorySessionStore(), deliver=deliver) as manager:

        @app.event("message")
        @in_turn(manager)
        async def count(event: dict[str, Any], session: Any, turn: Any) -> None:
            session["n"] = session.get("n", 0) + 1
            turn.send_text(f"{event['text']} counted")
            if event["text"] == "bad":
                raise LookupError("no such thing")

        answers = [await send(app, message(text)) for text in ("good", "bad", "good")]
        state = await manager.peek("slack:T1:C1:U1")

    assert answers == [200, 500, 200]
    assert [str(error) for error in errors] == ["no such thing"]
    assert state == {"n": 2}
    assert sent == ["good counted", "good counted"]


def test_in_a_threaded_app_a_listener_that_raises_leaves_no_trace_either(slack: SlackApi) -> None:
    with ThreadPoolExecutor(1) as listeners, SessionManager(MemorySessionStore()) as manager:
        app = make_threaded(slack, listeners, process_before_response=True)
        errors: list[Exception] = []

        @app.error
        def note(error: Exception) -> None:
            errors.append(error)

        @app.event("message")
        @in_turn(manager)
        def count(event: dict[str, Any], session: Any) -> None:
            session["n"] = session.get("n", 0) + 1
            if event["text"] == "bad":
                raise LookupError("no such thing")

        answers = [app.dispatch(BoltRequest(**message(text))).status for text in ("good", "bad", "good")]

        assert answers == [200, 500, 200]
        assert [str(error) for error in errors] == ["no such thing"]
        assert manager.peek_sync("slack:T1:C1:U1") == {"n": 2}


async def test_what_a_bot_says_by_itself_is_out_before_the_turn_fails(slack: SlackApi) -> None:
    app = make_app(slack, process_before_response=True)
    async with SessionManager(MemorySessionStore(), deliver=lambda session_id, reply: reply()) as manager:

        @app.event("message")
        @in_turn(manager)
        async def count(say: Any, turn: Any) -> None:
            await say("at once")
            turn.send(lambda: say("never"))
            raise LookupError("no such thing")

        assert await send(app, message("hi")) == 500
        assert slack.posted == [("C1", "at once")]


# --- deliveries that are repeated ---------------------------------------------------------------


@pytest.mark.parametrize("waits", [False, True], ids=["acknowledged before", "processed before the response"])
async def test_an_event_that_slack_delivers_again_counts_once(waits: bool, slack: SlackApi) -> None:
    app = make_app(slack, process_before_response=waits)
    async with SessionManager(MemorySessionStore()) as manager:
        before = asyncio.all_tasks()

        @app.event("message")
        @in_turn(manager)
        async def count(session: Any) -> None:
            n = session.get("n", 0)
            await asyncio.sleep(0)
            session["n"] = n + 1

        request = message("hi")
        assert (
            await asyncio.gather(*(send(app, each) for each in (request, again(request), again(request)))) == [200] * 3
        )
        await background(before)
        assert await send(app, message("hi")) == 200
        await background(before)

        assert await manager.peek("slack:T1:C1:U1") == {"n": 2}
        assert manager.stats().duplicates == 2


def test_in_a_threaded_app_too(slack: SlackApi) -> None:
    with SessionManager(MemorySessionStore()) as manager:
        with ThreadPoolExecutor(5) as listeners:
            app = make_threaded(slack, listeners)

            @app.command("/count")
            @in_turn(manager)
            def count(ack: Any, session: Any) -> None:
                ack("counted")
                session["n"] = session.get("n", 0) + 1

            request = command("/count")
            answers = [app.dispatch(BoltRequest(**each)) for each in (request, request)]

        assert [(answer.status, answer.body) for answer in answers] == [(200, "counted"), (200, "")]
        assert manager.peek_sync("slack:T1:C1:U1") == {"n": 1}


async def test_an_event_whose_listener_failed_is_handled_when_slack_delivers_it_again(slack: SlackApi) -> None:
    app = make_app(slack, process_before_response=True)
    failures = [LookupError("the shop is closed")]
    async with SessionManager(MemorySessionStore()) as manager:

        @app.event("message")
        @in_turn(manager)
        async def count(session: Any) -> None:
            session["n"] = session.get("n", 0) + 1
            if failures:
                raise failures.pop()

        request = message("hi")

        assert [await send(app, request), await send(app, again(request)), await send(app, again(request))] == [
            500,
            200,
            200,
        ]
        assert await manager.peek("slack:T1:C1:U1") == {"n": 1}


async def test_the_lazy_listeners_of_one_event_have_a_turn_each(slack: SlackApi) -> None:
    app = make_app(slack)
    async with SessionManager(MemorySessionStore()) as manager:
        before = asyncio.all_tasks()

        @in_turn(manager)
        async def first(session: Any) -> None:
            session["first"] = True

        @in_turn(manager)
        async def second(session: Any) -> None:
            session["second"] = True

        async def acknowledge(ack: Any) -> None:
            await ack("a moment")

        app.command("/start")(ack=acknowledge, lazy=[first, second])
        assert await send(app, command("/start")) == 200
        await background(before)

        assert await manager.peek("slack:T1:C1:U1") == {"first": True, "second": True}


async def test_a_forged_request_never_reaches_a_listener(slack: SlackApi) -> None:
    app = make_app(slack)
    async with SessionManager(MemorySessionStore()) as manager:

        @app.event("message")
        @in_turn(manager)
        async def count(session: Any) -> None:
            session["n"] = 1

        forged = message("hi")
        forged["body"] = forged["body"].replace("hi", "ho")

        assert await send(app, forged) == 401
        assert not list(manager.resident())


# --- acknowledging in time ----------------------------------------------------------------------


async def test_a_command_that_names_no_ack_is_acknowledged_while_it_waits_for_its_turn(slack: SlackApi) -> None:
    app = make_app(slack)
    async with SessionManager(MemorySessionStore()) as manager:
        before = asyncio.all_tasks()

        @app.command("/count")
        @in_turn(manager)
        async def count(session: Any) -> None:
            session["n"] = session.get("n", 0) + 1

        ended = asyncio.Event()

        async def hold() -> None:
            async with manager.turn("slack:T1:C1:U1"):
                await ended.wait()

        holder = asyncio.create_task(hold())
        await asyncio.sleep(0)
        assert await send(app, command("/count")) == 200
        assert await manager.peek("slack:T1:C1:U1") is None
        ended.set()
        await holder
        await background(before)

        assert await manager.peek("slack:T1:C1:U1") == {"n": 1}


def test_in_a_threaded_app_it_is_acknowledged_in_time_as_well(slack: SlackApi) -> None:
    with SessionManager(MemorySessionStore()) as manager:
        with ThreadPoolExecutor(5) as listeners:
            app = make_threaded(slack, listeners)

            @app.command("/count")
            @in_turn(manager)
            def count(session: Any) -> None:
                session["n"] = session.get("n", 0) + 1

            with manager.turn_sync("slack:T1:C1:U1"):
                assert app.dispatch(BoltRequest(**command("/count"))).status == 200
                assert manager.peek_sync("slack:T1:C1:U1") is None

        assert manager.peek_sync("slack:T1:C1:U1") == {"n": 1}


async def test_a_listener_that_names_ack_answers_with_what_is_in_its_session(slack: SlackApi) -> None:
    app = make_app(slack)
    async with SessionManager(MemorySessionStore()) as manager:

        @app.command("/count")
        @in_turn(manager)
        async def count(ack: Any, session: Any) -> None:
            session["n"] = session.get("n", 0) + 1
            await ack(f"That was number {session['n']}")

        answers = [await app.async_dispatch(AsyncBoltRequest(**command("/count"))) for _ in range(2)]

    assert [answer.body for answer in answers] == ["That was number 1", "That was number 2"]


def test_listeners_of_one_user_that_wait_hold_the_threads_of_a_threaded_app(slack: SlackApi) -> None:
    def is_anybody_else_heard(threads: int) -> bool:
        heard = threading.Event()
        with SessionManager(MemorySessionStore()) as manager, ThreadPoolExecutor(threads) as listeners:
            app = make_threaded(slack, listeners)

            @app.event("message")
            @in_turn(manager)
            def listen(event: dict[str, Any]) -> None:
                if event["user"] == "U2":
                    heard.set()

            with manager.turn_sync("slack:T1:C1:U1"):
                for _ in range(5):
                    app.dispatch(BoltRequest(**message("hi", user="U1")))
                app.dispatch(BoltRequest(**message("hi", user="U2")))
                was_heard = heard.wait(timeout=10.0 if threads > 5 else 0.2)
            assert heard.wait(timeout=10.0)
            return was_heard

    assert not is_anybody_else_heard(threads=5)
    assert is_anybody_else_heard(threads=6)


# --- time, cancellation, restarts ---------------------------------------------------------------


async def test_a_listener_that_takes_thirty_seconds_delays_nobody_else(slack: SlackApi) -> None:
    app, clock = make_app(slack), ManualClock()
    slow, begun, heard = asyncio.Event(), asyncio.Event(), asyncio.Event()
    async with SessionManager(MemorySessionStore(), clock=clock) as manager:
        before = asyncio.all_tasks()

        @app.event("message")
        @in_turn(manager)
        async def count(event: dict[str, Any], session: Any) -> None:
            session["n"] = session.get("n", 0) + 1
            if event["channel"] == "C1":
                begun.set()
                await slow.wait()
            else:
                heard.set()

        await send(app, message("hi", channel="C1"))
        await begun.wait()
        await send(app, message("hi", channel="C1"))  # waits behind the first
        await clock.advance(15.0)
        await send(app, message("hi", channel="C2"))
        await asyncio.wait_for(heard.wait(), 10)
        await clock.advance(15.0)
        slow.set()
        await background(before)

        assert await manager.peek("slack:T1:C1:U1") == {"n": 2}
        assert await manager.peek("slack:T1:C2:U1") == {"n": 1}


async def test_a_session_leaves_memory_when_its_user_is_idle_and_comes_back_with_its_values(slack: SlackApi) -> None:
    app, clock = make_app(slack, process_before_response=True), ManualClock()
    async with SessionManager(MemorySessionStore(), clock=clock, idle_timeout=60.0) as manager:

        @app.event("message")
        @in_turn(manager)
        async def count(session: Any) -> None:
            session["n"] = session.get("n", 0) + 1

        await send(app, message("hi"))
        assert [session_id for session_id, _ in manager.resident()] == ["slack:T1:C1:U1"]
        await clock.advance(130.0)
        assert not list(manager.resident())
        await send(app, message("hi"))

        assert await manager.peek("slack:T1:C1:U1") == {"n": 2}


async def test_a_request_that_is_given_up_is_rolled_back_and_holds_no_session(slack: SlackApi) -> None:
    app = make_app(slack, process_before_response=True)
    begun = asyncio.Event()
    async with SessionManager(MemorySessionStore()) as manager:

        @app.event("message")
        @in_turn(manager)
        async def count(event: dict[str, Any], session: Any) -> None:
            session["n"] = session.get("n", 0) + 1
            if event["text"] == "slow":
                begun.set()
                await asyncio.Event().wait()

        running = asyncio.create_task(send(app, message("slow")))
        await begun.wait()
        waiting = asyncio.create_task(send(app, message("hi")))
        for _ in range(10):
            await asyncio.sleep(0)
        waiting.cancel()
        running.cancel()
        given_up = await asyncio.gather(running, waiting, return_exceptions=True)

        assert [type(each) for each in given_up] == [asyncio.CancelledError] * 2
        assert await asyncio.wait_for(send(app, message("hi")), 10) == 200
        assert await manager.peek("slack:T1:C1:U1") == {"n": 1}


async def test_sessions_and_repeated_deliveries_are_remembered_over_a_restart(slack: SlackApi, tmp_path: Path) -> None:
    request = message("hi")
    for _ in range(2):
        app = make_app(slack, process_before_response=True)
        async with SessionManager(FileSessionStore(tmp_path)) as manager:

            @app.event("message")
            @in_turn(manager)
            async def count(session: Any) -> None:
                session["n"] = session.get("n", 0) + 1

            await send(app, request)
            await send(app, message("hi"))

    assert await stored(FileSessionStore(tmp_path), ["C1"]) == {"C1": 3}


# --- what a listener may look like, and whose session it gets -----------------------------------


async def test_a_listener_gets_what_it_names_and_bolt_complains_of_nothing(
    slack: SlackApi, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_app(slack, process_before_response=True)
    got: list[Any] = []

    async with SessionManager(MemorySessionStore()) as manager:

        class Bot:
            @in_turn(manager)
            async def by_method(self, event: dict[str, Any], session: Any) -> None:
                got.append((type(self), event["text"], dict(session)))

        @in_turn(manager)
        async def by_args(args: Any, *, turn: Any) -> None:
            got.append((args.body["event"]["text"], turn.is_new))

        @in_turn(manager)
        async def by_request(request: Any, body: dict[str, Any]) -> None:
            got.append((request.body is body, body["event"]["text"]))

        app.message("method")(Bot().by_method)
        app.message("args")(by_args)
        app.message("request")(by_request)
        for text in ("method", "args", "request"):
            assert await send(app, message(text)) == 200

    assert got == [(Bot, "method", {}), ("args", False), (True, "request")]
    assert caplog.records == []


async def test_a_session_belongs_to_a_user_in_a_channel_or_to_whatever_the_author_says(slack: SlackApi) -> None:
    app = make_app(slack)
    async with SessionManager(MemorySessionStore()) as manager:

        @app.command("/order")
        @in_turn(manager)
        async def order(session: Any) -> None:
            session["by"] = "command"

        @app.view("order")
        @in_turn(manager)
        async def ordered(session: Any) -> None:
            session["by"] = "view"

        @app.event("message")
        @in_turn(manager, session_id=lambda context: f"slack:{context.team_id}:{context.channel_id}")
        async def talk(session: Any) -> None:
            session["by"] = "channel"

        before = asyncio.all_tasks()
        for request in (command("/order"), submission("order"), message("hi")):
            assert await send(app, request) == 200
        await background(before)
        ids = ["slack:T1:C1:U1", "slack:T1:U1", "slack:T1:C1"]

        assert [await manager.peek(each) for each in ids] == [{"by": "command"}, {"by": "view"}, {"by": "channel"}]


def test_session_ids_hold_what_the_request_has() -> None:
    def of(**body: Any) -> str:
        return session_id_of(BoltRequest(body=body, mode="socket_mode").context)

    assert of(team_id="T1", channel_id="C1", user_id="U1") == "slack:T1:C1:U1"
    assert of(enterprise_id="E1", team_id="T1", channel_id="D1", user_id="W1") == "slack:T1:D1:W1"
    assert of(is_enterprise_install=True, enterprise_id="E1", channel_id="C1", user_id="W1") == "slack:E1:C1:W1"
    assert of(type="event_callback", team_id="T1", event={"type": "emoji_changed"}) == "slack:T1"
    with pytest.raises(ValueError, match="names no team, channel or user"):
        of(type="something")
