"""Discord's side of the network: its HTTP API, on a local port, and the payloads that its gateway
sends.
"""

from __future__ import annotations

import itertools
import json
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web

with warnings.catch_warnings():
    # Of its voice module, until Python 3.13, for which it brings the module along.
    warnings.filterwarnings("ignore", "'audioop' is deprecated", DeprecationWarning)
    import discord
    from discord import app_commands
    from discord.ext import commands

__all__ = [
    "CHANNELS",
    "GUILD",
    "DiscordApi",
    "app_commands",
    "click",
    "command",
    "commands",
    "discord",
    "discord_api",
    "message",
]

GUILD = "10"
CHANNELS = [str(number) for number in range(20, 30)]
_numbers = itertools.count(1_000)


def _user(id: str, **more: Any) -> dict[str, Any]:  # noqa: A002 - as Discord calls it
    return {"id": id, "username": f"user {id}", "discriminator": "0", "avatar": None, **more}


class DiscordApi:
    """What was posted, and the one client that is logged in."""

    def __init__(self) -> None:
        self.posted: list[tuple[str, str]] = []  # channel, or "interaction", and text
        self.deferred: list[str] = []  # ids of interactions

    async def answer(self, request: web.Request) -> web.Response:
        path = request.path.split("/")
        body = json.loads(await request.text() or "{}")
        reply: Any = None
        if path[-2:] == ["users", "@me"]:
            reply = _user("1", bot=True)
        elif path[-2:] == ["applications", "@me"]:
            reply = {"id": "2", "name": "bot", "description": "", "icon": None, "bot_public": True, "verify_key": ""}
            reply |= {"bot_require_code_grant": False, "flags": 0, "owner": _user("3")}
        elif path[-1] == "messages":
            self.posted.append((path[-2], body["content"]))
            reply = _message(path[-2], body["content"], "1", str(next(_numbers)))
        elif path[-1] == "callback" and body["type"] == 4:
            self.posted.append(("interaction", body["data"]["content"]))
            reply = {"interaction": {"id": path[-3], "type": 2}}
        elif path[-1] == "callback":
            self.deferred.append(path[-3])
            reply = {"interaction": {"id": path[-3], "type": 2}}
        elif request.method == "POST":  # a webhook's: what follows a deferred answer
            self.posted.append(("followup", body["content"]))
            reply = _message(CHANNELS[0], body["content"], "1", str(next(_numbers)))
        if reply is None:
            return web.Response(status=204)
        return web.Response(body=json.dumps(reply).encode(), headers={"Content-Type": "application/json"})

    async def log_in(self, client: discord.Client) -> None:
        """Log *client* in and tell it of its guild, as the gateway would."""
        await client.login("token")
        channels = [{"id": each, "type": 0, "name": f"channel-{each}", "position": 0} for each in CHANNELS]
        everyone = {"id": GUILD, "name": "@everyone", "permissions": "0", "position": 0, "color": 0}
        everyone |= {"hoist": False, "managed": False, "mentionable": False}
        guild = {"id": GUILD, "name": "guild", "channels": channels, "members": [], "roles": [everyone], "emojis": []}
        client._connection.parse_guild_create(guild | {"features": [], "owner_id": "3", "member_count": 1})  # type: ignore[arg-type]


@asynccontextmanager
async def discord_api() -> AsyncIterator[DiscordApi]:
    api = DiscordApi()
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", api.answer)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    away, discord.http.Route.BASE = discord.http.Route.BASE, f"http://127.0.0.1:{runner.addresses[0][1]}/api/v10"
    try:
        yield api
    finally:
        discord.http.Route.BASE = away
        await runner.cleanup()


def _message(channel: str, text: str, user: str, id: str) -> dict[str, Any]:  # noqa: A002
    stamp = "2026-01-01T00:00:00+00:00"
    data = {"id": id, "channel_id": channel, "content": text, "author": _user(user), "type": 0, "timestamp": stamp}
    data |= {"edited_timestamp": None, "tts": False, "mention_everyone": False, "mentions": [], "mention_roles": []}
    return data | {"attachments": [], "embeds": [], "pinned": False}


def _member() -> dict[str, Any]:
    return {"roles": [], "joined_at": "2026-01-01T00:00:00+00:00", "deaf": False, "mute": False, "flags": 0}


def message(text: str, *, user: str = "7", channel: str = CHANNELS[0], guild: str | None = GUILD) -> Any:
    """A user's message, for `parse_message_create`."""
    data = _message(channel, text, user, str(next(_numbers)))
    return data if guild is None else data | {"guild_id": guild, "member": _member()}


def command(name: str, *, user: str = "7", channel: str = CHANNELS[0], **options: int) -> Any:
    """A slash command, for `parse_interaction_create`."""
    given = [{"name": option, "type": 4, "value": value} for option, value in options.items()]
    return _interaction(2, {"id": "70", "name": name, "type": 1, "options": given}, user, channel)


def click(custom_id: str, *, user: str = "7", channel: str = CHANNELS[0]) -> Any:
    """A click on a button, for `parse_interaction_create`."""
    data = _interaction(3, {"custom_id": custom_id, "component_type": 2}, user, channel)
    return data | {"message": _message(channel, "press", "1", str(next(_numbers)))}


def _interaction(type: int, data: Any, user: str, channel: str) -> dict[str, Any]:  # noqa: A002
    return {
        "id": str(next(_numbers)),
        "application_id": "2",
        "type": type,
        "token": "tok",
        "version": 1,
        "guild_id": GUILD,
        "channel_id": channel,
        "channel": {"id": channel, "type": 0, "name": "channel", "position": 0, "permissions": "0"},
        "member": _member() | {"user": _user(user), "permissions": "0"},
        "data": data,
        "locale": "en-US",
        "entitlements": [],
        "authorizing_integration_owners": {},
        "context": 0,
        "attachment_size_limit": 10_000,
        "app_permissions": "0",
    }
