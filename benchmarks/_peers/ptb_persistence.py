"""python-telegram-bot: updates go through the queue of a started `Application`.

The session is `context.user_data`, which is pickled. The transport is faked: it answers `getMe`,
and nothing else is asked. By default `PicklePersistence` writes once a minute and when the
application stops. So the flush that is reported is the stop, after the clock. The counters are read
from the file by another persistence.
"""

from __future__ import annotations

import asyncio
import json
import tempfile
from dataclasses import replace
from itertools import count
from pathlib import Path
from time import perf_counter
from typing import Any

from telegram import Update
from telegram.ext import Application, ApplicationBuilder, MessageHandler, PicklePersistence
from telegram.request import BaseRequest

from benchmarks._peers._drive import Job, drive, number_of, read_job, update_of

ME = {"id": 1, "is_bot": True, "first_name": "Bot", "username": "bench_bot"}


class Offline(BaseRequest):
    """Telegram's servers, as far as an application needs them to start."""

    @property
    def read_timeout(self) -> float | None:
        return None

    async def initialize(self) -> None:
        pass

    async def shutdown(self) -> None:
        pass

    async def do_request(self, url: str, *_: Any, **__: Any) -> tuple[int, bytes]:
        if not url.endswith("/getMe"):
            raise RuntimeError(f"{url.rpartition('/')[2]} was not expected")
        return 200, json.dumps({"ok": True, "result": ME}).encode()


def make_application(job: Job, file: Path) -> Application[Any, Any, Any, Any, Any, Any]:
    builder = ApplicationBuilder().token("1:a-token-that-is-never-sent").updater(None)
    builder = builder.request(Offline()).get_updates_request(Offline()).persistence(PicklePersistence(file))
    return builder.concurrent_updates(job.variant == "concurrent").build()


async def main() -> None:
    job = read_job()
    change, waiting = job.change, dict[int, asyncio.Future[None]]()
    update_ids = count(1)

    async def handle(update: Update, context: Any) -> None:
        assert update.message is not None
        await change(context.user_data, update.message.text or "")
        waiting.pop(update.update_id).set_result(None)

    async def dispatch(user: str, text: str) -> None:
        update_id = next(update_ids)
        waiting[update_id] = answered = asyncio.get_running_loop().create_future()
        await application.update_queue.put(Update.de_json(update_of(user, text, update_id), application.bot))
        await answered

    with tempfile.TemporaryDirectory(prefix="ptb-") as folder:
        file = Path(folder) / "persistence.pickle"
        application = make_application(job, file)
        application.add_handler(MessageHandler(None, handle))
        await application.initialize()
        await application.start()
        measured = await drive(job, dispatch)
        answered = perf_counter()
        await application.stop()
        await application.shutdown()
        measured = replace(measured, flush_seconds=perf_counter() - answered)
        stored = await PicklePersistence(file).get_user_data()
        measured.print({user: stored.get(number_of(user), {}).get("n", 0) for user in job.users})


asyncio.run(main())
