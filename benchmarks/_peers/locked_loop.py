"""By hand: an `asyncio.Lock` per user around a read from the store, the change, and a write."""

from __future__ import annotations

import asyncio

from benchmarks._floors import LockFloor
from benchmarks._peers._drive import drive, read_job
from benchmarks._servers import FLOORS, Place


async def main() -> None:
    job = read_job()
    place = Place(job.store, job.url)
    floor = LockFloor({}, job.handler) if job.store == "memory" else FLOORS[job.store](place, job.handler)
    await floor.open(job.users)
    try:
        measured = await drive(job, floor.dispatch)
        measured.print({user: floor.counter_of(user) for user in job.users})
    finally:
        await floor.close()


asyncio.run(main())
