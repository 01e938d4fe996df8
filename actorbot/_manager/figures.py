"""How a manager is doing: its counters, its health, and the sessions that are in memory."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from actorbot._manager.parts import Parts
from actorbot._reports import Health, SessionInfo, Stats

__all__ = ["health_of", "sessions_of", "stats_of"]

NAMED: Final = 5  # sessions that a reason names at most


def stats_of(parts: Parts) -> Stats:
    """Return the counters and gauges. Any thread."""
    shared, table = parts.shared, parts.table
    dirty, flusher = shared.dirty, shared.flusher
    return Stats(
        handled=shared.handled,
        failed=shared.failed,
        duplicates=shared.duplicates,
        activations=table.activations,
        passivations=table.passivations,
        resident=len(table.actors),
        running=len(shared.running.deadlines),
        dirty_bytes=dirty.bytes,
        oldest_dirty=dirty.oldest(),
        events_at_risk=0 if parts.journal is not None else shared.at_risk(),
        bytes_at_risk=0 if parts.journal is not None else dirty.bytes,
        journal_bytes=dirty.journal_bytes,
        store_reads=parts.loader.reads,
        store_writes=flusher.outcome.writes,
        store_retries=flusher.retries.count,
        conflicts=flusher.outcome.conflicts,
        set_back=flusher.set_backs.count,
        damaged=parts.store.set_aside,
        backed_off=parts.broken.count(parts.clock.monotonic()),
        dead_letters=parts.hooks.dead_letters,
        replies_waiting=shared.outbox.room.replies,
        reply_bytes=shared.outbox.room.bytes,
        nearly_full=dirty.fullness.count(),
        ownership=None if shared.keeper is None else shared.keeper.ownership(),
    )


def health_of(parts: Parts) -> Health:
    """Say whether the parts do their work. Any thread."""
    dirty, flusher = parts.shared.dirty, parts.shared.flusher
    if not (flusher.is_running() and parts.sweeper.is_running()):
        return Health("failing", "an actor of the manager has ended; restart the process")
    if parts.journal is not None and parts.journal.broken is not None:
        return Health("failing", f"journal: {parts.journal.broken}; no event is acknowledged")
    if parts.store.flaw is not None:
        return Health("failing", parts.store.flaw)
    if parts.journal is not None and parts.journal.hampered is not None:
        return Health("degraded", f"journal: {parts.journal.hampered}")
    if dirty.full:
        return Health("degraded", f"{dirty.bytes} bytes wait to be flushed (max_dirty_bytes)")
    if (reason := parts.shared.outbox.room.crowded()) is not None:
        return Health("degraded", reason)
    if flusher.retries.outage_since is not None:
        seconds = parts.clock.monotonic() - flusher.retries.outage_since
        return Health(
            "degraded", f"{parts.store.name} has not taken writes for {seconds:.1f} s: {flusher.retries.outage}"
        )
    if parts.shared.keeper is not None and parts.shared.keeper.trouble is not None:
        return Health("degraded", f"the lease cannot be renewed: {parts.shared.keeper.trouble}")
    if (reason := parts.loader.unreadable()) is not None:
        return Health("degraded", f"the last read failed: {reason}")
    if flusher.retries.refusing:
        return Health("degraded", _refused(parts.store.name, flusher.retries.refused()))
    if complaint := parts.store.complaint:
        return Health("degraded", complaint)
    return Health("ready", "")


def _refused(store: str, ids: list[str]) -> str:
    named = ", ".join(map(repr, ids[:NAMED])) + (f" and {len(ids) - NAMED} others" if len(ids) > NAMED else "")
    return f"{store} does not take the writes of some sessions: {named}"


def sessions_of(parts: Parts) -> Iterator[tuple[str, SessionInfo]]:
    """Iterate over the sessions in memory. Any thread."""
    now = parts.clock.monotonic()
    for actor in parts.table.resident():
        version, state = (0, None) if actor.committed is None else actor.committed[:2]
        yield (
            actor.session_id,
            SessionInfo(
                version=version,
                flushed=actor.flushed,
                idle=now - actor.touched,
                waiting=len(actor.line or ()),
                busy=actor.turn.locked(),
                bytes=0 if state is None else len(state),
            ),
        )
