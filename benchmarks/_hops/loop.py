"""A bare loop: the work of the CPU-bound handler, and nothing else."""

from __future__ import annotations

import asyncio
from time import perf_counter

from benchmarks._hops._orders import next_order, read_job, say, spin


async def main() -> None:
    spins = read_job()["spins"]
    say()
    while (order := await next_order()) is not None:
        events, started = 0, perf_counter()
        while perf_counter() < started + order["seconds"]:
            spin(spins)
            events += 1
        say(events=events, seconds=perf_counter() - started)


asyncio.run(main())
