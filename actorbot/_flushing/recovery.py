"""Writing a batch, with a look at what the store has, where it may be older or newer than is known.

Sessions that came from the journal are looked at first. Others are looked at when their write meets
a conflict or damage: then the store may have gone back in time, and what is in memory is whole.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Final

from actorbot._flushing.set_back import SetBacks
from actorbot._flushing.write import PendingWrite
from actorbot._state.committed import ANYBODYS, Lineage, write_id_of
from actorbot._state.record import RING_BYTES, Record, has_id, is_of_another_release
from actorbot.errors import (
    ActorbotError,
    ConflictError,
    CorruptSessionError,
    OutcomeUnknownError,
    StoreUnavailableError,
)
from actorbot.stores._batches import as_ours, is_outage
from actorbot.stores.base import RecordStore, Write

__all__ = ["JournalBehind", "Rebased", "Refused", "Settled", "is_outdated", "rebase", "write_batch", "write_jobs"]

# What may have to do with what is stored rather than with what is written.
_SECOND_LOOK: Final = (ConflictError, CorruptSessionError)

# Looks at one session: between a look and the write, a write of somebody else may arrive.
LOOKS: Final = 3


@dataclass(frozen=True, slots=True)
class Rebased:
    """The write may be tried: it goes on from what the store has."""

    write: Write


@dataclass(frozen=True, slots=True)
class Settled:
    """There is nothing to write."""

    error: ActorbotError | None
    """Why not: what is stored is somebody else's, or broken. `None`: the write was done before."""


@dataclass(frozen=True, slots=True)
class JournalBehind:
    """The same process has stored something newer: a power loss has set the journal back."""


@dataclass(frozen=True, slots=True)
class Refused:
    """The store cannot write some session of a batch, and has not said which."""

    error: ActorbotError


def write_batch(
    store: RecordStore, jobs: Sequence[PendingWrite], set_backs: SetBacks, check: Callable[[], None]
) -> Sequence[ActorbotError | None] | Refused:
    """Write a batch, if *check* lets it; return what became of each.

    Raises: what *check* raises, and `RecordStore.write_many` when the store is down.
    """
    check()
    try:
        results = write_jobs(store, jobs, set_backs)
    except Exception as error:
        if is_outage(error):
            raise
        if len(jobs) == 1:
            return _find_out(store, jobs[0], error)
        return Refused(as_ours(OutcomeUnknownError, store.name, error))
    if len(results) != len(jobs):
        raise OutcomeUnknownError(store.name, f"{len(results)} results for {len(jobs)} writes")
    return results


def _find_out(store: RecordStore, job: PendingWrite, error: Exception) -> Sequence[None] | Refused:
    """Find out whether a write was done, all the same, that the store refuses alone.

    It was not, as a rule. Once that is known, newer state may be sent in its place.
    """
    session_id = job.session.session_id
    stored = None if isinstance(error, ActorbotError) else store.read_many([session_id])[0]
    if isinstance(stored, ActorbotError):
        return Refused(as_ours(OutcomeUnknownError, store.name, error, session_id))
    if stored is not None and has_id(stored.write_ids, job.write.record.write_id):
        return [None]
    job.unknown = False
    return Refused(as_ours(StoreUnavailableError, store.name, error, session_id))


def write_jobs(store: RecordStore, jobs: Sequence[PendingWrite], set_backs: SetBacks) -> Sequence[ActorbotError | None]:
    """Write a batch; return what became of each, as `RecordStore.write_many` does.

    Raises: as that, and as `read_many`.
    """
    recovered = any(map(_is_recovered, jobs))
    outcomes = _write_recovered(store, jobs) if recovered else store.write_many([job.write for job in jobs])
    if not any(outcomes) or len(outcomes) != len(jobs):
        return outcomes
    return _end_doubts(store, jobs, _write_again(store, jobs, outcomes, set_backs))


def _end_doubts(
    store: RecordStore, jobs: Sequence[PendingWrite], outcomes: list[ActorbotError | None]
) -> list[ActorbotError | None]:
    """Find out whether an earlier try, without an answer, of what is refused now was done.

    It was not, as a rule. Else a state that no store takes would be sent again for ever, and
    nothing newer of its session.
    """
    doubtful = [n for n, job in enumerate(jobs) if job.unknown and _is_refusal(outcomes[n])] if store.compares else []
    try:
        found = store.read_many([jobs[n].session.session_id for n in doubtful]) if doubtful else ()
    except ActorbotError:
        return outcomes  # the doubt stays: others of the batch were written
    for n, stored in zip(doubtful, found, strict=True):
        if isinstance(stored, Record) and has_id(stored.write_ids, jobs[n].write.record.write_id):
            outcomes[n] = None
        elif not isinstance(stored, ActorbotError):
            jobs[n].unknown = False
    return outcomes


def _is_refusal(outcome: ActorbotError | None) -> bool:
    return outcome is not None and not isinstance(outcome, (*_SECOND_LOOK, OutcomeUnknownError))


