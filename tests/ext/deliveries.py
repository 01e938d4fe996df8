"""Deliveries as the platforms make them: bodies, and headers with a true signature.

Posted in the process, or by hand as ASGI messages.
"""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import httpx

from actorbot.ext.webhooks import Line, Meta, Platform, Signed, Slack, Telegram

SECRET = "the-secret"
NOW = 1_700_000_000  # where a ManualClock begins

PLATFORMS: dict[str, Callable[..., Platform]] = {
    "telegram": lambda **options: Telegram(SECRET, **options),
    "slack": lambda **options: Slack(SECRET, **options),
    "line": lambda **options: Line(SECRET, **options),
    "meta": lambda **options: Meta(SECRET, "the-verify-token", **options),
    "signed": lambda **options: Signed(
        SECRET,
        **{"session_id": lambda payload: f"shop:{payload['user']}", "event_id": lambda payload: payload["id"]}
        | options,
        text=lambda payload: payload.get("text", ""),
        timestamp_header="X-Time",
    ),
}


def message(platform: str, user: int, number: int, text: str = "hi") -> dict[str, Any]:
    """What the platform posts when a user writes."""
    if platform == "telegram":
        return {"update_id": number, "message": {"chat": {"id": user}, "from": {"id": user}, "text": text}}
    if platform == "slack":
        event = {"type": "message", "channel": f"D{user}", "user": f"U{user}", "text": text}
        return {"type": "event_callback", "team_id": "T1", "event_id": f"Ev{number}", "event": event}
    if platform == "line":
        return {"destination": "Ubot", "events": [line_event(f"U{user}", number, text)]}
    if platform == "meta":
        item = {
            "sender": {"id": str(user)},
            "recipient": {"id": "page"},
            "message": {"mid": f"m{number}", "text": text},
        }
        return {"object": "page", "entry": [{"id": "page", "messaging": [item]}]}
    return {"user": user, "id": f"e{number}", "text": text}


def line_event(user: str, number: int, text: str = "hi") -> dict[str, Any]:
    """One event of a LINE delivery, with all that its SDK asks for."""
    return {
        "type": "message", "mode": "active", "timestamp": 1, "webhookEventId": f"W{number}", "replyToken": "r",
        "deliveryContext": {"isRedelivery": False}, "source": {"type": "user", "userId": user},
        "message": {"type": "text", "id": str(number), "quoteToken": "q", "text": text},
    }  # fmt: skip


SESSION = {
    "telegram": "telegram:7",
    "slack": "slack:T1:D7:U7",
    "line": "line:U7",
    "meta": "messenger:page:7",
    "signed": "shop:7",
}
"""The session of user 7."""


def sign(platform: str, body: bytes, *, at: int = NOW, secret: str = SECRET) -> dict[str, str]:
    """The headers of a delivery with this body."""

    def mac(signed: bytes) -> bytes:
        return hmac.digest(secret.encode(), signed, hashlib.sha256)

    headers = {"Content-Type": "application/json"}
    if platform == "telegram":
        return headers | {"X-Telegram-Bot-Api-Secret-Token": secret}
    if platform == "slack":
        stamp = str(at)
        given = "v0=" + mac(b"v0:" + stamp.encode() + b":" + body).hex()
        return headers | {"X-Slack-Request-Timestamp": stamp, "X-Slack-Signature": given}
    if platform == "line":
        return headers | {"X-Line-Signature": base64.b64encode(mac(body)).decode()}
    if platform == "meta":
        return headers | {"X-Hub-Signature-256": "sha256=" + mac(body).hex()}
    return headers | {"X-Time": str(at), "X-Signature-256": "sha256=" + mac(f"{at}.".encode() + body).hex()}


def encode(payload: Any) -> bytes:
    return json.dumps(payload).encode()


@asynccontextmanager
async def serving(app: Any) -> AsyncIterator[httpx.AsyncClient]:
    """A client of *app*, whose lifespan it is; nothing leaves the process."""
    async with app.router.lifespan_context(app), client_of(app) as client:
        yield client


def client_of(app: Any) -> httpx.AsyncClient:
    return httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://bot")


async def deliver(client: httpx.AsyncClient, platform: str, payload: Any, *, path: str = "") -> httpx.Response:
    """Post a delivery, signed."""
    body = encode(payload)
    return await client.post(path or f"/{platform}", content=body, headers=sign(platform, body))


async def post_by_hand(
    app: Any,
    path: str,
    headers: Iterable[tuple[bytes, bytes]],
    receive: Callable[[], Awaitable[dict[str, Any]]],
) -> int:
    """Call *app* as a server does, with the messages that *receive* gives; return the status."""
    sent: list[dict[str, Any]] = []

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http", "path": path,
        "raw_path": path.encode(), "query_string": b"", "root_path": "", "headers": list(headers), "client": ("::1", 1),
        "server": ("bot", 80),
    }  # fmt: skip
    await app(scope, receive, send)
    return int(sent[0]["status"])


def raw(headers: dict[str, str]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]


def messages(*chunks: bytes, gone: bool = False) -> Callable[[], Awaitable[dict[str, Any]]]:
    """What a server says while a body arrives: its chunks, and, with *gone*, that the client has
    left in the middle of it.
    """
    said = [{"type": "http.request", "body": chunk, "more_body": True} for chunk in chunks]
    said.append({"type": "http.disconnect"} if gone else {"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        return said.pop(0) if said else {"type": "http.disconnect"}

    return receive
