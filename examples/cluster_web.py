"""Telegram's webhook for the shards of `cluster_bot.py`: any number of workers, on any machine.

    TELEGRAM_SECRET_TOKEN=… uvicorn examples.cluster_web:app --workers 2

The path is /telegram. The workers have no sessions: each puts what comes into the log in Redis
(REDIS_URL), and answers when that has it. So an update that was answered is handled, though worker
and shard be killed, and one that Telegram sends twice counts once.
"""

import os
import sys

from actorbot.cluster import Cluster
from actorbot.ext.asgi import webhook_app
from actorbot.ext.webhooks import Telegram

secret = os.environ.get("TELEGRAM_SECRET_TOKEN") or sys.exit(
    "set TELEGRAM_SECRET_TOKEN: what you have given to setWebhook"
)
cluster = Cluster(os.environ.get("REDIS_URL", "redis://localhost/0"), cluster="mybot")
app = webhook_app(cluster, {"/telegram": Telegram(secret, answer="accepted")})
