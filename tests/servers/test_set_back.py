"""A real server that is killed and starts again from an old snapshot, under a bot that lives on."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from actorbot import FlushPolicy, RedisSessionStore, Retry, SessionManager, errors
from tests.handlers import count
from tests.servers.redis_servers import QUICK, Server
from tests.waiting import until

RETRY = Retry(attempts=2, base=0.02, cap=0.05)


@pytest.mark.parametrize("policy", ["write-behind", "write-through", "journaled"])
async def test_a_server_that_starts_again_from_its_snapshot_costs_nothing_that_is_in_memory(
    policy: str, tmp_path: Path
) -> None:
    flush = {
        "write-behind": FlushPolicy.write_behind(max_delay=0.02, retry=RETRY),
        "write-through": FlushPolicy.write_through(retry=RETRY),
        "journaled": FlushPolicy.journaled(tmp_path / "journal", max_delay=0.02, retry=RETRY),
    }[policy]
    with Server(QUICK, tmp_path, "--appendonly", "no", "--save", "3600 1000000") as server:
        store = RedisSessionStore(server.url)
        async with SessionManager(store, handler=count, flush=flush) as manager:
            await manager.dispatch("ann", "hi")
            await manager.flush()
            server.ask("SAVE")
            for _ in range(20):
                await manager.dispatch("ann", "hi", durable=True)
            await manager.dispatch("new", "hi", durable=True)
            await manager.flush()  # durable means the journal, where there is one
            server.freeze()
            sent = [asyncio.create_task(manager.dispatch("ann", "hi", event_id="the last")) for _ in range(2)]
            await until(lambda: manager.stats().running or manager.stats().handled == 22)
            server.kill()
            answers = await asyncio.gather(*sent, return_exceptions=True)
            server.start()
            lost = [answer for answer in answers if isinstance(answer, errors.StoreUnavailableError)]
            assert bool(lost) == (policy == "write-through")  # told so, and may be sent again
            assert await manager.dispatch("ann", "hi", event_id="the last") == 22 or not lost
            assert await manager.dispatch("ann", "hi") == 23
            assert await manager.dispatch("new", "hi") == 2
            await manager.flush()

            assert (manager.stats().set_back, manager.stats().conflicts) == (1, 0)
        async with SessionManager(RedisSessionStore(server.url), handler=count) as heir:
            assert [await heir.peek(user) for user in ("ann", "new")] == [{"n": 23}, {"n": 2}]
