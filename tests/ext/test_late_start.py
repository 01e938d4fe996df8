"""A server whose store another process owns: it serves already, and says so; it begins when it has
the store, and ends when it loses it.
"""

from __future__ import annotations

import asyncio
import logging
import signal
from contextlib import AsyncExitStack
from typing import Any

import httpx
import pytest

from actorbot import Context, SessionManager, errors
from actorbot.ext.asgi import lifespan, webhook_app, webhook_routes
from actorbot.ext.webhooks import Telegram
from tests.ext.deliveries import PLATFORMS, deliver, encode, message, serving
from tests.leased import LeasedStore, Place
from tests.waiting import SOON, breathe, until

UNTIMED = ("telegram", "line", "meta")  # platforms that sign no time


async def count(context: Context) -> None:
    context.session["n"] = context.session.get("n", 0) + 1


def manager_of(place: Place, **options: Any) -> SessionManager:
    return SessionManager(LeasedStore(place), handler=count, **options)


def app_of(manager: SessionManager) -> Any:
    return webhook_app(manager, {f"/{name}": make() for name, make in PLATFORMS.items()})


async def is_refused(client: httpx.AsyncClient, platform: str = "telegram") -> bool:
    answer = await deliver(client, platform, message(platform, 7, 1))
    return (answer.status_code, answer.headers.get("Retry-After")) == (503, "1")


async def probes(client: httpx.AsyncClient) -> tuple[int, int]:
    healthy, ready = await client.get("/healthz"), await client.get("/readyz")
    assert ("Retry-After" in ready.headers) == (ready.status_code == 503)
    return healthy.status_code, ready.status_code


async def test_a_server_serves_while_another_process_owns_its_store_and_begins_when_that_has_closed() -> None:
    place = Place()
    old, new = manager_of(place), manager_of(place)
    async with serving(app_of(old)) as client:
        assert (await deliver(client, "telegram", message("telegram", 7, 1))).status_code == 200
        async with serving(app_of(new)) as waiting:
            assert await probes(waiting) == (200, 503)
            for platform in UNTIMED:
                assert await is_refused(waiting, platform)
            assert "waits for the owner" in new.health().reason
            assert place.owners == 1

            await old.close()
            await until(lambda: new.health().status == "ready")
            assert await probes(waiting) == (200, 200)
            assert await probes(client) == (200, 503)
            assert await is_refused(client)
            assert (await deliver(waiting, "telegram", message("telegram", 7, 2))).status_code == 200
            assert (await deliver(waiting, "telegram", message("telegram", 7, 1))).status_code == 200  # a duplicate
            assert await new.peek("telegram:7") == {"n": 2}
    assert place.owners == 0


async def test_a_stranger_is_refused_as_always_while_the_server_waits() -> None:
    place = Place()
    async with manager_of(place), serving(app_of(manager_of(place))) as waiting:
        assert (await waiting.post("/telegram", content=encode(message("telegram", 7, 1)))).status_code == 401


async def test_a_server_that_waits_says_once_for_whom(caplog: pytest.LogCaptureFixture) -> None:
    place = Place()
    async with manager_of(place), serving(app_of(manager_of(place))):
        await breathe()

    (line,) = [each.getMessage() for each in caplog.records if each.levelno >= logging.WARNING]
    assert "not ready yet" in line
    assert "exclusive, epoch 2" in line


async def test_a_server_that_is_told_to_end_while_it_waits_leaves_the_store_to_its_owner() -> None:
    place = Place()
    waiting = manager_of(place)
    async with manager_of(place) as owner:
        async with serving(app_of(waiting)):
            pass
        assert waiting.health().reason == "the manager is closed"
        assert place.owners == 1
        await owner.dispatch("ann", "hi")
    await breathe()
    assert place.owners == 0


async def test_a_server_whose_start_is_cancelled_while_it_gets_the_store_gives_it_back() -> None:
    place = Place()
    taken, go_on = asyncio.Event(), asyncio.Event()
    loop = asyncio.get_running_loop()

    class Slow(LeasedStore):
        def swap_lease(self, old: str | None, new: str) -> bool:
            done = super().swap_lease(old, new)
            if not taken.is_set():
                loop.call_soon_threadsafe(taken.set)
                asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result(SOON)
            return done

    async def serve() -> None:
        async with serving(app_of(SessionManager(Slow(place), handler=count))):
            raise AssertionError("it serves")

    server = asyncio.create_task(serve())
    await taken.wait()
    assert place.owners == 1
    server.cancel()
    go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await server
    await until(lambda: place.owners == 0)


