"""A Slack bot that counts what each user says to it, in Socket Mode: no public address is needed.

SLACK_BOT_TOKEN=xoxb-... SLACK_APP_TOKEN=xapp-... python examples/with_slack_bolt.py

The app needs the event `message.channels` and the scopes `channels:history` and `chat:write`.
Install: pip install '.[slack]' in a clone
"""

import asyncio
import contextlib
import os
import signal
import sys
from typing import Any

from slack_bolt.adapter.socket_mode.aiohttp import AsyncSocketModeHandler
from slack_bolt.async_app import AsyncApp

from actorbot import Context, FileSessionStore, SessionManager
from actorbot.ext.slack import in_turn


def make_bot(token: str) -> tuple[AsyncApp, SessionManager]:
    app = AsyncApp(token=token)

    async def deliver(session_id: str, text: str) -> None:
        await app.client.chat_postMessage(channel=session_id.split(":")[2], text=text)

    manager = SessionManager(FileSessionStore(".sessions"), deliver=deliver)

    @app.message("")  # any text
    @in_turn(manager)
    async def count(session: Any, turn: Context) -> None:
        session["n"] = session.get("n", 0) + 1
        turn.send_text(f"That was number {session['n']}")  # is sent when the count is safe

    return app, manager


async def main(token: str, app_token: str) -> None:
    app, manager = make_bot(token)
    task = asyncio.current_task()
    assert task is not None
    with contextlib.suppress(NotImplementedError):  # Windows has no such handler; Ctrl-C works
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, task.cancel)
    async with manager:
        handler = AsyncSocketModeHandler(app, app_token)
        try:
            await handler.start_async()
        finally:
            await handler.close_async()


if __name__ == "__main__":
    try:
        tokens = os.environ["SLACK_BOT_TOKEN"], os.environ["SLACK_APP_TOKEN"]
    except KeyError as missing:
        sys.exit(f"with_slack_bolt.py needs the environment variable {missing.args[0]}")
    try:
        asyncio.run(main(*tokens))
    except (asyncio.CancelledError, KeyboardInterrupt):
        print("stopped; everything is in the store")
