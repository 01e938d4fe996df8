"""A bot behind webhooks: it counts what each user writes.

    TELEGRAM_SECRET_TOKEN=… uvicorn examples.webhook:app
    TELEGRAM_SECRET_TOKEN=… python examples/webhook.py       (the same)

Set the secrets of your platforms: TELEGRAM_SECRET_TOKEN, SLACK_SIGNING_SECRET, or META_APP_SECRET
with META_VERIFY_TOKEN. The paths are /telegram, /slack and /meta. With TELEGRAM_TOKEN replies to
Telegram are sent there; all other replies are printed.

The sessions are files in `.sessions`, which one process has at a time. For a deploy without a gap
set STORE to the URL of a Redis, say redis://localhost/0: start the new process, then end the old
one with SIGTERM. The new one answers 503 until it has the sessions, and a platform tries again.
"""

import json
import os
import sys
import urllib.request

import uvicorn

from actorbot import Context, SessionManager
from actorbot.ext.asgi import webhook_app
from actorbot.ext.webhooks import Meta, Platform, Slack, Telegram
from actorbot.stores import store_from_url

settings = os.environ
platforms: dict[str, Platform] = {}
if secret := settings.get("TELEGRAM_SECRET_TOKEN"):
    platforms["/telegram"] = Telegram(secret)
if secret := settings.get("SLACK_SIGNING_SECRET"):
    platforms["/slack"] = Slack(secret, answer="accepted")  # Slack wants its answer within 3 s
if secret := settings.get("META_APP_SECRET"):
    verify_token = settings.get("META_VERIFY_TOKEN") or sys.exit(
        "set META_VERIFY_TOKEN: what you type into Meta's dashboard"
    )
    platforms["/meta"] = Meta(secret, verify_token)
if not platforms:
    sys.exit(
        "set TELEGRAM_SECRET_TOKEN, SLACK_SIGNING_SECRET or META_APP_SECRET: what the platform signs its webhooks with"
    )


async def handle(context: Context) -> None:
    context.session["count"] = context.session.get("count", 0) + 1
    context.send_text(f"{context.event.message.text!r} is your message number {context.session['count']}")


def deliver(session_id: str, text: str) -> None:
    platform, _, user = session_id.partition(":")
    token = settings.get("TELEGRAM_TOKEN")
    if platform != "telegram" or not token:
        print(f"{session_id}: {text}", flush=True)
        return
    api = settings.get("TELEGRAM_API", "https://api.telegram.org")
    request = urllib.request.Request(
        f"{api}/bot{token}/sendMessage",
        json.dumps({"chat_id": int(user), "text": text}).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=10):
        pass


store = store_from_url(settings.get("STORE", "file://.sessions"))
manager = SessionManager(store, handler=handle, deliver=deliver)
app = webhook_app(manager, platforms)

if __name__ == "__main__":
    uvicorn.run(app, port=int(settings.get("PORT", "8000")))