async def test_a_server_that_does_not_get_the_store_in_time_tells_its_process_to_end(
    told: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    place = Place()
    async with manager_of(place), serving(app_of(manager_of(place, takeover_timeout=0.1))) as client:
        await until(lambda: told)
        assert await probes(client) == (200, 503)
        assert await is_refused(client)

    assert told == [signal.SIGTERM]
    (line,) = [each for each in caplog.messages if "told to end (SIGTERM)" in each]
    assert "takeover_timeout" in line


async def test_where_nobody_handles_sigterm_a_server_without_a_store_stays_at_503(
    caplog: pytest.LogCaptureFixture,
) -> None:
    place = Place()
    async with manager_of(place), serving(app_of(manager_of(place, takeover_timeout=0.1))) as client:
        await until(lambda: "nothing here handles SIGTERM" in caplog.text)
        assert await probes(client) == (200, 503)
        assert await is_refused(client)


async def test_a_store_that_fails_while_the_server_waits_for_it_ends_the_server(told: list[int]) -> None:
    place = Place()

    class Broken(LeasedStore):
        def read_lease(self) -> tuple[str | None, float]:
            if self.place.owners == 0:
                self.place.lease = "rubbish"
            return super().read_lease()

    async with manager_of(place) as owner, serving(app_of(SessionManager(Broken(place), handler=count))):
        await owner.close()
        await until(lambda: told)


async def test_a_store_that_cannot_be_reached_keeps_the_server_from_starting(told: list[int]) -> None:
    class Away(LeasedStore):
        def read_lease(self) -> tuple[str | None, float]:
            raise ConnectionRefusedError

    with pytest.raises(errors.StoreUnavailableError):
        async with serving(app_of(SessionManager(Away(Place()), handler=count))):
            raise AssertionError("it has started")
    assert told == []


async def test_a_server_that_has_lost_its_store_answers_nobody_and_tells_its_process_to_end(
    told: list[int], short_lease: None, caplog: pytest.LogCaptureFixture
) -> None:
    place = Place()
    manager = manager_of(place)
    async with serving(app_of(manager)) as client:
        assert (await deliver(client, "telegram", message("telegram", 7, 1))).status_code == 200
        place.take_over()
        await until(lambda: told)
        assert await probes(client) == (200, 503)
        for platform in UNTIMED:
            assert await is_refused(client, platform)

    assert told == [signal.SIGTERM]
    (line,) = [each for each in caplog.messages if "told to end" in each]
    assert "taken over by process" in line


async def test_a_server_with_a_lifespan_of_its_own_is_told_to_end_as_well(told: list[int], short_lease: None) -> None:
    place = Place()
    manager = manager_of(place)
    webhook_routes(manager, {"/telegram": Telegram("the-secret")})
    async with manager:
        place.take_over()
        await until(lambda: told)

    assert told == [signal.SIGTERM]


async def test_an_event_under_way_when_the_store_is_lost_is_503_and_comes_again_elsewhere(
    told: list[int], short_lease: None
) -> None:
    place = Place()
    begun = asyncio.Event()

    async def handle(context: Context) -> None:
        begun.set()
        await asyncio.Event().wait()

    async with serving(app_of(SessionManager(LeasedStore(place), handler=handle))) as client:
        post = asyncio.create_task(deliver(client, "telegram", message("telegram", 7, 1)))
        await begun.wait()
        place.take_over()
        answer = await post
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")
    assert told == [signal.SIGTERM]


async def test_a_server_that_is_told_to_end_gives_its_store_up_before_it_ceases_to_serve(told: list[int]) -> None:
    place = Place()
    old, new = manager_of(place), manager_of(place)
    async with serving(app_of(old)) as client, serving(app_of(new)) as waiting:
        assert (await deliver(client, "telegram", message("telegram", 7, 1))).status_code == 200
        signal.raise_signal(signal.SIGTERM)  # both of this process hear it, but only one is open
        await until(lambda: new.health().status == "ready")
        assert await is_refused(client)
        assert (await deliver(waiting, "telegram", message("telegram", 7, 1))).status_code == 200
        assert (await deliver(waiting, "telegram", message("telegram", 7, 2))).status_code == 200
        assert await new.peek("telegram:7") == {"n": 2}
        assert told == [signal.SIGTERM]


def test_when_servers_of_one_process_have_ended_in_any_order_it_hears_sigterm_as_before(told: list[int]) -> None:
    async def serve() -> None:
        ends = []
        for _ in range(2):
            async with AsyncExitStack() as stack:
                await stack.enter_async_context(lifespan(manager_of(Place()))(None))
                ends.append(stack.pop_all())
        for end in ends:  # the first to begin is the first to end
            await end.aclose()

    asyncio.run(serve())
    signal.raise_signal(signal.SIGTERM)
    assert told == [signal.SIGTERM]
