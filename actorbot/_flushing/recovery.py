"""Writing sessions that came from the journal: the store is looked at first, for what it has of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from actorbot._entry import rebase
from actorbot._flushing.write import Job
from actorbot._state.record import Record
from actorbot.errors import ActorbotError, ConflictError
from actorbot.stores.base import RecordStore, Write

__all__ = ["is_outdated", "write_jobs"]

LOOKS: Final = 3  # for a session: between a look and its write, a write of the process that died may come


def write_jobs(store: RecordStore, jobs: Sequence[Job]) -> Sequence[ActorbotError | None]:
    """Write a batch; return what became of each, as `RecordStore.write_many` does. Raises: as that, and as `read_many`."""
    if not any(map(_is_recovered, jobs)):
        return store.write_many([job.write for job in jobs])
    outcomes: dict[Job, ActorbotError | None] = {}
    left = jobs
    for _ in range(LOOKS):
        settled = _rebase(store, [job for job in left if _is_recovered(job)])
        left = [job for job in left if job not in settled]
        written = store.write_many([job.write for job in left]) if left else ()
        outcomes |= settled | dict(zip(left, written, strict=True))
        left = [job for job in left if _is_recovered(job) and isinstance(outcomes[job], ConflictError)]
        if not left:
            break
    return [outcomes[job] for job in jobs]


def _rebase(store: RecordStore, jobs: Sequence[Job]) -> dict[Job, ActorbotError | None]:
    """Make the writes of recovered sessions fit what the store has; return what is settled by looking."""
    settled: dict[Job, ActorbotError | None] = {}
    found = store.read_many([job.session.session_id for job in jobs]) if jobs else ()
    for job, stored in zip(jobs, found, strict=True):
        verdict = rebase(job.write, job.session.lineages, stored, store.name)
        if isinstance(verdict, Write):
            job.write = verdict
        elif isinstance(verdict, Record):
            job.set_back = job.write.record.version == job.session.lineages[0][1]  # else events have come on top
            settled[job] = ConflictError(
                store.name,
                "the store has newer events of it, which the journal had lost",
                session_id=verdict.session_id,
            )
        else:
            settled[job] = verdict
    return settled


def _is_recovered(job: Job) -> bool:
    """Tell whether what the store has is to be looked at before *job* is written."""
    return bool(job.session.lineages) and not is_outdated(job)


def is_outdated(job: Job) -> bool:
    """Tell whether its session was destroyed after *job* was made: what replaces anything by force is the tombstone, and not this."""
    lineages = job.session.lineages
    return bool(lineages) and job.write.record.version < lineages[0][1]
