"""A bot that reads, waits and writes without a lock: run as a peer by
tests/tools/test_benchmarks_peers.py.
"""

from __future__ import annotations

import asyncio

from benchmarks._peers._drive import drive, read_job
from benchmarks._workload import remember_and_await


async def main() -> None:
    sessions: dict[str, dict[str, object]] = {}

    async def dispatch(user: str, text: str) -> None:
        session = dict(sessions.get(user, {}))
        await remember_and_await(session, text)
        sessions[user] = session

    measured = await drive(job := read_job(), dispatch)
    measured.print({user: int(str(sessions.get(user, {}).get("n", 0))) for user in job.users})


if __name__ == "__main__":
    asyncio.run(main())
