"""A bot of several processes, on a laptop or on ten machines: it counts what each user writes.

    actorbot cluster run examples.cluster_bot:make_shard --shards 2
    actorbot cluster status redis://localhost/0 mybot

Set REDIS_URL if your Redis is elsewhere; on a laptop without one the command starts one, if the
extra `servers` is installed. Run the same command on each machine: shards that have one URL divide
the users among themselves, and take over those of a shard that has gone. Send events by
`cluster_web.py` or `cluster_poller.py`. With TELEGRAM_TOKEN replies are sent to Telegram; without
it they are printed.
"""

import json
import os
import urllib.request

from actorbot import Context, RedisSessionStore
from actorbot.cluster import Shard

REDIS_URL = os.environ.get("REDIS_URL", "redis://localhost/0")


async def handle(context: Context) -> int:
    count: int = context.session.get("count", 0) + 1
    context.session["count"] = count
    context.send_text(f"{context.event.message.text!r} is your message number {count}")
    return count


def deliver(session_id: str, text: str) -> None:
    token = os.environ.get("TELEGRAM_TOKEN")
    if not token:
        print(f"{session_id}: {text}", flush=True)
        return
    api = os.environ.get("TELEGRAM_API", "https://api.telegram.org")
    message = {"chat_id": int(session_id.partition(":")[2]), "text": text}
    request = urllib.request.Request(
        f"{api}/bot{token}/sendMessage", json.dumps(message).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=10):
        pass


def make_shard() -> Shard:
    store = RedisSessionStore(REDIS_URL, key_prefix="mybot:")  # or a MongoSessionStore; all shards share it
    return Shard(REDIS_URL, cluster="mybot", store=store, handler=handle, deliver=deliver)


if __name__ == "__main__":
    make_shard().run()  # one shard, without the command
