"""pykka with its defaults: a `ThreadingActor` per user, asked by 64 threads.

Each actor reads its session from the store and writes it back.
"""

from __future__ import annotations

from typing import Any

import pymongo
import redis

from benchmarks._floors import PykkaFloor, Shelf
from benchmarks._peers._drive import Job, drive_threads, read_job


class RedisShelf:
    def __init__(self, job: Job) -> None:
        self._client = redis.Redis.from_url(job.url)
        self._prefix = job.place

    def get(self, session_id: str) -> bytes | None:
        data: Any = self._client.get(f"{self._prefix}:{session_id}")
        return data  # type: ignore[no-any-return]

    def __setitem__(self, session_id: str, data: bytes) -> None:
        self._client.set(f"{self._prefix}:{session_id}", data)


class MongoShelf:
    def __init__(self, job: Job) -> None:
        client = pymongo.MongoClient[dict[str, Any]](job.url, w="majority", journal=True)
        self._sessions = client[job.database][job.place]

    def get(self, session_id: str) -> bytes | None:
        found = self._sessions.find_one({"_id": session_id})
        return None if found is None else found["data"]

    def __setitem__(self, session_id: str, data: bytes) -> None:
        self._sessions.replace_one({"_id": session_id}, {"data": data}, upsert=True)


def main() -> None:
    job = read_job()
    shelf: Shelf = {} if job.store == "memory" else RedisShelf(job) if job.store == "redis" else MongoShelf(job)
    actors = PykkaFloor(shelf)
    actors.open(job.users)
    try:
        measured = drive_threads(job, actors.dispatch)
        measured.print({user: actors.counter_of(user) for user in job.users})
    finally:
        actors.close()


main()
