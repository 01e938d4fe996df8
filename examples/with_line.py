"""A LINE bot that asks for a name and remembers it, with line-bot-sdk v3.

    LINE_CHANNEL_SECRET=… LINE_ACCESS_TOKEN=… python examples/with_line.py

The webhook of the channel is /callback. Switch on "Use webhook" and "Webhook redelivery" in LINE's
console.
"""

import os
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import uvicorn
from linebot.v3.messaging import AsyncApiClient, AsyncMessagingApi, Configuration, ReplyMessageRequest, TextMessage
from starlette.applications import Starlette

from actorbot import Context, FileSessionStore, SessionManager
from actorbot.ext.asgi import lifespan, probe_routes, webhook_routes
from actorbot.ext.webhooks import Line

secret, token = os.environ.get("LINE_CHANNEL_SECRET"), os.environ.get("LINE_ACCESS_TOKEN")
if not secret or not token:
    sys.exit("set LINE_CHANNEL_SECRET and LINE_ACCESS_TOKEN: LINE's console shows both, on the page of the channel")

configuration = Configuration(access_token=token, host=os.environ.get("LINE_API", "https://api.line.me"))


async def handle(context: Context) -> None:
    event, session = context.event, context.session
    if not event.message.text or "replyToken" not in event.raw:  # no token: another bot answers in this channel now
        return
    if session.get("asking"):
        session["nickname"], session["asking"] = event.message.text, False
        answer = f"Hello {session['nickname']}"
    elif "nickname" in session:
        answer = f"You said {event.message.text!r}, {session['nickname']}"
    else:
        session["asking"] = True
        answer = "Hi, what's your nickname?"
    context.send(ReplyMessageRequest(replyToken=event.raw["replyToken"], messages=[TextMessage(text=answer)]))


async def deliver(session_id: str, request: ReplyMessageRequest) -> None:
    await app.state.line.reply_message(request)


@asynccontextmanager
async def running(app: Starlette) -> AsyncIterator[None]:
    # The client is closed last: a manager that closes still sends replies.
    async with AsyncApiClient(configuration) as client, lifespan(manager)(app):
        app.state.line = AsyncMessagingApi(client)
        yield


manager = SessionManager(FileSessionStore(".sessions"), handler=handle, deliver=deliver)
routes = [*webhook_routes(manager, {"/callback": Line(secret)}), *probe_routes(manager)]
app = Starlette(routes=routes, lifespan=running)

if __name__ == "__main__":
    uvicorn.run(app, port=int(os.environ.get("PORT", "8000")))
