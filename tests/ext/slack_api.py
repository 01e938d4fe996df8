"""Slack's side of the network: the web API that Bolt's clients call, on a local port, and the
signed requests that Slack sends.
"""

from __future__ import annotations

import itertools
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlencode

from slack_sdk.signature import SignatureVerifier

SECRET = "a signing secret"
_numbers = itertools.count(1)


class SlackApi:
    """What was posted, and where clients find the API."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.posted: list[tuple[str, str]] = []  # channel and text, in the order of arrival
        self.changed = threading.Condition()

    def wait_for(self, number: int) -> None:
        """Block until so many messages were posted."""
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.posted) >= number, timeout=20.0), self.posted


@contextmanager
def slack_api() -> Iterator[SlackApi]:
    class Answer(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            raw = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            if self.headers.get("Content-Type", "").startswith("application/json"):
                fields = json.loads(raw)
            else:
                fields = {name: values[0] for name, values in parse_qs(raw).items()}
            if self.path.endswith("chat.postMessage"):
                with api.changed:
                    api.posted.append((fields["channel"], fields["text"]))
                    api.changed.notify_all()
            answer = {"ok": True, "team_id": "T1", "user_id": "UBOT", "bot_id": "BBOT", "url": "https://x.slack.com/"}
            body = json.dumps(answer).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self) -> None:
            self.do_POST()

        def log_message(self, *_: Any) -> None:
            pass

    class Server(ThreadingHTTPServer):
        request_queue_size = 256
        daemon_threads = True

    with Server(("127.0.0.1", 0), Answer) as server:
        api = SlackApi(f"http://127.0.0.1:{server.server_port}/api/")
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        try:
            yield api
        finally:
            server.shutdown()
            thread.join()


def signed(body: str, content_type: str = "application/json", **headers: str) -> dict[str, Any]:
    """Return *body* with the headers that Slack sends with it, as a Bolt request takes them."""
    stamp = str(int(time.time()))
    signature = SignatureVerifier(SECRET).generate_signature(timestamp=stamp, body=body)
    return {
        "body": body,
        "headers": {
            "Content-Type": content_type,
            "X-Slack-Signature": signature,
            "X-Slack-Request-Timestamp": stamp,
            **headers,
        },
    }


def message(text: str, *, user: str = "U1", channel: str = "C1", event_id: str | None = None, **headers: str) -> Any:
    """A user's message, as the Events API delivers it."""
    number = next(_numbers)
    event = {"type": "message", "text": text, "user": user, "channel": channel, "ts": f"17.{number}", "team": "T1"}
    body = {
        "type": "event_callback",
        "team_id": "T1",
        "api_app_id": "A1",
        "event": event,
        "event_id": event_id or f"Ev{number}",
        "authorizations": [{"team_id": "T1", "user_id": "UBOT", "is_bot": True, "enterprise_id": None}],
    }
    return signed(json.dumps(body), **headers)


def again(request: Any) -> Any:
    """The same event once more, as Slack delivers it when it has not seen an answer in time."""
    return signed(request["body"], **{"X-Slack-Retry-Num": "1", "X-Slack-Retry-Reason": "http_timeout"})


def command(name: str, *, user: str = "U1", channel: str = "C1") -> Any:
    """A slash command."""
    fields = {"command": name, "text": "", "user_id": user, "channel_id": channel, "team_id": "T1"}
    fields["trigger_id"] = f"trigger.{next(_numbers)}"
    fields["response_url"] = "http://127.0.0.1:9/unused"
    return signed(urlencode(fields), "application/x-www-form-urlencoded")


def submission(callback_id: str, *, user: str = "U1") -> Any:
    """A modal that its user has sent off: it belongs to no channel."""
    payload = {
        "type": "view_submission",
        "team": {"id": "T1"},
        "user": {"id": user, "team_id": "T1"},
        "trigger_id": f"trigger.{next(_numbers)}",
        "view": {"type": "modal", "callback_id": callback_id, "state": {"values": {}}, "private_metadata": ""},
    }
    return signed(urlencode({"payload": json.dumps(payload)}), "application/x-www-form-urlencoded")
