"""Every example runs as a process, and says what it is there to show."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections import defaultdict
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import httpx
import pytest

from actorbot import Event, FlushPolicy, SessionManager
from actorbot.cluster import Cluster
from actorbot.errors import ActorbotError, StoreLockedError, StoreUnavailableError
from actorbot.stores import Write
from actorbot.testing import StoreContract
from examples.record_store import SqliteRecordStore
from tests import ROOT
from tests.handlers import count
from tests.servers import mongo_servers, redis_servers
from tests.servers.redis_servers import QUICK, Server, free_port
from tests.tiers import tiers
from tests.waiting import HANGS, soon, until, until_sync

EXAMPLES = ROOT / "examples"
AUDIOOP = ["-W", "error", "-W", "ignore:'audioop' is deprecated:DeprecationWarning"]  # discord.py's, until Python 3.13


def run(example: str, folder: Path, lines: str = "", **environment: str) -> str:
    """Run an example to its end and return what it printed; it must not complain."""
    done = subprocess.run(
        [sys.executable, "-W", "error", str(EXAMPLES / example)],
        input=lines, cwd=folder, capture_output=True, text=True, timeout=30, check=False, env=os.environ | environment,
    )  # fmt: skip
    assert (done.stderr, done.returncode) == ("", 0)
    return done.stdout


def test_no_example_is_left_untested() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")

    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.name}"' in tests, example.name


def test_with_memory_session(tmp_path: Path) -> None:
    for _ in range(2):  # the second run has forgotten
        assert run("with_memory_session.py", tmp_path, "Hi\nTim\n") == (
            "You > Hi\nBot > Hi, what's your nickname?\nYou > Tim\nBot > Hello Tim\nYou > \n"
        )


def test_with_file_session(tmp_path: Path) -> None:
    assert run("with_file_session.py", tmp_path, "Hi\nTim\n") == (
        "You > Hi\nBot > Hi, what's your nickname?\nYou > Tim\nBot > Hello Tim\nYou > \n"
    )
    assert (
        run("with_file_session.py", tmp_path, "It rains\n/quit\n")
        == "You > It rains\nBot > You said 'It rains', Tim\nYou > /quit\n"
    )
    assert (tmp_path / ".sessions").is_dir()


@pytest.mark.parametrize("kind", redis_servers.KINDS)
def test_with_redis_session(kind: str, tmp_path: Path) -> None:
    url = redis_servers.shared(kind).url.removesuffix("0") + "1"  # a database of its own
    assert run("with_redis_session.py", tmp_path, "Hi\nTim\n", REDIS_URL=url) == (
        "You > Hi\nBot > Hi, what's your nickname?\nYou > Tim\nBot > Hello Tim\nYou > \n"
    )
    assert run("with_redis_session.py", tmp_path, "It rains\n/quit\n", REDIS_URL=url) == (
        "You > It rains\nBot > You said 'It rains', Tim\nYou > /quit\n"
    )


def test_with_mongo_session(tmp_path: Path) -> None:
    url = mongo_servers.shared().url  # in its database `actorbot` no other test keeps sessions
    assert run("with_mongo_session.py", tmp_path, "Hi\nTim\n", MONGO_URL=url) == (
        "You > Hi\nBot > Hi, what's your nickname?\nYou > Tim\nBot > Hello Tim\nYou > \n"
    )
    assert run("with_mongo_session.py", tmp_path, "It rains\n/quit\n", MONGO_URL=url) == (
        "You > It rains\nBot > You said 'It rains', Tim\nYou > /quit\n"
    )
    with mongo_servers.shared().client() as client:
        assert client["actorbot"]["sessions"].find_one({"state.nickname": "Tim"})["_id"] == "console:1"


def test_custom_store(tmp_path: Path) -> None:
    assert run("custom_store.py", tmp_path, "a\nb\n") == (
        "You > a\nBot > That was number 1\nYou > b\nBot > That was number 2\nYou > \n"
    )
    assert run("custom_store.py", tmp_path, "c\n") == "You > c\nBot > That was number 3\nYou > \n"


def test_record_store(tmp_path: Path) -> None:
    assert run("record_store.py", tmp_path, "a\nb\n") == (
        "You > a\nBot > That was number 1\nYou > b\nBot > That was number 2\nYou > \n"
    )
    assert run("record_store.py", tmp_path, "c\n") == "You > c\nBot > That was number 3\nYou > \n"


class TestTheExampleOfARecordStore(StoreContract):
    persistent = True

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.path = str(tmp_path / "sessions.db")

    def make_store(self) -> SqliteRecordStore:
        return SqliteRecordStore(self.path)

    def make_store_beside(self) -> SqliteRecordStore:
        return SqliteRecordStore(f"{self.path}.beside")

    def break_store(self, store: SqliteRecordStore) -> None:
        for table in ("sessions", "lease"):
            store.writer.execute(f"drop table {table}")


async def test_of_two_bots_with_the_example_of_a_record_store_one_owns_it(tmp_path: Path) -> None:
    path = str(tmp_path / "sessions.db")
    async with SessionManager(SqliteRecordStore(path), handler=count) as first:
        assert await first.dispatch("ann", "hi") == 1
        with pytest.raises(StoreLockedError, match=f"process {os.getpid()} on "):
            await SessionManager(SqliteRecordStore(path), handler=count, takeover_timeout=0.1).start()
        second = SessionManager(SqliteRecordStore(path), handler=count)
        starting = asyncio.create_task(second.start())
        await until(lambda: "owner of its store: process" in second.health().reason)

    await soon(starting)
    assert await second.dispatch("ann", "hi") == 2
    await second.close()


def test_a_killed_bot_with_the_example_of_a_record_store_is_followed_at_once(tmp_path: Path) -> None:
    store = SqliteRecordStore(str(tmp_path / "sessions.db"))
    with subprocess.Popen(
        [sys.executable, str(EXAMPLES / "record_store.py")], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as bot:
        try:
            assert bot.stdin is not None
            assert bot.stdout is not None
            bot.stdin.write(b"a\n")
            bot.stdin.flush()
            assert bot.stdout.read(len("You > a\nBot > ")).startswith(b"You > a")
            with pytest.raises(StoreLockedError, match=rf"process {bot.pid} on .*\(record_store.py\), exclusive"):
                SessionManager(store, handler=count, takeover_timeout=0.1).start_sync()
        finally:
            bot.kill()
            bot.wait(HANGS)

    with SessionManager(store, handler=count, takeover_timeout=0.1) as manager:
        assert manager.dispatch_sync("ann", "hi") == 1


async def test_the_example_of_a_record_store_stores_all_but_what_it_cannot(tmp_path: Path) -> None:
    class Refusing(SqliteRecordStore):
        def write_one(self, write: Write) -> ActorbotError | None:
            if write.record.session_id == "bad":
                raise ValueError("a record that this database cannot store")
            return super().write_one(write)

    store = Refusing(str(tmp_path / "sessions.db"))
    policy = FlushPolicy.parse("write-behind:max_delay=60,retry.attempts=1")
    async with SessionManager(store, handler=count, flush=policy, close_timeout=0.2) as manager:
        for user in ("ann", "bad", "bob"):
            await manager.dispatch(user, "hi")
        with pytest.raises(StoreUnavailableError, match="'bad'"):
            await manager.flush()
        assert store.count() == 2


def test_embed_asyncio(tmp_path: Path) -> None:
    printed = run("embed_asyncio.py", tmp_path, "ann hi\nbob ho\nann hey\n").splitlines()

    assert [line for line in printed if line.startswith("demo:ann")] == [
        "demo:ann: 'hi' is your event number 1",
        "demo:ann: 'hey' is your event number 2",
    ]
    assert "demo:bob: 'ho' is your event number 1" in printed
    assert printed[-1] == "everything is in the store"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_embed_asyncio_ends_well_on_a_signal(number: signal.Signals, tmp_path: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-W", "error", str(EXAMPLES / "embed_asyncio.py")],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, text=True,
    ) as process:  # fmt: skip
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdin.write("ann hi\n")
        process.stdin.flush()
        assert process.stdout.readline() == "demo:ann: 'hi' is your event number 1\n"
        process.send_signal(number)
        assert process.stdout.readline() == "stopping: finishing what was accepted\n"
        # Not `communicate`: that would miss the lines that have come together with the one above.
        printed, complaints = process.stdout.read(), process.stderr.read()

    assert printed == "everything is in the store\n"
    assert (complaints, process.returncode) == ("", 0)
    assert "demo:ann: 'hey' is your event number 2" in run("embed_asyncio.py", tmp_path, "ann hey\n")


def test_embed_threads(tmp_path: Path) -> None:
    assert run("embed_threads.py", tmp_path) == "1000 events from 8 threads, counted 1000\n"


def test_flush_policies(tmp_path: Path) -> None:
    writes = [int(number) for number in re.findall(r": 100 events, (\d+) writes", run("flush_policies.py", tmp_path))]

    through, behind, often, journaled = writes
    assert through == 100
    assert behind < often < 100
    assert journaled < 100


# --- a cluster ------------------------------------------------------------------------------------


class Telegram(ThreadingHTTPServer):
    """Has updates for who polls, and notes what is sent."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Api)
        self.updates: list[dict[str, object]] = []
        self.confirmed = 0
        self.sent: dict[int, list[str]] = defaultdict(list)

    def message(self, user: int, text: str) -> dict[str, object]:
        update_id = len(self.updates) + 1
        update = {"update_id": update_id, "message": {"message_id": update_id, "chat": {"id": user}, "text": text}}
        self.updates.append(update)
        return update


