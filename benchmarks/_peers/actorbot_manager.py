"""actorbot, as one embeds it on a loop; the clock stops when the store has everything."""

from __future__ import annotations

import asyncio

from benchmarks._actorbot import LoopActorbot
from benchmarks._peers._drive import drive, read_job


async def main() -> None:
    job = read_job()
    actorbot = LoopActorbot(job.store, job.url, job.policy, job.handler, len(job.users))
    await actorbot.open(job.users)
    try:
        measured = await drive(job, actorbot.dispatch, actorbot.flush)
        measured.print({user: actorbot.counter_of(user) for user in job.users})
    finally:
        await actorbot.close()


asyncio.run(main())
