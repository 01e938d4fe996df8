"""What the flusher is told, beside WriteThrough."""

from __future__ import annotations

from concurrent.futures import Future
from dataclasses import dataclass, field

from actorbot._flushing.waiters import Goal
from actorbot._flushing.write import Flushable, PendingWrite
from actorbot._runtime.home import new_future
from actorbot.errors import ActorbotError

__all__ = ["Abandon", "Anew", "End", "Flush", "FlushDue", "Relieve", "RetryDue", "Returned", "Spill"]


@dataclass(frozen=True, slots=True)
class FlushDue:
    """The time of some sessions is up; *done*, if there is one, when all is written."""

    done: Future[None] | None


@dataclass(frozen=True, slots=True)
class Flush:
    """Write these sessions now, or only wait for them if not in a *hurry*.

    *done* when the store has these versions, or when all was tried and some could not be written.
    """

    goals: list[Goal]
    hurry: bool = True
    done: Future[None] = field(default_factory=new_future)


@dataclass(frozen=True, slots=True)
class Relieve:
    """Write this session now; *done* when that is done, or when it turns out that it cannot be."""

    session: Flushable
    done: Future[None] = field(default_factory=new_future)


@dataclass(frozen=True, slots=True)
class Anew:
    """Write these sessions once more, although the store has confirmed them: it has gone back."""

    sessions: list[Flushable]


@dataclass(frozen=True, slots=True)
class Spill:
    """Let go of this session: it has left memory, and the journal has what the store has not."""

    session: Flushable


@dataclass(frozen=True, slots=True)
class Abandon:
    """Write nothing of these sessions any more; *done* when what they had is handed over."""

    sessions: list[Flushable]
    error: ActorbotError
    done: Future[None] = field(default_factory=new_future)


@dataclass(frozen=True, slots=True)
class Returned:
    """A call that was left behind has come back: nothing of it is still to come."""

    jobs: list[PendingWrite]


@dataclass(frozen=True, slots=True)
class RetryDue:
    """The pause of these is over; without any, the pause of all."""

    jobs: list[PendingWrite]
    done: Future[None] = field(default_factory=new_future)


@dataclass(frozen=True, slots=True)
class End:
    """Write nothing any more."""
