"""Where tests look into a manager. No other test touches a private name of one."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any

import pytest

from actorbot import SessionManager
from actorbot._manager import exits
from actorbot._manager.access import Life

if TYPE_CHECKING:  # it needs a driver, which not every test has
    from actorbot.cluster import Cluster, Shard


def parts(manager: SessionManager) -> Any:
    """Return what the started manager consists of."""
    return manager._parts


def home(manager: SessionManager) -> Any:
    """Return where the manager's code runs."""
    return parts(manager).home


def private_loop(manager: SessionManager) -> Any:
    """Return the loop on which a manager on threads runs what is `async`, or None as long as
    nothing was.
    """
    return home(manager)._loop


def next_look(manager: SessionManager) -> Any:
    """Return the timer of the next look at how busy the manager's loop is."""
    return home(manager)._next_look


def is_open(manager: SessionManager) -> bool:
    """Tell whether the manager has started and nobody has closed it."""
    return manager._life is Life.OPEN


def table(manager: SessionManager) -> Any:
    """Return the table of the sessions in memory."""
    return parts(manager).table


def resident(manager: SessionManager, session_id: str) -> Any:
    """Return the actor of a session that is in memory."""
    return table(manager).actors[session_id]


def is_busy(manager: SessionManager, session_id: str) -> bool:
    """Tell whether somebody has the turn of a session that is in memory."""
    actor = table(manager).actors.get(session_id)
    return actor is not None and actor.turn.locked()


def shared(manager: SessionManager) -> Any:
    """Return what all turns of the manager share."""
    return parts(manager).shared


def flusher(manager: SessionManager) -> Any:
    """Return what brings committed sessions to the store."""
    return shared(manager).flusher


def journal(manager: SessionManager) -> Any:
    """Return the journal of a manager that has one."""
    assert has_journal(manager)
    return shared(manager).journal


def connection(manager: SessionManager) -> Any:
    """Return the journal's connection to SQLite."""
    return journal(manager)._file._connection


def has_journal(manager: SessionManager) -> bool:
    """Tell whether the manager keeps a journal."""
    return shared(manager).journal is not None


def outbox(manager: SessionManager) -> Any:
    """Return what delivers replies."""
    return shared(manager).outbox


def watched(manager: SessionManager) -> int:
    """Count the sessions that are remembered so that they leave memory when they have been idle."""
    return len(parts(manager).sweeper._idle)


async def bring(manager: SessionManager, session_ids: list[str]) -> None:
    """Bring sessions that only the journal has to the store."""
    await parts(manager).replay._bring(session_ids)


def reads(manager: SessionManager) -> Any:
    """Return the ids that the store is being asked for."""
    return parts(manager).loader._at_store


def asked(manager: SessionManager) -> int:
    """Count the events that wait for the journal to begin its next transaction."""
    return len(journal(manager)._asked)


def events_at_risk(manager: SessionManager) -> tuple[int, int]:
    """Return how many events are at risk as the manager counts them, and as the sessions' own
    counts add up.
    """
    turns, actors = shared(manager), table(manager).actors.values()
    return turns.handled + turns.ended - turns.flusher.outcome.settled, sum(each.behind() for each in actors)


def outcome(receipt: Any) -> Future[Any]:
    """Return what a receipt waits for."""
    return receipt._outcome  # type: ignore[no-any-return]


def set_outcome(receipt: Any, future: Future[Any]) -> None:
    """Have a receipt wait for *future*."""
    receipt._outcome = future


def replace_wait(patch: pytest.MonkeyPatch, manager: SessionManager, function: Any) -> None:
    """Have a thread that waits for a verb of the manager call *function* instead."""
    patch.setattr(manager, "_run_sync", function)


def lose_sessions(manager: SessionManager) -> None:
    """Empty the manager's memory, so that its close writes nothing: its process has been killed."""
    table(manager).actors.clear()


def end_threads(manager: SessionManager) -> None:
    """End the threads of a manager that can no longer be closed."""
    parts(manager).end()


def forget(manager: SessionManager) -> None:
    """Take the manager for closed, so that nothing closes it at the end of the program."""
    manager._live(Life.CLOSED)
    exits.forget(manager)


def loop_of(cluster: Cluster) -> asyncio.AbstractEventLoop:
    """Return the loop that the cluster is at home on."""
    return cluster._loop


def manager_of(shard: Shard) -> SessionManager:
    """Return the manager of a shard."""
    return shard._manager


def receipts_of(cluster: Cluster) -> int:
    """Count the receipts whose answers are still to come."""
    return len(cluster._caller.waiting.receipts)
