"""Polls Telegram for the shards of `cluster_bot.py`.

    TELEGRAM_TOKEN=… python examples/cluster_poller.py

Telegram forgets an update when it is asked for a later one. So the poller asks for later ones when
`submit` has returned: then the update is in the log in Redis (REDIS_URL), and is handled though the
poller be killed. What it has not confirmed comes again, and counts once by its `event_id`.
"""

import json
import os
import sys
import time
import urllib.request
from typing import Any

from actorbot import Event
from actorbot.cluster import Cluster
from actorbot.errors import OverloadedError, StoreError

API = os.environ.get("TELEGRAM_API", "https://api.telegram.org")
PAUSE = 1.0  # seconds after a failure


def main() -> None:
    token = os.environ.get("TELEGRAM_TOKEN") or sys.exit("set TELEGRAM_TOKEN: what BotFather has given you")
    offset = 0
    with Cluster(os.environ.get("REDIS_URL", "redis://localhost/0"), cluster="mybot") as cluster:
        while True:
            try:
                for update in get_updates(token, offset):
                    take(cluster, update)
                    offset = update["update_id"] + 1  # only now: the log has it
            except (OSError, StoreError, OverloadedError) as error:  # try again, from the same offset
                print(error, file=sys.stderr)
                time.sleep(PAUSE)


def get_updates(token: str, offset: int) -> list[dict[str, Any]]:
    url = f"{API}/bot{token}/getUpdates?offset={offset}&timeout=30"
    with urllib.request.urlopen(url, timeout=40) as answer:
        updates: list[dict[str, Any]] = json.load(answer)["result"]
        return updates


def take(cluster: Cluster, update: dict[str, Any]) -> None:
    message = update.get("message", {})
    if "text" in message:
        event = Event.from_text(message["text"])
        cluster.submit_sync(f"telegram:{message['chat']['id']}", event, event_id=str(update["update_id"]))


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:
        pass