class _Api(BaseHTTPRequestHandler):
    server: Telegram

    def do_GET(self) -> None:  # getUpdates
        offset = int(parse_qs(urlsplit(self.path).query)["offset"][0])
        self.server.confirmed = max(self.server.confirmed, offset - 1)
        self._answer(self.server.updates[self.server.confirmed :][:2])

    def do_POST(self) -> None:  # sendMessage
        sent = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.sent[sent["chat_id"]].append(sent["text"])
        self._answer(True)

    def _answer(self, result: object) -> None:
        body = json.dumps({"ok": True, "result": result}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def telegram() -> Iterator[Telegram]:
    with Telegram() as api:
        thread = threading.Thread(target=api.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield api
        api.shutdown()
        thread.join()


@contextmanager
def running(*command: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    process = subprocess.Popen([sys.executable, *command], cwd=EXAMPLES, env=os.environ | environment)
    try:
        yield process
    finally:
        process.terminate()
        process.wait(HANGS)


@pytest.mark.long
def test_the_poller_of_a_cluster_loses_nothing_and_repeats_nothing_when_it_is_killed(
    telegram: Telegram, tmp_path: Path
) -> None:
    with Server(QUICK, tmp_path) as server:
        api = f"http://127.0.0.1:{telegram.server_port}"
        settings = {"REDIS_URL": server.url, "TELEGRAM_TOKEN": "42:TEST", "TELEGRAM_API": api}
        with running("cluster_bot.py", **settings) as bot:
            for number in range(1, 4):
                telegram.message(7, f"a{number}")
                telegram.message(8, f"b{number}")
            with running("cluster_poller.py", **settings) as poller:
                until_sync(lambda: telegram.confirmed >= 2)
                poller.kill()
            telegram.confirmed -= 1  # as if it had been killed before it could confirm that one
            with running("cluster_poller.py", **settings):
                until_sync(lambda: sum(map(len, telegram.sent.values())) == 6 and telegram.confirmed == 6)
        assert bot.returncode == 0
    assert telegram.sent == {
        7: [f"'a{number}' is your message number {number}" for number in range(1, 4)],
        8: [f"'b{number}' is your message number {number}" for number in range(1, 4)],
    }


@pytest.mark.long
def test_two_web_workers_and_two_shards_of_a_cluster_count_what_comes_twice_once(
    telegram: Telegram, tmp_path: Path
) -> None:
    port = free_port()
    with Server(QUICK, tmp_path) as server:
        api = f"http://127.0.0.1:{telegram.server_port}"
        settings = {"REDIS_URL": server.url, "TELEGRAM_TOKEN": "42:TEST", "TELEGRAM_API": api}
        signed = {"TELEGRAM_SECRET_TOKEN": "s3cret"}
        with (
            running("-m", "actorbot", "cluster", "run", "cluster_bot:make_shard", "--shards", "2", **settings) as bot,
            running(
                "-m", "uvicorn", "cluster_web:app", "--workers", "2", "--port", str(port), **settings, **signed
            ) as web,
            httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=HANGS) as client,
        ):
            until_sync(lambda: web.poll() is not None or is_ready(client))
            for update in [telegram.message(user, "hi") for user in range(10) for _ in range(3)]:
                for _ in range(2):
                    headers = {"X-Telegram-Bot-Api-Secret-Token": "s3cret"}
                    assert client.post("/telegram", json=update, headers=headers).status_code == 200
            with Cluster(server.url, cluster="mybot") as cluster:
                until_sync(lambda: all(len(telegram.sent[user]) == 3 for user in range(10)))
                assert [cluster.peek_sync(f"telegram:{user}") for user in range(10)] == [{"count": 3}] * 10
        assert bot.returncode == 0
    assert all(len(telegram.sent[user]) == 3 for user in range(10))


def is_ready(client: httpx.Client) -> bool:
    try:
        return client.get("/readyz").status_code == 200
    except httpx.TransportError:
        return False


def test_the_bot_of_a_cluster_runs_by_the_command_and_answers(tmp_path: Path) -> None:
    with Server(QUICK, tmp_path) as server:
        with (
            running("-m", "actorbot", "cluster", "run", "cluster_bot:make_shard", REDIS_URL=server.url) as bot,
            Cluster(server.url, cluster="mybot") as cluster,
        ):
            assert [cluster.dispatch_sync("console:1", Event.from_text("hi")) for _ in range(2)] == [1, 2]
        assert bot.returncode == 0


@pytest.mark.parametrize(
    ("example", "missing"),
    tiers(
        [
            ("webhook.py", "TELEGRAM_SECRET_TOKEN"),
            ("cluster_poller.py", "TELEGRAM_TOKEN"),
            ("cluster_web.py", "TELEGRAM_SECRET_TOKEN"),
            ("with_aiogram.py", "TELEGRAM_TOKEN"),
            ("with_discord.py", "DISCORD_TOKEN"),
            ("with_line.py", "LINE_CHANNEL_SECRET"),
            ("with_openai_agents.py", "OPENAI_API_KEY"),
            ("with_python_telegram_bot.py", "TELEGRAM_TOKEN"),
            ("with_slack_bolt.py", "SLACK_BOT_TOKEN"),
        ]
    ),
)
def test_an_example_for_a_bot_library_says_which_variable_it_misses(  # what it does: tests/ext
    example: str, missing: str, tmp_path: Path
) -> None:
    environment = {
        name: value for name, value in os.environ.items() if not name.endswith(("_KEY", "_SECRET", "_TOKEN"))
    }
    done = subprocess.run(
        [sys.executable, *AUDIOOP, str(EXAMPLES / example)],
        cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False, env=environment,
    )  # fmt: skip
    assert (done.stdout, done.returncode) == ("", 1)
    assert missing in done.stderr
    assert done.stderr.count("\n") == 1