def _write_again(
    store: RecordStore, jobs: Sequence[PendingWrite], outcomes: Sequence[ActorbotError | None], set_backs: SetBacks
) -> list[ActorbotError | None]:
    """Write again what met an older state of its own session, or a damaged record of it."""
    became = dict(zip(jobs, outcomes, strict=True))
    for _ in range(LOOKS):
        # What the store has of sessions from the journal was looked at before.
        met = [job for job in jobs if isinstance(became[job], _SECOND_LOOK) and not _is_recovered(job)]
        if not met:
            break
        tried = met
        try:
            found = store.read_many([job.session.session_id for job in met])
            became |= {job: each for job, each in zip(met, found, strict=True) if isinstance(each, ActorbotError)}
            tried = [job for job, each in zip(met, found, strict=True) if _goes_over(job, each, set_backs)]
            written = store.write_many([job.write for job in tried]) if tried else ()
        except ActorbotError as error:
            # Others of the batch were written: it has not failed as a whole.
            became |= dict.fromkeys(tried, error)
            break
        became |= dict(zip(tried, written, strict=True))
        set_backs.note([job.session for job in tried if became[job] is None and not job.write.over_damage])
        if not tried:
            break
    return list(became.values())


def _goes_over(job: PendingWrite, stored: Record | ActorbotError | None, set_backs: SetBacks) -> bool:
    """Tell whether what is *stored* is older or damaged, and make the write of *job* go over it."""
    if isinstance(stored, CorruptSessionError) and not is_of_another_release(stored):
        job.write = _over_damage(job.write)
        return True
    if not isinstance(stored, Record) or not set_backs.is_older(stored, job.session):
        return False
    job.write = replace(job.write, base=stored.write_id)
    return True


def _over_damage(write: Write) -> Write:
    """Make *write* go over a damaged record. What is destroyed leaves nothing behind."""
    return replace(write, base=None) if write.record.state is None else replace(write, over_damage=True)


def _write_recovered(store: RecordStore, jobs: Sequence[PendingWrite]) -> list[ActorbotError | None]:
    outcomes: dict[PendingWrite, ActorbotError | None] = {}
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


def _rebase(store: RecordStore, jobs: Sequence[PendingWrite]) -> dict[PendingWrite, ActorbotError | None]:
    """Make the writes of recovered sessions fit what the store has; return what is settled."""
    settled: dict[PendingWrite, ActorbotError | None] = {}
    found = store.read_many([job.session.session_id for job in jobs]) if jobs else ()
    for job, stored in zip(jobs, found, strict=True):
        match rebase(job.write, job.session.lineages, stored, store.name):
            case Rebased(write):
                job.write = write
            case Settled(error):
                settled[job] = error
            case JournalBehind():
                # If the versions differ, events have come on top of what the journal had.
                job.journal_behind = job.write.record.version == job.session.lineages[0].last
                settled[job] = ConflictError(
                    store.name,
                    "the store has newer events of it, which the journal had lost",
                    session_id=job.session.session_id,
                )
    return settled


def rebase(
    write: Write, lineages: tuple[Lineage, ...], stored: Record | ActorbotError | None, store: str
) -> Rebased | Settled | JournalBehind:
    """Decide about the write of a recovered state, by the first look at the store since."""
    forced = ANYBODYS in lineages
    if stored is None:
        return Rebased(replace(write, base=b"") if forced else write)
    if isinstance(stored, ActorbotError):
        if isinstance(stored, CorruptSessionError) and not (forced or is_of_another_release(stored)):
            return Rebased(_over_damage(write))
        return Rebased(replace(write, base=None)) if forced else Settled(stored)
    record = write.record
    if has_id(stored.write_ids, record.write_id):
        return Settled(None)
    if forced or _is_ours(record, lineages, stored):
        write_ids = (record.write_id + stored.write_ids)[:RING_BYTES]
        return Rebased(Write(replace(record, write_ids=write_ids), stored.write_id))
    name, last = lineages[0]
    if stored.version > last and stored.write_id == write_id_of(name, stored.version):
        return JournalBehind()
    return Settled(write.conflict(store))


def _is_ours(record: Record, lineages: tuple[Lineage, ...], stored: Record) -> bool:
    """Tell whether *record* goes on from what is stored, perhaps with others of ours in between."""
    if stored.write_id == record.write_ids[8:16]:
        return True
    if stored.write_id and has_id(record.write_ids[8:], stored.write_id):
        return True  # the store has gone back: it was restored from a copy, or has failed over
    return any(
        stored.version <= last and stored.write_id == write_id_of(name, stored.version) for name, last in lineages
    )


def _is_recovered(job: PendingWrite) -> bool:
    """Tell whether what the store has is to be looked at before *job* is written."""
    return bool(job.session.lineages) and not is_outdated(job)


def is_outdated(job: PendingWrite) -> bool:
    """Tell whether the session of *job* was destroyed after *job* was made.

    The tombstone then replaces what is stored by force, and *job* must not.
    """
    lineages = job.session.lineages
    return bool(lineages) and job.write.record.version < lineages[0].last
