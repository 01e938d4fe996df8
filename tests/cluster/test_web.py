"""Two web workers, killed; a shard, killed; and a platform that posts each event again until it is
answered 200: every user's count is exact.
"""

from __future__ import annotations

import asyncio
import os
import random
import re
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import IO

import httpx
import pytest

from tests import ROOT
from tests.cluster._load import PATIENCE, stored_tags
from tests.cluster._shards import Shards
from tests.ext.deliveries import SECRET, encode, message, sign
from tests.faults._kills import ForkServer
from tests.faults._scale import scaled
from tests.servers.redis_servers import Server, free_port
from tests.waiting import HANGS, until_sync

patient = pytest.mark.timeout(scaled(180, 900))

WEB = """
from actorbot.cluster import Cluster
from actorbot.ext.asgi import webhook_app
from actorbot.ext.webhooks import Telegram

app = webhook_app(Cluster({url!r}, cluster="bot", timeout=5.0), {{"/": Telegram({secret!r})}})
"""


class Web:
    """uvicorn with two workers."""

    def __init__(self, folder: Path, url: str) -> None:
        (folder / "web.py").write_text(WEB.format(url=url, secret=SECRET))
        self.port = free_port()
        self._log = folder / "web.log"
        with self._log.open("w") as log:
            self.process = self._serve(folder, log)

    def _serve(self, folder: Path, log: IO[str]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "web:app", "--workers", "2", "--port", str(self.port)], cwd=folder,
            env=os.environ | {"PYTHONPATH": str(ROOT)}, start_new_session=True,
            stdout=subprocess.DEVNULL, stderr=log,
        )  # fmt: skip

    def workers(self) -> list[int]:
        """Return the pids of the workers that serve."""
        started = re.findall(r"Started server process \[(\d+)\]", self._log.read_text())
        return [int(pid) for pid in started if Path(f"/proc/{pid}/cmdline").exists()]

    def are_up(self, count: int) -> bool:
        """Tell whether so many workers have come up so far."""
        return self._log.read_text().count("Application startup complete") == count


@contextmanager
def web(folder: Path, url: str) -> Iterator[Web]:
    serving = Web(folder, url)
    try:
        until_sync(lambda: serving.are_up(2))
        yield serving
        os.killpg(serving.process.pid, signal.SIGTERM)
        serving.process.wait(HANGS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(serving.process.pid, signal.SIGKILL)
        serving.process.wait()


class Poster:
    """The platform: an update of a user follows the one before, when that is taken."""

    def __init__(self, port: int, users: int, updates: int, ids: bool) -> None:
        self._url = f"http://127.0.0.1:{port}/"
        self._ids = ids
        """Whether an update that is posted again has the id that it had."""
        self.users = range(1, users + 1)
        self._updates = updates
        self.taken = 0
        self.again = 0
        self.worst = 0.0

    async def run(self) -> None:
        limits = httpx.Limits(max_connections=100, max_keepalive_connections=0)
        async with (
            httpx.AsyncClient(timeout=10.0, limits=limits, trust_env=False) as client,
            asyncio.TaskGroup() as group,
        ):
            for user in self.users:
                group.create_task(self._post_all(client, user))

    async def _post_all(self, client: httpx.AsyncClient, user: int) -> None:
        for tag in range(self._updates):
            began = monotonic()
            while not await self._is_taken(client, user, tag):
                assert monotonic() < began + PATIENCE
                self.again += 1
                await asyncio.sleep(0.05)
            self.taken += 1
            self.worst = max(self.worst, monotonic() - began)

    async def _is_taken(self, client: httpx.AsyncClient, user: int, tag: int) -> bool:
        number = 10_000 * user + tag if self._ids else random.getrandbits(40)
        body = encode(message("telegram", user, number, str(tag)))
        try:
            answer = await client.post(self._url, content=body, headers=sign("telegram", body))
        except httpx.TransportError:
            return False
        return answer.status_code == 200


async def post_and_kill(serving: Web, shards: Shards, poster: Poster, whole: int) -> None:
    """Kill a worker and a shard while updates come."""
    posting = asyncio.get_running_loop().create_task(poster.run())
    for part in (0.2, 0.4, 0.6, 0.8):
        while poster.taken < part * whole and not posting.done():
            await asyncio.sleep(0.01)
        if part in (0.2, 0.6):
            os.kill(random.choice(serving.workers()), signal.SIGKILL)
        else:
            await asyncio.to_thread(random.choice(shards.living).kill)
            await asyncio.to_thread(shards.start)
    await posting


def wrong_counts(folder: Path, server: Server, fork: ForkServer, *, ids: bool = True) -> dict[str, Counter[int]]:
    """Return the users who do not have each of their updates once."""
    users, updates = 40, scaled(25, 200)
    with Shards(fork, server.url, server.url, lease=1.0, thinks=0.005) as shards:
        shards.start(2)
        with web(folder, server.url) as serving:
            poster = Poster(serving.port, users, updates, ids)
            asyncio.run(post_and_kill(serving, shards, poster, users * updates))
        shards.end()
        assert shards.faults() == []
    print(f"{poster.taken} updates of {users} users, {poster.again} posted again, worst {poster.worst:.2f} s")
    stored = stored_tags(server.url, (f"telegram:{user}" for user in poster.users))
    return {user: Counter(tags) for user, tags in stored.items() if tags != list(range(updates))}


@patient
@pytest.mark.long
def test_kills_of_web_workers_and_of_shards_leave_every_count_exact(
    redis_server: Server, fork: ForkServer, tmp_path: Path
) -> None:
    assert wrong_counts(tmp_path, redis_server, fork) == {}


@patient
@pytest.mark.long
def test_what_a_platform_posts_again_under_another_id_counts_again(
    redis_server: Server, fork: ForkServer, tmp_path: Path
) -> None:
    assert wrong_counts(tmp_path, redis_server, fork, ids=False)
