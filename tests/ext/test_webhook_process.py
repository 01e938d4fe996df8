"""The webhook example as a process: uvicorn, real HTTP on loopback, and what comes over a socket
without any manners.
"""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import pytest

from actorbot import SessionManager
from actorbot.stores import store_from_url
from tests import ROOT
from tests.ext.deliveries import SECRET, encode, message, sign
from tests.servers import redis_servers
from tests.waiting import Call, until_sync

COMMANDS = [
    [sys.executable, str(ROOT / "examples" / "webhook.py")],
    [sys.executable, "-m", "uvicorn", "examples.webhook:app", "--app-dir", str(ROOT), "--port", "0"],
]
SLOW = 20  # seconds that nothing here should take


class Server:
    """The example, running; what it prints in `printed`."""

    def __init__(self, command: list[str], folder: Path, **settings: str) -> None:
        environment = {"PORT": "0", "TELEGRAM_SECRET_TOKEN": SECRET, "SLACK_SIGNING_SECRET": SECRET} | settings
        self.process = subprocess.Popen(
            command, cwd=folder, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            env=os.environ | environment, start_new_session=True,
        )  # fmt: skip
        assert self.process.stderr is not None
        self.log: list[str] = []
        for line in self.process.stderr:
            self.log.append(line)
            if found := re.search(r"running on http://127\.0\.0\.1:(\d+)", line):
                break
        else:
            raise AssertionError("".join(self.log))
        self.port = int(found[1])

    def post(self, platform: str, body: bytes, headers: dict[str, str], **options: Any) -> int:
        url = f"http://127.0.0.1:{self.port}/{platform}"
        return httpx.post(url, content=body, headers=headers, timeout=SLOW, **options).status_code

    def ready(self) -> int:
        return httpx.get(f"http://127.0.0.1:{self.port}/readyz", timeout=SLOW).status_code

    def deliver(self, platform: str, user: int, number: int) -> int:
        body = encode(message(platform, user, number))
        return self.post(platform, body, sign(platform, body, at=int(time.time())))

    def raw(self, request: bytes, *, close: bool = False) -> bytes:
        """Send bytes, and return what comes back until the server closes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=SLOW) as connection:
            connection.sendall(request)
            if close:
                return b""
            answer = b""
            while piece := connection.recv(65_536):
                answer += piece
            return answer

    def end(self) -> str:
        """Tell it to end, as a supervisor does, and return what it printed."""
        self.process.send_signal(signal.SIGTERM)
        printed, log = self.process.communicate(timeout=SLOW)
        assert self.process.returncode in {0, -signal.SIGTERM}
        assert "Traceback" not in log
        assert "Application shutdown complete" in log
        return printed


@contextmanager
def running(command: list[str], folder: Path, **settings: str) -> Iterator[Server]:
    server = Server(command, folder, **settings)
    try:
        yield server
    finally:
        with suppress(ProcessLookupError):
            os.killpg(server.process.pid, signal.SIGKILL)  # with its workers
        server.process.communicate()


@contextmanager
def telegram_api() -> Iterator[tuple[str, Queue[Any]]]:
    """Telegram's side of `sendMessage`: an address, and what arrives there."""
    arrived: Queue[Any] = Queue()

    class Api(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            arrived.put((self.path, json.loads(self.rfile.read(int(self.headers["Content-Length"])))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Api) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}", arrived
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("command", COMMANDS, ids=["python", "uvicorn"])
def test_the_example_answers_and_remembers_over_a_restart(command: list[str], tmp_path: Path) -> None:
    with (
        telegram_api() as (api, arrived),
        running(command, tmp_path, TELEGRAM_TOKEN="t", TELEGRAM_API=api) as server,
    ):
        assert server.deliver("telegram", 7, 1) == 200
        assert server.deliver("telegram", 7, 1) == 200
        assert arrived.get(timeout=SLOW) == (
            "/bott/sendMessage",
            {"chat_id": 7, "text": "'hi' is your message number 1"},
        )
        assert httpx.get(f"http://127.0.0.1:{server.port}/readyz").json() == {"status": "ready"}
        server.end()
        assert arrived.empty()

    with running(command, tmp_path) as server:
        assert server.deliver("telegram", 7, 2) == 200
        assert server.deliver("telegram", 7, 1) == 200  # of before the restart
        assert server.deliver("slack", 7, 1) == 200
        printed = server.end()
    assert "telegram:7: 'hi' is your message number 2\n" in printed
    assert "number 3" not in printed
    assert "slack:T1:D7:U7: 'hi' is your message number 1\n" in printed


def test_a_stranger_at_the_socket_gets_nowhere_and_stops_nobody(tmp_path: Path) -> None:
    body = encode(message("telegram", 7, 1))
    head = f"POST /telegram HTTP/1.1\r\nHost: bot\r\nContent-Type: application/json\r\nX-Telegram-Bot-Api-Secret-Token: {SECRET}\r\n"

    def said(answer: bytes) -> int:
        return int(answer.split(b" ")[1])

    with running(COMMANDS[0], tmp_path) as server:
        headers = sign("telegram", body)
        assert server.post("telegram", body, headers | {"X-Telegram-Bot-Api-Secret-Token": "x"}) == 401
        assert server.post("slack", body, sign("slack", body, at=int(time.time()) - 301)) == 401
        big = f"{head}Content-Length: 2000000\r\n\r\n".encode()
        assert said(server.raw(big + b"x" * 1000)) == 413  # answered, and closed, while the rest has not been sent
        endless = f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + (b"10000\r\n" + b"x" * 65_536 + b"\r\n") * 17
        assert said(server.raw(endless)) == 413  # no end of it in sight
        for lie in (b"5", b"5000"):
            sent = head.encode() + b"Content-Length: " + lie + b"\r\n\r\n" + body
            if lie == b"5":
                assert said(server.raw(sent)) == 400  # a cut body
            else:
                server.raw(sent, close=True)  # it waits for more, and the client goes away
        assert said(server.raw(head.encode() + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\n" + body)) == 400
        assert server.deliver("telegram", 7, 2) == 200
        assert "telegram:7: 'hi' is your message number 1\n" in server.end()


@pytest.mark.parametrize("command", COMMANDS, ids=["python", "uvicorn"])
def test_without_a_secret_the_example_says_what_is_missing(command: list[str], tmp_path: Path) -> None:
    environment = os.environ | {"TELEGRAM_SECRET_TOKEN": "", "SLACK_SIGNING_SECRET": "", "META_APP_SECRET": ""}
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False, env=environment
    )

    assert done.returncode == 1
    assert done.stderr.strip().startswith("set TELEGRAM_SECRET_TOKEN")
    assert len(done.stderr.splitlines()) == 1


def test_without_the_verify_token_of_meta_the_example_says_what_is_missing(tmp_path: Path) -> None:
    environment = os.environ | {"META_APP_SECRET": SECRET, "META_VERIFY_TOKEN": ""}
    done = subprocess.run(
        COMMANDS[0], cwd=tmp_path, capture_output=True, text=True, timeout=30, check=False, env=environment
    )

    assert done.returncode == 1
    assert "META_VERIFY_TOKEN" in done.stderr
    assert len(done.stderr.splitlines()) == 1


# --- another process owns the store -------------------------------------------------------------

TWO_WORKERS = """
from actorbot import SessionManager
from actorbot.ext.asgi import webhook_app
from actorbot.ext.webhooks import Telegram
from actorbot.stores import store_from_url

def handle(context):
    context.session["n"] = context.session.get("n", 0) + 1

manager = SessionManager(store_from_url({url!r}), handler=handle, takeover_timeout=0.5)
app = webhook_app(manager, {{"/telegram": Telegram({secret!r})}})
"""

ONE_PORT = """
import socket, sys, uvicorn
from two_workers import app

listening = socket.socket()
listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
listening.bind(("127.0.0.1", int(sys.argv[1])))
print(f"running on http://127.0.0.1:{sys.argv[1]}", file=sys.stderr)
uvicorn.Server(uvicorn.Config(app)).run(sockets=[listening])
"""


@pytest.fixture
def url(tmp_path: Path) -> str:
    """A store of the test's own."""
    return f"{redis_servers.shared().url}?key_prefix={tmp_path.name}:"


def test_a_deploy_hands_the_sessions_from_the_old_process_to_the_new_one(url: str, tmp_path: Path) -> None:
    with running(COMMANDS[0], tmp_path, STORE=url) as old:
        until_sync(lambda: old.ready() == 200)
        with running(COMMANDS[0], tmp_path, STORE=url) as new:
            assert (old.ready(), new.ready()) == (200, 503)
            assert new.deliver("telegram", 7, 1) == 503
            assert old.deliver("telegram", 7, 1) == 200
            printed = old.end()
            until_sync(lambda: new.ready() == 200)
            assert new.deliver("telegram", 7, 1) == 200  # a duplicate
            assert new.deliver("telegram", 7, 2) == 200
            printed += new.end()
    assert "not ready yet" in "".join(new.log)
    assert [line for line in printed.splitlines() if "telegram:7" in line] == [
        "telegram:7: 'hi' is your message number 1",
        "telegram:7: 'hi' is your message number 2",
    ]


def test_a_server_that_is_told_to_end_while_it_waits_ends_at_once(url: str, tmp_path: Path) -> None:
    with running(COMMANDS[0], tmp_path, STORE=url) as old, running(COMMANDS[0], tmp_path, STORE=url) as new:
        until_sync(lambda: (old.ready(), new.ready()) == (200, 503))
        new.end()
        assert old.deliver("telegram", 7, 1) == 200


@pytest.mark.long
def test_deploys_on_one_port_under_load_count_every_event_once(url: str, tmp_path: Path) -> None:
    (tmp_path / "two_workers.py").write_text(TWO_WORKERS.format(url=url, secret=SECRET).replace("0.5", "30.0"))
    (tmp_path / "serve.py").write_text(ONE_PORT)
    port = redis_servers.free_port()
    command = [sys.executable, "serve.py", str(port)]
    accepted, ends = 0, threading.Event()
    body = encode(message("telegram", 7, 0))

    def send() -> None:  # as a platform does: one event after the other, each until it is answered 200
        nonlocal accepted
        while not ends.is_set():
            sent = body.replace(b'"update_id": 0', b'"update_id": %d' % accepted)
            try:
                answer = httpx.post(f"http://127.0.0.1:{port}/telegram", content=sent, headers=sign("telegram", sent))
            except httpx.TransportError:  # a server that has just ended
                continue
            assert answer.status_code in {200, 503}
            accepted += answer.status_code == 200

    with ExitStack() as stack:
        old = stack.enter_context(running(command, tmp_path))
        sender = Call(send)
        until_sync(lambda: accepted > 10)
        for _ in range(3):
            new = stack.enter_context(running(command, tmp_path))
            while "not ready yet" not in new.log[-1]:
                assert new.process.stderr is not None
                new.log.append(new.process.stderr.readline())
            before = accepted
            old.end()
            until_sync(lambda before=before: accepted > before + 10)  # type: ignore[misc]
            old = new
        ends.set()
        sender.result()
        old.end()
    with SessionManager(store_from_url(url)) as manager:
        assert (manager.peek_sync("telegram:7") or {})["n"] == accepted


@pytest.mark.long
def test_of_two_workers_one_serves_and_the_other_says_why_it_does_not(url: str, tmp_path: Path) -> None:
    (tmp_path / "two_workers.py").write_text(TWO_WORKERS.format(url=url, secret=SECRET))
    port = str(redis_servers.free_port())
    command = [sys.executable, "-m", "uvicorn", "two_workers:app", "--workers", "2", "--port", port]
    with running(command, tmp_path) as server:

        def delivered(number: int) -> bool:
            try:
                return server.deliver("telegram", 7, number) == 200
            except httpx.TransportError:  # a worker that begins, or ends
                return False

        for number in range(50):  # the platform tries again until it is answered 200
            until_sync(partial(delivered, number))
        assert server.process.stderr is not None
        said = ""
        while "died" not in said:  # uvicorn starts another in its place
            said += server.process.stderr.readline()
        assert "told to end (SIGTERM)" in said
        assert "write_through" in said
        until_sync(partial(delivered, 50))
        os.killpg(server.process.pid, signal.SIGTERM)
        server.process.communicate(timeout=SLOW)
    with SessionManager(store_from_url(url)) as manager:
        assert (manager.peek_sync("telegram:7") or {})["n"] == 51
