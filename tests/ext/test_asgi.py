"""Webhooks over ASGI: what the platform is answered, what the user's session becomes, and what
strangers can do.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.routing import Mount

from actorbot import Context, FileSessionStore, FlushPolicy, MemorySessionStore, SessionManager, errors
from actorbot.ext import asgi
from actorbot.ext.asgi import lifespan, probe_routes, webhook_app, webhook_routes
from actorbot.ext.webhooks import Incoming, Platform, RefusedError, Slack, Telegram, WebhookEvent
from actorbot.testing import FaultyStore, ManualClock
from tests.ext.deliveries import (
    NOW,
    PLATFORMS,
    SECRET,
    SESSION,
    client_of,
    deliver,
    encode,
    line_event,
    message,
    messages,
    post_by_hand,
    raw,
    serving,
    sign,
)
from tests.ext.pages import program


async def count(context: Context) -> None:
    """Read, await, write."""
    n = context.session.get("n", 0)
    await asyncio.sleep(0)
    context.session["n"] = n + 1
    context.session.setdefault("texts", []).append(context.event.message.text)


def manager_of(
    handler: Callable[[Context], Awaitable[Any]] = count, store: Any = None, **options: Any
) -> SessionManager:
    options.setdefault("clock", ManualClock())
    return SessionManager(store, handler=handler, **options)


def app_of(manager: SessionManager, **options: Any) -> Starlette:
    """Every platform at a path of its name."""
    return webhook_app(manager, {f"/{name}": make(**options) for name, make in PLATFORMS.items()})


async def stored(folder: Path, session_id: str, clock: ManualClock | None) -> Any:
    """What a new manager finds."""
    async with SessionManager(FileSessionStore(folder), clock=clock) as manager:
        return await manager.peek(session_id)


async def turns(number: int = 50) -> None:
    """Let the loop go round."""
    for _ in range(number):
        await asyncio.sleep(0)


# --- what is promised ---------------------------------------------------------------------------


async def crowd(client: Any, platform: str, path: str = "") -> Counter[int]:
    """100 updates over 10 chats, 10 each, all at once."""
    posts = [deliver(client, platform, message(platform, n % 10, n, f"{n // 10}"), path=path) for n in range(100)]
    return Counter(answer.status_code for answer in await asyncio.gather(*posts))


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_ten_updates_of_each_of_ten_chats_at_once_are_ten_in_the_store(platform: str, tmp_path: Path) -> None:
    async with serving(app_of(manager_of(store=FileSessionStore(tmp_path)))) as client:
        assert await crowd(client, platform) == {200: 100}

    for user in range(10):
        session = await stored(tmp_path, SESSION[platform].replace("7", str(user)), ManualClock())
        assert session == {"n": 10, "texts": [str(n) for n in range(10)]}  # and in order


async def test_the_bot_of_the_page_loses_updates_before_and_none_after(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TELEGRAM_SECRET_TOKEN", SECRET)
    monkeypatch.chdir(tmp_path)
    before: dict[str, Any] = {}
    after: dict[str, Any] = {}
    exec(program("webhooks", "Before"), before)
    exec(program("webhooks", "After"), after)

    async with serving(before["app"]) as client:
        assert await crowd(client, "telegram") == {200: 100}
        stock = [before["sessions"][user] for user in range(10)]
        await deliver(client, "telegram", message("telegram", 0, 0))  # update 0 once more
        assert before["sessions"][0] == stock[0] + 1
    async with serving(after["app"]) as client:
        assert await crowd(client, "telegram") == {200: 100}
        await deliver(client, "telegram", message("telegram", 0, 0))
    counted = [(await stored(tmp_path / ".sessions", f"telegram:{user}", None))["count"] for user in range(10)]

    print(f"stock: {sum(stock)} of 100 ({stock}); with actorbot: {sum(counted)} of 100 ({counted})")
    assert sum(stock) < 100
    assert counted == [10] * 10


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_a_delivery_that_comes_twice_counts_once(platform: str) -> None:
    manager = manager_of()
    async with serving(app_of(manager)) as client:
        for number in (1, 1, 2, 1):
            assert (await deliver(client, platform, message(platform, 7, number))).status_code == 200
        assert (await manager.peek(SESSION[platform]) or {})["n"] == 2

        both = [deliver(client, platform, message(platform, 7, 3)) for _ in range(2)]  # the first still under way
        assert [answer.status_code for answer in await asyncio.gather(*both)] == [200, 200]
        assert (await manager.peek(SESSION[platform]) or {})["n"] == 3


async def test_a_handler_that_takes_half_a_minute_delays_nobody_else() -> None:
    clock = ManualClock()
    begun = asyncio.Event()

    async def handle(context: Context) -> None:
        if context.event.message.text == "slow":
            loop = asyncio.get_running_loop()
            done = asyncio.Event()
            clock.call_at(clock.monotonic() + 30.0, lambda: loop.call_soon_threadsafe(done.set) and None)
            begun.set()
            await done.wait()
        await count(context)

    manager = manager_of(handle, clock=clock)
    async with serving(app_of(manager)) as client:
        slow = asyncio.create_task(deliver(client, "telegram", message("telegram", 1, 1, "slow")))
        await begun.wait()
        for user in range(2, 12):
            assert (await deliver(client, "telegram", message("telegram", user, user))).status_code == 200
        assert not slow.done()

        await clock.advance(30.0)
        assert (await slow).status_code == 200


async def test_an_idle_chat_leaves_memory_and_comes_back_as_it_was() -> None:
    clock = ManualClock()
    manager = manager_of(clock=clock, idle_timeout=60.0)
    async with serving(app_of(manager)) as client:
        await deliver(client, "line", message("line", 7, 1))
        await clock.advance(200.0)
        assert list(manager.resident()) == []

        await deliver(client, "line", message("line", 7, 2))
        assert (await manager.peek("line:U7") or {})["n"] == 2


async def test_a_restart_forgets_nothing_of_what_was_answered(tmp_path: Path) -> None:
    for number in (1, 2):
        async with serving(app_of(manager_of(store=FileSessionStore(tmp_path)))) as client:
            await deliver(client, "slack", message("slack", 7, number))
            await deliver(client, "slack", message("slack", 7, 1))  # the platform has forgotten that it was delivered

    assert (await stored(tmp_path, SESSION["slack"], ManualClock()))["n"] == 2


# --- when something fails -----------------------------------------------------------------------


def failing_once(*texts: str) -> Callable[[Context], Awaitable[None]]:
    left = set(texts)

    async def handle(context: Context) -> None:
        await count(context)
        context.send_text("done")
        if context.event.message.text in left:
            left.remove(context.event.message.text)
            raise ValueError("the handler's own")

    return handle


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_a_failing_handler_leaves_no_trace_and_its_event_may_come_again(platform: str) -> None:
    sent: list[Any] = []
    manager = manager_of(failing_once("hi"), deliver=lambda session_id, reply: sent.append(session_id))
    async with serving(app_of(manager)) as client:
        assert (await deliver(client, platform, message(platform, 7, 1))).status_code == 500
        assert (await deliver(client, platform, message(platform, 8, 2))).status_code == 200
        await turns()
        assert await manager.peek(SESSION[platform]) is None
        assert SESSION[platform] not in sent

        assert (await deliver(client, platform, message(platform, 7, 1))).status_code == 200  # delivered again
        assert (await manager.peek(SESSION[platform]) or {})["n"] == 1


async def test_of_several_events_in_a_delivery_only_what_failed_runs_again() -> None:
    manager = manager_of(failing_once("b"), deliver=lambda session_id, reply: None)
    delivery = {
        "events": [line_event("A", 1, "a"), line_event("B", 2, "b"), line_event("C", 3, "c"), line_event("B", 4, "d")]
    }
    async with serving(app_of(manager)) as client:
        assert (await deliver(client, "line", delivery)).status_code == 500
        counts = {user: (await manager.peek(f"line:{user}") or {}).get("texts") for user in "ABC"}
        assert counts == {"A": ["a"], "B": ["d"], "C": ["c"]}

        assert (await deliver(client, "line", delivery)).status_code == 200
        counts = {user: (await manager.peek(f"line:{user}") or {}).get("texts") for user in "ABC"}
        assert counts == {"A": ["a"], "B": ["d", "b"], "C": ["c"]}


async def test_the_events_of_one_user_in_a_delivery_run_in_its_order() -> None:
    manager = manager_of()
    async with serving(app_of(manager)) as client:
        delivery = {"events": [line_event(f"U{n % 2}", n, str(n)) for n in range(40)]}
        assert (await deliver(client, "line", delivery)).status_code == 200

        assert (await manager.peek("line:U0") or {})["texts"] == [str(n) for n in range(0, 40, 2)]


async def test_the_answer_to_a_delivery_that_failed_in_several_ways_says_when_to_come_again() -> None:
    store = FaultyStore()
    manager = manager_of(failing_once("b"), store, deliver=lambda session_id, reply: None)
    async with serving(app_of(manager)) as client:
        await deliver(client, "line", {"events": [line_event("B", 1)]})
        store.outage()
        answer = await deliver(client, "line", {"events": [line_event("B", 2, "b"), line_event("C", 3)]})
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        store.restore()


async def test_who_wants_no_second_delivery_of_what_failed_says_so() -> None:
    store = FaultyStore()
    manager = manager_of(failing_once("hi"), store, deliver=lambda session_id, reply: None)
    async with serving(app_of(manager, answer="handled")) as client:
        assert (await deliver(client, "meta", message("meta", 7, 1))).status_code == 200  # the handler's failure
        store.outage()
        assert (await deliver(client, "meta", message("meta", 8, 2))).status_code == 503  # which no handler has seen
        store.restore()


async def test_a_platform_in_a_hurry_is_answered_at_acceptance() -> None:
    go_on, dead = asyncio.Event(), []

    async def handle(context: Context) -> None:
        await go_on.wait()
        await count(context)
        if context.event.message.text == "bad":
            raise ValueError("the handler's own")

    async def bury(session_id: str, event: Any, reason: str) -> None:
        dead.append((session_id, event.message.text, reason))

    manager = manager_of(handle, on_dead_letter=bury)
    async with serving(app_of(manager, answer="accepted")) as client:
        for number in (1, 1, 2):
            assert (await deliver(client, "slack", message("slack", 7, number))).status_code == 200
        assert (await deliver(client, "slack", message("slack", 8, 3, "bad"))).status_code == 200
        assert await manager.peek(SESSION["slack"]) is None
        go_on.set()
        await manager.flush()
        await turns()
        assert (await manager.peek(SESSION["slack"]) or {})["n"] == 2
    assert dead == [("slack:T1:D8:U8", "bad", "ValueError: the handler's own")]


async def test_a_full_mailbox_is_429_and_says_when_to_come_again() -> None:
    go_on = asyncio.Event()
    manager = manager_of(lambda context: go_on.wait(), max_mailbox=2)
    async with serving(app_of(manager)) as client:
        posts = [asyncio.create_task(deliver(client, "telegram", message("telegram", 7, n))) for n in range(4)]
        await turns()
        late = [post.result() for post in posts if post.done()]
        go_on.set()
        answers = await asyncio.gather(*posts)

    assert [(answer.status_code, answer.headers["Retry-After"]) for answer in late] == [(429, "1")]
    assert Counter(answer.status_code for answer in answers) == {200: 3, 429: 1}


async def test_a_store_that_is_down_is_503_and_never_a_new_session() -> None:
    store = FaultyStore()
    manager = manager_of(store=store)
    async with serving(app_of(manager)) as client:
        await deliver(client, "telegram", message("telegram", 1, 1))
        store.outage()
        answer = await deliver(client, "telegram", message("telegram", 7, 2))
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
        assert (await deliver(client, "telegram", message("telegram", 1, 3))).status_code == 200  # from memory
        store.restore()


async def test_a_manager_that_is_not_open_is_503() -> None:
    manager = manager_of()
    app = app_of(manager)
    for _ in ("not yet", "no more"):
        async with client_of(app) as client:
            assert (await deliver(client, "telegram", message("telegram", 7, 1))).status_code == 503
            assert (await client.get("/readyz")).status_code == 503
            assert (await client.get("/healthz")).status_code == 200
        if manager.health().reason == "the manager is new":
            async with serving(app):
                pass


async def test_a_session_id_that_cannot_be_one_is_400() -> None:
    async with serving(app_of(manager_of())) as client:
        assert (await deliver(client, "signed", {"user": "x" * 600, "id": "1"})).status_code == 400
        assert (
            await deliver(client, "telegram", message("telegram", 7, 1) | {"message": {"chat": {"id": "a\n"}}})
        ).status_code == 400


@pytest.mark.parametrize("answer", ["acknowledged", "handled", "accepted"])
async def test_an_author_s_function_that_fails_is_500_and_nothing_was_handled(answer: str) -> None:
    async with serving(app_of(manager_of(), answer=answer)) as client:
        assert (await deliver(client, "signed", {"id": "1"})).status_code == 500  # KeyError: 'user'


async def test_a_stranger_writes_no_line_of_his_own_into_the_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "actorbot")
    async with serving(webhook_app(manager_of(), {"/bots/{name}": Telegram(SECRET)})) as client:
        assert (await client.post("/bots/a%0AERROR%20forged")).status_code == 401

    (line,) = [record.getMessage() for record in caplog.records if "refused" in record.getMessage()]
    assert "forged" not in line
    assert "/bots/{name}" in line


# --- the client goes away -----------------------------------------------------------------------


async def test_a_cancelled_request_is_rolled_back_or_withdrawn_and_holds_no_session() -> None:
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def handle(context: Context) -> None:
        context.session["n"] = context.session.get("n", 0) + 1
        begun.set()
        await go_on.wait()

    manager = manager_of(handle)
    app = app_of(manager)
    async with serving(app) as client:
        body = [encode(message("telegram", 7, number)) for number in range(3)]
        calls = [
            asyncio.create_task(post_by_hand(app, "/telegram", raw(sign("telegram", each)), messages(each)))
            for each in body
        ]
        await begun.wait()
        await turns()
        calls[0].cancel()  # its handler runs
        calls[1].cancel()  # waits for its turn
        await asyncio.wait(calls[:2])
        assert all(call.cancelled() for call in calls[:2])
        go_on.set()
        assert await calls[2] == 200
        assert await manager.peek("telegram:7") == {"n": 1}

        for number in range(3):  # delivered again: nothing of the first two was counted
            assert (await deliver(client, "telegram", message("telegram", 7, number))).status_code == 200
        assert await manager.peek("telegram:7") == {"n": 3}
        assert not any(info.busy or info.waiting for _, info in manager.resident())


async def test_a_handler_goes_on_when_the_client_has_gone_and_the_next_delivery_is_a_duplicate() -> None:
    manager = manager_of()
    app = app_of(manager)
    async with serving(app) as client:
        body = encode(message("telegram", 7, 1))
        assert await post_by_hand(app, "/telegram", raw(sign("telegram", body)), messages(body)) == 200
        assert (await deliver(client, "telegram", message("telegram", 7, 1))).status_code == 200
        assert (await manager.peek("telegram:7") or {})["n"] == 1


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_a_body_that_breaks_off_reaches_nobody(platform: str) -> None:
    app = app_of(manager_of())
    async with serving(app):
        body = encode(message(platform, 7, 1))
        assert await post_by_hand(app, f"/{platform}", raw(sign(platform, body)), messages(body[:9], gone=True)) == 400


# --- what strangers do --------------------------------------------------------------------------


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_what_is_forged_stale_or_in_other_bytes_never_reaches_a_handler(platform: str) -> None:
    manager = manager_of()
    body = encode(message(platform, 7, 1))
    other = encode(message(platform, 8, 1))
    async with serving(app_of(manager)) as client:
        forged = await client.post(f"/{platform}", content=body, headers=sign(platform, body, secret="a-guess"))
        unsigned = await client.post(f"/{platform}", content=body, headers={"Content-Type": "application/json"})
        assert (forged.status_code, unsigned.status_code) == (401, 401)
        assert forged.text == unsigned.text == "Unauthorized"  # and no more
        assert forged.headers["Connection"] == "close"
        if platform != "telegram":
            swapped = await client.post(f"/{platform}", content=other, headers=sign(platform, body))
            assert swapped.status_code == 401
        if platform in {"slack", "signed"}:
            stale = await client.post(f"/{platform}", content=body, headers=sign(platform, body, at=NOW - 301))
            assert stale.status_code == 401
        bomb = b"[" * 100_000
        assert (await client.post(f"/{platform}", content=bomb, headers=sign(platform, bomb))).status_code == 400
        assert (await client.put(f"/{platform}", content=body, headers=sign(platform, body))).status_code == 405
        assert manager.stats().handled == manager.stats().failed == manager.stats().activations == 0


async def test_the_window_of_a_timestamp_follows_the_clock_of_the_manager() -> None:
    clock = ManualClock()
    async with serving(app_of(manager_of(clock=clock))) as client:
        await clock.advance(301.0)
        assert (await deliver(client, "slack", message("slack", 7, 1))).status_code == 401
        clock.jump_wall(-301.0)
        assert (await deliver(client, "slack", message("slack", 7, 1))).status_code == 200


def endless(chunk: bytes) -> tuple[list[int], Callable[[], Awaitable[dict[str, Any]]]]:
    read: list[int] = []

    async def receive() -> dict[str, Any]:
        read.append(len(chunk))
        assert sum(read) < 100_000, "it reads on and on"
        return {"type": "http.request", "body": chunk, "more_body": True}

    return read, receive


@pytest.mark.parametrize("platform", PLATFORMS)
async def test_a_body_too_large_is_refused_before_it_is_in_memory(platform: str) -> None:
    app = app_of(manager_of(), max_body=10_000)
    headers = raw(sign(platform, b""))
    async with serving(app):
        for declared in ([], [(b"content-length", b"500")]):  # in chunks, and one that lies
            read, receive = endless(b"x" * 1_000)
            assert await post_by_hand(app, f"/{platform}", [*headers, *declared], receive) == 413
            assert sum(read) <= 11_000
        for size in (b"10001", b"9" * 400):
            read, receive = endless(b"x")
            assert await post_by_hand(app, f"/{platform}", [*headers, (b"content-length", size)], receive) == 413
            assert read == []


SIZE = str(len(encode(message("telegram", 7, 1)))).encode()


@pytest.mark.parametrize("declared", [[b"-1"], [b"1e3"], [b""], [b"\xb2"], [SIZE, SIZE], [b"9999"]])
async def test_a_content_length_that_is_wrong_is_refused(declared: list[bytes]) -> None:
    app = app_of(manager_of())
    body = encode(message("telegram", 7, 1))
    async with serving(app):
        headers = [*raw(sign("telegram", body)), *((b"content-length", each) for each in declared)]
        assert await post_by_hand(app, "/telegram", headers, messages(body)) == 400


async def test_a_stranger_s_body_is_not_read_where_the_headers_tell_enough() -> None:
    app = app_of(manager_of())
    async with serving(app):
        for platform in PLATFORMS:
            read, receive = endless(b"x" * 1_000)
            assert await post_by_hand(app, f"/{platform}", [], receive) == 401
            assert read == []


async def test_a_body_that_does_not_come_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asgi, "BODY_SECONDS", 0.01)
    app = app_of(manager_of())
    async with serving(app):
        never: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        assert await post_by_hand(app, "/telegram", raw(sign("telegram", b"")), lambda: never) == 408


# --- addresses are checked, probes, other applications ------------------------------------------


async def test_slack_and_meta_may_check_the_address() -> None:
    async with serving(app_of(manager_of())) as client:
        asked = {"type": "url_verification", "challenge": "a-challenge"}
        assert (await deliver(client, "slack", asked)).text == "a-challenge"
        body = encode(asked)
        assert (await client.post("/slack", content=body, headers=sign("slack", body, secret="x"))).status_code == 401

        right = {"hub.mode": "subscribe", "hub.verify_token": "the-verify-token", "hub.challenge": "<b>1</b>"}
        answer = await client.get("/meta", params=right)
        assert (answer.status_code, answer.text) == (200, "<b>1</b>")
        assert answer.headers["Content-Type"].startswith("text/plain")
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        for wrong in (
            {},
            right | {"hub.verify_token": "x"},
            right | {"hub.verify_token": "é"},
            {"hub.mode": "subscribe"},
        ):
            assert (await client.get("/meta", params=wrong)).status_code == 401
        assert (await client.get("/meta", params=right | {"hub.mode": "x"})).status_code == 400


async def test_a_405_names_the_methods_that_the_route_takes() -> None:
    body = b"[" * 100
    async with serving(app_of(manager_of())) as client:
        for platform in PLATFORMS:
            takes = {"GET", "HEAD", "POST"} if platform == "meta" else {"POST"}  # Meta checks an address with a GET
            for method in ("GET", "HEAD", "PUT", "DELETE", "OPTIONS", "PATCH"):
                answer = await client.request(method, f"/{platform}", content=body)
                if method in takes:
                    assert answer.status_code == 401
                else:
                    assert answer.status_code == 405
                    assert set(answer.headers["Allow"].split(", ")) == takes, (platform, method)


async def test_the_probes_tell_how_the_manager_is_and_strangers_no_more() -> None:
    store, clock = FaultyStore(), ManualClock()
    policy = FlushPolicy.write_behind(max_delay=1.0)
    async with serving(app_of(manager_of(store=store, clock=clock, flush=policy))) as client:
        assert (await client.get("/readyz")).json() == {"status": "ready"}
        await deliver(client, "telegram", message("telegram", 7, 1))
        store.outage()
        await clock.advance(60.0)
        degraded = await client.get("/readyz")
        assert (degraded.status_code, degraded.json()) == (200, {"status": "degraded"})
        assert (await client.get("/healthz")).status_code == 200
        store.restore()
        await clock.advance(60.0)


async def test_routes_live_in_an_application_that_you_have() -> None:
    manager = manager_of()
    hooks = webhook_routes(manager, {"/telegram": Telegram(SECRET), "/slack": Slack(SECRET)})
    app = Starlette(routes=[Mount("/hooks", routes=hooks), *probe_routes(manager)], lifespan=lifespan(manager))
    async with serving(app) as client:
        for platform in ("telegram", "slack"):
            path = f"/hooks/{platform}"
            assert (await deliver(client, platform, message(platform, 7, 1), path=path)).status_code == 200
        assert (await client.get("/readyz")).status_code == 200
        assert (await client.get("/hooks/readyz")).status_code == 404
    assert manager.health().status == "failing"


async def test_a_store_that_cannot_be_opened_keeps_the_application_from_starting() -> None:
    store = FaultyStore(MemorySessionStore())
    store.outage()
    with pytest.raises(errors.StoreUnavailableError):
        async with serving(app_of(manager_of(store=store))):
            raise AssertionError("it has started")


def test_paths_and_platforms_are_checked_when_the_routes_are_made() -> None:
    for wrong in ({"telegram": Telegram(SECRET)}, {"/telegram": SECRET}):
        with pytest.raises(errors.ConfigError, match="platforms"):
            webhook_routes(manager_of(), wrong)  # type: ignore[arg-type]


class Doorbell(Platform):
    """A platform that nobody else has: two methods."""

    def verify(self, headers: Any, body: bytes) -> None:
        if (b"x-key", b"the-key") not in headers:
            raise RefusedError(401, "another key")

    def events(self, payload: Any) -> Iterator[Incoming]:
        yield Incoming(f"door:{payload['door']}", payload["id"], WebhookEvent.from_text("ring", payload))


async def test_a_platform_of_your_own_is_two_methods() -> None:
    manager = manager_of()
    async with serving(webhook_app(manager, {"/door": Doorbell()})) as client:
        for key, status in (("the-key", 200), ("the-key", 200), ("a-guess", 401)):
            answer = await client.post("/door", json={"door": 1, "id": "r1"}, headers={"X-Key": key})
            assert answer.status_code == status
        assert await manager.peek("door:1") == {"n": 1, "texts": ["ring"]}


async def test_the_application_of_the_page_serves() -> None:
    page: dict[str, Any] = {}
    exec(program("webhooks", "In an application of your own"), page)
    async with serving(page["app"]) as client:
        body = encode(message("slack", 7, 1))
        assert (await client.post("/hooks/slack", content=body, headers=sign("slack", body))).status_code == 401
        assert (await client.get("/readyz")).json() == {"status": "ready"}
